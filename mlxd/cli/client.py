"""A running daemon, seen from outside: where it is, and what it answers. Standard library only."""

from __future__ import annotations

import http.client
import json
from typing import Any
from urllib.parse import urlsplit

from mlxd.core.instance import authority, running
from mlxd.core.places import Places

DEFAULT_PORT = 11435
HEALTH_SECONDS = 5.0


class NoAnswer(Exception):
    """Nothing that is mlxd answers there."""


def address_of(found: Places) -> tuple[str, int]:
    """Where the daemon is: by the state folder, then MLX_API_URL, then the port variables."""
    daemon = running(found.state.path)
    if daemon is not None:
        return _reachable(daemon.host), daemon.port
    url = urlsplit(_text(found, "MLX_API_URL"))
    if url.hostname:
        return url.hostname, url.port or DEFAULT_PORT
    port = _text(found, "MLXD_PORT") or _text(found, "MLX_API_PORT") or _policy_port(found)
    return "127.0.0.1", int(port) if port.isdigit() else DEFAULT_PORT


def get_json(
    address: tuple[str, int], path: str, timeout: float = HEALTH_SECONDS
) -> dict[str, Any]:
    """Raises NoAnswer."""
    host, port = address
    connection = http.client.HTTPConnection(host, port, timeout=timeout)
    try:
        connection.request("GET", path)
        body = json.loads(connection.getresponse().read())
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise NoAnswer(f"no answer from http://{authority(host, port)}{path}: {error}") from error
    finally:
        connection.close()
    if not isinstance(body, dict):
        raise NoAnswer(f"what answers at http://{authority(host, port)} is not mlxd")
    return body


def _reachable(host: str) -> str:
    """An address that a client can connect to, for one that a listener binds to."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def _text(found: Places, name: str) -> str:
    setting = found.settings.get(name)
    return setting.text if setting is not None else ""


def _policy_port(found: Places) -> str:
    """The port that server.yaml names, without judging the rest of it."""
    if found.policies is None:
        return ""
    try:
        content = (found.policies.path / "server.yaml").read_bytes()
    except OSError:
        return ""
    from mlxd.policy import strict_yaml

    data = strict_yaml.parse(content).data
    listen = (data or {}).get("listen")
    return str(listen.get("port", "")) if isinstance(listen, dict) else ""
