"""Several daemons with the same models, such as stand behind a balancer."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.support.daemon import Daemon, daemon, free_port
from tests.support.model_maker import Shape, make_model

PACED = "tiny-paced"
_PACE_SECONDS = 0.01
_NEVER_SAMPLED = 100_000
_CODE = f"""
import time

from mlx_lm.models.llama import Model as Usual, ModelArgs


class Model(Usual):
    def __call__(self, tokens, *inputs, **more):
        if tokens.shape[-1] == 1:
            time.sleep({_PACE_SECONDS})
        return super().__call__(tokens, *inputs, **more)
"""


def make_paced(folder: Path) -> None:
    """A model that never stops by itself; a step takes some time, in which no core is used."""
    shape = Shape(layers=1, spread=3.0, context=65536, extra={"eos_token_id": _NEVER_SAMPLED})
    make_model(folder, shape, seed=3)
    (folder / "code.py").write_text(_CODE)
    _change(folder / "config.json", {"model_file": "code.py"})
    _change(folder / "tokenizer_config.json", {"eos_token": None})


def _change(file: Path, values: dict[str, Any]) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def question(tokens: int, *, stream: bool) -> dict[str, Any]:
    """A body for /api/generate."""
    options = {"num_predict": tokens, "temperature": 0}
    return {"model": PACED, "prompt": "hold", "stream": stream, "options": options}


class Fleet:
    """Daemons on ports of their own; one that has ended is started again by `complete`."""

    def __init__(self, folder: Path, size: int, stack: ExitStack) -> None:
        self._folder = folder
        self._stack = stack
        self._ports = [free_port() for _ in range(size)]
        self._started = 0
        self._models = folder / "models"
        make_paced(self._models / PACED)
        self.daemons: list[Daemon] = []

    def complete(self) -> list[Daemon]:
        """All of them, each with its model in memory."""
        gone = [n for n, _ in enumerate(self._ports) if not self._runs(n)]
        for n in gone:
            self.daemons[n : n + 1] = [self._start(self._ports[n])]
        with ThreadPoolExecutor(len(self._ports)) as pool:
            list(pool.map(_warm, [self.daemons[n] for n in gone]))
        return self.daemons

    def move(self, n: int, port: int) -> None:
        """To another port, as an operator has it do; returns once it serves there."""
        moved = self.daemons[n]
        moved.edit("server", _server(port))
        outcome = moved.reload()  # it may have seen the edit by itself
        assert outcome["result"] != "refused", outcome
        self._ports[n] = port

    def _runs(self, n: int) -> bool:
        return n < len(self.daemons) and self.daemons[n].process.poll() is None

    def _start(self, port: int) -> Daemon:
        self._started += 1
        folder = self._folder / str(self._started)
        folder.mkdir()
        models = f"dirs: [{self._models}]\nmodels:\n  {PACED}: {{trust_remote_code: true}}\n"
        policies = {
            "limits": "concurrency: {max_in_flight: 64}\nrate_limit: []\n",
            "server": _server(port),
            "models": models,
        }
        started = daemon(folder, policies=policies, port=port, port_flag=False)
        return self._stack.enter_context(started)


@contextmanager
def fleet(folder: Path, size: int = 3) -> Iterator[Fleet]:
    """None runs yet."""
    with ExitStack() as stack:
        made = Fleet(folder, size, stack)
        try:
            yield made
        finally:
            for one in made.daemons:  # all at one time
                if one.process.poll() is None:
                    one.process.send_signal(signal.SIGTERM)


def _server(port: int) -> str:
    return f"listen: {{port: {port}}}\ndrain: {{grace: 60s}}\n"


def _warm(one: Daemon) -> None:
    answer = one.http.post("/api/generate", json=question(1, stream=False))
    assert answer.status_code == 200, answer.text
