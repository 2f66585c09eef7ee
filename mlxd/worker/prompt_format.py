"""What a model's own format wants of its prompts, beyond what its template says."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.tool_parsers import pythonic

from mlxd.core.request import GenerationRequest, Json
from mlxd.worker.conversation import (
    Turns,
    as_json,
    in_words,
    one_call_each,
    with_numbered_ids,
    with_switch,
    with_system_first,
)
from mlxd.worker.formats import writes_marks
from mlxd.worker.harmony import is_harmony
from mlxd.worker.tool_parsers import completed, json_calls

_HARMONY_EFFORTS = {"none": "low", "minimal": "low", "xhigh": "high", "max": "high"}
"""By what clients may say: its models know low, medium and high, and always think."""
_FIRST, _LATER = "w1rds-said-first", "w1rds-said-later"
_OFF = "/no_think"
_ASKED: Turns = [{"role": "user", "content": "a"}]
_SYSTEM: Turns = [
    {"role": "system", "content": _FIRST},
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
    {"role": "system", "content": _LATER},
    {"role": "user", "content": "c"},
]
_CALL: Json = {"id": "call00000", "type": "function", "function": {"name": _FIRST, "arguments": {}}}
_TOOL: Json = {
    "type": "function",
    "function": {
        "name": "a",
        "description": "b",
        "parameters": {"type": "object", "properties": {}, "required": []},
    },
}
_CALLED: Turns = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "", "tool_calls": [_CALL]},
    {"role": "tool", "content": _LATER, "name": _FIRST, "tool_call_id": _CALL["id"]},
]


class PromptFormat:
    """Of one tokenizer. What its template leaves out without a word is tried out when a
    conversation has it for the first time.
    """

    def __init__(self, tokenizer: TokenizerWrapper) -> None:
        self._tokenizer = tokenizer
        self._harmony = is_harmony(tokenizer)
        parser = getattr(tokenizer.tool_parser, "__module__", "")
        self._numbered = parser == "mlx_lm.tool_parsers.kimi_k2"
        self._jinja = isinstance(tokenizer.chat_template, str | dict)
        self._thinks = bool(tokenizer.has_thinking)
        self._written = writes_marks(tokenizer)
        """Such models think where their template asks them to, as Granite's does not by itself."""

    def turns(self, turns: Turns, think: bool | str | None = None, *, tools: bool = False) -> Turns:
        """Said so that the template shows all of them. `tools`: some are offered, for which a model
        may have another template.
        """
        if think in (False, "none") and self._reads_switch:
            turns = with_switch(turns, _OFF)
        if any(turn["role"] == "system" for turn in turns[1:]) and self._hides_system:
            turns = with_system_first(turns)
        if not any(turn["role"] == "tool" or "tool_calls" in turn for turn in turns):
            return turns
        if self._harmony:  # of several calls in one turn its template shows the first
            return one_call_each(turns)
        if self._numbered:
            turns = with_numbered_ids(turns)
        hides = self._hides_with_tools if tools else self._hides
        return in_words(turns, self._calls, results=hides[1]) if any(hides) else turns

    def options(self, request: GenerationRequest) -> dict[str, Any]:
        """For the template. How thinking is switched has several names."""
        think = request.think
        options = dict(request.template_options)
        if isinstance(think, str):
            options["reasoning_effort"] = think
        if think is not None:
            options["enable_thinking"] = think not in (False, "none")
        if self._jinja and not (self._written and "enable_thinking" not in options):
            on = options.get("enable_thinking", self._thinks)
            options.setdefault("thinking", on)
            options.setdefault("reasoning", on)
            if not on:
                options.setdefault("thinking_budget", 0)
        if self._harmony:
            _set_effort(options)
        return options

    @cached_property
    def _hides_system(self) -> bool:
        """Whether it shows the system's words at the beginning only, or the last ones."""
        text = self._shown(_SYSTEM)
        return text is not None and not (_FIRST in text and _LATER in text)

    @cached_property
    def _hides(self) -> tuple[bool, bool]:
        """Whether it leaves out calls that come without words; and results."""
        return _left_out(self._shown(_CALLED))

    @cached_property
    def _hides_with_tools(self) -> tuple[bool, bool]:
        return _left_out(self._shown(_CALLED, tools=[_TOOL]))

    def _calls(self, calls: list[Json]) -> str:
        """As its model writes them, which goes on as it sees it done."""
        tokenizer = self._tokenizer
        opens, closes = tokenizer.tool_call_start or "", tokenizer.tool_call_end or ""
        if completed(tokenizer.tool_parser) is json_calls:
            return opens + as_json(calls) + closes
        if tokenizer.tool_parser is pythonic.parse_tool_call:
            return f"{opens}[{', '.join(map(_as_python, calls))}]{closes}"
        return as_json(calls)

    @cached_property
    def _reads_switch(self) -> bool:
        """Whether thinking is switched by a word of the system's, and in no other way."""
        told = self._shown(with_switch(_ASKED, _OFF))
        switched = self._shown(_ASKED, enable_thinking=False)
        return told != switched and switched == self._shown(_ASKED) and _OFF not in (told or _OFF)

    def _shown(self, turns: Turns, tools: list[Json] | None = None, **options: bool) -> str | None:
        """None: the template does not take them, and says so."""
        if not self._jinja:
            return None
        try:
            text = self._tokenizer.apply_chat_template(
                turns, tools=tools, tokenize=False, add_generation_prompt=True, **options
            )
        except Exception:  # noqa: BLE001 - templates are others' code, and promise no kind of error
            return None
        return text if isinstance(text, str) else None


def _as_python(call: Json) -> str:
    arguments = (f"{key}={value!r}" for key, value in call["arguments"].items())
    return f"{call['name']}({', '.join(arguments)})"


def _left_out(text: str | None) -> tuple[bool, bool]:
    return text is not None and _FIRST not in text, text is not None and _LATER not in text


def changes(options: dict[str, Any]) -> list[dict[str, Any]]:
    """Of options, none at first: for templates that read what a tool may leave out, and for those
    that know fewer efforts than there are, which get the nearest.
    """
    tools, effort = options.get("tools"), options.get("reasoning_effort")
    found: list[dict[str, Any]] = [{}]
    if tools:
        found.append({"tools": [_described(tool) for tool in tools]})
    if effort is not None:
        hard = effort in ("medium", "high", "max")
        near = ("high", "max", "medium") if hard else ("low", "none")
        found += [{"reasoning_effort": each} for each in near if each != effort]
    return found


def _described(tool: Json) -> Json:
    parameters = {"type": "object", "properties": {}}
    function = tool.get("function") or {}
    said = {key: value for key, value in function.items() if value is not None}
    return tool | {"function": {"description": "", "parameters": parameters} | said}


def _set_effort(options: dict[str, Any]) -> None:
    effort = options.get("reasoning_effort")
    if effort is None and options.get("enable_thinking") is False:
        effort = "none"
    if effort is not None:
        options["reasoning_effort"] = _HARMONY_EFFORTS.get(effort, effort)
