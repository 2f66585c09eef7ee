"""What lies on disks: model folders that strangers made, and policies that were edited."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mlxd.control.model_files import read_card
from mlxd.control.reading import UnreadableModel
from mlxd.control.safetensors import BITS, flaw_of, read_header
from mlxd.control.shape import footprint_of, loading_bytes
from mlxd.core.models import ModelCard
from mlxd.dialects.base import to_json
from mlxd.policy import keyring, strict_yaml
from mlxd.policy.files import PolicyFiles
from mlxd.policy.keyring import KeysRefused
from mlxd.policy.load import PolicyErrors, judge
from mlxd.policy.policy_set import FILES
from mlxd.server.catalog import details_of
from mlxd.server.show import show
from mlxd.simulate.cases import parse as parse_cases
from tests.fuzz.target import Target, flaw_in_words

_ROOT = Path(__file__).parents[3]
_DATA = _ROOT / "tests" / "data"
_CONFIG = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 512, "head_dim": 16,
    "max_position_embeddings": 2048, "torch_dtype": "float16", "sliding_window": 128,
    "layer_types": ["full_attention", "sliding_attention"], "num_local_experts": 4,
    "quantization": {"group_size": 64, "bits": 4, "model.layers.0": {"bits": 8, "group_size": 32}},
    "text_config": {"num_kv_shared_layers": 1, "rope_scaling": {"factor": 2.0}},
}  # fmt: skip
_CONFIGS = (
    _CONFIG,
    {"model_type": "deepseek_v3", "kv_lora_rank": 512, "qk_rope_head_dim": 64, "n_layers": 9},
    {"model_type": "qwen3_next", "linear_num_value_heads": 4, "linear_num_key_heads": 2,
     "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_conv_kernel_dim": 4,
     "full_attention_interval": 4, "num_hidden_layers": 8},
    {"model_type": "falcon_h1", "mamba_d_ssm": 128, "mamba_d_state": 16, "mamba_n_groups": 1,
     "hybrid_override_pattern": "M*M-", "mamba_d_conv": 4},
    {"model_type": "bert", "pad_token_id": 1, "auto_map": {"x": "y.Z"}, "model_file": "own.py"},
    {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}},
)  # fmt: skip
_FILES = {
    "config.json": [json.dumps(config).encode() for config in _CONFIGS],
    "tokenizer_config.json": [
        b'{"chat_template": "{{ tools }}<think>", "auto_map": {"AutoTokenizer": ["t.T"]}}',
        b'{"chat_template": [{"name": "default", "template": "{{ x }}"}], "added_tokens": []}',
    ],
    "generation_config.json": [b'{"temperature": 0.7, "top_k": 20, "do_sample": false}'],
    "model.safetensors.index.json": [b'{"weight_map": {"w": "model.safetensors"}}'],
    "tokenizer.json": [b'{"added_tokens": [{"content": "<|fim_prefix|>"}], "model": {}}'],
    "chat_template.jinja": [b"{% for m in messages %}{{ m.content }}{% endfor %}"],
    "LICENSE": [b"as is"],
    "model-00001-of-00002.safetensors": [b""],
    "model.gguf": [b"GGUF\x03\0\0\0" + b"\xff" * 16],
}
_WORDS = [
    *(json.dumps(name).encode() for config in _CONFIGS for name in config),
    *(json.dumps(name).encode() for name in BITS), b"1000000000", b'"chat_template"', b'"default"',
]  # fmt: skip
_FAMILIES = [f'"{name}"'.encode() for name in ("mamba", "gemma3", "gpt_oss", "cohere2", "roberta")]


def safetensors(folder: Path) -> Target:
    """The header of a file of weights."""
    file = folder / "model.safetensors"

    def run(case: bytes) -> None:
        file.write_bytes(case)
        header = read_header(file)
        flaw = flaw_of(header, file.name)
        assert not flaw_in_words(flaw, quotes=True)
        if not flaw:
            assert sum(tensor.size_bytes for tensor in header.tensors) == header.data_bytes

    words = [struct.pack("<Q", n) for n in (0, 7, 8, 100, 2**31, 2**63, 2**64 - 1)]
    return Target(
        "safetensors", run, (UnreadableModel,), [*_weights()], [*words, *_WORDS],
        parse_errors_may_quote=True,
    )  # fmt: skip


def model_folder(folder: Path) -> Target:
    """A folder, of which a case is one file: its name, a line break, its content."""
    (folder / "model.safetensors").write_bytes(next(_weights()))

    def run(case: bytes) -> None:
        first, _, content = case.partition(b"\n")
        name = first.decode("ascii", "replace")
        file = folder / (name if name in _FILES else _FIRST)
        before = file.read_bytes() if file.exists() else None
        file.write_bytes(content)
        try:
            _check_card(read_card(folder, "m"), folder)
        finally:
            file.write_bytes(before) if before is not None else file.unlink()

    (folder / _FIRST).write_bytes(_FILES[_FIRST][0])
    seeds = [f"{name}\n".encode() + one for name, all_ in _FILES.items() for one in all_]
    return Target("model_folder", run, (), seeds, [*_WORDS, *_FAMILIES])


_FIRST = "config.json"
_EACH = 8
"""Of the policies that tests refuse, so many are as good as one."""


def _check_card(card: ModelCard, folder: Path) -> None:
    """What is shown, and what is reckoned with, of it."""
    for words in (card.unavailable, card.flaw, card.family):
        assert not flaw_in_words(words, quotes=True), flaw_in_words(words, quotes=True)
        assert str(folder) not in words
    assert len(card.chat_template) <= 2**20
    to_json([details_of(card), show(card, "m", "")])
    footprint = footprint_of(card)
    for count in (card.size_bytes, card.parameters, card.context, footprint.weights_bytes):
        assert 0 <= count < 2**63
    assert loading_bytes(card) >= 0
    assert math.isfinite(footprint.row_bytes(card.context))
    assert footprint.peak_bytes([card.context], [card.context]) >= 0


def policies() -> Target:
    """A case is one file: its name, a line break, its content."""

    def run(case: bytes) -> None:
        name, _, content = case.partition(b"\n")
        known = [one for one in FILES if one.encode() == name]
        try:
            judge(PolicyFiles(contents=MappingProxyType({(known or FILES[:1])[0]: content})))
        except PolicyErrors as refused:
            _check_told(refused)
        strict_yaml.scalar(content[:200].decode("utf-8", "replace"))

    seeds = [*_policy_seeds()]
    return Target("policies", run, (), seeds, [b"schema: mlxd/v1\n", b": ", b"- ", b"~", b"1h30m"])


def _check_told(refused: PolicyErrors) -> None:
    """Each in a line that can be read."""
    assert refused.errors
    for error in refused.errors:
        flaw = flaw_in_words(str(error), quotes=True)
        assert not flaw, flaw


def keys() -> Target:
    """The file of API keys."""
    key = (
        "  - id: a\n    tenant: t\n    sha256: '" + "0" * 64 + "'\n"
        "    created: 2026-01-31T12:00:00Z\n    expires: 2027-01-31T12:00:00Z\n    note: x\n"
    )

    def run(case: bytes) -> None:
        try:
            keyring.parse(case, "keys.yaml")
        except KeysRefused as refused:
            _check_told(refused)

    return Target("keys", run, (), [f"schema: mlxd/keys/v1\nkeys:\n{key}{key}".encode()])


def policy_tests() -> Target:
    """Files of `mlxd policy test`."""

    def run(case: bytes) -> None:
        try:
            parse_cases(case, "cases.yaml")
        except PolicyErrors as refused:
            _check_told(refused)

    seeds = [file.read_bytes() for file in sorted((_DATA / "policy-tests").glob("*.yaml"))]
    return Target("policy_tests", run, (), seeds)


def _policy_seeds() -> Iterator[bytes]:
    for file in sorted((_ROOT / "policies").glob("*.yaml")):
        yield f"{file.name}\n".encode() + file.read_bytes()
    for file in sorted((_DATA / "policies").glob("*.bad.yaml"))[::_EACH]:
        kind = file.name.partition(".")[0]
        yield f"{kind}.yaml\n".encode() + file.read_bytes()


def _weights() -> Iterator[bytes]:
    """Files that are as they should be."""
    tensor = {"dtype": "F16", "shape": [2, 2], "data_offsets": [0, 8]}
    packed = {"dtype": "U32", "shape": [1], "data_offsets": [8, 12]}
    headers: list[dict[str, Any]] = [
        {"w": tensor},
        {"__metadata__": {"format": "mlx"}, "w": tensor, "v": packed},
        {},
    ]
    for header in headers:
        raw = json.dumps(header).encode()
        ends = [one["data_offsets"][1] for one in header.values() if "data_offsets" in one]
        yield struct.pack("<Q", len(raw)) + raw + bytes(max(ends, default=0))
