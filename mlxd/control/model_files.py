"""Reads what a model folder says about itself, without loading it: config, headers, template.

Only the headers of safetensors files are read: the first eight bytes give the header's length.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxd.core.models import ModelCard
from mlxd.core.request import Sampling

MAX_HEADER_BYTES = 64 * 2**20
_PACKED_BITS = 32
_DEFAULT_CONTEXT = 4096
_CONTEXT_KEYS = ("max_position_embeddings", "max_seq_len", "n_positions", "seq_length")


class UnreadableModel(Exception):
    """Why a folder cannot be served, in words for a user; no path of the host."""


@dataclass(frozen=True, slots=True)
class _Weights:
    size_bytes: int
    parameters: int
    dtype: str
    digest: str


def read_card(folder: Path, name: str) -> ModelCard:
    """The card of one folder; an unreadable one gets a card that says why (`unavailable`)."""
    try:
        return _read(folder, name)
    except (UnreadableModel, OSError) as error:
        reason = str(error) if isinstance(error, UnreadableModel) else _plain(error)
        return ModelCard(
            name=name,
            path=str(folder),
            size_bytes=0,
            digest=hashlib.sha256(name.encode()).hexdigest(),
            modified=0.0,
            family="unknown",
            parameters=0,
            quantization="unknown",
            context=0,
            unavailable=reason,
        )


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
    weights = _weights(real)
    template = _template(real)
    quantization = config.get("quantization") or config.get("quantization_config")
    bits = quantization.get("bits") if isinstance(quantization, dict) else None
    return ModelCard(
        name=name,
        path=str(real),
        size_bytes=weights.size_bytes,
        digest=weights.digest,
        modified=max(mtime for _, _, mtime in fingerprint(real)) / 1e9,
        family=str(config.get("model_type", "unknown")),
        parameters=_unpacked(weights.parameters, real, bits),
        quantization=f"{bits}bit" if isinstance(bits, int) else weights.dtype,
        context=_context(shape),
        capabilities=_capabilities(real, template),
        chat_template=template,
        sampling=_stored_sampling(real),
        config=config,
        license=_license(real),
    )


def _json_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UnreadableModel(f"it has no {path.name}")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UnreadableModel(f"its {path.name} is not JSON") from error
    if not isinstance(value, dict):
        raise UnreadableModel(f"its {path.name} is not a JSON object")
    return value


def _weights(folder: Path) -> _Weights:
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise UnreadableModel("it has no model*.safetensors")
    digest = hashlib.sha256()
    size = parameters = 0
    dtypes: dict[str, int] = {}
    for file in files:
        header = _header(file)
        size += file.stat().st_size
        digest.update(f"{file.name}\0{file.stat().st_size}\0".encode() + header)
        for count, dtype in _tensors(header, file.name):
            parameters += count
            dtypes[dtype] = dtypes.get(dtype, 0) + count
    dtype = max(dtypes, key=dtypes.__getitem__, default="unknown")
    return _Weights(size, parameters, dtype.lower(), digest.hexdigest())


def _header(file: Path) -> bytes:
    """The raw header of a safetensors file."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        if len(prefix) < 8:
            raise UnreadableModel(f"its {file.name} is cut short")
        (length,) = struct.unpack("<Q", prefix)
        if length > min(size - 8, MAX_HEADER_BYTES):
            raise UnreadableModel(f"its {file.name} is cut short or damaged")
        return stream.read(length)


def _tensors(header: bytes, name: str) -> list[tuple[int, str]]:
    """(number of elements, data type) of each tensor."""
    try:
        entries = json.loads(header)
        return [
            (math.prod(entry["shape"]), str(entry["dtype"]))
            for key, entry in entries.items()
            if key != "__metadata__"
        ]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UnreadableModel(f"the header of its {name} is damaged") from error


def _unpacked(elements: int, folder: Path, bits: object) -> int:
    """Quantised weights are packed into 32-bit words, beside one scale and bias per group."""
    if not isinstance(bits, int) or not 0 < bits < _PACKED_BITS:
        return elements
    total = 0
    for file in folder.glob("model*.safetensors"):
        for key, entry in json.loads(_header(file)).items():
            if key == "__metadata__" or key.endswith((".scales", ".biases")):
                continue
            count = math.prod(entry["shape"])
            total += count * _PACKED_BITS // bits if entry["dtype"] == "U32" else count
    return total


def _context(shape: dict[str, Any]) -> int:
    for key in _CONTEXT_KEYS:
        value = shape.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return _DEFAULT_CONTEXT


def _template(folder: Path) -> str:
    separate = folder / "chat_template.jinja"
    if separate.is_file():
        return separate.read_text("utf-8", "replace")
    config = folder / "tokenizer_config.json"
    if not config.is_file():
        return ""
    template = _json_object(config).get("chat_template", "")
    if isinstance(template, list):
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default") or next(iter(named.values()), "")
    return template if isinstance(template, str) else ""


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
            return path.read_text("utf-8", "replace")[:100_000]
    return ""


def _plain(error: OSError) -> str:
    """An OSError without its path."""
    return (error.strerror or "it cannot be read").lower()
