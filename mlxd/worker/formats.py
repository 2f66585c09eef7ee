"""What mlx-lm does not know of the formats of models that it runs: marks of thinking and of calls.

Marks are looked for in a tokenizer's vocabulary and in its template, as mlx-lm does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.tool_parsers import json_tools, pythonic, qwen3_coder

from mlxd.core.request import Json
from mlxd.worker import harmony
from mlxd.worker.tool_parsers import json_calls

THINKING = (
    ("[THINK]", "[/THINK]"),  # Magistral, Ministral
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Command
    ("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
)
_WRITTEN = ("<think>", "</think>")
"""Marks that may be text like any other: Granite's, Hunyuan's."""
_FRAMES = ("<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>")
"""Around what is said, and no part of it."""


@dataclass(frozen=True, slots=True)
class _Calls:
    """`end` is empty where a call is the rest of its answer."""

    start: str
    end: str
    parser: Callable[..., Any]


def complete(tokenizer: TokenizerWrapper) -> None:
    """Give a tokenizer's wrapper what mlx-lm would have, knew it the format."""
    vocabulary, template = tokenizer.get_vocab(), template_of(tokenizer)
    if all(mark in vocabulary for mark in harmony.MARKS):
        _set_thinking(tokenizer, harmony.THINK_START, harmony.THINK_END)
        ends = {vocabulary[end] for end in harmony.CALL_ENDS}
        tokenizer.eos_token_ids = tokenizer.eos_token_ids | ends
        return
    if not tokenizer.has_thinking:
        known = [marks for marks in THINKING if all(mark in vocabulary for mark in marks)]
        written = [_WRITTEN] if all(mark in template for mark in _WRITTEN) else []
        for marks in (known or written)[:1]:
            _set_thinking(tokenizer, *marks)
    if not tokenizer.structural_markers:
        tokenizer._structural_markers = tuple(mark for mark in _FRAMES if mark in vocabulary)
    if not tokenizer.has_tool_calling and "tools" in template:
        named = [calls for calls in _CALLS if calls.start in template and calls.end in template]
        silent = [calls for calls in _CALLS if {calls.start, calls.end} <= vocabulary.keys()]
        for calls in (silent + named)[:1]:
            _set_calls(tokenizer, calls)


def template_of(tokenizer: TokenizerWrapper) -> str:
    """All of them, where there are several; empty: there is none, or it is code."""
    template: Any = tokenizer.chat_template
    return "\n".join(template.values()) if isinstance(template, dict) else template or ""


def writes_marks(tokenizer: TokenizerWrapper) -> bool:
    """Whether its marks of thinking are text like any other: what stands around them has a part in
    their tokens, and a template may speak of them.
    """
    return tokenizer.think_start == _WRITTEN[0] and len(tokenizer.think_start_tokens) > 1


def has_bare_calls(tokenizer: TokenizerWrapper) -> bool:
    """Whether its template asks for calls as JSON with no marks around, as Llama's do."""
    if tokenizer.has_tool_calling or harmony.is_harmony(tokenizer):
        return False
    template = template_of(tokenizer)
    return "tools" in template and re.search(_ASKS, template) is not None


_ASKS = r"\{\s*\\?[\"']name\\?[\"']\s*:.{1,80}?\\?[\"'](parameters|arguments)\\?[\"']\s*:"


def _set_thinking(tokenizer: TokenizerWrapper, start: str, end: str) -> None:
    tokenizer._think_start, tokenizer._think_end = start, end
    tokenizer._think_start_tokens = _tokens(tokenizer, start)
    tokenizer._think_end_tokens = _tokens(tokenizer, end)


def _set_calls(tokenizer: TokenizerWrapper, calls: _Calls) -> None:
    tokenizer._tool_call_start, tokenizer._tool_call_end = calls.start, calls.end
    tokenizer._tool_call_start_tokens = _tokens(tokenizer, calls.start)
    tokenizer._tool_call_end_tokens = _tokens(tokenizer, calls.end)
    tokenizer._tool_parser = calls.parser


def _tokens(tokenizer: TokenizerWrapper, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.encode(text, add_special_tokens=False))


def _deepseek_calls(text: str, tools: Any = None) -> list[Json]:
    """`NAME<sep>{}`, or as the first of them wrote it. Raises ValueError."""
    calls = []
    for found in _DEEPSEEK.finditer(text):
        name, _, arguments = found[1].partition("<｜tool▁sep｜>")
        if name.strip() == "function":
            name, _, arguments = arguments.partition("\n")
        fenced = _FENCED.search(arguments)
        calls.append({"name": name.strip(), "arguments": fenced[1] if fenced else arguments})
    return calls


_DEEPSEEK = re.compile(r"<｜tool▁call▁begin｜>(.*?)<｜tool▁call▁end｜>", re.DOTALL)
_FENCED = re.compile(r"```json\s*\n(.*)\n\s*```", re.DOTALL)


def _calls_by_name(text: str, tools: Any = None) -> list[Json]:
    """`[{NAME: {}}]`. Raises ValueError."""
    parsed = json.loads(text, strict=False)
    pairs = [pair for call in parsed for pair in call.items()]
    return [{"name": name, "arguments": arguments} for name, arguments in pairs]


def _lines_of_calls(text: str, tools: Any = None) -> Any:
    """Python, a call on each line. Raises ValueError."""
    inner = text.strip()
    if inner.startswith("["):
        return pythonic.parse_tool_call(inner, tools)
    return pythonic.parse_tool_call(f"[{','.join(inner.splitlines())}]", tools)


_CALLS = (
    _Calls("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", _deepseek_calls),
    _Calls("<seed:tool_call>", "</seed:tool_call>", qwen3_coder.parse_tool_call),
    _Calls("<TOOLCALL>", "</TOOLCALL>", json_calls),  # Nemotron
    _Calls("<|START_ACTION|>", "<|END_ACTION|>", json_calls),  # Command
    _Calls("<function_calls>", "</function_calls>", _lines_of_calls),  # OLMo
    _Calls("<|tools_prefix|>", "<|tools_suffix|>", _calls_by_name),  # Apertus
    _Calls("<|tool_call|>", "<|/tool_call|>", json_calls),  # Phi
    _Calls("<|tool_call|>", "", json_calls),  # Granite
    _Calls("<tool_calls>", "</tool_calls>", json_calls),  # Hunyuan
    _Calls("<tool_call>", "</tool_call>", json_tools.parse_tool_call),
)
