"""All weight files of a folder together: how much they are, and whether all of them are there."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from mlxd.control.quantization import Quantization
from mlxd.control.reading import UnreadableModel, bytes_of, exists, members, readable
from mlxd.control.safetensors import BITS, MOST_ELEMENTS, Header, Tensor, flaw_of, read_header

Kind = tuple[str, str]
"""Of a tensor: the last part of its name, and its type."""
WEIGHTS = re.compile(r"model.*\.safetensors", re.DOTALL)
"""The names of the files that mlx-lm loads."""
INDEX = "model.safetensors.index.json"
_MOST_INDEX_BYTES = 32 * 2**20
_MOST_INDEXED = 500_000
_SAMPLES = 32
"""Of a model's tensors: enough to tell models of one shape apart, and read in no time."""
_FILE = msgspec.json.Decoder(str)
_WORDS = ("U32", "I32", "U8")
"""What quantised weights are packed into: MLX's, AWQ's and GPTQ's, and single bytes."""
_BESIDE = re.compile(r"(^scales|_scales?|_scale_inv|_scale_2|biases|qzeros|g_idx|weight_shape)$")
"""The ends of what is no weight beside quantised weights, as their makers write them."""
_EXPERT = re.compile(r"\.experts\.\d+\.")
_PART = re.compile(r"(.*-)(\d{1,6})-of-(\d{1,6})\.safetensors", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Weights:
    """What the headers of a model's files add up to."""

    file_bytes: int
    tensor_bytes: int
    """Of the tensors alone: what a loaded model holds."""
    tensors: int
    """How many there are."""
    parameters: int
    """Unpacked."""
    dtype: str
    """Of most of the numbers."""
    digest: str
    """64 hex digits over names, sizes, headers and samples of the numbers: a copy's are the same,
    those of a model of the same shape, trained otherwise, are not."""
    flaw: str
    """Why they should not be loaded; empty when nothing is wrong."""
    experts_apart: bool
    """Each expert has tensors of its own, which loading puts together."""
    kinds: frozenset[Kind]
    """Those of its tensors."""


def read_weights(folder: Path, quantization: Quantization) -> Weights:
    """Raises UnreadableModel where a header cannot be read at all."""
    files = sorted(file for file in folder.iterdir() if WEIGHTS.fullmatch(file.name))
    if not files:
        raise UnreadableModel("it has no model*.safetensors")
    samples = max(1, _SAMPLES // len(files))
    headers = {file.name: read_header(file, samples) for file in files}
    tensors = _each_once(headers.values())
    parameters = sum(_unpacked(tensor, quantization) for tensor in tensors.values())
    if parameters >= MOST_ELEMENTS:
        raise UnreadableModel("its weights have an impossible size")
    dtypes: Counter[str] = Counter()
    for tensor in tensors.values():
        dtypes[tensor.dtype] += tensor.elements
    return Weights(
        file_bytes=sum(header.file_bytes for header in headers.values()),
        tensor_bytes=sum(tensor.size_bytes for tensor in tensors.values()),
        tensors=len(tensors),
        parameters=parameters,
        dtype=dtypes.most_common(1)[0][0].lower() if dtypes else "unknown",
        digest=_digest(headers),
        flaw=next(_flaws(folder, headers), ""),
        experts_apart=any(_EXPERT.search(name) for name in tensors),
        kinds=frozenset((t.name.rpartition(".")[2], t.dtype) for t in tensors.values()),
    )


def _each_once(headers: Iterable[Header]) -> dict[str, Tensor]:
    """Every tensor by its name; of equal ones in two files one is loaded."""
    return {tensor.name: tensor for header in headers for tensor in header.tensors}


def _unpacked(tensor: Tensor, quantization: Quantization) -> int:
    """A quantised layer has packed words, and one scale (and bias) for each group of numbers."""
    layer, _, kind = tensor.name.rpartition(".")
    if not quantization.bits:
        return tensor.elements
    if _BESIDE.search(kind):
        return 0
    bits = quantization.bits_of(layer)
    word = BITS[tensor.dtype] if tensor.dtype in _WORDS else bits
    return tensor.elements * max(word, bits) // bits


def _flaws(folder: Path, headers: Mapping[str, Header]) -> Iterator[str]:
    yield from filter(None, (flaw_of(header, readable(n)) for n, header in headers.items()))
    yield from _missing_parts(headers)
    if exists(folder / INDEX):
        yield from _unlike_index(folder, headers)
    yield from _contradictions(headers)


def _missing_parts(headers: Mapping[str, Header]) -> Iterator[str]:
    """By the names of the files: part 2 of 3 says that there are a 1 and a 3."""
    parts = filter(None, map(_PART.fullmatch, headers))
    for before, digits, total in {(part[1], len(part[2]), part[3]) for part in parts}:
        for number in range(1, int(total) + 1):
            part = f"{before}{number:0{digits}d}-of-{total}.safetensors"
            if part not in headers:
                yield f"its {readable(part)} is missing"


def _unlike_index(folder: Path, headers: Mapping[str, Header]) -> Iterator[str]:
    """An index of files whose tensors lie in others now is of no account: no engine reads it."""
    try:
        places = _indexed(bytes_of(folder / INDEX, _MOST_INDEX_BYTES))
    except UnreadableModel as error:
        yield str(error)
        return
    except msgspec.ValidationError:
        yield f"its {INDEX} does not say which file holds which tensor"
        return
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        yield f"its {INDEX} is not JSON"
        return
    present = {tensor.name for header in headers.values() for tensor in header.tensors}
    for file in sorted({file for tensor, file in places if tensor not in present}):
        if file not in headers:
            yield f"its {readable(file.rpartition('/')[2][:100])} is missing"


def _indexed(raw: bytes) -> list[tuple[str, str]]:
    """Tensors, and the file that an index names for each. Raises DecodeError, UnicodeDecodeError,
    RecursionError.
    """
    parts = dict(members(raw, _MOST_INDEXED))
    places = members(parts.get("weight_map", b"null"), _MOST_INDEXED)
    files = {place: _FILE.decode(place) for _, place in places}
    return [(tensor, files[place]) for tensor, place in places]


def _contradictions(headers: Mapping[str, Header]) -> Iterator[str]:
    """Two files that hold different tensors of one name: which is meant, nobody can say."""
    first: dict[str, tuple[str, Tensor]] = {}
    for name, header in headers.items():
        for tensor in header.tensors:
            other, twin = first.setdefault(tensor.name, (name, tensor))
            if (twin.dtype, twin.shape) != (tensor.dtype, tensor.shape):
                yield f"its {readable(other)} and {readable(name)} differ in a tensor of one name"


def _digest(headers: Mapping[str, Header]) -> str:
    digest = hashlib.sha256()
    for name, header in headers.items():
        digest.update(b"%b\0%d\0%b" % (os.fsencode(name), header.file_bytes, header.raw))
        digest.update(header.sample)
    return digest.hexdigest()
