"""`mlxd env`: what points the clients of a shell at the daemon."""

from __future__ import annotations

from collections.abc import Iterator

from mlxd.cli import exits
from mlxd.cli.client import NoAnswer, address_of, get_json
from mlxd.core import places
from mlxd.core.instance import authority

PLACEHOLDER = "any"
"""A key for clients that insist on one, where the daemon asks for none."""
_KEYS = ("OPENAI_API_KEY", "ANTHROPIC_AUTH_TOKEN")
"""No ANTHROPIC_API_KEY: with both set Claude Code warns of two, and takes either."""


def env(policies: str | None, state: str | None) -> int:
    """Print what to `eval` in a shell. Comments come last: an unquoted `eval` sees one line."""
    address = address_of(places.find(policies, state))
    for name, value in _addresses(authority(*address)):
        print(f"export {name}={value}")
    for line in _keys(address):
        print(line)
    return exits.DONE


def _addresses(host: str) -> Iterator[tuple[str, str]]:
    """Who reads which: docs/guides/clients.md."""
    base = f"http://{host}"
    yield "OLLAMA_HOST", host
    for name in ("OLLAMA_API_BASE", "OLLAMA_BASE_URL", "OLLAMA_URL", "MLX_API_URL"):
        yield name, base
    for name in ("OPENAI_BASE_URL", "OPENAI_API_BASE", "OPENAI_API_BASE_URL"):
        yield name, f"{base}/v1"
    yield "ANTHROPIC_BASE_URL", base


def _keys(address: tuple[str, int]) -> Iterator[str]:
    """A placeholder where none is needed; never a real one."""
    try:
        health = get_json(address, "/health")
    except NoAnswer:
        health = {}
    if health.get("service") != "mlxd":
        yield "# no mlxd answers there now: whether it wants an API key is not known"
    elif "memory" in health:  # it tells that to whom it would serve
        yield from (f"export {name}={PLACEHOLDER}" for name in _KEYS)
    else:
        yield f"# it wants an API key, in {' and '.join(_KEYS)}; make one: mlxd keys add NAME"
