"""How a model marks its thinking and its tool calls, and the taking apart of text by those marks.

Markers and parsers are mlx-lm's, and those of `formats`. Markup that does not parse is the model's
own text and is delivered as such, markers included.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Literal

from mlx_lm.generate import TextStateMachine
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlxd.core.request import CalledTool, Json
from mlxd.grammar.markers import Markers
from mlxd.worker.bare_calls import BareCalls
from mlxd.worker.bounded import TookTooLong, at_most
from mlxd.worker.formats import has_bare_calls
from mlxd.worker.harmony import Harmony, is_harmony
from mlxd.worker.held import Held, Reader, WordsOrCalls
from mlxd.worker.parts import Part, call_of
from mlxd.worker.tool_parsers import completed, json_calls

PARSE_SECONDS = 1.0
"""For what stands between a call's markers, while all sequences wait. A call takes milliseconds;
some parsers take minutes for a few thousand tokens of a model that repeats itself."""
_SPOKEN_OF = "<think>"
"""A mark that answers are about, too: behind the first words it opens no thinking any more."""
_JSON_PARSER = "mlx_lm.tool_parsers.json_tools"


class Markup:
    """One model's markers; makes a `Separator` for each answer that needs one."""

    def __init__(self, tokenizer: TokenizerWrapper) -> None:
        self.thinking: bool = tokenizer.has_thinking
        self._harmony = is_harmony(tokenizer)
        self._bare = has_bare_calls(tokenizer)
        self.tools: bool = tokenizer.has_tool_calling
        self._tokenizer = tokenizer
        self._plain = not (
            self.thinking or tokenizer.structural_markers or tokenizer.response_transitions
        )
        self._machines = {tools: self._machine(tools) for tools in (False, True)}

    def separator(
        self, tools: tuple[Json, ...], *, reasoning: bool
    ) -> Separator | Harmony | Held | None:
        """None where there is nothing to separate. `reasoning`: the prompt left it thinking."""
        if self._harmony:
            return Harmony(tools, reasoning=reasoning)
        if tools and self._bare:
            return self.held(BareCalls(_names(tools), json_calls), reasoning, self.thinking)
        wanted = bool(tools) and self.tools
        if self._plain and not wanted:
            return None
        initial = self._tokenizer.response_initial_state or (
            "reasoning" if reasoning and self.thinking else "normal"
        )
        return Separator(self._machines[wanted].make_state(initial), _Calls(self._tokenizer, tools))

    def held(self, reader: Reader, inside: bool, may_think: bool) -> Held:
        """For an answer that a grammar holds; `inside`: the prompt left it thinking."""
        return Held(
            reader,
            inside=inside and self.thinking,
            opens=(self._tokenizer.think_start or "") if may_think else "",
            closes=self._tokenizer.think_end or "",
        )

    def words_or_calls(self, tools: tuple[Json, ...]) -> WordsOrCalls | None:
        """None: the model has no calls."""
        if not self.tools:
            return None
        calls = Separator(self._machines[True].make_state("normal"), _Calls(self._tokenizer, tools))
        return WordsOrCalls(self._tokenizer.tool_call_start, calls)

    @property
    def json_markers(self) -> Markers | None:
        """Where its tool calls are JSON between markers."""
        tokenizer = self._tokenizer
        parser = getattr(tokenizer.tool_parser, "__module__", "")
        if not self.tools or parser != _JSON_PARSER:
            return None
        start, end = tokenizer.tool_call_start_tokens, tokenizer.tool_call_end_tokens
        return Markers(
            tokenizer.tool_call_start,
            tokenizer.tool_call_end,
            start[0] if len(start) == 1 else None,
            end[0] if len(end) == 1 else None,
        )

    def _machine(self, tools: bool) -> TextStateMachine:
        """Without `tools` a tool call's markers are text like any other."""
        return TextStateMachine(_transitions(self._tokenizer, tools and self.tools))


def _transitions(tokenizer: TokenizerWrapper, tools: bool) -> dict[str, list[tuple[str, str]]]:
    """Markers and where they lead to, by where they are looked for: as in mlx-lm's own, but for a
    call amid thinking. A model may take its thinking for over there, or close it later: that mark
    is no text either.
    """
    edges: dict[str, list[tuple[str, str]]] = defaultdict(list)
    opens, closes = tokenizer.think_start, tokenizer.think_end
    if tokenizer.has_thinking:
        edges["normal"].append((opens, "reasoning"))
        edges["reasoning"].append((closes, "normal"))
        edges["unclosed"] += [(opens, "reasoning"), (closes, "normal")]
    if tools:
        call, end = tokenizer.tool_call_start, tokenizer.tool_call_end
        if not _decides(tokenizer.response_transitions):
            edges["normal"].append((call, "tool"))
        if tokenizer.has_thinking:
            edges["reasoning"].append((call, "tool amid thinking"))
            edges["unclosed"].append((call, "tool amid thinking"))
        if end:
            edges["tool"].append((end, "normal"))
            edges["tool amid thinking"].append((end, "unclosed"))
    for state in ("normal", "unclosed"):
        edges[state] += [(marker, state) for marker in tokenizer.structural_markers or ()]
    for state, more in tokenizer.response_transitions.items():
        edges[state] += more
    if opens == _SPOKEN_OF:
        edges["words"] = [
            (marker, "words" if target == "normal" else target)
            for marker, target in edges["normal"]
            if marker != opens
        ]
    for _, target in [edge for found in edges.values() for edge in found]:
        edges.setdefault(target, [])
    return edges


def _decides(response: dict[str, list[tuple[str, str]]]) -> bool:
    """Whether a model's own format says where calls start."""
    return any(target == "tool" for edges in response.values() for _, target in edges)


def _names(tools: tuple[Json, ...]) -> list[str]:
    return [function.get("name", "") for tool in tools if (function := tool.get("function"))]


class Separator:
    """Takes one answer apart as it grows. What may be the start of a marker waits."""

    def __init__(self, state: Any, calls: _Calls) -> None:
        self._state = state
        self._calls = calls
        self._call: str | None = None

    @property
    def holding(self) -> bool:
        return self._call is not None or bool(self._state[3])

    @property
    def thinking(self) -> bool:
        return bool(self._state[0] == "reasoning")

    @property
    def malformed(self) -> int:
        return self._calls.malformed

    def feed(self, text: str) -> list[Part]:
        state, segments = TextStateMachine.split(self._state, text)
        if "words" in state[2] and (self._state[0] == "normal" or len(segments) > 1):
            return self._parts([segment for each in text for segment in self._step(each)])
        self._state = state
        return self._parts(segments)

    def _step(self, character: str) -> list[tuple[str, str]]:
        """Behind the first words it is in another state."""
        segments: list[tuple[str, str]]
        self._state, segments = TextStateMachine.split(self._state, character)
        name, _, states, waiting = self._state
        if name == "normal" and any(at == name and said.strip() for at, said in segments):
            words = ("words", states["words"][0], states, "")
            self._state, more = TextStateMachine.split(words, waiting)
            segments += more
        return segments

    def finish(self, *, truncated: bool) -> list[Part]:
        """The rest. A call cut by a length limit is text; one ended by a stop may be whole."""
        self._state, rest, name = TextStateMachine.flush(self._state)
        parts = self._parts([(name, rest)])
        if self._call is not None:
            parts += self._calls.unclosed(self._call, truncated=truncated)
            self._call = None
        return parts

    def _parts(self, segments: list[tuple[str, str]]) -> list[Part]:
        parts: list[Part] = []
        for name, text in segments:
            if name in ("tool", "tool amid thinking"):
                self._call = (self._call or "") + text
                continue
            if self._call is not None:
                parts += self._calls.closed(self._call)
                self._call = None
            if text and name in ("normal", "words", "unclosed"):
                _add(parts, "text", text)
            elif text and name == "reasoning":
                _add(parts, "reasoning", text)
        return parts


def _add(parts: list[Part], kind: Literal["text", "reasoning"], text: str) -> None:
    """To the last part, where that is of the same kind."""
    last = parts[-1] if parts else None
    if isinstance(last, tuple) and last[0] == kind:
        parts[-1] = (kind, last[1] + text)
    else:
        parts.append((kind, text))


class _Calls:
    """What stands between a call's markers, parsed; or as text, when it does not parse."""

    def __init__(self, tokenizer: TokenizerWrapper, tools: tuple[Json, ...]) -> None:
        self._tokenizer = tokenizer
        self._tools = list(tools)
        self._parser: Any = completed(tokenizer.tool_parser)
        self.malformed = 0
        """What stood between markers and was no call."""

    def closed(self, markup: str) -> list[Part]:
        calls = self._parsed(markup)
        if calls:
            return list(calls)
        self.malformed += 1
        return [("text", self._start + markup + (self._tokenizer.tool_call_end or ""))]

    def unclosed(self, markup: str, *, truncated: bool) -> list[Part]:
        """Some formats have no end marker at all: there, only the parser can tell."""
        cut = bool(truncated and self._tokenizer.tool_call_end)
        calls = [] if cut else self._parsed(markup)
        if not calls and not truncated:
            self.malformed += 1
        return list(calls) or [("text", self._start + markup)]

    @property
    def _start(self) -> str:
        start: str = self._tokenizer.tool_call_start or ""
        return start

    def _parsed(self, markup: str) -> list[CalledTool]:
        """Empty when any part of it is not a call."""
        try:
            with at_most(PARSE_SECONDS):
                parsed = self._parser(markup, self._tools)
        except TookTooLong:
            return []
        except Exception:  # noqa: BLE001 - fourteen parsers, which promise no kind of error
            return []
        calls = [call_of(entry) for entry in (parsed if isinstance(parsed, list) else [parsed])]
        return [call for call in calls if call is not None] if None not in calls else []
