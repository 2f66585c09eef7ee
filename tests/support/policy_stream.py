"""One greedy stream, and every policy that can change while it runs."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlxd.policy.keys import Key
from mlxd.policy.strict_yaml import dotted
from tests.support.daemon import Daemon, daemon, free_port
from tests.support.policy_edits import SINGLE, Edited, actual, another, changeable

Json = dict[str, Any]
_MOST_TOKENS = 60_000


@dataclass
class Streamed:
    """What became of a stream that was read for as long as the reloads took."""

    records: list[Json] = field(default_factory=list)
    seconds: float = 0.0
    reloads: int = 0
    unchanged: list[str] = field(default_factory=list)
    """Keys whose effective value is what it was before."""
    workers: tuple[set[int], set[int]] = (set(), set())
    """Pids before and after."""

    @property
    def tokens(self) -> list[str]:
        return _tokens(self.records)


class Everything:
    """The policies of one daemon, and another value for each that can change."""

    def __init__(self, models: Path, model: str) -> None:
        self.port = free_port()
        self._entries = {"models.models": model, "clients.tenants": "agents"}
        self._chosen = {
            "server.listen.port": free_port(),
            "limits.concurrency.per_model": {model: 1},
            "models.dirs": [str(models), "/srv/models"],
        }
        self.edited = Edited(
            {
                "server": {"listen": {"port": self.port}},
                "limits": {
                    "rate_limit": [{"requests": 100_000}],
                    "tokens": {"max_output": _MOST_TOKENS},
                },
                "models": {"dirs": [str(models)]},
                "supervision": {"worker": {"budget": [{}]}},
            }
        )
        self.keys = [key for key in changeable() if key.name not in SINGLE]

    def shares(self, count: int) -> list[list[Key]]:
        """Every key in one of `count` shares, none of them empty."""
        assert count <= len(self.keys)
        return [self.keys[first::count] for first in range(count)]

    def put(self, keys: Sequence[Key]) -> set[str]:
        """Give these another value; returns the kinds whose files change."""
        return {
            self.edited.put(
                actual(key, self._entries),
                self._chosen[key.name] if key.name in self._chosen else another(key),
            )
            for key in keys
        }

    def names(self) -> list[str]:
        return [dotted(actual(key, self._entries)) for key in self.keys]


@contextmanager
def everything(folder: Path, models: Path, model: str) -> Iterator[tuple[Daemon, Everything]]:
    """A daemon whose every policy may be changed, its port among them."""
    all_of_it = Everything(models, model)
    with daemon(
        folder, models=models, policies=all_of_it.edited.texts(), port=all_of_it.port,
        port_flag=False,
    ) as running:  # fmt: skip
        yield running, all_of_it


def stream_under_reloads(
    running: Daemon, policies: Everything, model: str, *, reloads: int, seconds: float = 0.0
) -> Streamed:
    """A stream during which so many reloads happen, at least one record apart, over `seconds` or
    as soon as they can. Each changes its share of the keys, and all of them together every one.
    """
    run = Streamed()
    undisturbed(running, model, 1)  # the model is loaded
    before = _effective(running)
    pids = {process.pid for process in running.workers()}
    with _Reading(running, _body(model, _MOST_TOKENS), run) as reading:
        began = time.monotonic()
        for number, share in enumerate(policies.shares(reloads)):
            reading.until_later(began + seconds * number / reloads)
            _reload(running, policies, share)
            run.reloads += 1
        reading.until_later(began + seconds)
        run.seconds = time.monotonic() - began
    running.follow()
    after = _effective(running)
    run.unchanged = [
        name for name in policies.names() if _under(before, name) == _under(after, name)
    ]
    run.workers = (pids, {process.pid for process in running.workers()})
    return run


def undisturbed(running: Daemon, model: str, tokens: int) -> list[str]:
    """The first tokens of the same answer, whole."""
    body = _body(model, tokens) | {"stream": False}
    answer = running.http.post("/api/generate", json=body, timeout=None)
    assert answer.status_code == 200, answer.text
    return _tokens([answer.json()])


def _body(model: str, tokens: int) -> Json:
    options = {"temperature": 0, "num_predict": tokens}
    return {"model": model, "prompt": "on and on", "options": options, "logprobs": True}


def _tokens(records: list[Json]) -> list[str]:
    return [entry["token"] for record in records for entry in record.get("logprobs") or ()]


def _reload(running: Daemon, policies: Everything, share: Sequence[Key]) -> None:
    before = running.admin.get("/admin/policy")["generation"]
    policies.edited.save(running, policies.put(share))
    outcome = running.reload()
    assert outcome["result"] in ("applied", "unchanged"), outcome  # the watcher may be first
    assert outcome["generation"] > before, [key.name for key in share]


def _effective(running: Daemon) -> Mapping[str, Any]:
    values: Mapping[str, Any] = running.admin.get("/admin/policy/effective")["values"]
    return {name: value["value"] for name, value in values.items()}


def _under(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A key's value, or all values of a mapping's entries."""
    return {
        known: value
        for known, value in values.items()
        if known == name or known.startswith(f"{name}.")
    }


class _Reading:
    """Reads a stream in a thread of its own until the block ends, and then hangs up."""

    def __init__(self, running: Daemon, body: Json, run: Streamed) -> None:
        self._running = running
        self._body = body
        self._run = run
        self._more = threading.Condition()
        self._enough = threading.Event()
        self._pool = ThreadPoolExecutor(1)

    def __enter__(self) -> _Reading:
        self._done = self._pool.submit(self._read)
        self._done.add_done_callback(self._tell)
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        self._done.result()
        self._pool.shutdown()

    def until_later(self, moment: float) -> None:
        """Until another record is there, and not before `moment`."""
        count = len(self._run.records)
        with self._more:
            self._more.wait_for(
                lambda: (
                    self._done.done()
                    or (len(self._run.records) > count and time.monotonic() >= moment)
                ),
                timeout=120,
            )
        assert not self._done.done(), f"the stream ended: {self._run.records[-1:]}"

    def _tell(self, _: object) -> None:
        with self._more:
            self._more.notify_all()

    def _read(self) -> None:
        http, body = self._running.http, self._body
        with http.stream("POST", "/api/generate", json=body, timeout=60) as response:
            assert response.status_code == 200
            for line in response.iter_lines():
                with self._more:
                    self._run.records.append(json.loads(line))
                    self._more.notify_all()
                if self._enough.is_set():
                    return
