"""What a listing shows of a folder; one bad folder spoils no list."""

from __future__ import annotations

import json
import os
import struct
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request

from mlxd.control.model_files import read_card
from mlxd.core.models import ModelCard
from mlxd.core.preset import Preset
from mlxd.core.request import CalledTool, Message, Sampling
from mlxd.dialects.base import to_json
from mlxd.server.answers import json_response
from mlxd.server.app import KEEPING, Routes
from mlxd.server.catalog import Nowhere, _openai_model, _tag
from mlxd.server.edge import ID
from mlxd.server.errors import in_openai
from mlxd.server.kept_responses import KeptResponses
from mlxd.server.show import model_info, show

MEANT = Preset(
    messages=(
        Message("user", "Rain?"),
        Message("assistant", tool_calls=(CalledTool("look", {"at": "sky"}, "c1"),)),
        Message("tool", "wet", tool_name="look", tool_call_id="c1"),
    )
)
NAME = os.fsdecode(b"bad\xff\xfe")


def card_of(folder: Path, config: dict[str, Any], shape: list[int]) -> ModelCard:
    """As the catalogue has it: read, and named after its folder."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"} | config))
    header = json.dumps({"w": {"dtype": "F16", "shape": shape, "data_offsets": [0, 2]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0\0")
    return replace(read_card(folder, folder.name), name=folder.name)


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        ({"hidden_size": "big"}, [1]),
        ({"hidden_size": 10**400, "vocab_size": 10**400}, [1]),
        ({"model_type": ["x"]}, [1]),
        ({"model_type": "\ud800"}, [1]),
        ({"quantization": {"bits": 10**400}}, [1]),
        ({}, [10**400]),
        ({}, [2**47] * 30),
    ],
)
@pytest.mark.parametrize("name", ["m", NAME])
def test_every_folder_can_be_shown(
    tmp_path: Path, name: str, config: dict[str, Any], shape: list[int]
) -> None:
    card = card_of(tmp_path / name, config, shape)
    for shown in (_tag(card), show(card, "m", ""), _openai_model(card)):
        json.loads(json_response(shown).body)  # type: ignore[arg-type]


def test_a_name_that_is_no_unicode_is_shown_with_marks(tmp_path: Path) -> None:
    card = card_of(tmp_path / NAME, {}, [1])
    assert _tag(card)["name"] == "bad\ufffd\ufffd:latest"
    assert json.loads(to_json({"names": [NAME]})) == {"names": ["bad??"]}


def test_the_numbers_of_a_text_model_inside_are_shown(tmp_path: Path) -> None:
    inner = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    card = card_of(tmp_path / "m", {"text_config": inner}, [1])
    assert _tag(card)["details"]["embedding_length"] == 64
    info = model_info(card, "m")
    assert info["llama.embedding_length"] == 64
    assert info["llama.block_count"] == 3
    assert info["llama.attention.head_count"] == 4


def test_turns_of_a_created_model_are_shown_as_its_clients_send_them(tmp_path: Path) -> None:
    card = replace(card_of(tmp_path / "m", {"hidden_size": 8}, [1]), preset=MEANT)
    assert show(card, "m", "")["messages"] == [
        {"role": "user", "content": "Rain?"},
        {
            "role": "assistant",
            "tool_calls": [{"id": "c1", "function": {"name": "look", "arguments": {"at": "sky"}}}],
        },
        {"role": "tool", "content": "wet", "tool_name": "look", "tool_call_id": "c1"},
    ]


@pytest.mark.parametrize(
    ("temperature", "shown"),
    [(0.123456789, "0.123456789"), (0.7, "0.7"), (1.0, "1"), (0.0, "0"), (100.0, "100")],
)
def test_a_created_models_parameters_are_shown_as_they_are(
    tmp_path: Path, temperature: float, shown: str
) -> None:
    sampling = Sampling(temperature=temperature, seed=2**53)
    made = replace(card_of(tmp_path / "m", {}, [1]), preset=Preset(), sampling=sampling)
    told = show(made, "m", "")
    lines = [f"PARAMETER temperature {shown}", f"PARAMETER seed {2**53}"]
    assert told["modelfile"].splitlines()[-2:] == lines
    assert told["parameters"].splitlines()[0] == f"{'temperature':<30} {shown}"


async def test_a_path_that_is_not_there_is_no_models_fault() -> None:
    request = make_mocked_request("GET", "/v1/nowhere")
    request[ID] = "1"
    answer: Any = await Nowhere(in_openai)(request)
    error = json.loads(answer.body)["error"]
    assert (answer.status, error["code"], error["param"]) == (404, "unknown_url", None)


@pytest.mark.parametrize("method", ["PUT", "PATCH", "POST"])
async def test_a_kept_response_says_what_is_allowed_there(method: str) -> None:
    parts: Any = SimpleNamespace()
    request = make_mocked_request(method, "/v1/responses/resp_1")
    request[ID] = "1"
    endpoint = Routes({"/v1/responses/*": (KEEPING, KeptResponses(parts))})(request)
    answer = await endpoint(request)
    assert (answer.status, answer.headers["Allow"]) == (405, "DELETE, GET, HEAD")


async def test_what_is_refused_for_want_of_a_feature_is_allowed_there() -> None:
    parts: Any = SimpleNamespace()
    request = make_mocked_request("PUT", "/v1/responses/compact")
    request[ID] = "1"
    answer = await Routes({"/v1/responses/*": (KEEPING, KeptResponses(parts))})(request)(request)
    assert (answer.status, answer.headers["Allow"]) == (405, "DELETE, GET, HEAD, POST")
