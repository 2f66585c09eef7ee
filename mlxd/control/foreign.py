"""What a folder holds that is no text model as MLX loads them, in words for a user."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

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
