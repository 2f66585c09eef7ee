"""What policy adds to a model from files of its own: an adapter, a chat template."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from mlxd.control.reading import (
    OutOfFiles,
    UnreadableModel,
    in_words,
    is_missing,
    json_object,
    text_of,
)
from mlxd.control.safetensors import flaw_of, read_header

_WEIGHTS = "adapters.safetensors"
_OF_MLX_LM = {"fine_tune_type", "lora_parameters"}
"""One of these is in what mlx-lm trained; tools that serve both write PEFT's words beside them."""
_SAMPLES = 32


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter's folder."""

    digest: str = ""
    weights_bytes: int = 0
    unavailable: str = ""
    """Why it cannot be put on a model; empty when it can."""
    missing: bool = False
    """Whether there is no such folder."""


@dataclass(frozen=True, slots=True)
class Template:
    """A file with a chat template."""

    text: str = ""
    unavailable: str = ""
    """Why it cannot be used; empty when it can."""
    missing: bool = False
    """Whether there is no such file."""


def read_adapter(folder: Path) -> Adapter:
    """Blocks. Raises OutOfFiles."""
    try:
        real = Path(os.path.realpath(folder, strict=True))
        config = json_object(real / "adapter_config.json")
        if "peft_type" in config and not config.keys() & _OF_MLX_LM:
            raise UnreadableModel(
                "its adapter_config.json is PEFT's, for PyTorch; train one with mlx-lm"
            )
        header = read_header(real / _WEIGHTS, _SAMPLES)
        if flaw := flaw_of(header, _WEIGHTS):
            raise UnreadableModel(flaw)
    except OutOfFiles:
        raise
    except UnreadableModel as error:
        words = f"its adapter cannot be used: {error}"
        return Adapter(unavailable=words, missing=is_missing(folder, stat.S_ISDIR))
    except OSError as error:
        words = f"its adapter cannot be used: {in_words(error)}"
        return Adapter(unavailable=words, missing=is_missing(folder, stat.S_ISDIR))
    said = b"%d\0%b" % (header.file_bytes, header.raw)
    digest = hashlib.sha256(said + header.sample).hexdigest()
    return Adapter(digest, sum(tensor.size_bytes for tensor in header.tensors))


def read_template(file: Path) -> Template:
    """Blocks. Raises OutOfFiles."""
    try:
        text = text_of(file)
    except OutOfFiles:
        raise
    except (UnreadableModel, OSError):
        words = "the file of its chat_template cannot be read"
        return Template(unavailable=words, missing=is_missing(file, stat.S_ISREG))
    if not text.strip():
        return Template(unavailable="the file of its chat_template is empty")
    return Template(text)
