"""Names as people type them, from the names that makers of MLX models give their folders."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxd.core.short_names import family_key, short_key, short_name

NAMES = {
    "Qwen2.5-Coder-32B-Instruct-4bit": "qwen2.5-coder:32b",
    "mlx-community/Qwen2.5-Coder-32B-Instruct-4bit": "qwen2.5-coder:32b",
    "Qwen2.5-Coder-0.5B-Instruct-bf16": "qwen2.5-coder:0.5b",
    "Qwen2.5-VL-7B-Instruct-8bit": "qwen2.5-vl:7b",
    "Qwen2.5-7B-Instruct-1M-4bit": "qwen2.5-1m:7b",
    "Qwen3-30B-A3B-4bit-DWQ": "qwen3:30b",
    "Qwen3-30B-A3B-4bit-DWQ-053125": "qwen3:30b",
    "Qwen3-235B-A22B-Instruct-2507-3bit-DWQ": "qwen3:235b",
    "Qwen3-Coder-30B-A3B-Instruct-8bit": "qwen3-coder:30b",
    "Qwen3-4B-Thinking-2507-4bit": "qwen3-thinking:4b",
    "Qwen3-4B-Instruct-2507-6bit": "qwen3:4b",
    "Qwen3-8B-Base-4bit": "qwen3-base:8b",
    "Qwen3-Next-80B-A3B-Instruct-mxfp4": "qwen3-next:80b",
    "Qwen3-Embedding-0.6B-4bit-DWQ": "qwen3-embedding:0.6b",
    "Qwen3-14B-mixed_3_6": "qwen3:14b",
    "Qwen3-14B-mixed-3-4bit": "qwen3:14b",
    "Qwen3-8B-4-bit": "qwen3:8b",
    "Qwen3-0.6B-MLX-4bit": "qwen3:0.6b",
    "QwQ-32B-4bit": "qwq:32b",
    "Llama-3.2-3B-Instruct-4bit": "llama-3.2:3b",
    "Meta-Llama-3.1-8B-Instruct-4bit": "llama-3.1:8b",
    "Llama-4-Scout-17B-16E-Instruct-4bit": "llama-4-scout:17b",
    "Llama-2-7b-chat-mlx": "llama-2:7b",
    "Hermes-3-Llama-3.1-8B-4bit": "hermes-3-llama-3.1:8b",
    "gemma-3-27b-it-qat-4bit": "gemma-3:27b",
    "gemma-3n-E4B-it-lm-4bit": "gemma-3n:e4b",
    "Mistral-7B-Instruct-v0.3-4bit": "mistral:7b",
    "Mixtral-8x7B-Instruct-v0.1-hf-4bit-mlx": "mixtral:8x7b",
    "Mistral-Small-3.2-24B-Instruct-2506-4bit": "mistral-small-3.2:24b",
    "Mistral-Nemo-Instruct-2407-4bit": "mistral-nemo",
    "Codestral-22B-v0.1-8bit": "codestral:22b",
    "DeepSeek-R1-Distill-Qwen-7B-4bit": "deepseek-r1:7b",
    "DeepSeek-R1-Distill-Llama-70B-8bit": "deepseek-r1:70b",
    "DeepSeek-V3-0324-4bit": "deepseek-v3",
    "DeepSeek-Coder-V2-Lite-Instruct-4bit-mlx": "deepseek-coder-v2-lite",
    "gpt-oss-20b-MXFP4-Q8": "gpt-oss:20b",
    "gpt-oss-120b-4bit": "gpt-oss:120b",
    "Phi-4-mini-instruct-4bit": "phi-4-mini",
    "Phi-3.5-mini-instruct-bf16": "phi-3.5-mini",
    "SmolLM2-135M-Instruct": "smollm2:135m",
    "SmolLM2-1.7B-Instruct-fp16": "smollm2:1.7b",
    "GLM-4.5-Air-4bit": "glm-4.5-air",
    "GLM-4-9B-0414-nvfp4": "glm-4:9b",
    "Kimi-K2-Instruct-0905-mlx-DQ3_K_M": "kimi-k2",
    "granite-3.3-8b-instruct-4bit": "granite-3.3:8b",
    "starcoder2-15b-instruct-v0.1": "starcoder2:15b",
    "tiny-a": "tiny-a",
    "7b": "7b",
}


@pytest.mark.parametrize(("folder", "short"), NAMES.items())
def test_the_name_of_a_folder_gives_the_one_that_people_type(folder: str, short: str) -> None:
    assert short_name(folder) == short


@pytest.mark.parametrize(
    ("typed", "folder"),
    [
        ("llama3.2:3b", "Llama-3.2-3B-Instruct-4bit"),
        ("llama3.1:8b", "Meta-Llama-3.1-8B-Instruct-4bit"),
        ("gemma3:27b", "gemma-3-27b-it-qat-4bit"),
        ("gemma3n:e4b", "gemma-3n-E4B-it-lm-4bit"),
        ("phi4-mini", "Phi-4-mini-instruct-4bit"),
        ("qwen2.5vl:7b", "Qwen2.5-VL-7B-Instruct-8bit"),
        ("Qwen3:30B-A3B", "Qwen3-30B-A3B-4bit-DWQ"),
        ("qwen2.5-coder:32b-instruct", "Qwen2.5-Coder-32B-Instruct-4bit"),
        ("mistral-small3.2:24b", "Mistral-Small-3.2-24B-Instruct-2506-4bit"),
    ],
)
def test_hyphens_and_what_every_model_is_do_not_tell_names_apart(typed: str, folder: str) -> None:
    assert short_key(typed) == short_key(short_name(folder))


@pytest.mark.parametrize(
    ("typed", "folder"),
    [
        ("qwen2.5-coder:32b-instruct-q4_K_M", "Qwen2.5-Coder-32B-Instruct-4bit"),
        ("qwen2.5:32b", "Qwen2.5-Coder-32B-Instruct-4bit"),
        ("qwen2.5-coder:3b", "Qwen2.5-Coder-32B-Instruct-4bit"),
        ("llama:3.2", "Llama-3.2-3B-Instruct-4bit"),
        ("qwen3:8b", "Qwen3-8B-Base-4bit"),
    ],
)
def test_another_packing_family_or_size_is_another_name(typed: str, folder: str) -> None:
    assert short_key(typed) != short_key(short_name(folder))


def test_a_family_is_a_short_name_without_its_size() -> None:
    assert family_key(short_name("Qwen2.5-Coder-32B-Instruct-4bit")) == short_key("qwen2.5-coder")


@given(st.text(max_size=60))
def test_any_name_has_a_short_one_which_is_its_own_key_again(name: str) -> None:
    assert short_key(short_key(short_name(name))) == short_key(short_name(name))
