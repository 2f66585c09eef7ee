"""What a config says of how its weights are quantised: bits, groups, and which layers differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_MOST_BITS = 32
"""Of the words that quantised weights are packed into."""
_FIXED_MODES = {"mxfp4": 4, "mxfp8": 8, "nvfp4": 4, "fp8": 8, "bitnet": 2}
"""Formats with a name of their own, and the bits of a number in each."""


@dataclass(frozen=True, slots=True)
class Quantization:
    """How weights are packed. 0 bits: they are not, or the config does not say."""

    bits: int = 0
    mode: str = "affine"
    layers: Mapping[str, int] = field(default_factory=dict)
    """Bits of the layers that differ."""

    @property
    def name(self) -> str:
        """Such as `4bit` or `mxfp4`; empty where nothing is quantised."""
        if self.mode in _FIXED_MODES:
            return self.mode
        return f"{self.bits}bit" if self.bits else ""

    def bits_of(self, layer: str) -> int:
        return self.layers.get(layer, self.bits)


def quantization_of(config: Mapping[str, Any]) -> Quantization:
    """By MLX's own `quantization`, else by what other makers write."""
    text = config.get("text_config")
    stated = _stated(config) or (_stated(text) if isinstance(text, Mapping) else {})
    modes = (stated.get(key) for key in ("mode", "quant_method", "quant_algo", "format"))
    named = (mode.lower().partition("-")[0] for mode in modes if isinstance(mode, str))
    mode = next((mode for mode in named if mode in _FIXED_MODES), "affine")
    layers = {
        layer: bits
        for layer, own in stated.items()
        if isinstance(own, Mapping) and (bits := _bits(own))
    }
    bits = _bits(stated) or _FIXED_MODES.get(mode) or _grouped(stated)
    return Quantization(bits, mode, layers)


def _stated(config: Mapping[str, Any]) -> Mapping[str, Any]:
    found = config.get("quantization") or config.get("quantization_config")
    return found if isinstance(found, Mapping) else {}


def _grouped(stated: Mapping[str, Any]) -> int:
    """Bits as compressed-tensors says them: by groups of layers, of which the first counts."""
    groups = stated.get("config_groups")
    first = next(iter(groups.values()), None) if isinstance(groups, Mapping) else None
    weights = first.get("weights") if isinstance(first, Mapping) else None
    return _bits(weights, "num_bits") if isinstance(weights, Mapping) else 0


def _bits(stated: Mapping[str, Any], key: str = "bits") -> int:
    bits = stated.get(key)
    return bits if type(bits) is int and 0 < bits <= _MOST_BITS else 0
