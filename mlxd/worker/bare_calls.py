"""Calls of models that write no marks around them, as Llama's do: an answer is calls, or text."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

from mlxd.core.request import CalledTool, Json
from mlxd.worker.parts import Part, call_of


class BareCalls:
    """An answer that is calls as JSON with no marks around them; or else words."""

    malformed = 0

    def __init__(self, names: Collection[str], parser: Callable[[str], list[Json]]) -> None:
        """`names`: of the tools that may be called: other JSON is what was asked for."""
        self._names = names
        self._parser = parser
        self._waiting = ""
        self._words = False

    @property
    def holding(self) -> bool:
        return bool(self._waiting)

    def feed(self, text: str) -> list[Part]:
        self._waiting += text
        if not self._words and self._may_be_calls():
            return []
        self._words = True
        said, self._waiting = self._waiting, ""
        return [("text", said)]

    def finish(self, *, truncated: bool) -> list[Part]:
        """A call that was cut is text: it was said, and is no call."""
        said, self._waiting = self._waiting, ""
        calls = [] if truncated else self._read(said)
        return list(calls) or ([("text", said)] if said else [])

    def _may_be_calls(self) -> bool:
        """Told by its first characters: endless white space, say, is none."""
        head = self._waiting[:_LONGEST_HEAD]
        begun = head.lstrip()
        found = _BARE.match(begun)
        if found is None:
            return _PYTHON.startswith(begun)
        if len(head) == _LONGEST_HEAD and found.end() == len(begun):
            return False
        name = found["name"]
        if name is None or "\\" in name:
            return True
        return name in self._names if found["end"] else any(n.startswith(name) for n in self._names)

    def _read(self, said: str) -> list[CalledTool]:
        try:
            parsed = self._parser(said.strip().removeprefix(_PYTHON))
        except (ValueError, RecursionError):
            return []
        calls = [call for each in parsed if (call := call_of(each)) is not None]
        known = len(calls) == len(parsed) and all(call.name in self._names for call in calls)
        return calls if known else []


_PYTHON = "<|python_tag|>"
"""Before the calls of some of Llama's models."""
_LONGEST_HEAD = 500
"""Characters, up to the name of the first function."""
_BARE = re.compile(
    r"""(?:<\|python_tag\|>)?\s*(?:\[\s*)?(?:\Z|\{\s*(?:\Z|"(?:
        \w*\Z
        |name"\s*(?:\Z|:\s*(?:\Z|"(?P<name>[^"]*)(?P<end>"?)))
        |type"\s*(?:\Z|:\s*(?:\Z|"(?:\Z|f)))
        |id"\s*(?:\Z|:\s*(?:\Z|"))
        |(?:function|parameters|arguments)"
    )))""",
    re.VERBOSE,
)
"""What may become one."""
