"""Run in a network namespace with loopback only: serve, restart, and leave 11434 to its owner.

Prints one JSON object: what was said before and after the restart, and how many connections the
other server on 11434 saw.
"""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path
from typing import Any

import psutil

from tests.support.daemon import Daemon, daemon

OLLAMA, MLXD = 11434, 11435


def _serve(folder: Path, models: Path) -> dict[str, Any]:
    """Start on the default port, ask both APIs, stop."""
    folder.mkdir(exist_ok=True)
    body = {"model": "default", "stream": False}
    with daemon(folder, models=models, port=MLXD) as running:
        chat = body | {"messages": [{"role": "user", "content": "hi"}]}
        texts = [
            _post(running, "/api/chat", chat | {"options": {"temperature": 0, "num_predict": 5}}),
            _post(running, "/v1/chat/completions", chat | {"temperature": 0, "max_tokens": 5}),
        ]
        listeners = _listeners(running)
        running.http.get("/api/tags").raise_for_status()
        status = running.stop()
    return {"texts": texts, "listens": listeners, "exit": status}


def _post(running: Daemon, path: str, body: dict[str, Any]) -> str:
    answer = running.http.post(path, json=body)
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()
    message = found["choices"][0]["message"] if "choices" in found else found["message"]
    return str(message["content"])


def _listeners(running: Daemon) -> list[int]:
    """Ports that the daemon or one of its workers listens on."""
    processes = [psutil.Process(running.pid), *running.workers()]
    return sorted(
        connection.laddr.port
        for process in processes
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    )


def main() -> None:
    models, folder = map(Path, sys.argv[1:])
    interfaces = [name for _, name in socket.if_nameindex()]
    with socket.create_server(("127.0.0.1", OLLAMA)) as other:
        runs = [_serve(folder / "one", models), _serve(folder / "one", models)]
        other.setblocking(False)
        seen = 0
        while True:
            try:
                other.accept()[0].close()
            except BlockingIOError:
                break
            seen += 1
    json.dump({"interfaces": interfaces, "runs": runs, "seen": seen}, sys.stdout)


if __name__ == "__main__":
    main()
