"""Reads what a model folder says about itself, without loading it: config, headers, template.

Only the headers of safetensors files are read: the first eight bytes give the header's length.
Everything that is shown of a folder is checked here: one that lies is unavailable, and no listing
fails because of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unicodedata import category

from mlxd.core.models import ModelCard
from mlxd.core.request import Sampling

MAX_HEADER_BYTES = 64 * 2**20
"""Of one safetensors file; also of any other file that is read whole."""
_PACKED_BITS = 32
_DEFAULT_CONTEXT = 4096
_LARGEST = 2**48
_MOST_ELEMENTS = 2**53
_LONGEST_WORD = 100
_LAST_SECOND = 253402300799.0
"""The end of the year 9999, the last that a date can show."""
_UNSHOWN = frozenset(("Cc", "Cs", "Zl", "Zp"))
"""Unicode's categories of controls, surrogates (bytes that are no UTF-8) and line breaks."""
_CONTEXT_KEYS = ("max_position_embeddings", "max_seq_len", "n_positions", "seq_length")


class UnreadableModel(Exception):
    """Why a folder cannot be served, in words for a user; no path of the host."""


@dataclass(frozen=True, slots=True)
class _Weights:
    size_bytes: int
    parameters: int
    dtype: str
    digest: str


@dataclass(frozen=True, slots=True)
class _Tensor:
    name: str
    dtype: str
    elements: int


def read_card(folder: Path, name: str) -> ModelCard:
    """The card of one folder; an unreadable one gets a card that says why (`unavailable`)."""
    try:
        return _read(folder, name)
    except (UnreadableModel, OSError) as error:
        reason = str(error) if isinstance(error, UnreadableModel) else _plain(error)
        return ModelCard(
            name=readable(name),
            path=str(folder),
            size_bytes=0,
            digest=hashlib.sha256(os.fsencode(name)).hexdigest(),
            modified=0.0,
            family="unknown",
            parameters=0,
            quantization="unknown",
            context=0,
            unavailable=readable(reason),
        )


def readable(text: str) -> str:
    """Text that can be encoded and shown: undecodable bytes and control characters replaced."""
    return "".join("\ufffd" if category(letter) in _UNSHOWN else letter for letter in text)


def count_of(config: Mapping[str, Any], key: str) -> int | None:
    """A number of a config that counts something; None where it is anything else."""
    value = config.get(key)
    return value if type(value) is int and 0 <= value < _LARGEST else None


def fingerprint(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Changes when a file of the folder does: (name, size, mtime in ns) of each. Raises OSError."""
    entries = []
    with os.scandir(folder) as files:
        for entry in files:
            status = entry.stat()
            if stat.S_ISREG(status.st_mode):
                entries.append((entry.name, status.st_size, status.st_mtime_ns))
    return tuple(sorted(entries))


def _read(folder: Path, name: str) -> ModelCard:
    real = Path(os.path.realpath(folder, strict=True))
    config = _json_object(real / "config.json")
    text_config = config.get("text_config")
    shape: dict[str, Any] = config | (text_config if isinstance(text_config, dict) else {})
    bits = _bits(config)
    weights = _weights(real, bits)
    template = _template(real)
    return ModelCard(
        name=readable(name),
        path=str(real),
        size_bytes=weights.size_bytes,
        digest=weights.digest,
        modified=_modified(real),
        family=_word(config.get("model_type")),
        parameters=weights.parameters,
        quantization=f"{bits}bit" if bits else weights.dtype,
        context=_context(shape),
        capabilities=_capabilities(real, template),
        chat_template=template,
        sampling=_stored_sampling(real),
        config=shape,
        license=_license(real),
    )


def _bits(config: Mapping[str, Any]) -> int:
    """How many bits a quantised weight has; 0 where the weights are not, or do not say."""
    quantization = config.get("quantization") or config.get("quantization_config")
    bits = count_of(quantization, "bits") if isinstance(quantization, dict) else None
    return bits if bits is not None and bits <= _PACKED_BITS else 0


def _modified(folder: Path) -> float:
    newest = max((mtime for _, _, mtime in fingerprint(folder)), default=0) / 1e9
    return min(max(newest, 0.0), _LAST_SECOND)


def _word(value: object) -> str:
    return readable(value[:_LONGEST_WORD]) if isinstance(value, str) and value else "unknown"


def _json_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UnreadableModel(f"it has no {path.name}")
    if path.stat().st_size > MAX_HEADER_BYTES:
        raise UnreadableModel(f"its {path.name} is too large")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UnreadableModel(f"its {path.name} is not JSON") from error
    if not isinstance(value, dict):
        raise UnreadableModel(f"its {path.name} is not a JSON object")
    return value


def _weights(folder: Path, bits: int) -> _Weights:
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise UnreadableModel("it has no model*.safetensors")
    digest = hashlib.sha256()
    size = parameters = 0
    dtypes: dict[str, int] = {}
    for file in files:
        header = _header(file)
        length = file.stat().st_size
        size += length
        digest.update(b"%b\0%d\0%b" % (os.fsencode(file.name), length, header))
        for tensor in _tensors(header, file.name):
            parameters += _unpacked(tensor, bits)
            dtypes[tensor.dtype] = dtypes.get(tensor.dtype, 0) + tensor.elements
    if parameters >= _MOST_ELEMENTS:
        raise UnreadableModel("its weights have an impossible size")
    dtype = max(dtypes, key=dtypes.__getitem__, default="unknown")
    return _Weights(size, parameters, dtype.lower(), digest.hexdigest())


def _header(file: Path) -> bytes:
    """The raw header of a safetensors file."""
    if not file.is_file():
        raise UnreadableModel(f"its {file.name} is no file")
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        if len(prefix) < 8:
            raise UnreadableModel(f"its {file.name} is cut short")
        (length,) = struct.unpack("<Q", prefix)
        if length > min(size - 8, MAX_HEADER_BYTES):
            raise UnreadableModel(f"its {file.name} is cut short or damaged")
        return stream.read(length)


def _tensors(header: bytes, name: str) -> list[_Tensor]:
    try:
        entries = json.loads(header)
        return [
            _Tensor(key, _word(entry["dtype"]), _elements(entry["shape"]))
            for key, entry in entries.items()
            if key != "__metadata__"
        ]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UnreadableModel(f"the header of its {name} is damaged") from error


def _elements(shape: list[object]) -> int:
    """Raises ValueError for what cannot be a shape."""
    elements = 1
    for length in shape:
        if type(length) is not int or not 0 <= length < _LARGEST:
            raise ValueError("not a shape")
        elements *= length
        if elements >= _MOST_ELEMENTS:
            raise ValueError("not the shape of anything that exists")
    return elements


def _unpacked(tensor: _Tensor, bits: int) -> int:
    """Quantised weights are packed into 32-bit words, beside one scale and bias per group."""
    if not 0 < bits < _PACKED_BITS:
        return tensor.elements
    if tensor.name.endswith((".scales", ".biases")):
        return 0
    return tensor.elements * _PACKED_BITS // bits if tensor.dtype == "U32" else tensor.elements


def _context(shape: Mapping[str, Any]) -> int:
    found = (count_of(shape, key) for key in _CONTEXT_KEYS)
    return next((context for context in found if context), _DEFAULT_CONTEXT)


def _template(folder: Path) -> str:
    separate = folder / "chat_template.jinja"
    if separate.is_file():
        return _text(separate)
    config = folder / "tokenizer_config.json"
    if not config.is_file():
        return ""
    template = _json_object(config).get("chat_template", "")
    if isinstance(template, list):
        named = {
            str(t.get("name"))[:99]: t.get("template") for t in template if isinstance(t, dict)
        }
        template = named.get("default") or next(iter(named.values()), "")
    return _encodable(template) if isinstance(template, str) else ""


def _capabilities(folder: Path, template: str) -> tuple[str, ...]:
    found = ["completion"]
    if "tools" in template:
        found.append("tools")
    tokenizer = folder / "tokenizer.json"
    markers = ("<think>", "<|channel>", "<longcat_think>", "<|think:start|>")
    if any(marker in template for marker in markers) and tokenizer.is_file():
        found.append("thinking")
    return tuple(found)


def _stored_sampling(folder: Path) -> Sampling:
    """generation_config.json; `do_sample: false` is greedy, whatever the temperature beside it."""
    path = folder / "generation_config.json"
    if not path.is_file():
        return Sampling()
    stored = _json_object(path)

    def number(key: str, low: float, high: float) -> float | None:
        value = stored.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        return float(value) if low <= value <= high else None

    top_k = number("top_k", 0, 2**31)
    return Sampling(
        temperature=0.0 if stored.get("do_sample") is False else number("temperature", 0, 100),
        top_p=number("top_p", 0, 1),
        top_k=None if top_k is None else int(top_k),
        min_p=number("min_p", 0, 1),
        repeat_penalty=number("repetition_penalty", 0.01, 100),
    )


def _license(folder: Path) -> str:
    for name in ("LICENSE", "LICENSE.txt", "LICENSE.md"):
        path = folder / name
        if path.is_file():
            return _text(path)[:100_000]
    return ""


def _text(path: Path) -> str:
    with path.open("rb") as stream:
        return stream.read(MAX_HEADER_BYTES).decode("utf-8", "replace")


def _encodable(text: str) -> str:
    """JSON may hold halves of a character that no encoding takes."""
    return text.encode("utf-8", "replace").decode()


def _plain(error: OSError) -> str:
    """An OSError without its path."""
    return (error.strerror or "it cannot be read").lower()
