"""/api/show: what a model's files say of it, and what a client said who created it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from aiohttp import web

from mlxd.control.model_files import count_of
from mlxd.control.reading import UnreadableModel, readable
from mlxd.control.safetensors import read_header
from mlxd.core.errors import InvalidRequest
from mlxd.core.models import ModelCard
from mlxd.core.preset import Preset
from mlxd.core.request import CalledTool, Message
from mlxd.core.threads import Threads
from mlxd.server.answers import iso, json_response
from mlxd.server.catalog import details_of, names_of
from mlxd.server.edge import policies_of
from mlxd.server.endpoints import PartsEndpoint
from mlxd.server.intake import read_json
from mlxd.server.parts import Parts
from mlxd.server.usable import look_up

Json = dict[str, Any]
_MOST_TENSORS = 20_000
"""More are not told: they would be encoded between two turns of the event loop."""
_SHOWN = (
    *("temperature", "top_p", "top_k", "min_p", "repeat_penalty", "repeat_last_n"),
    *("presence_penalty", "frequency_penalty", "seed"),
)


class Show(PartsEndpoint):
    """/api/show."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self._threads = Threads("tensors")

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        policies = policies_of(request)
        name, verbose = await read_json(request, policies, _asked)
        card = await look_up(self._parts.catalog, name, request)
        shown = show(card, name, str(request.headers.get("User-Agent", "")))
        if verbose:
            shown["tensors"] = await self._threads.run(_tensors, Path(card.path))
        return json_response(shown)


def show(card: ModelCard, asked: str, user_agent: str) -> Json:
    """The answer, but for its tensors."""
    basename = asked if user_agent.startswith("GitHubCopilotChat/") else readable(card.name)
    preset = card.preset or Preset()
    shown: Json = {
        "license": card.license,
        "modelfile": "\n".join(_modelfile(card, preset)) + "\n",
        "parameters": "\n".join(f"{name:<30} {value}" for name, value in _parameters(card)),
        "template": card.chat_template,
        "details": details_of(card),
        "model_info": model_info(card, basename),
        "capabilities": list(card.capabilities),
        "modified_at": iso(card.modified),
        **names_of(card),
    }
    if preset.system:
        shown["system"] = preset.system
    if preset.messages:
        shown["messages"] = [_message(message) for message in preset.messages]
    return shown


def _message(message: Message) -> Json:
    """As its clients send one."""
    told = {key: value for key, value in asdict(message).items() if value}
    if message.tool_calls:
        told["tool_calls"] = [_tool_call(call) for call in message.tool_calls]
    return told


def _tool_call(call: CalledTool) -> Json:
    told: Json = {"id": call.id} if call.id else {}
    return told | {"function": {"name": call.name, "arguments": call.arguments}}


def model_info(card: ModelCard, basename: str) -> Json:
    """The keys that clients read."""
    info: Json = {
        "general.architecture": card.family,
        "general.basename": basename,
        "general.parameter_count": card.parameters,
        f"{card.family}.context_length": card.context,
    }
    for key, source in (
        ("embedding_length", "hidden_size"),
        ("block_count", "num_hidden_layers"),
        ("attention.head_count", "num_attention_heads"),
        ("attention.head_count_kv", "num_key_value_heads"),
        ("feed_forward_length", "intermediate_size"),
        ("vocab_size", "vocab_size"),
    ):
        value = count_of(card.config, source)
        if value is not None:
            info[f"{card.family}.{key}"] = value
    return info


def _asked(body: Json) -> tuple[str, bool]:
    name = body.get("model") or body.get("name") or ""
    if not isinstance(name, str) or not name:
        raise InvalidRequest("model is required", param="model")
    return name, body.get("verbose") is True


def _modelfile(card: ModelCard, preset: Preset) -> Iterator[str]:
    """What /api/create would make the same model of."""
    yield f"# {readable(card.name)}, served by mlxd"
    yield f"FROM {readable(card.original)}"
    if card.preset is None:
        return
    if preset.template:
        yield f'TEMPLATE """{preset.template}"""'
    if preset.system:
        yield f'SYSTEM """{preset.system}"""'
    for name, value in _parameters(card):
        yield f"PARAMETER {name} {value}"
    for message in preset.messages:
        yield f'MESSAGE {message.role} """{message.content}"""'
    if preset.license:
        yield f'LICENSE """{preset.license}"""'


def _parameters(card: ModelCard) -> Iterator[tuple[str, str]]:
    """What holds where a request says nothing."""
    for name in _SHOWN:
        value = getattr(card.sampling, name)
        if value is not None:
            yield name, str(value).removesuffix(".0")
    preset = card.preset or Preset()
    for name, count in (("num_ctx", preset.context), ("num_predict", preset.max_tokens)):
        if count is not None:
            yield name, str(count)
    for text in preset.stop:
        yield "stop", f'"{text}"'


def _tensors(folder: Path) -> list[Json]:
    """Blocks. What cannot be read is left out."""
    found: list[Json] = []
    for file in sorted(folder.glob("model*.safetensors")):
        try:
            tensors = read_header(file).tensors
        except (UnreadableModel, OSError):
            continue
        found += (
            {"name": readable(t.name), "type": t.dtype, "shape": list(t.shape)} for t in tensors
        )
    return found[:_MOST_TENSORS]
