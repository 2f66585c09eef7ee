"""What the operator wants kept, what is read beforehand, who waits for the disk, and whose numbers
are whose.
"""

from __future__ import annotations

import os
import queue
from pathlib import Path
from typing import Any

import pytest

from mlxd.core.request import GenerationRequest, Message, Sampling
from mlxd.ipc.messages import Generate, WarmPrompt, packed
from mlxd.worker.job import Fetched, Job
from mlxd.worker.prefix.fetching import Fetching
from mlxd.worker.prefix.identity import identity
from mlxd.worker.prefix.keeping import Keeping, system_text
from mlxd.worker.prefix.outline import Outline
from mlxd.worker.stops import StopStrings
from mlxd.worker.warming import Warming

pytestmark = pytest.mark.mlx
REQUEST = GenerationRequest(model="m")


def job(id: int, tokens: int = 10, **more: Any) -> Job:
    return Job(id, REQUEST, Sampling(), [5] * tokens, 9, False, StopStrings(()), **more)


# -- keep


def test_a_pattern_keeps_what_texts_became() -> None:
    keeping = Keeping()
    keeping.note(b"aaaa", "You are a coder. Be brief.")
    keeping.note(b"bbbb", "You are a poet.")
    assert not keeping.keeps(b"aaaa")
    assert keeping.apply(["You are a coder*"])
    assert not keeping.apply(["You are a coder*"])
    assert keeping.keeps(b"aaaa")
    assert not keeping.keeps(b"bbbb")
    assert not keeping.keeps(b"cccc")
    keeping.note(b"cccc", "You are a coder, too")
    assert keeping.keeps(b"cccc")
    keeping.apply([])
    assert not keeping.keeps(b"aaaa")


def test_what_came_from_disk_stays_kept_until_its_text_says_else() -> None:
    keeping = Keeping()
    keeping.apply(["a*"])
    keeping.always(b"aaaa")
    assert keeping.keeps(b"aaaa")
    keeping.note(b"aaaa", "b")
    assert not keeping.keeps(b"aaaa")


def test_no_number_of_texts_fills_the_memory() -> None:
    keeping = Keeping()
    keeping.apply(["*"])
    for n in range(1000):
        keeping.note(packed([n]), "x" * 100_000)
    assert keeping.keeps(packed([999]))
    assert not keeping.keeps(packed([0]))
    assert keeping._size <= 16 * 2**20


def test_the_system_speaks_first_or_not_at_all() -> None:
    def text_of(*turns: tuple[str, str]) -> str:
        messages = tuple(Message(*turn) for turn in turns)
        return system_text(GenerationRequest(model="m", messages=messages))

    assert text_of(("system", "a"), ("system", "b"), ("user", "c"), ("system", "d")) == "a\nb"
    assert text_of(("user", "c"), ("system", "d")) == ""
    assert system_text(GenerationRequest(model="m", text="a")) == ""


# -- warm


def warm(text: str) -> WarmPrompt:
    messages = (Message("system", text), Message("user", "Hello"))
    return WarmPrompt(text, GenerationRequest(model="m", messages=messages))


class Prepared:
    def __init__(self) -> None:
        self.asked: list[Generate] = []
        self.warming = Warming(lambda generate, size: self.asked.append(generate), 100)

    @property
    def texts(self) -> list[str]:
        return [system_text(generate.request) for generate in self.asked]


def test_warm_prompts_come_one_after_the_other_and_once() -> None:
    made = Prepared()
    warming = made.warming
    warming.apply([warm("a"), warm("b")])
    warming.begin()
    warming.begin()
    assert made.texts == ["a"]
    assert made.asked[0].id < 0
    assert made.asked[0].request.max_tokens == 1
    warming.over(made.asked[0].id)
    warming.begin()
    warming.over(made.asked[1].id)
    warming.apply([warm("b"), warm("c")])
    warming.begin()
    assert made.texts == ["a", "b", "c"]
    warming.over(made.asked[2].id)
    warming.begin()
    assert len(made.asked) == 3
    warming.again()
    warming.begin()
    assert made.texts[3:] == ["b"]


def test_only_the_beginning_that_others_may_share_is_read() -> None:
    made = Prepared()
    made.warming.apply([warm("a")])
    made.warming.begin()
    id = made.asked[0].id
    read = made.warming.job(job(id, 50, outline=Outline((30, 40), 30)))
    assert read is not None
    assert len(read.tokens) == 31
    assert read.packed == packed(read.tokens)
    assert read.outline == Outline((30,), 30)
    assert made.warming.job(job(id - 1)) is None
    whole = made.warming.job(job(id, 50))
    assert whole is not None
    assert len(whole.tokens) == 50


def test_who_comes_puts_it_off() -> None:
    made = Prepared()
    warming = made.warming
    warming.apply([warm("a"), warm("b")])
    warming.begin()
    first = made.asked[0].id
    assert warming.current == first
    warming.put_off()
    assert warming.job(job(first)) is None
    warming.begin()
    assert made.texts == ["a", "a"]
    warming.over(first)
    assert warming.current == made.asked[1].id != first


# -- those who wait for the disk


def test_one_read_serves_all_who_wait_for_it() -> None:
    posted: list[Fetched] = []
    fetching = Fetching(posted.append)
    assert fetching.wait(job(1), "a")
    assert not fetching.wait(job(2), "a")
    assert fetching.wait(job(3), "b")
    assert len(fetching) == 3
    assert fetching.leave(2)
    assert not fetching.leave(2)
    assert [one.id for one in fetching.arrived("a")] == [1]
    assert fetching.arrived("a") == []
    assert [one.id for one in fetching.arrived("b")] == [3]
    assert posted == []


def test_a_disk_that_hangs_is_given_up() -> None:
    posted: queue.SimpleQueue[Fetched] = queue.SimpleQueue()
    fetching = Fetching(posted.put, most_seconds=0.01)
    fetching.wait(job(1), "a")
    assert posted.get(timeout=20) == Fetched("a", None)


# -- whose numbers


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 4096)
    (folder / "README.md").write_text("")
    return folder


def key_of(model: Path, adapter: Path | None = None, digest: str = "d", kv_bits: int = 0) -> str:
    return identity(model, adapter, digest=digest, kv_bits=kv_bits)


def test_the_same_files_have_the_same_key(model: Path) -> None:
    before = key_of(model)
    (model / "README.md").write_text("changed")
    assert key_of(model) == before


def test_whatever_numbers_depend_on_is_in_the_key(model: Path, tmp_path: Path) -> None:
    keys = {key_of(model), key_of(model, digest="e"), key_of(model, kv_bits=8)}
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapters.safetensors").write_bytes(b"abc")
    keys.add(key_of(model, adapter))
    (adapter / "adapters.safetensors").write_bytes(b"abd")
    keys.add(key_of(model, adapter))
    (model / "config.json").write_text("{ }")
    keys.add(key_of(model))
    assert len(keys) == 6


def test_weights_written_over_in_place_have_another_key(model: Path) -> None:
    """With their size and their times kept: by samples of what they hold."""
    file = model / "model.safetensors"
    before, status = key_of(model), file.stat()
    file.write_bytes(bytes(range(255, -1, -1)) * 4096)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert key_of(model) != before


def test_what_is_in_the_files_has_a_key_whenever_they_were_written(model: Path) -> None:
    """An answer goes on behind a crash though its model's files were copied anew meanwhile."""

    def contents() -> str:
        return identity(model, None, digest="d", kv_bits=0, dated=False)

    before, dated = contents(), key_of(model)
    file = model / "model.safetensors"
    os.utime(file, ns=(1, 1))
    assert (contents() == before, key_of(model) == dated) == (True, False)
    file.write_bytes(bytes(range(255, -1, -1)) * 4096)
    assert contents() != before


def test_another_engine_has_another_key(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = key_of(model)
    monkeypatch.setattr("mlxd.core.versions.engine", lambda: {"mlx": "0.0"})
    assert key_of(model) != before
