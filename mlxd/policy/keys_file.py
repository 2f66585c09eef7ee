"""Where the API keys are, and whether there are any for those who need one.

The daemon at its start asks `demand`, and a reload the same, where an edit has keys required, or
looked for elsewhere. `demand_of_daemon` is for commands, from whose place the daemon's keys may not
be readable.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mlxd.core import durable
from mlxd.core.clock import SystemClock
from mlxd.policy import credential
from mlxd.policy.keyring import Keyring, KeysRefused, parse
from mlxd.policy.load import PolicyErrors, error_at
from mlxd.policy.policy_set import PolicySet
from mlxd.policy.store import PrepareFailed
from mlxd.policy.strict_yaml import MAX_BYTES

NAME = "keys.yaml"
_OTHERS = 0o027
"""What nobody but its owner needs of it; the daemon may be of its group, and reads."""

Stamp = tuple[int, ...]
"""Another one for another content; empty: there is no file."""
UNREAD: Stamp = (-1,)
"""That of no content: whoever has it looks again, for what was in the way may pass."""


@dataclass(frozen=True, slots=True)
class KeysFile:
    """What `clients.auth.keys_file` names."""

    reference: str
    """`credential:NAME`, or a path."""
    name: str
    """For messages, which clients may read: no path of this machine, and never what an operator
    wrote, for it may be a secret, written there by mistake.
    """

    @property
    def writable(self) -> bool:
        """Whether `mlxd keys` may change it."""
        return not credential.is_credential(self.reference)

    def path(self) -> Path:
        """Raises credential.Unreadable."""
        return credential.file_of(self.reference)


@dataclass(frozen=True, slots=True)
class Reading:
    """One look at it."""

    stamp: Stamp
    ring: Keyring | None
    """None: it is not readable. Empty where there is no file."""
    problems: tuple[str, ...] = ()
    """Why it is not."""
    shared: bool = False
    """Whether others than its owner and group may read it, or than its owner write it."""

    unseen: bool = False
    """It cannot be read by us: the daemon's user, or who is handed credentials, may."""

    @property
    def problem(self) -> str:
        """In one line."""
        more = len(self.problems) - 1
        return f"{self.problems[0]}{f', and {more} more' if more else ''}" if self.problems else ""

    @property
    def there(self) -> bool:
        return bool(self.stamp)


def keys_file(policies: PolicySet, state: Path) -> KeysFile:
    wanted = policies.clients.auth.keys_file
    if wanted == "auto":
        return KeysFile(str(state / NAME), NAME)
    return KeysFile(str(wanted), "clients.auth.keys_file")


def stamp(file: KeysFile) -> Stamp:
    """May block."""
    try:
        found = file.path().stat()
    except (OSError, credential.Unreadable):
        return ()
    return (
        found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns,
        found.st_mode,
    )  # fmt: skip


def read(file: KeysFile) -> Reading:
    """May block; raises nothing. What changes meanwhile has another stamp at the next look."""
    seen = stamp(file)
    shared = file.writable and bool(seen) and bool(seen[-1] & _OTHERS)
    try:
        ring = parse(durable.read(file.path(), MAX_BYTES), file.name)
    except FileNotFoundError:
        return Reading((), Keyring())
    except KeysRefused as refused:
        return Reading(seen, None, tuple(map(str, refused.errors)), shared)
    except (OSError, ValueError, credential.Unreadable) as error:
        why = error.strerror if isinstance(error, OSError) else None
        unseen = isinstance(error, (PermissionError, credential.Unreadable))
        words = f"{file.name}: it cannot be read: {why or error}"
        passes = isinstance(error, OSError)
        return Reading(UNREAD if passes else seen, None, (words,), shared, unseen)
    return Reading(seen, ring, shared=shared)


def lacking(policies: PolicySet, found: Reading, name: str, wall: float) -> PrepareFailed | None:
    """What is in the way of policies that require keys; None: nothing."""
    if not policies.keys_required or (found.ring is not None and found.ring.valid(wall)):
        return None
    if found.ring is None:
        none = f"the keys cannot be read: {found.problem}"
    elif found.ring.keys:
        none = f"no key in {name} is valid any more: add one with `mlxd keys add NAME`"
    else:
        none = f"there is no key in {name}: add one with `mlxd keys add NAME`"
    if policies.clients.auth.required is True:
        return PrepareFailed("clients.auth.required", f"clients need an API key, and {none}")
    return PrepareFailed(
        "server.listen.host",
        f"{policies.server.listen.host} can be reached by other machines, whose clients need an "
        f"API key, and {none}; to serve everyone there, write in clients.yaml "
        "`auth: {required: false}`",
    )


def demand(policies: PolicySet, state: Path) -> None:
    """Raises PolicyErrors where clients need a key and none is there. May block."""
    if not policies.keys_required:
        return
    file = keys_file(policies, state)
    failed = lacking(policies, read(file), file.name, SystemClock().wall())
    if failed is not None:
        raise PolicyErrors([error_at(policies, failed.key, failed.message)])


def demand_of_daemon(policies: PolicySet, state: Path) -> str:
    """As `demand`, for a daemon that another process is, or will be. Keys that it alone can read
    are no error: what there is to say of them is returned, else nothing. May block.
    """
    if policies.keys_required and (found := read(keys_file(policies, state))).unseen:
        return f"{found.problem}; whether there is a key, mlxd says at its start"
    demand(policies, state)
    return ""
