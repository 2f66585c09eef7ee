"""Where the parts of an installation are, as the service's files name them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

LABEL = "dev.mlxd"
"""launchd's name for the service."""
UNIT = "mlxd"
"""systemd's, without `.service` and `.socket`."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Absolute paths of one installation. What is None is looked for by the daemon itself."""

    program: PurePosixPath
    """The `mlxd` to run."""
    policies: PurePosixPath | None
    state: PurePosixPath | None
    logs: PurePosixPath
    models: PurePosixPath | None = None
    """A folder for models that belongs to the machine, not to a user."""
    user: str = ""
    """Whom the service runs as; empty: whoever installed it."""


SYSTEM_LINUX = Layout(
    program=PurePosixPath("/usr/bin/mlxd"),
    policies=PurePosixPath("/etc/mlxd/policies"),
    state=PurePosixPath("/var/lib/mlxd"),
    logs=PurePosixPath("/var/log/mlxd"),
    models=PurePosixPath("/srv/mlxd/models"),
    user="mlxd",
)
SYSTEM_MAC = Layout(
    program=PurePosixPath("/usr/local/bin/mlxd"),
    policies=PurePosixPath("/usr/local/etc/mlxd/policies"),
    state=PurePosixPath("/usr/local/var/mlxd"),
    logs=PurePosixPath("/usr/local/var/log/mlxd"),
    models=PurePosixPath("/Users/Shared/mlxd/models"),
    user="_mlxd",
)
BREW_MAC = Layout(
    program=PurePosixPath("/opt/homebrew/opt/mlxd/bin/mlxd"),
    policies=PurePosixPath("/opt/homebrew/etc/mlxd/policies"),
    state=PurePosixPath("/opt/homebrew/var/mlxd"),
    logs=PurePosixPath("/opt/homebrew/var/log/mlxd"),
)
"""As Homebrew has it on a Mac with Apple silicon."""
USER_LINUX = Layout(
    program=PurePosixPath("%h/.local/bin/mlxd"),
    policies=None,
    state=None,
    logs=PurePosixPath("%h/.local/state/mlxd"),
)
"""As pipx and uv put it into the home of whoever it is, which systemd writes as %h."""


def of_mac_user(home: PurePosixPath, program: PurePosixPath) -> Layout:
    """The logs are where Console shows them."""
    return Layout(program, policies=None, state=None, logs=home / "Library/Logs/mlxd")


def of_linux_user(home: PurePosixPath, program: PurePosixPath) -> Layout:
    """The log is in the journal."""
    return Layout(program, policies=None, state=None, logs=home / ".local/state/mlxd")
