"""What `mlxd bench` has measured, kept; and what is expected because of it."""

from __future__ import annotations

import math
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from mlxd.control import benched
from mlxd.control.applicant import Applicant
from mlxd.control.benched import FILE, MOST_MODELS, Bench, Benches
from mlxd.control.catalog import Catalog
from mlxd.control.expected import Expected
from mlxd.control.place import Place
from mlxd.core.caller import Caller
from mlxd.core.clock import ManualClock
from mlxd.core.models import ModelCard
from mlxd.policy.load import load

CARD = ModelCard("m", "/m", 1, "ab" * 32, 0.0, "llama", 1, "f16", 4096)
PREFILL, DECODE = [(128, 1000.0), (512, 2000.0)], [(1, 100.0), (4, 300.0)]
BENCH = Bench(0.0, "m", "", "", PREFILL, DECODE)


def benches(state: Path) -> Benches:
    return Benches(state, ManualClock())


class Names:
    """A catalogue with one model."""

    def find(self, name: str, policies: object) -> ModelCard | None:
        return CARD if name == "m" else None

    def known(self) -> list[ModelCard]:
        return [CARD]


async def expected(state: Path) -> Expected:
    kept = benches(state)
    await kept.put(CARD, PREFILL, DECODE)
    return Expected(cast("Catalog", Names()), kept)


def place(reading: float, cost: float, model: str = "m") -> Place:
    applicant = Applicant(Caller("c"), load(), model, cost=cost, reading=reading)
    return Place(applicant, "medium", "c", cost, 0.0, 0.0, 1)


@pytest.mark.parametrize(
    ("tokens", "seconds"),
    [(64, 0.064), (128, 0.128), (320, 320 / 1500), (512, 0.256), (4096, 2.048)],
)
def test_a_prompt_is_read_at_the_rate_of_its_length(tokens: int, seconds: float) -> None:
    assert BENCH.read_seconds(tokens) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("streams", "seconds"), [(0, 1.0), (1, 1.0), (2, 2 / (500 / 3) * 100), (4, 4 / 3), (8, 8 / 3)]
)
def test_an_answer_shares_the_rate_of_so_many_streams(streams: int, seconds: float) -> None:
    assert BENCH.decode_seconds(100, streams) == pytest.approx(seconds)


async def test_it_outlives_the_daemon(tmp_path: Path) -> None:
    assert benches(tmp_path).get(CARD) is None
    await benches(tmp_path).put(CARD, [*reversed(PREFILL)], DECODE)
    found = benches(tmp_path).get(CARD)
    assert found is not None
    assert (found.prefill, found.decode) == (PREFILL, DECODE)
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600
    assert benches(tmp_path).get(replace(CARD, digest="cd" * 32)) is None


@pytest.mark.parametrize("what", ["machine", "engine"])
async def test_another_machine_or_version_has_measured_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    await benches(tmp_path).put(CARD, PREFILL, DECODE)
    before = (tmp_path / FILE).read_bytes()
    with monkeypatch.context() as other:
        other.setattr(benched, what, lambda: "another")
        assert benches(tmp_path).get(CARD) is None
    assert benches(tmp_path).get(CARD) is not None
    assert (tmp_path / FILE).read_bytes() == before


@pytest.mark.parametrize(
    "points",
    [
        [], [(0, 1.0)], [(1, 0.0)], [(1, -1.0)], [(1, math.inf)], [(1, math.nan)], [(2**40, 1.0)],
        [(1, 1.0), (1, 2.0)], [(n, 1.0) for n in range(1, 40)],
    ],
)  # fmt: skip
async def test_what_nobody_can_have_measured_is_refused(
    tmp_path: Path, points: list[tuple[int, float]]
) -> None:
    kept = benches(tmp_path)
    for prefill, decode in ((points, DECODE), (PREFILL, points)):
        with pytest.raises(ValueError, match="expected one rate or more"):
            await kept.put(CARD, prefill, decode)
    assert kept.get(CARD) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"schema": 1}', b'{"schema": 2}'])
def test_a_file_that_cannot_be_read_is_set_aside(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    assert benches(tmp_path).get(CARD) is None
    assert [one.name for one in tmp_path.iterdir()] != [FILE]


async def test_an_impossible_entry_is_left_out(tmp_path: Path) -> None:
    await benches(tmp_path).put(CARD, PREFILL, DECODE)
    content = (tmp_path / FILE).read_text()
    (tmp_path / FILE).write_text(content.replace("1000.0", "0.0"))
    assert benches(tmp_path).get(CARD) is None


async def test_a_disk_that_is_full_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    kept = benches(tmp_path / "file")
    await kept.put(CARD, PREFILL, DECODE)
    assert kept.get(CARD) is not None


async def test_nor_is_a_system_without_a_thread_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    kept = benches(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        await kept.put(CARD, PREFILL, DECODE)
    assert kept.get(CARD) is not None


async def test_the_longest_not_measured_goes(tmp_path: Path) -> None:
    kept = benches(tmp_path)
    cards = [replace(CARD, digest=f"{n:064x}"[::-1]) for n in range(MOST_MODELS + 1)]
    for card in cards:
        await kept.put(card, PREFILL, DECODE)
    assert kept.get(cards[0]) is None
    assert kept.get(cards[1]) is not None


async def test_a_slot_is_held_for_prompt_and_answer(tmp_path: Path) -> None:
    told = await expected(tmp_path)
    assert told.hold_seconds(place(512, 612), 1) == pytest.approx(0.256 + 1.0)
    assert told.hold_seconds(place(512, 612), 4) == pytest.approx(0.256 + 4 / 3)
    assert told.hold_seconds(place(512, 612, "other"), 1) is None


async def test_a_prompt_that_cannot_be_read_in_time_is_told(tmp_path: Path) -> None:
    told, policies = await expected(tmp_path), load()
    most = float(policies.timeouts.first_token)
    slow = int(2000 * most * 2)
    assert told.slow_prompt("m", int(2000 * most * 0.9), policies) is None
    assert told.slow_prompt("other", slow, policies) is None
    words = told.slow_prompt("m", slow, policies)
    assert words == (
        f"a prompt of {slow} tokens takes about {2 * most:.0f} s to read on this machine or more,"
        f" for mlxd bench has read 512 at most; timeouts.first_token is {most:g} s"
    )


async def test_a_model_whose_longest_prompt_is_too_long_is_told(tmp_path: Path) -> None:
    told, policies = await expected(tmp_path), load()
    assert told.slow_models(policies) == []
    hasty: Any = replace(
        policies,
        policies=policies.policies.model_copy(
            update={"timeouts": policies.timeouts.model_copy(update={"first_token": 1.0})}
        ),
    )
    (words,) = told.slow_models(hasty)
    assert words.startswith("m: a prompt of 4096 tokens takes about 2 s to read")
