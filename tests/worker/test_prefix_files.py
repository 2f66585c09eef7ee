"""Entries on disk: the same caches come back, or none."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs

from mlxd.ipc.messages import packed
from mlxd.worker.prefix import files
from mlxd.worker.prefix.files import Damaged, Head
from mlxd.worker.prefix.layout import Layout, taken_apart
from tests.support.caches import LAYOUTS, Reads, tokens_of
from tests.support.long import short
from tests.worker.conftest import MakeModel

pytestmark = pytest.mark.mlx
LENGTH = 300


@pytest.fixture(scope="module")
def reads_of(model_of: MakeModel) -> Callable[[str], Reads]:
    made: dict[str, Reads] = {}

    def reads_of(layout: str) -> Reads:
        if layout not in made:
            bits = 8 if layout == "quantised" else 0
            made[layout] = Reads(model_of(LAYOUTS[layout]), bits)
        return made[layout]

    return reads_of


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "one.prefix"


def written(file: Path, caches: list[Any], ids: bytes) -> Head:
    layers, slabs = taken_apart(caches)
    head = Head("key", ids, "turn", "", False, False, layers)
    with file.open("wb") as stream:
        files.write(stream, head, slabs)
    return head


def back(file: Path, layout: Layout) -> list[Any] | None:
    """What a worker would make of the file; raises Damaged."""
    with files.opened(file) as stream:
        head = files.read_head(stream)
        if not layout.fits(head.layers):
            return None
        return layout.made(head.layers, files.read_arrays(stream, head), head.length)


@pytest.mark.parametrize("layout", short(LAYOUTS, *(set(LAYOUTS) - {"recurrent"})))
def test_what_comes_back_goes_on_as_what_was_kept(
    layout: str, reads_of: Callable[[str], Reads], file: Path
) -> None:
    reads = reads_of(layout)
    tokens = tokens_of(1, LENGTH)
    caches = reads.caches(tokens)
    head = written(file, caches, packed(tokens))
    assert file.stat().st_size == files.size_of(head)
    made = back(file, Layout(reads.caches([3])))
    assert made is not None
    assert reads.goes_on(made) == reads.goes_on(caches)


def test_threads_of_their_own_write_and_read(reads_of: Callable[[str], Reads], file: Path) -> None:
    reads = reads_of("half")
    tokens = tokens_of(2, LENGTH)
    caches, layout = reads.caches(tokens), Layout(reads.caches([3]))
    layers, slabs = taken_apart(caches)
    head = Head("key", packed(tokens), "turn", "", False, False, layers)
    arrays: list[Any] = []

    def write() -> None:
        with file.open("wb") as stream:
            files.write(stream, head, slabs)

    def read() -> None:
        with files.opened(file) as stream:
            arrays.extend(files.read_arrays(stream, files.read_head(stream)))

    for work in (write, read):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    made = layout.made(head.layers, arrays, head.length)
    assert made is not None
    assert reads.goes_on(made) == reads.goes_on(caches)


def test_only_what_holds_tokens_is_written(reads_of: Callable[[str], Reads], file: Path) -> None:
    """A cache of keys and values has room for 256 tokens at once."""
    reads = reads_of("full")
    written(file, reads.caches(tokens_of(1, 10)), packed(tokens_of(1, 10)))
    ten = file.stat().st_size
    written(file, reads.caches(tokens_of(1, 250)), packed(tokens_of(1, 250)))
    assert file.stat().st_size > 10 * ten


@pytest.fixture(scope="module")
def whole(
    reads_of: Callable[[str], Reads], tmp_path_factory: pytest.TempPathFactory
) -> tuple[bytes, Layout, Path]:
    file = tmp_path_factory.mktemp("whole") / "one.prefix"
    reads = reads_of("hybrid")
    written(file, reads.caches(tokens_of(1, 40)), packed(tokens_of(1, 40)))
    return file.read_bytes(), Layout(reads.caches([3])), file


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_what_is_damaged_anywhere_is_none(
    data: st.DataObject, whole: tuple[bytes, Layout, Path]
) -> None:
    content, layout, file = whole
    head_ends = int.from_bytes(content[8:12], "little") + 12 + 32
    region = data.draw(st.sampled_from([(0, 12), (12, head_ends), (head_ends, len(content))]))
    at = data.draw(st.integers(region[0], region[1] - 1))
    how = data.draw(st.sampled_from(["flip", "cut", "grow", "zero"]))
    changed = bytearray(content)
    if how == "flip":
        changed[at] ^= 1 << data.draw(st.integers(0, 7))
    elif how == "cut":
        del changed[at:]
    elif how == "zero":
        changed[at : at + 4096] = bytes(len(changed[at : at + 4096]))
    else:
        changed[at:at] = data.draw(st.binary(min_size=1, max_size=64))
    if bytes(changed) == content:
        return
    file.write_bytes(changed)
    with pytest.raises(Damaged):
        back(file, layout)


@settings(max_examples=80, deadline=None)
@given(content=st.binary(max_size=300), tail=st.booleans())
def test_a_strangers_file_is_none(
    content: bytes, tail: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.getbasetemp() / "stranger.prefix"
    file.write_bytes((b"mlxdpfx1" if tail else b"") + content)
    with files.opened(file) as stream, pytest.raises(Damaged):
        files.read_head(stream)


def test_a_pipe_is_not_waited_for(file: Path) -> None:
    os.mkfifo(file)
    with pytest.raises(Damaged), files.opened(file):
        pass


CHANGES: dict[str, Callable[[Head], Head]] = {
    "more tokens than its caches": lambda head: structs.replace(head, ids=head.ids + b"\0\0\0\0"),
    "one layer": lambda head: structs.replace(head, layers=head.layers[:1]),
    "layers in another order": lambda head: structs.replace(head, layers=head.layers[::-1]),
    "no layers": lambda head: structs.replace(head, layers=()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whole_files_of_other_caches_are_none(
    change: str, reads_of: Callable[[str], Reads], file: Path
) -> None:
    """Their checksums are right: somebody has made them so."""
    reads = reads_of("hybrid")
    layers, slabs = taken_apart(reads.caches(tokens_of(1, 40)))
    head = CHANGES[change](Head("key", packed(tokens_of(1, 40)), "turn", "", False, False, layers))
    if change != "more tokens than its caches":
        slabs = slabs[: len(slabs) * len(head.layers) // len(layers)]
    stream = BytesIO()
    files.write(stream, head, slabs)
    file.write_bytes(stream.getvalue())
    layout = Layout(reads.caches([3]))
    try:
        assert back(file, layout) is None
    except Damaged:
        assert change in ("one layer", "layers in another order")


def test_caches_of_another_model_do_not_fit(reads_of: Callable[[str], Reads]) -> None:
    layouts = {name: Layout(reads_of(name).caches([3])) for name in LAYOUTS}
    taken = {name: taken_apart(reads_of(name).caches([3, 4]))[0] for name in LAYOUTS}
    for one, layout in layouts.items():
        for other, layers in taken.items():
            alike = {one, other} == {"full", "experts"}  # a stranger's tokens, the same shapes
            assert layout.fits(layers) == (one == other or alike), (one, other)


def test_names_differ_by_tokens_and_owner() -> None:
    ids, others = packed([1, 2]), packed([1, 3])
    names = {
        files.name_of(ids, "a", public=False),
        files.name_of(ids, "b", public=False),
        files.name_of(ids, "", public=True),
        files.name_of(others, "a", public=False),
    }
    assert len(names) == 4
    assert files.name_of(ids, "a", public=True) == files.name_of(ids, "b", public=True)
