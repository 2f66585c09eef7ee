"""What is compared: a process that is started, asked, watched and ended."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import psutil

HERE = Path(__file__).parent
PEER_PACKAGES = {
    "mlx_lm": ["mlx-lm==0.32.2"],
    # Its own requirements bring in torch and gradio, which a text model never uses.
    "vllm_mlx": [
        "mlx-lm==0.31.3", "fastapi", "uvicorn", "python-multipart", "prometheus-client",
        "requests", "psutil", "jsonschema", "pytz", "llguidance", "pillow", "tabulate",
    ],
}  # fmt: skip
PEER_BARE = {"vllm_mlx": ["vllm-mlx==0.6.0"]}
MLX = "mlx==0.32.4" if sys.platform == "darwin" else "mlx[cpu]==0.32.4"


class NotThere(Exception):
    """This one is left out, for this reason."""


class Watched:
    """A process and its children; `log` is what it printed.

    Each leads a session of its own: Linux shares a crowded machine out between sessions.
    """

    def __init__(self, command: list[str], log: Path, env: dict[str, str], **pipes: Any) -> None:
        self.log = log
        with log.open("wb") as file:
            pipes = {"stdin": subprocess.DEVNULL, "stdout": file, **pipes}
            self.process = subprocess.Popen(
                command, stderr=file, env=os.environ | {"HF_HUB_OFFLINE": "1"} | env,
                cwd=log.parent, start_new_session=True, **pipes,
            )  # fmt: skip

    @property
    def tree(self) -> list[psutil.Process]:
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]

    def cpu_seconds(self) -> float:
        """User and system time of the whole tree, as finely as the system tells it."""
        return sum(cpu_seconds(process.pid) for process in self.tree)

    def rss_bytes(self) -> int:
        """Of the first process alone."""
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-2000:]

    def stop(self, grace: float = 15.0) -> None:
        """Ask it to end, then end it and what is left of its children."""
        with contextlib.suppress(psutil.Error):
            tree = self.tree
            self.process.terminate()
            _, alive = psutil.wait_procs(tree, grace)
            for process in alive:
                with contextlib.suppress(psutil.Error):
                    process.kill()
        self.process.wait(grace)


def cpu_seconds(pid: int) -> float:
    """User and system time of one process, as finely as the system tells it."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            return time.clock_gettime((~pid << 3) | 2)  # clock_getcpuclockid(3)
    with contextlib.suppress(psutil.Error):
        used = psutil.Process(pid).cpu_times()
        return used.user + used.system
    return 0.0


class Server:
    """One HTTP server with one model."""

    name: ClassVar[str]
    ready_path: ClassVar[str] = "/v1/models"

    def __init__(self, model: Path, scratch: Path, python: Path) -> None:
        self.port = free_port()
        self.model = self.model_name(model)
        self.python = python
        self.watched = Watched(
            self.command(model, scratch), scratch / f"{self.name}.log", self.environment(scratch)
        )

    def model_name(self, model: Path) -> str:
        """What requests call the model."""
        return str(model)

    def command(self, model: Path, scratch: Path) -> list[str]:
        raise NotImplementedError

    def environment(self, scratch: Path) -> dict[str, str]:
        return {"HOME": str(scratch)}

    def until_ready(self, timeout: float = 60.0) -> None:
        deadline = time.monotonic() + timeout
        while not _answers(self.port, self.ready_path):
            if self.watched.process.poll() is not None or time.monotonic() > deadline:
                raise NotThere(f"{self.name} does not start: {self.watched.tail()}")
            time.sleep(0.02)

    def version(self) -> str:
        raise NotImplementedError


class Daemon(Server):
    """mlxd of this checkout."""

    name = "mlxd"
    ready_path = "/readyz"

    def __init__(
        self, model: Path, scratch: Path, python: Path = Path(sys.executable),
        policies: Path = HERE / "policies",
    ) -> None:  # fmt: skip
        self._models, self._policies = model.parent, policies
        super().__init__(model, scratch, python)

    def model_name(self, model: Path) -> str:
        return model.name

    def command(self, model: Path, scratch: Path) -> list[str]:
        return [
            str(self.python), "-m", "mlxd", "serve", "--policies", str(self._policies),
            "--state", str(scratch / "state"), "--port", str(self.port),
        ]  # fmt: skip

    def environment(self, scratch: Path) -> dict[str, str]:
        return _importable() | {"MLXD_MODELS": str(self._models)}

    def version(self) -> str:
        from mlxd import __version__

        return __version__


class MlxLmServer(Server):
    """mlx-lm's own server."""

    name = "mlx_lm.server"
    ready_path = "/health"

    def command(self, model: Path, scratch: Path) -> list[str]:
        return [
            str(self.python), "-m", "mlx_lm.server", "--model", str(model),
            "--host", "127.0.0.1", "--port", str(self.port), "--log-level", "WARNING",
        ]  # fmt: skip

    def version(self) -> str:
        return _installed(self.python, "mlx-lm")


class VllmMlx(Server):
    """vllm-mlx with continuous batching."""

    name = "vllm-mlx"

    def command(self, model: Path, scratch: Path) -> list[str]:
        return [
            str(self.python.with_name("vllm-mlx")), "serve", str(model), "--host", "127.0.0.1",
            "--port", str(self.port), "--continuous-batching",
        ]  # fmt: skip

    def version(self) -> str:
        return _installed(self.python, "vllm-mlx")


PEERS = {"mlx_lm.server": (MlxLmServer, "mlx_lm"), "vllm-mlx": (VllmMlx, "vllm_mlx")}


def start_peer(name: str, peers: Path | None, model: Path, scratch: Path) -> Server:
    """Raises NotThere."""
    make, folder = PEERS[name]
    if peers is None:
        raise NotThere(f"{name}: no --peers folder was named")
    python = peers.absolute() / folder / "bin" / "python"
    if not python.exists():
        raise NotThere(f"{name}: not installed under {peers.name}/ (--install-peers does)")
    server = make(model, scratch, python)
    try:
        server.until_ready()
    except NotThere:
        server.watched.stop()
        raise
    return server


def install_peers(peers: Path) -> None:
    """Each into an environment of its own; one that is there stays as it is."""
    for name, packages in PEER_PACKAGES.items():
        folder = peers / name
        if (folder / "bin" / "python").exists():
            continue
        print(f"installing {name}", file=sys.stderr)
        try:
            subprocess.run([sys.executable, "-m", "venv", folder], check=True)
            pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet"]
            subprocess.run([*pip, MLX, *packages], check=True)
            if bare := PEER_BARE.get(name):
                subprocess.run([*pip, "--no-deps", *bare], check=True)
        except subprocess.CalledProcessError as error:
            print(f"{name} cannot be installed: {error}", file=sys.stderr)
            shutil.rmtree(folder, ignore_errors=True)


class Raw:
    """The yardstick's process (mlxd/worker/raw.py)."""

    name = "raw"

    def __init__(self, model: Path, scratch: Path) -> None:
        self.watched = Watched(
            [sys.executable, "-m", "mlxd.worker.raw", str(model)], scratch / "raw.log",
            _importable(),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self._answer()

    def run(self, prompts: list[str], tokens: int) -> dict[str, Any]:
        assert self.watched.process.stdin is not None
        order = json.dumps({"prompts": prompts, "tokens": tokens})
        self.watched.process.stdin.write(order.encode() + b"\n")
        self.watched.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.watched.process.stdout is not None
        line = self.watched.process.stdout.readline()
        if not line:
            raise NotThere(f"raw ended: {self.watched.tail()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def _importable() -> dict[str, str]:
    """For processes of this checkout."""
    path = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH", "")]))
    return {"PYTHONPATH": path}


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _answers(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5.0)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def _installed(python: Path, package: str) -> str:
    command = f"import importlib.metadata as m; print(m.version({package!r}))"
    return subprocess.run(
        [python, "-c", command], capture_output=True, text=True, check=True
    ).stdout.strip()
