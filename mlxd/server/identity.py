"""Who asks: the address, and the API key, before anything else of a request is looked at."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator
from typing import NoReturn

from aiohttp import web

from mlxd.control.keys import Keys
from mlxd.core.caller import Caller
from mlxd.core.errors import TooManyGuesses, Unauthorized
from mlxd.policy.keyring import Key
from mlxd.policy.policy_set import PolicySet
from mlxd.server.connection import Connection
from mlxd.server.forwarded import address_of
from mlxd.server.guesses import Guesses

OPEN = frozenset(("/livez", "/readyz", "/health"))
"""Answered without a key: to whoever looks whether the daemon lives."""
ADMIN = "/admin/"
PAGE = frozenset(("/ui", "/ui/", "/ui/session"))
"""Answered without a key, too: they ask for one."""
ASSETS = "/ui/assets/"
_OVER = {"expired": "the API key has expired", "revoked": "the API key was revoked"}
_BEARER = re.compile(r"bearer +(\S.*)", re.IGNORECASE)


class Identity:
    """Knows callers by the keys in force, and who has guessed too often."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._guesses = Guesses()

    def identify(self, request: web.BaseRequest, policies: PolicySet, now: float) -> Caller:
        """Raises Unauthorized, TooManyGuesses."""
        address = address_of(request, policies)
        headers = _counted(request, policies)
        if not _needs_key(request, policies):
            key = self._looked_up(request, policies)
        elif is_open(request.path):
            key = None  # whoever guesses there is no less of a guesser
            with contextlib.suppress(Unauthorized, TooManyGuesses):
                key = self._admitted(request, policies, address, now)
        else:
            key = self._admitted(request, policies, address, now)
        if key is None:
            return Caller(address, headers=headers)
        return Caller(address, key.id, key.tenant, headers)

    def _admitted(
        self, request: web.BaseRequest, policies: PolicySet, address: str, now: float
    ) -> Key:
        """Where a key is required."""
        seconds = self._guesses.penalty(address, now)
        key = self._looked_up(request, policies)
        if key is not None and not seconds:
            self._guesses.succeed(address, key.id)
        if seconds and not (key and self._guesses.succeeded(address, key.id)):
            raise TooManyGuesses(
                "too many unknown API keys came from this address",
                retry_after=seconds,
                policy=policies.line("clients.auth.guesses.max"),
                numbers={"max": policies.clients.auth.guesses.max},
                would_pass=f"a known key, in {seconds:.0f} s",
            )
        return key or self._refuse(request, policies, address, now)

    def _refuse(
        self, request: web.BaseRequest, policies: PolicySet, address: str, now: float
    ) -> NoReturn:
        """Raises Unauthorized. A key that is over is no guess, and none where any key may be right
        that cannot be read just now: one client would lock out all behind its address. Nor is it in
        vain to come with that again.
        """
        secrets = [*_secrets(request, policies)]
        over = next(filter(None, map(self._keys.over, secrets)), "")
        unknown = bool(secrets) and not over
        if unknown and self._keys.certain:
            key = "\n".join(secrets)
            self._guesses.add(address, key, policies.clients.auth.guesses, now)
        said = _OVER.get(over, "the API key is not known")
        error = Unauthorized(
            said if secrets else f"an API key is required: {_how(policies)}",
            policy=policies.line("clients.auth.required"),
            would_pass="a key that `mlxd keys add NAME` has shown",
        )
        error.in_vain = self._keys.certain or not unknown
        raise error

    def _looked_up(self, request: web.BaseRequest, policies: PolicySet) -> Key | None:
        """The first known key."""
        found = (self._keys.find(secret) for secret in _secrets(request, policies))
        return next((key for key in found if key is not None), None)


def keys_required_of(request: web.BaseRequest, policies: PolicySet) -> bool:
    """Whether this request needs an API key.

    While the daemon moves to another address it serves by two. By the one that other machines can
    reach, nobody does without a key for what policy says of the other.
    """
    auto = policies.clients.auth.required == "auto"
    protocol = request.protocol
    outside = isinstance(protocol, Connection) and protocol.outside
    return policies.keys_required or (auto and outside)


def _needs_key(request: web.BaseRequest, policies: PolicySet) -> bool:
    """The admin side is for those of some tenants, where policy names any."""
    admin = bool(policies.administrators) and request.path.startswith(ADMIN)
    return admin or keys_required_of(request, policies)


def is_open(path: str) -> bool:
    """Whether it is answered without a key."""
    return path in OPEN or path in PAGE or path.startswith(ASSETS)


def _secrets(request: web.BaseRequest, policies: PolicySet) -> Iterator[str]:
    """What may be keys, in the order of `clients.auth.headers`."""
    for name in policies.clients.auth.headers:
        text = request.headers.get(name, "").strip()
        if name.lower() == "authorization":
            match = _BEARER.fullmatch(text)
            text = match[1] if match else ""
        if text:
            yield text


def _how(policies: PolicySet) -> str:
    """Where to put it."""
    ways = [
        "`Authorization: Bearer KEY`" if name.lower() == "authorization" else f"`{name}: KEY`"
        for name in policies.clients.auth.headers
    ]
    return f"send it as {' or '.join(ways)}" if ways else "and no header is read for it"


def _counted(request: web.BaseRequest, policies: PolicySet) -> dict[str, str]:
    """What rate rules count by: of each value a digest, for it may be long, or a secret."""
    return {
        name: hashlib.blake2b(value.encode("utf-8", "surrogateescape"), digest_size=12).hexdigest()
        for name in policies.counted_headers
        if (value := request.headers.get(name)) is not None
    }
