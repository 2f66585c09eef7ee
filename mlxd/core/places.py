"""Where things are on this machine: the policy folder, the state folder, mlxd.env.

The daemon and every command look in the same way; this costs no import beyond the standard library.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from mlxd.core import durable

ENV_FILE = "mlxd.env"
VARIABLES = (
    "MLXD_POLICIES",
    "MLXD_STATE",
    "MLXD_HOST",
    "MLXD_PORT",
    "MLXD_MODELS",
    "MLXD_LOGS",
    "MLX_API_PORT",
    "MLX_API_WORKERS",
    "MLX_API_URL",
)
_MOST_BYTES = 1 << 20
_ASSIGNMENT = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)=(.*)")


class BadEnvFile(ValueError):
    """mlxd.env cannot be read; the message names the line."""


class BadAddress(ValueError):
    """A variable that is to say where the daemon is does not; the message names it."""


class Found(NamedTuple):
    """A folder and how it was found."""

    path: Path
    source: str
    """Such as `--policies`, `environment MLXD_POLICIES`, or where it was looked for."""
    named: bool = True
    """Somebody named it; else it was found where one is looked for."""


class Setting(NamedTuple):
    """A variable's value and where it was set."""

    text: str
    source: str
    """Such as `environment MLX_API_PORT` or `mlxd.env:3 MLX_API_PORT`."""


class Places(NamedTuple):
    """What `find` found."""

    state: Found
    policies: Found | None = None
    """None: there is no policy folder, built-in defaults hold."""
    settings: Mapping[str, Setting] = MappingProxyType({})
    """The variables of VARIABLES that are set; the environment wins over mlxd.env."""
    warnings: tuple[str, ...] = ()


def find(
    policies: str | None = None,
    state: str | None = None,
    environ: Mapping[str, str] | None = None,
    system: Path = Path("/"),
) -> Places:
    """Look for everything. `policies` and `state` are the flags; raises BadEnvFile."""
    environ = os.environ if environ is None else environ
    folder = policy_folder(policies, environ, system)
    settings, warnings = _settings(env_file(folder, environ, system), environ)
    return Places(state_folder(state, settings, environ, system), folder, settings, warnings)


def policy_folder(
    flag: str | None, environ: Mapping[str, str], system: Path = Path("/")
) -> Found | None:
    """The one that was named, there or not; else the first that is there."""
    if flag:
        return Found(_path(flag, environ), "--policies")
    if environ.get("MLXD_POLICIES"):
        return Found(_path(environ["MLXD_POLICIES"], environ), "environment MLXD_POLICIES")
    for folder in _usual_folders(environ, system):
        if is_there(folder.is_dir):
            return Found(folder, f"found at {folder}", named=False)
    return None


def env_file(
    folder: Found | None, environ: Mapping[str, str], system: Path = Path("/")
) -> Path | None:
    """mlxd.env in the policy folder or next to it; without a folder, where one would be."""
    folders = [folder.path] if folder is not None else list(_usual_folders(environ, system))
    for candidate in folders:
        for file in (candidate / ENV_FILE, candidate.parent / ENV_FILE):
            if is_there(file.is_file):
                return file
    return None


def state_folder(
    flag: str | None,
    settings: Mapping[str, Setting],
    environ: Mapping[str, str],
    system: Path = Path("/"),
) -> Found:
    """The one that was named, else the platform's own."""
    if flag:
        return Found(_path(flag, environ), "--state")
    if setting := settings.get("MLXD_STATE"):
        return Found(_path(setting.text, environ), setting.source)
    if given := environ.get("STATE_DIRECTORY", "").partition(":")[0]:
        return Found(Path(given), "environment STATE_DIRECTORY")
    return Found(_usual_state(environ, system), "default")


def logs_folder(
    settings: Mapping[str, Setting], environ: Mapping[str, str], *, terminal: bool
) -> Path | None:
    """Where a log file of the daemon's own belongs; None: somebody keeps what it says on stderr.

    `terminal`: stderr is one.
    """
    if setting := settings.get("MLXD_LOGS"):
        return _path(setting.text, environ)
    if terminal or environ.get("JOURNAL_STREAM"):
        return None
    if given := environ.get("LOGS_DIRECTORY", "").partition(":")[0]:
        return Path(given)
    home = home_of(environ)
    by_launchd = (
        sys.platform == "darwin"
        and os.getppid() == 1
        and environ.get("XPC_SERVICE_NAME", "0") != "0"
    )
    return home / "Library/Logs/mlxd" if by_launchd and home is not None else None


def read_env(file: Path) -> dict[str, tuple[str, int]]:
    """The assignments of an env file with their lines; raises BadEnvFile."""
    try:
        lines = durable.read(file, _MOST_BYTES).decode("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise BadEnvFile(f"{file}: cannot be read: {error}") from None
    found: dict[str, tuple[str, int]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith(("#", ";")):
            continue
        match = _ASSIGNMENT.fullmatch(line.strip())
        if match is None:
            raise BadEnvFile(f"{file}:{number}: expected NAME=value, got {line.strip()!r}")
        found[match[1]] = (_unquoted(match[2], f"{file}:{number}"), number)
    return found


def _unquoted(text: str, place: str) -> str:
    """A value without its quotes or the comment behind it, as a shell would read it."""
    if not text.startswith(("'", '"')):
        return re.sub(r"\s+#.*", "", text).strip()
    import shlex  # quotes are rare

    try:
        words = shlex.split(text, comments=True)
    except ValueError as error:
        raise BadEnvFile(f"{place}: {error}") from None
    return " ".join(words)


def _settings(
    file: Path | None, environ: Mapping[str, str]
) -> tuple[dict[str, Setting], tuple[str, ...]]:
    settings: dict[str, Setting] = {}
    warnings: list[str] = []
    for name, (text, line) in (read_env(file) if file is not None else {}).items():
        place = f"{ENV_FILE}:{line}"
        if name == "MLXD_POLICIES":
            warnings.append(f"{place}: MLXD_POLICIES has no effect here: set it before the start")
        elif name not in VARIABLES:
            if name.startswith(("MLXD_", "MLX_API_")):
                import difflib  # a misspelling is rare, and this is on every command's way

                near = difflib.get_close_matches(name, VARIABLES, 1)
                hint = f"; did you mean {near[0]}?" if near else ""
                warnings.append(f"{place}: {name} is not known{hint}")
        elif text:
            settings[name] = Setting(text, f"{place} {name}")
    for name in VARIABLES:
        if text := environ.get(name, "").strip():
            settings[name] = Setting(text, f"environment {name}")
    return settings, tuple(warnings)


def _usual_folders(environ: Mapping[str, str], system: Path) -> Iterator[Path]:
    config = Path(environ.get("XDG_CONFIG_HOME", ""))
    home = home_of(environ)
    if config.is_absolute():
        yield config / "mlxd/policies"
    elif home is not None:
        yield home / ".config/mlxd/policies"
    prefix = Path(environ.get("HOMEBREW_PREFIX", ""))
    if prefix.is_absolute():
        yield prefix / "etc/mlxd/policies"
    for etc in ("opt/homebrew/etc", "usr/local/etc", "etc"):
        yield system / etc / "mlxd/policies"


def _usual_state(environ: Mapping[str, str], system: Path) -> Path:
    home = home_of(environ)
    if sys.platform == "darwin" and home is not None:
        return home / "Library/Application Support/mlxd"
    state = Path(environ.get("XDG_STATE_HOME", ""))
    if os.geteuid() == 0:
        return system / "var/lib/mlxd"
    if state.is_absolute():
        return state / "mlxd"
    return home / ".local/state/mlxd" if home is not None else system / "var/lib/mlxd"


def is_there(check: Callable[[], bool]) -> bool:
    """False too where this user may not look."""
    try:
        return check()
    except OSError:
        return False


def is_forbidden(look: Callable[[], object]) -> bool:
    """Whether this user may not even look."""
    try:
        look()
    except PermissionError:
        return True
    except OSError:
        pass
    return False


def expanded(path: str) -> Path:
    """With ~ as this user's home; as it is written, for one who has none."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - Path's raises there


def home_of(environ: Mapping[str, str]) -> Path | None:
    """None: this user has none."""
    with contextlib.suppress(RuntimeError):  # no HOME, and a user without an account
        home = Path(environ.get("HOME") or Path.home())
        return home if home.is_absolute() else None
    return None


def _path(text: str, environ: Mapping[str, str]) -> Path:
    home = home_of(environ)
    if home is not None and (text == "~" or text.startswith("~/")):
        return home / text[2:]
    return Path(text).absolute()
