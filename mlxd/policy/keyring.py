"""API keys: how one is made and known again, and what a file of them says. Pure.

Of a key only the SHA-256 is kept. A key is 32 random bytes, so nobody tries them all: the slow hash
that passwords need would gain nothing, and cost every request.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from mlxd.policy import strict_yaml
from mlxd.policy.load import PolicyError, PolicyErrors
from mlxd.policy.schema.base import is_name
from mlxd.policy.strict_yaml import Document, Path, dotted

SCHEMA = "mlxd-keys/v1"
PREFIX = "mlxd_"
_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_RANDOM_BYTES = 32
_LENGTH = 43
"""Digits of base 62 that hold any 32 bytes."""
LONGEST = 512
"""Characters of what is looked up: nothing longer is one of our keys."""
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_FIRST = datetime(1, 1, 1, tzinfo=UTC).timestamp()
_LAST = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp()
"""Times beyond these have no date: an end in the last year may be one by its zone, and the end of
the key that takes its place.
"""
_NOBODYS = frozenset({"anonymous", "local"})
"""What those without a key are called."""


class KeysRefused(PolicyErrors):
    """All that is wrong with a file of keys. Nothing is quoted: it may be a secret."""


@dataclass(frozen=True, slots=True)
class Key:
    """What is kept of one key. Times are seconds since the epoch."""

    id: str
    tenant: str
    sha256: str = field(repr=False)
    created: float
    note: str = ""
    expires: float | None = None
    revoked: float | None = None
    rotated: float | None = None
    """Since when another stands in its place, and it has an end."""

    def state(self, wall: float) -> str:
        """`revoked`, `expired` or `valid`."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and self.expires <= wall else "valid"

    def valid(self, wall: float) -> bool:
        return self.state(wall) == "valid"


@dataclass(frozen=True)
class Keyring:
    """All keys of one file; never changes."""

    keys: tuple[Key, ...] = ()

    @cached_property
    def _by_digest(self) -> dict[str, Key]:
        return {key.sha256: key for key in self.keys}

    def find(self, secret: str, wall: float) -> Key | None:
        """Whose secret it is; None: nobody's, or of a key that is over."""
        key = self.known(secret)
        return key if key is not None and key.valid(wall) else None

    def known(self, secret: str) -> Key | None:
        """As `find`, even of a key that is over.

        What takes longer for one guess than for another depends on hashes alone, which nobody
        can steer towards one that is kept.
        """
        if not self.keys or len(secret) > LONGEST:
            return None
        digest = digest_of(secret)
        key = self._by_digest.get(digest)
        if key is None or not hmac.compare_digest(key.sha256, digest):
            return None
        return key

    def valid(self, wall: float) -> list[Key]:
        return [key for key in self.keys if key.valid(wall)]

    def get(self, key_id: str) -> Key | None:
        return next((key for key in self.keys if key.id == key_id), None)


def new_secret() -> str:
    """A key that nobody has."""
    number = int.from_bytes(secrets.token_bytes(_RANDOM_BYTES))
    digits = ""
    for _ in range(_LENGTH):
        number, digit = divmod(number, len(_DIGITS))
        digits += _DIGITS[digit]
    return PREFIX + digits


def digest_of(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def tenant_problem(name: object) -> str:
    """Why keys cannot be of such a tenant; empty: they can."""
    if not isinstance(name, str) or not is_name(name):
        return "expected a name of 1 to 350 printable characters"
    if name.casefold() in _NOBODYS:
        return "expected another name: those without a key are called this"
    try:
        ipaddress.ip_network(name, strict=False)
    except ValueError:
        return ""
    return "expected a name, got an address: those without a key are called by theirs"


def parse(raw: bytes, source: str) -> Keyring:
    """What a file of keys says; `source` is its name. Raises KeysRefused."""
    document = strict_yaml.parse(raw, quotes=False)
    reader = _Reader(document, source)
    keys = reader.keys()
    if reader.errors:
        raise KeysRefused(reader.errors)
    return Keyring(keys)


def iso(at: float) -> str:
    """As a file says it."""
    shown = min(max(at, _FIRST), _LAST)
    return datetime.fromtimestamp(shown, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


class _Wrong(Exception):
    """What was expected."""


class _Reader:
    """From plain data to keys, with every error at its place."""

    def __init__(self, document: Document, source: str) -> None:
        self._document = document
        self._source = source
        self.errors = [PolicyError(source, p.message, place=p.place) for p in document.problems]
        self._ids: dict[str, int] = {}
        self._digests: dict[str, int] = {}
        self._tenants: dict[str, str] = {}

    def keys(self) -> tuple[Key, ...]:
        data = self._document.data
        if data is None:
            return ()
        if data.get("schema") != SCHEMA:
            self._refuse(("schema",), f"expected {SCHEMA}")
        self._unknown(data, ("schema", "keys"), ())
        listed = data.get("keys")
        if not isinstance(listed, list):
            self._refuse(("keys",), "expected a list of keys")
            return ()
        return tuple(self._all(listed))

    def _all(self, listed: list[Any]) -> Iterator[Key]:
        for index, entry in enumerate(listed):
            here: Path = ("keys", index)
            if not isinstance(entry, dict):
                self._refuse(here, "expected a mapping")
                continue
            self._unknown(entry, tuple(_FIELDS), here)
            found = {name: self._value(entry, name, here) for name in _FIELDS}
            if None not in (found[name] for name in _NEEDED):
                yield self._key(found, index)

    def _value(self, entry: Mapping[str, Any], name: str, here: Path) -> Any:
        """None: it is not there, or wrong."""
        value = entry.get(name)
        if value is None and name not in _NEEDED:
            return None
        try:
            return _FIELDS[name](value)
        except _Wrong as wrong:
            self._refuse((*here, name), str(wrong))
            return None

    def _key(self, found: Mapping[str, Any], index: int) -> Key:
        for name, seen in (("id", self._ids), ("sha256", self._digests)):
            first = seen.setdefault(found[name], index)
            if first != index:
                self._refuse(("keys", index, name), f"keys[{first}] has the same")
        tenant = self._tenants.setdefault(found["tenant"].casefold(), found["tenant"])
        return Key(
            id=found["id"],
            tenant=tenant,  # one tenant, however its name is written
            sha256=found["sha256"],
            created=found["created"],
            note=found["note"] or "",
            expires=found["expires"],
            revoked=found["revoked"],
            rotated=found["rotated"],
        )

    def _unknown(self, entry: Mapping[str, Any], known: tuple[str, ...], here: Path) -> None:
        for name in entry:
            if name not in known:
                words = f"unknown key; known here are {', '.join(known)}"
                self._refuse((*here, name), words, here)

    def _refuse(self, path: Path, message: str, shown: Path | None = None) -> None:
        place = self._document.place(path)
        key = dotted(path if shown is None else shown)
        self.errors.append(PolicyError(self._source, message, key, place))


def _id(value: object) -> str:
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise _Wrong("expected 1 to 64 letters, digits, dots, dashes and underscores")
    return value


def _tenant(value: object) -> str:
    if problem := tenant_problem(value):
        raise _Wrong(problem)
    return str(value)


def _digest(value: object) -> str:
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise _Wrong("expected the SHA-256 of a key: 64 hex digits in quotes")
    return value


def _time(value: object) -> float:
    try:
        found = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise _Wrong("expected a time such as 2026-01-31T12:00:00Z")
    return found.timestamp()


def _note(value: object) -> str:
    if not isinstance(value, str) or not value.isprintable() or len(value) > 350:
        raise _Wrong("expected at most 350 printable characters")
    return value


_FIELDS = {
    "id": _id,
    "tenant": _tenant,
    "sha256": _digest,
    "created": _time,
    "note": _note,
    "expires": _time,
    "revoked": _time,
    "rotated": _time,
}
_NEEDED = ("id", "tenant", "sha256", "created")
