"""What a folder holds that is no text model as MLX loads them, in words for a user."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from mlxd.control.reading import readable
from mlxd.control.weights import Kind
from mlxd.core.models import ENCODERS

_BY_FILE: tuple[tuple[str, str], ...] = (
    ("model_index.json", "it makes pictures (a diffusers pipeline), and mlxd serves text models"),
    ("adapters.safetensors", "it is an adapter: name its folder in models.models.<name>.adapter"),
    ("adapter_model.safetensors", "it is an adapter for PyTorch; MLX's is adapters.safetensors"),
    ("*.gguf", "its weights are GGUF, which MLX does not serve; get an MLX build of it"),
    ("*.npz", "its weights are .npz, an older format of MLX; convert it with mlx_lm.convert"),
    ("*.bin", "its weights are PyTorch's (.bin); convert it with mlx_lm.convert"),
    ("*.pt", "its weights are PyTorch's (.pt); convert it with mlx_lm.convert"),
    ("*.pth", "its weights are PyTorch's (.pth); convert it with mlx_lm.convert"),
)
"""A file that is there while `model*.safetensors` is not, and what that means."""
_HEARS = "it works on sound, and mlxd serves text models"
_SEES = "it works on pictures, and mlxd serves text models"
_ENCODES = "it is an encoder of a kind that mlxd does not serve"
_CLASSIFIES = "it sorts texts into classes, and mlxd serves models that make text or vectors"
_CLASSIFIERS = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
"""Ends of the names of encoders' architectures."""
_TRANSLATES = "it is an encoder with a decoder, which MLX's language models are not"
_BY_TYPE: Mapping[str, str] = {
    **dict.fromkeys(
        (
            *("whisper", "wav2vec2", "wav2vec2-bert", "wavlm", "hubert", "encodec", "bark", "mimi"),
            *("musicgen", "speecht5", "seamless_m4t", "seamless_m4t_v2", "vits", "clap", "dac"),
            *("parakeet", "parakeet_ctc", "kokoro", "csm", "moonshine", "audioldm2"),
        ),
        _HEARS,
    ),
    **dict.fromkeys(
        (
            *("clip", "clip_vision_model", "siglip", "siglip_vision_model", "siglip2", "vit"),
            *("deit", "beit", "swin", "swinv2", "convnext", "convnextv2", "resnet", "dinov2"),
            *("dinov3_vit", "dinov3_convnext", "sam", "sam2", "sam2_video", "sam3", "detr"),
            *("rt_detr", "yolos", "segformer", "mask2former", "dpt", "depth_anything", "zoedepth"),
            *("efficientnet", "mobilenet_v2", "owlvit", "owlv2", "grounding-dino", "vit_mae"),
        ),
        _SEES,
    ),
    **dict.fromkeys(
        (*("albert", "electra", "deberta", "deberta-v2", "modernbert", "new", "jina_bert"),),
        _ENCODES,
    ),
    **dict.fromkeys(
        ("t5", "mt5", "umt5", "longt5", "t5gemma", "bart", "mbart", "marian", "m2m_100", "pegasus"),
        _TRANSLATES,
    ),
}
_ELSEWHERE = "get an MLX build of it, or its unpacked weights"
_COMPRESSED = ("nvfp4-pack-quantized", "mxfp4-pack-quantized", "pack-quantized")
"""The formats of compressed-tensors that mlx-lm reads."""
_PACKED = ("U8", "I8")
"""What bitsandbytes packs into."""
_EIGHT_BITS = ("F8_E4M3", "F8_E5M2")
"""Which MLX takes for whole numbers."""
_LONGEST_WORD = 100


def foreign_files(names: Iterable[str]) -> str:
    """What a folder with these files, none of them `model*.safetensors`, is; empty if unknown."""
    present = list(names)
    for pattern, reason in _BY_FILE:
        if any(fnmatchcase(name, pattern) for name in present):
            return reason
    return ""


def foreign_type(config: Mapping[str, Any]) -> str:
    """What a model of this config is, where it makes neither text nor vectors; else empty."""
    kind = config.get("model_type")
    if str(kind) in ENCODERS and str(config.get("architectures")).strip("[]'").endswith(
        _CLASSIFIERS
    ):
        return _CLASSIFIES
    return _BY_TYPE.get(kind, "") if isinstance(kind, str) else ""


def foreign_packing(config: Mapping[str, Any], kinds: Collection[Kind]) -> str:
    """How weights are packed where mlx-lm reads none of the sort, whatever model it is; else empty.

    What only some of its models read, a worker finds out.
    """
    if any(kind == ("weight", dtype) for kind in kinds for dtype in _EIGHT_BITS) and not any(
        "scale" in name for name, _ in kinds
    ):
        return f"its weights are FP8 without scales, which MLX does not read; {_ELSEWHERE}"
    if config.get("quantization") is not None:
        return ""
    stated = _packing(config)
    if not stated:
        return ""
    if not isinstance(stated, Mapping) or "quant_method" not in stated:
        return "its quantization_config names no quant_method, so nothing can read its weights"
    packed = _unread(stated, kinds)
    return f"its weights are {packed}, which mlx-lm does not read; {_ELSEWHERE}" if packed else ""


def _packing(config: Mapping[str, Any]) -> object:
    """Where mlx-lm looks for it."""
    text = config.get("text_config")
    if "quantization_config" not in config and isinstance(text, Mapping):
        return text.get("quantization_config")
    return config.get("quantization_config")


def _unread(stated: Mapping[str, Any], kinds: Collection[Kind]) -> str:
    match stated["quant_method"]:
        case "bitsandbytes" if any(dtype in _PACKED for _, dtype in kinds):
            return "packed by bitsandbytes"
        case "compressed-tensors" if (form := stated.get("format")) not in _COMPRESSED:
            return f"packed by compressed-tensors ({_word(form)})"
        case "modelopt" if (algorithm := _algorithm(stated)) != "NVFP4":
            return f"packed by modelopt ({_word(algorithm)})"
        case ("awq" | "gptq") as method if (bits := stated.get("bits", 4)) != 4:
            return f"packed by {method} in {_word(bits)} bits"
        case ("awq" | "gptq") as method if any(name == "g_idx" for name, _ in kinds):
            return f"packed by {method} with groups in an order of their own (g_idx)"
    return ""


def _algorithm(stated: Mapping[str, Any]) -> object:
    inner = stated.get("quantization", stated)
    return inner.get("quant_algo") if isinstance(inner, Mapping) else None


def _word(value: object) -> str:
    """A stranger's."""
    if isinstance(value, str):
        return readable(value[:_LONGEST_WORD])
    return str(value) if type(value) is int else "not said"
