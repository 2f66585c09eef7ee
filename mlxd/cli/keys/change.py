"""`mlxd keys add | revoke | rotate`."""

from __future__ import annotations

import re
import secrets
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mlxd.cli import exits
from mlxd.cli.keys.here import Place, place
from mlxd.cli.models.asking import print_json
from mlxd.cli.policy.here import FAILURES, refused
from mlxd.cli.stdout import Unwritable
from mlxd.core.clock import SystemClock
from mlxd.policy.keyring import Key, Keyring, digest_of, iso, new_secret, tenant_problem
from mlxd.policy.keys_edit import NotEdited, edit
from mlxd.policy.policy_set import PolicySet
from mlxd.policy.units import Delay, Duration

Json = dict[str, Any]

_MOST_NOTE = 350
_UNFIT = re.compile(r"[^A-Za-z0-9._-]+")
_NUMBERED = re.compile(r"-[0-9a-f]{4,}")


@dataclass(frozen=True, slots=True)
class Wanted:
    """A key, as it was asked for."""

    name: str
    tenant: str
    note: str = ""
    expires: str = ""


class _Wrong(Exception):
    """An argument that cannot be used."""


class _NoSuchKey(Exception):
    """Or one that is over, or was rotated."""


def add(policies: str | None, state: str | None, wanted: Wanted, *, as_json: bool) -> int:
    """Make a key; show it this once."""
    now = SystemClock().wall()

    def work(at: Place) -> int:
        secret = new_secret()
        expires = now + _span(wanted.expires, Duration) if wanted.expires else None
        if problem := tenant_problem(wanted.tenant):
            raise _Wrong(f"the tenant: {problem}")
        if not wanted.note.isprintable() or len(wanted.note) > _MOST_NOTE:
            raise _Wrong(f"--note: expected at most {_MOST_NOTE} printable characters")

        def more(ring: Keyring) -> Keyring:
            key = Key(
                id=_new_id(wanted.name, ring),
                tenant=_spelt(wanted.tenant, ring, at.policies),
                sha256=digest_of(secret),
                created=now,
                note=wanted.note,
                expires=expires,
            )
            return Keyring((*ring.keys, key))

        key = edit(at.file, more).keys[-1]
        return _show_secret(at, key, secret, _unlisted(key.tenant, at.policies), as_json=as_json)

    return _carried(policies, state, work, as_json=as_json)


def revoke(policies: str | None, state: str | None, key_id: str, *, as_json: bool) -> int:
    """Have it known no more. One that was revoked stays so."""
    now = SystemClock().wall()

    def work(at: Place) -> int:
        def without(ring: Keyring) -> Keyring:
            key = _known(ring, key_id)
            return _with(ring, key if key.revoked is not None else replace(key, revoked=now))

        ring = edit(at.file, without)
        said = [*at.tell()]
        if not ring.valid(now):
            said.append("no valid key is left")
        if as_json:
            print_json({"id": key_id, "file": at.file.reference, "notes": said})
        else:
            print("\n".join([f"{key_id} is revoked", *said]))
        return exits.DONE

    return _carried(policies, state, work, as_json=as_json)


def rotate(
    policies: str | None, state: str | None, key_id: str, grace: str, *, as_json: bool
) -> int:
    """Another key of the same tenant; the old one counts for `grace` more."""
    now = SystemClock().wall()

    def work(at: Place) -> int:
        secret = new_secret()
        last = now + _span(grace, Delay)

        def turned(ring: Keyring) -> Keyring:
            old = _known(ring, key_id)
            if not old.valid(now):
                raise _NoSuchKey(f"{key_id} is {old.state(now)}: make another with `mlxd keys add`")
            if old.rotated is not None:
                raise _NoSuchKey(
                    f"{key_id} was rotated before, and its end is its grace's: rotate"
                    " the key in its place, or make another with `mlxd keys add`"
                )
            new = Key(
                id=_new_id(_NUMBERED.sub("", old.id), ring),
                tenant=old.tenant,
                sha256=digest_of(secret),
                created=now,
                note=old.note,
                expires=None if old.expires is None else now + old.expires - old.created,
            )
            ends = last if old.expires is None else min(last, old.expires)
            return Keyring((*_with(ring, replace(old, expires=ends, rotated=now)).keys, new))

        ring = edit(at.file, turned)
        ends = _known(ring, key_id).expires or now
        said = [f"{key_id} counts until {iso(ends)}" if ends > now else f"{key_id} is over"]
        return _show_secret(at, ring.keys[-1], secret, said, as_json=as_json)

    return _carried(policies, state, work, as_json=as_json)


def _carried(
    policies: str | None, state: str | None, work: Callable[[Place], int], *, as_json: bool
) -> int:
    """Do it where the keys are, or say why not."""
    try:
        return work(place(policies, state))
    except FAILURES as error:  # KeysRefused, too
        return refused(error, as_json=as_json)
    except (_Wrong, _NoSuchKey, NotEdited) as error:
        if as_json:
            print_json({"error": str(error)})
        else:
            print(f"mlxd: {error}", file=sys.stderr)
        return exits.USAGE if isinstance(error, _Wrong) else exits.FAILED


def _show_secret(at: Place, key: Key, secret: str, more: Sequence[str], *, as_json: bool) -> int:
    """It is shown before the daemon is told of it: that may take long, and who does not wait for it
    has a key whose secret is lost.
    """
    status = exits.DONE
    try:
        _print_secret(at, key, secret, more, as_json=as_json)
        sys.stdout.flush()
    except Unwritable as error:
        lost = f"mlxd: the key {key.id} was made and could not be shown: {error}"
        back = f"take it back with: mlxd keys revoke {key.id}"
        print("\n".join([*(more if as_json else ()), lost, back]), file=sys.stderr)
        status = exits.FAILED
    for line in at.tell():
        print(line, file=sys.stderr)
    return status


def _print_secret(at: Place, key: Key, secret: str, more: Sequence[str], *, as_json: bool) -> None:
    """The key alone on stdout, all else on stderr."""
    ends = iso(key.expires) if key.expires is not None else None
    if as_json:
        print_json(
            {
                "id": key.id,
                "tenant": key.tenant,
                "key": secret,
                "expires": ends,
                "file": at.file.reference,
                "notes": more,
            }
        )
        return
    until = f", until {ends}" if ends else ""
    about = f"{key.id} of tenant {key.tenant}{until}, in {at.file.reference}"
    for line in (about, *more, "the key, shown this once:"):
        print(line, file=sys.stderr)
    sys.stderr.flush()
    print(secret)


def _span(text: str, kind: type[Duration]) -> float:
    """Raises _Wrong."""
    try:
        return float(kind.parse(text))
    except ValueError as error:
        raise _Wrong(str(error)) from None


def _known(ring: Keyring, key_id: str) -> Key:
    """Raises _NoSuchKey."""
    key = ring.get(key_id)
    if key is None:
        raise _NoSuchKey(f"no key is called {key_id!r}; see mlxd keys list")
    return key


def _with(ring: Keyring, key: Key) -> Keyring:
    """In the place of the one of this id."""
    return Keyring(tuple(key if one.id == key.id else one for one in ring.keys))


def _new_id(name: str, ring: Keyring) -> str:
    """What is short, can be typed, and no other key has."""
    short = _UNFIT.sub("-", name).strip("-._")[:40] or "key"
    while ring.get(found := f"{short}-{secrets.token_hex(2)}") is not None:
        pass
    return found


def _spelt(tenant: str, ring: Keyring, policies: PolicySet | None) -> str:
    """One tenant, however its name is written: as policies write it, or earlier keys."""
    names = [*(policies.clients.tenants if policies is not None else ())]
    names += [key.tenant for key in ring.keys]
    return next((name for name in names if name.casefold() == tenant.casefold()), tenant)


def _unlisted(tenant: str, policies: PolicySet | None) -> list[str]:
    if policies is None or tenant in policies.clients.tenants:
        return []
    return [f"clients.tenants does not list {tenant}: it has no limits of its own"]
