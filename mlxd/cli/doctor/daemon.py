"""The daemon, and who else is where it belongs."""

from __future__ import annotations

import socket

from mlxd import __version__
from mlxd.cli.client import NoAnswer, address_of, get_json, health_of
from mlxd.cli.doctor.finding import Finding, Findings, advice, problem
from mlxd.cli.listening import holder
from mlxd.core.instance import authority, is_claimed, untold
from mlxd.core.places import Places

OLLAMA_PORT = 11434
_SECONDS = 1.0


def findings(found: Places, ollama_port: int = OLLAMA_PORT) -> Findings:
    host, port = address_of(found)
    yield from _who_serves(found, host, port)
    if port != ollama_port and _is_ollama(ollama_port):
        yield advice(
            "ollama_beside",
            f"Ollama serves on port {ollama_port} of this machine, too: both hold models in memory,"
            " and neither knows of the other's",
            "stop it (`brew services stop ollama`, or quit its app), and point its clients here:"
            ' eval "$(mlxd env)"',
        )


def _who_serves(found: Places, host: str, port: int) -> Findings:
    where = authority(host, port)
    try:
        health = health_of(found)
    except NoAnswer as error:
        yield from _silence(found, host, port, str(error))
        return
    if health.get("service") != "mlxd":
        yield _taken(host, port)
    elif health["version"] != __version__:
        yield advice(
            "older_daemon",
            f"mlxd {health['version']} serves at {where}, and this is {__version__}",
            "restart it: brew services restart mlxd, or mlxd service install --now",
        )
    for words in health.get("warnings", ()):
        yield advice("daemon_warns", words, "mlxd status shows more")


def _silence(found: Places, host: str, port: int, error: str) -> Findings:
    if is_claimed(found.state.path):
        yield problem(
            "daemon_silent",
            f"a daemon runs on {found.state.path}, and does not answer: {error}",
            "look at its log and `mlxd crashes`; its own watchdog ends it after 90 s of silence",
        )
    elif _listens(host, port):
        yield _taken(host, port)
    elif why := untold(found.state.path):
        yield problem(
            "daemon_unknown", f"no mlxd answers at {authority(host, port)}, and {why}",
            "look as its user where it is guarded; where its disk gives no locks no daemon starts:"
            " name another one (--state, MLXD_STATE)",
        )  # fmt: skip
    else:
        yield advice(
            "daemon_down", f"no mlxd runs at {authority(host, port)}",
            "mlxd serve, or for good: mlxd service install --now (Homebrew: brew services start"
            " mlxd)",
        )  # fmt: skip


def _taken(host: str, port: int) -> Finding:
    return problem(
        "port_taken",
        f"{authority(host, port)} is taken by {holder(host, port)}",
        "end that process, or choose another port: server.listen.port, MLXD_PORT",
    )


def _listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), _SECONDS).close()
    except OSError:
        return False
    return True


def _is_ollama(port: int) -> bool:
    """mlxd answers like it, and says who it is."""
    try:
        if "version" not in get_json(("127.0.0.1", port), "/api/version", _SECONDS):
            return False
        return get_json(("127.0.0.1", port), "/health", _SECONDS).get("service") != "mlxd"
    except NoAnswer:  # Ollama has no /health: its 404 is no JSON
        return _listens("127.0.0.1", port)
