"""Headers of safetensors files: what is wrong with them is said, and nothing else comes of it."""

from __future__ import annotations

import contextlib
import json
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxd.control import safetensors
from mlxd.control.reading import UnreadableModel, opened
from mlxd.control.safetensors import BITS, flaw_of, read_header
from tests.support.examples import examples

Json = dict[str, Any]


def entry(begin: int, end: int, dtype: str = "F16", shape: Any = None) -> Json:
    shape = [(end - begin) // 2] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def written(folder: Path, header: object, data: int = 0) -> Path:
    """A file with this header (JSON, or bytes as they are) and `data` bytes behind it."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    file = folder / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(data))
    return file


def flaw(folder: Path, header: object, data: int = 0) -> str:
    return flaw_of(read_header(written(folder, header, data)), "model.safetensors")


def test_a_whole_file_has_no_flaw(tmp_path: Path) -> None:
    header = {"__metadata__": {"format": "mlx"}, "b": entry(8, 12), "a": entry(0, 8)}
    assert flaw(tmp_path, header, 12) == ""
    assert flaw(tmp_path, {}, 0) == ""
    assert (
        flaw(tmp_path, {"scalar": entry(0, 2, shape=[]), "none": entry(2, 2, shape=[0])}, 2) == ""
    )
    found = read_header(tmp_path / "model.safetensors")
    assert [tensor.size_bytes for tensor in found.tensors] == [2, 0]
    assert [tensor.elements for tensor in found.tensors] == [1, 0]


@pytest.mark.parametrize(
    ("header", "data", "reason"),
    [
        ({"a": entry(0, 8)}, 7, "is cut short: 7 of 8 bytes are there"),
        ({"a": entry(0, 8), "b": entry(6, 14)}, 14, "a and b overlap"),
        ({"a": entry(0, 8), "b": entry(0, 8)}, 8, "a and b overlap"),
        ({"a": entry(0, 8), "b": entry(10, 12)}, 12, "there is a gap before b"),
        ({"a": entry(2, 8)}, 8, "there is a gap before a"),
        ({"a": entry(0, 8)}, 9, "its last 1 bytes are no tensor's"),
        ({"a": entry(0, 8, shape=[5])}, 8, "a has 8 bytes, which is not what its shape takes"),
        ({"a": entry(0, 8, shape=[2**40, 0])}, 8, "which is not what its shape takes"),
        ({"a": entry(0, 8, "F64", [1])}, 8, "a is of the type F64, which MLX does not read"),
        ({"a": entry(0, 2**47)}, 8, "is cut short"),
        ({"\u2028\n": entry(0, 8, shape=[5])}, 8, "\ufffd\ufffd has 8 bytes"),
    ],
)
def test_what_does_not_fit_the_file_is_said(
    tmp_path: Path, header: Json, data: int, reason: str
) -> None:
    assert reason in flaw(tmp_path, header, data)


@pytest.mark.parametrize(
    "header",
    [
        {"a": entry(8, 0)},
        {"a": entry(-8, 0)},
        {"a": entry(0, 2**60)},
        {"a": entry(0, 8) | {"data_offsets": [0]}},
        {"a": entry(0, 8) | {"data_offsets": [0, 8, 8]}},
        {"a": entry(0, 8) | {"data_offsets": [0.0, 8.0]}},
        {"a": entry(0, 8) | {"data_offsets": [False, True]}},
        {"a": entry(0, 8) | {"data_offsets": "08"}},
        {"a": entry(0, 8) | {"dtype": 16}},
        {"a": entry(0, 8) | {"shape": {"0": 4}}},
        {"a": entry(0, 8) | {"shape": [1] * 33}},
        {"a": entry(0, 8) | {"shape": [2**47] * 30}},
        {"a": {"dtype": "F16", "shape": [4]}},
        {"a": []},
        {"a": entry(0, 8) | {"x": [[]] * 10_000}},
        {"\ud800": entry(0, 8)},
        [],
        b'{"a": 1, "a": 2}',
        b'{"a": {"dtype": "F16", "shape": [0], "data_offsets": [0, 0], "shape": [0]}}',
        b'{"a": {"dtype": "F16", "shape": [0], "data_offsets": [0, 0]},'
        b' "a": {"dtype": "F16", "shape": [0], "data_offsets": [0, 0]}}',
        b'{"__metadata__": {}, "__metadata__": {}}',
        b"[" * 100_000,
        b'{"a": {"dtype": "F16", "shape": [' + b"9" * 5000 + b'], "data_offsets": [0, 0]}}',
        b"\xff\xfe",
        b"",
    ],
    ids=lambda header: str(header)[:40],
)
def test_a_header_that_says_nothing_is_unreadable(tmp_path: Path, header: object) -> None:
    with pytest.raises(UnreadableModel, match=r"the header of its model\.safetensors is damaged"):
        read_header(written(tmp_path, header, 8))


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "is cut short"),
        (b"1234567", "is cut short"),
        (struct.pack("<Q", 3) + b"{}", "is cut short or damaged"),
        (struct.pack("<Q", 2**64 - 1) + b"{}", "is cut short or damaged"),
    ],
)
def test_a_length_that_is_none_is_said(tmp_path: Path, raw: bytes, reason: str) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(raw)
    with pytest.raises(UnreadableModel, match=reason):
        read_header(file)


def test_a_huge_header_is_not_read_though_the_file_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path, b"{}" + b" " * 98)
    monkeypatch.setattr(safetensors, "MAX_HEADER_BYTES", 100)
    assert read_header(file).tensors == ()
    monkeypatch.setattr(safetensors, "MAX_HEADER_BYTES", 99)
    with pytest.raises(UnreadableModel, match="damaged"):
        read_header(file)


def test_more_tensors_than_any_model_has_are_not_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = {str(n): entry(0, 0) for n in range(3)} | {"__metadata__": {"format": "mlx"}}
    monkeypatch.setattr(safetensors, "MOST_TENSORS", 3)
    assert flaw(tmp_path, header) == ""
    monkeypatch.setattr(safetensors, "MOST_TENSORS", 2)
    with pytest.raises(UnreadableModel, match="more tensors than any model"):
        flaw(tmp_path, header)


def test_what_a_header_says_beside_its_tensors_is_not_built(tmp_path: Path) -> None:
    held = b'{"__metadata__": {"x": [%b1]}}' % (b"[]," * 2**20)
    tracemalloc.start()
    try:
        assert flaw(tmp_path, held) == ""
        assert tracemalloc.get_traced_memory()[1] < 8 * len(held)
    finally:
        tracemalloc.stop()


def test_every_type_that_mlx_reads_and_no_other_is_taken(tmp_path: Path) -> None:
    mx = pytest.importorskip("mlx.core")
    others = ("F64", "F4", "F8_E5M2", "F6_E2M3", "XX")
    for dtype in (*BITS, *others):
        size = BITS.get(dtype, 8)
        file = written(tmp_path, {"a": entry(0, size, dtype, [8])}, size)
        taken = flaw_of(read_header(file), file.name) == ""
        try:
            mx.eval(mx.load(str(file)))
        except RuntimeError:
            assert not taken, dtype
        else:
            assert taken, dtype


class Bounded:
    """Counts the bytes that are read of a file."""

    def __init__(self, opened: Callable[..., Any]) -> None:
        self.opened = opened
        self.most = 0

    @contextlib.contextmanager
    def __call__(self, path: Path) -> Any:
        with self.opened(path) as (stream, size):
            yield stream, size
            self.most = max(self.most, stream.tell())


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=12,
)
lengths = st.integers(-1, 9) | st.integers(2**46, 2**50)
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*BITS, "F64", "?"]) | values,
        "shape": st.lists(lengths, max_size=5) | values,
        "data_offsets": st.lists(lengths, min_size=2, max_size=2) | values,
    }
)
headers = st.dictionaries(st.text(max_size=4), entries | values, max_size=5)
raws = headers.map(lambda header: json.dumps(header).encode()) | st.binary(max_size=60)


@given(raw=raws, length=st.none() | st.integers(0, 2**64 - 1), data=st.binary(max_size=40))
@settings(max_examples=examples(80, 200), deadline=None)
def test_no_header_raises_anything_else_or_is_read_beyond_its_length(
    tmp_path_factory: pytest.TempPathFactory, raw: bytes, length: int | None, data: bytes
) -> None:
    file = tmp_path_factory.getbasetemp() / "random.safetensors"
    length = len(raw) if length is None else length
    file.write_bytes(struct.pack("<Q", length) + raw + data)
    reading = Bounded(opened)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(safetensors, "opened", reading)
        with contextlib.suppress(UnreadableModel):
            header = read_header(file)
            assert isinstance(flaw_of(header, file.name), str)
            assert header.file_bytes == file.stat().st_size
    assert reading.most <= 8 + min(length, len(raw) + len(data), safetensors.MAX_HEADER_BYTES)


@given(sizes=st.lists(st.integers(0, 5), max_size=6), at=st.data())
@settings(max_examples=examples(40, 75), deadline=None)
def test_a_whole_file_that_is_changed_by_one_byte_of_place_is_flawed(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], at: st.DataObject
) -> None:
    header, offset = {}, 0
    for number, size in enumerate(sizes):
        header[f"t{number}"] = entry(offset, offset + 2 * size, shape=[size])
        offset += 2 * size
    folder = tmp_path_factory.getbasetemp()
    assert flaw(folder, header, offset) == ""
    assert flaw(folder, header, offset + 1)
    if header:
        moved = header[at.draw(st.sampled_from(sorted(header)))]
        moved["data_offsets"] = [offset + 1 for offset in moved["data_offsets"]]
        assert flaw(folder, header, offset)
