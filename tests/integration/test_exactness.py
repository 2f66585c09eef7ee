"""What a request is told does not depend on who runs beside it."""

from __future__ import annotations

import json
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from tests.integration.talking import (
    ENDLESS,
    PATHS,
    Json,
    ask,
    body_for,
    generate,
    idle,
    piece_of,
    records,
    whole_text,
)
from tests.support.daemon import Daemon

pytestmark = pytest.mark.mlx

STREAMS = 16
BETWEEN_JOINS = 20
"""Records, of all streams together, after which the next stream joins."""


class Meter:
    """Counts the records of all streams; a stream joins when enough have come."""

    def __init__(self) -> None:
        self._count = 0
        self._changed = threading.Condition()

    def add(self) -> None:
        with self._changed:
            self._count += 1
            self._changed.notify_all()

    def wait_for(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self._count >= count, timeout=30)


@dataclass(frozen=True)
class Asked:
    """One stream of the mix; `leaves` is after how many records its client hangs up."""

    body: Json
    joins: int
    leaves: int | None


def _tokens(records: list[Json]) -> list[str]:
    return [entry["token"] for record in records for entry in record.get("logprobs", ())]


def _run(daemon: Daemon, asked: Asked, meter: Meter) -> list[Json]:
    meter.wait_for(asked.joins)
    found: list[Json] = []
    with daemon.http.stream("POST", "/api/generate", json=asked.body) as response:
        assert response.status_code == 200
        for line in response.iter_lines():
            found.append(json.loads(line))
            meter.add()
            if len(found) == asked.leaves:
                break
    return found


def _mix(seed: int) -> list[Asked]:
    """Streams of different lengths; every fourth hangs up, every other asks for its tokens."""
    rng = random.Random(seed)
    mix = []
    for index in range(STREAMS):
        prompt = " ".join(rng.choices(["fox", "server", "ещё", "天地", "fast", "чаю"], k=index + 1))
        body = generate(ENDLESS, prompt, tokens=rng.randint(40, 90))
        leaves = rng.randint(BETWEEN_JOINS + 4, 36) if index % 4 == 3 else None
        body |= {"logprobs": index % 2 == 0}
        mix.append(Asked(body, joins=index * BETWEEN_JOINS, leaves=leaves))
    return mix


def test_sixteen_greedy_streams_that_join_and_leave_say_what_each_says_alone(
    served: Daemon,
) -> None:
    mix = _mix(seed=5)
    alone = [ask(served, asked.body | {"logprobs": True}) for asked in mix]
    for answer in alone:
        tokens = _tokens([answer])
        assert len(tokens) == answer["eval_count"]
        assert len(set(tokens)) >= 0.3 * len(tokens), "a text that repeats itself proves nothing"
    meter = Meter()
    with ThreadPoolExecutor(STREAMS) as pool:
        together = list(pool.map(lambda asked: _run(served, asked, meter), mix))
    for asked, found, expected in zip(mix, together, alone, strict=True):
        text = "".join(record["response"] for record in found)
        if asked.leaves is None:
            assert text == expected["response"]
            assert found[-1]["eval_count"] == expected["eval_count"]
        else:
            assert text
            assert expected["response"].startswith(text)
        if asked.body["logprobs"]:
            tokens = _tokens(found)
            assert tokens == _tokens([expected])[: len(tokens)]
    idle(served)


def test_streams_that_run_together_share_steps(served: Daemon) -> None:
    """Side by side they take far less than one after another: they are one batch. Something else
    may slow a few tries; without a batch it would be eight times as long in each.
    """
    body = generate(ENDLESS, "together", tokens=60)

    def ratio() -> float:
        one = ask(served, body)["eval_duration"]
        with ThreadPoolExecutor(8) as pool:
            together = [a["eval_duration"] for a in pool.map(lambda _: ask(served, body), range(8))]
        return float(max(together) / one)

    assert any(ratio() < 6 for _ in range(5))


def test_seeds_reproduce_inside_a_mixed_batch(served: Daemon) -> None:
    def seeded(seed: int, neighbours: int) -> list[str]:
        bodies = [generate(ENDLESS, "dice", tokens=50, temperature=1.0, seed=seed, top_k=0)]
        bodies += [
            generate(ENDLESS, f"other {n}", tokens=40 + n, temperature=n / 2, seed=seed + n)
            for n in range(neighbours)
        ]
        with ThreadPoolExecutor(len(bodies)) as pool:
            return [a["response"] for a in pool.map(lambda body: ask(served, body), bodies)]

    alone = {seed: seeded(seed, 0)[0] for seed in (1, 2)}
    assert alone[1] != alone[2]
    for seed, expected in alone.items():
        assert seeded(seed, 5)[0] == expected
        assert seeded(seed, 3)[0] == expected


def test_without_a_seed_two_answers_differ(served: Daemon) -> None:
    body = generate(ENDLESS, "dice", tokens=40, temperature=1.0)
    assert ask(served, body)["response"] != ask(served, body)["response"]


@pytest.mark.parametrize("path", PATHS)
def test_a_stop_string_ends_the_answer_before_itself(served: Daemon, path: str) -> None:
    plain = body_for(path, ENDLESS, "stop me", tokens=60)
    whole = whole_text(path, served.http.post(path, json=plain).json())
    stop = whole[30:34]
    expected = whole[: whole.index(stop)]
    body = body_for(path, ENDLESS, "stop me", tokens=60, stop=["never in there", stop])
    answer = served.http.post(path, json=body).json()
    assert whole_text(path, answer) == expected
    reason = (
        answer["done_reason"] if "done_reason" in answer else answer["choices"][0]["finish_reason"]
    )
    assert reason == "stop"
    streamed = records(path, served.http.post(path, json=body | {"stream": True}))
    assert "".join(piece_of(path, record) for record in streamed) == expected
