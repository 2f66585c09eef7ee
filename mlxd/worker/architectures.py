"""Which classes a model is built of: mlx-lm's, or where it has none, ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlx_lm.utils import _get_classes

from mlxd.core.models import ENCODERS
from mlxd.worker.encoder import Encoder, EncoderArgs


def classes_of(folder: Path, config: dict[str, Any]) -> tuple[type, type]:
    """Of the model, and of what it takes from its config."""
    if config.get("model_type") in ENCODERS:
        return Encoder, EncoderArgs
    model, args = _get_classes(config)
    return (_whole(model) if (folder / "modules.json").exists() else model), args


def _whole(model: type) -> type:
    """The same model, for checkpoints of models that make vectors: those are saved without their
    head, and as the inner part alone.
    """

    class Whole(model):  # type: ignore[misc]
        def sanitize(self, weights: dict[str, Any]) -> dict[str, Any]:
            if "embed_tokens.weight" in weights:
                weights = {f"model.{name}": array for name, array in weights.items()}
                if hasattr(self, "lm_head"):
                    weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])
            sanitize = getattr(super(), "sanitize", None)
            return sanitize(weights) if sanitize is not None else weights

    return Whole
