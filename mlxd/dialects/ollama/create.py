"""The body of /api/create: a model out of another one, or out of uploaded files."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mlxd.core.errors import InvalidRequest, UnsupportedFeature
from mlxd.core.preset import Preset
from mlxd.dialects.fields import Fields, FoldedFields, Json
from mlxd.dialects.ollama.options import read_options
from mlxd.dialects.ollama.prompt import check_template
from mlxd.dialects.ollama.request import complain, read_messages

DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")
"""Ollama's own client writes either."""
FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
NOT_BUILT = {
    "adapters": "adapters are set in models.yaml (models.models.<name>.adapter)",
    "quantize": "weights are served as they are; quantise them with mlx-lm",
    "quantization": "weights are served as they are; quantise them with mlx-lm",
    "draft_files": "draft models are set in models.yaml",
    "renderer": "a conversation is rendered by a chat template",
    "parser": "an answer is read as the model's own template says",
}
MOST_FILES = 1000


@dataclass(frozen=True, slots=True)
class Creation:
    """What a client wants made."""

    name: str
    source: str
    """The model that it is made of; empty where it is made of files."""
    files: tuple[tuple[str, str], ...]
    """Names in the model's folder, each with the SHA-256 of an uploaded file."""
    preset: Preset
    stream: bool


def parse_create(body: Json) -> Creation:
    """Raises InvalidRequest."""
    fields = FoldedFields(body, complain)
    name = fields.text("model") or fields.text("name") or ""
    if not name.strip():
        raise InvalidRequest("model is required", param="model")
    for field, why in NOT_BUILT.items():
        if fields.get(field):
            raise UnsupportedFeature(f"{field} is not offered: {why}", param=field)
    source, files = fields.text("from") or "", _files(fields)
    if not source.strip() and not files:
        raise InvalidRequest("neither 'from' or 'files' was specified", param="from")
    if source.strip() and files:
        raise InvalidRequest("'from' does not go together with 'files'", param="files")
    return Creation(name, source, files, _preset(fields, name), fields.flag("stream") is not False)


def digest_of(text: str) -> str | None:
    """The hex digits of a digest as clients write it; None where it is none."""
    match = DIGEST.fullmatch(text)
    return match[1] if match is not None else None


def _preset(fields: Fields, name: str) -> Preset:
    template = fields.text("template") or ""
    check_template(template)
    options = read_options(fields.mapping("parameters") or {})
    return Preset(
        system=fields.text("system") or "",
        template=template,
        messages=read_messages(fields, name),
        sampling=options.sampling,
        max_tokens=options.max_tokens,
        stop=options.stop,
        context=options.context,
        license=_license(fields),
    )


def _license(fields: Fields) -> str:
    if isinstance(fields.get("license"), list):
        return "\n".join(fields.texts("license", "string or array of strings"))
    return fields.text("license") or ""


def _files(fields: Fields) -> tuple[tuple[str, str], ...]:
    found = fields.mapping("files") or {}
    if len(found) > MOST_FILES:
        raise InvalidRequest(f"files has at most {MOST_FILES} entries", param="files")
    return tuple((_file_name(name), _digest(name, digest)) for name, digest in found.items())


def _file_name(name: str) -> str:
    if name.lower().endswith(".gguf"):
        raise UnsupportedFeature(
            f"{name[:200]}: GGUF is not served; a model here is safetensors with a config.json",
            param="files",
        )
    if not FILE.fullmatch(name) or name.endswith(".py"):
        raise InvalidRequest(
            f"files: {name[:200]!r} is no name of a file in a model's folder", param="files"
        )
    return name


def _digest(name: str, value: object) -> str:
    found = digest_of(value) if isinstance(value, str) else None
    if found is None:
        raise InvalidRequest(f"files: the digest of {name} is not sha256:<hex>", param="files")
    return found
