"""Items of a conversation: read as messages, and as they are kept and listed."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from mlxd.core.errors import InvalidRequest
from mlxd.core.request import CalledTool, Message
from mlxd.dialects.fields import Fields, Json
from mlxd.dialects.openai.errors import required
from mlxd.dialects.openai.messages import MessageReader
from mlxd.dialects.openai.responses import own_tools
from mlxd.dialects.openai.responses.parts import texts
from mlxd.dialects.openai.responses.tools import read_tools, told_name

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_KINDS = (
    "message, reasoning, function_call, function_call_output, custom_tool_call, "
    "custom_tool_call_output, "
    + "".join(f"{kind}, {kind}_output, " for kind in own_tools.CALLS)
    + "additional_tools or item_reference"
)
PREFIXES = {
    "message": "msg",
    "reasoning": "rs",
    "function_call": "fc",
    "function_call_output": "fco",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctco",
    "apply_patch_call": "apc",
    "apply_patch_call_output": "apco",
    "computer_call": "cu",
    "computer_call_output": "cuo",
    "local_shell_call": "lsh",
    "local_shell_call_output": "lsho",
    "shell_call": "sh",
    "shell_call_output": "sho",
    "additional_tools": "at",
}
_BY_ID = "local_shell_call_output"
"""Its `id` may be that of the call in place of its own, or of the item that made the call."""
_LONGEST_ID = 128
NOT_FOR_THE_MODEL = frozenset(
    {
        "code_interpreter_call",
        "compaction",
        "file_search_call",
        "image_generation_call",
        "mcp_approval_request",
        "mcp_approval_response",
        "mcp_call",
        "mcp_list_tools",
        "tool_search_call",
        "tool_search_output",
        "web_search_call",
    }
)
"""What another service did by itself in an earlier turn: what came of it is said beside it."""


@dataclass(slots=True)
class _Turn:
    """The model's turn, as it is read: joined once, however many items it has."""

    texts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    calls: list[CalledTool] = field(default_factory=list)

    @property
    def spoke(self) -> bool:
        return bool(self.calls) or any(self.texts)

    def message(self) -> Message:
        return Message(
            "assistant",
            "\n".join(filter(None, self.texts)),
            thinking="\n".join(filter(None, self.thoughts)),
            tool_calls=tuple(self.calls),
        )


class ItemReader(MessageReader):
    """Reads items in order; what a model said in one go is one turn of the conversation."""

    def __init__(self) -> None:
        super().__init__()
        self._messages: list[Message] = []
        self._turn: _Turn | None = None
        """The model's, as long as it goes on."""
        self._called_by: dict[str, str] = {}
        """From the ids of items that call OpenAI's own tools to the ids of the calls."""
        self.tools: list[Json] = []
        """That came with items, as `read_tools` reads them."""

    def messages(self) -> tuple[Message, ...]:
        """What was read; instructions at the beginning are one message, as templates want it."""
        self._end_turn()
        leading: list[str] = []
        for message in self._messages:
            if message.role != "system":
                break
            leading.append(message.content)
        head = (Message("system", "\n\n".join(leading)),) if leading else ()
        return (*head, *self._messages[len(leading) :])

    def instruct(self, instructions: str) -> None:
        self._messages.append(Message("system", instructions))

    def read_item(self, fields: Fields) -> Json | None:
        """The item as it is kept: checked, and without what nobody reads; None: passed over."""
        kind = fields.text("type") or ("message" if fields.get("role") is not None else "")
        match kind:
            case "message":
                item = self._message(fields)
            case "reasoning":
                item = self._reasoning(fields)
            case "function_call":
                item = self._function_call(fields)
            case "custom_tool_call":
                item = self._custom_call(fields)
            case "function_call_output" | "custom_tool_call_output":
                item = self._output(fields, kind)
            case _ if kind in own_tools.CALLS:
                item = self._own_call(fields, kind)
            case _ if kind in own_tools.OUTPUTS:
                item = self._own_output(fields, kind)
            case "additional_tools":
                item = self._more_tools(fields)
            case _ if kind in NOT_FOR_THE_MODEL:
                return None
            case _:
                path = fields.path("type")
                raise InvalidRequest(f"Invalid value for '{path}': expected {_KINDS}.", param=path)
        id = _own_id(fields, kind)
        return ({"id": id} if 0 < len(id) <= _LONGEST_ID else {}) | item

    def _message(self, fields: Fields) -> Json:
        role = fields.text("role")
        if role not in ROLES:
            path = fields.path("role")
            raise InvalidRequest(
                f"Invalid value for '{path}': expected one of {', '.join(ROLES)}.", param=path
            )
        said = texts(fields, "content")
        if role == "assistant":
            self._say("\n".join(said))
            content = [output_text(text) for text in said]
        else:
            self._end_turn()
            self._messages.append(Message(ROLES[role], "\n".join(said)))
            content = [{"type": "input_text", "text": text} for text in said]
        return {"type": "message", "role": role, "status": "completed", "content": content}

    def _reasoning(self, fields: Fields) -> Json:
        summary = texts(fields, "summary") if fields.get("summary") is not None else []
        content = texts(fields, "content") if fields.get("content") is not None else []
        sealed = fields.text("encrypted_content")
        self._think("\n".join(content or summary) or _unsealed(sealed or ""))
        item: Json = {"type": "reasoning", "summary": [summary_text(text) for text in summary]}
        if content:
            item["content"] = [{"type": "reasoning_text", "text": text} for text in content]
        if sealed is not None:
            item["encrypted_content"] = sealed
        return item

    def _function_call(self, fields: Fields) -> Json:
        call_id, name = required(fields, "call_id"), required(fields, "name")
        namespace = fields.text("namespace") or ""
        self._call(replace(self._called_function(fields, call_id), name=told_name(name, namespace)))
        item = _call(call_id, name, namespace, "function_call")
        return item | {"arguments": fields.text("arguments") or "{}"}

    def _custom_call(self, fields: Fields) -> Json:
        call_id, name = required(fields, "call_id"), required(fields, "name")
        namespace = fields.text("namespace") or ""
        text = fields.text("input") or ""
        self._call(CalledTool(told_name(name, namespace), {"input": text}, call_id))
        return _call(call_id, name, namespace, "custom_tool_call") | {"input": text}

    def _output(self, fields: Fields, kind: str) -> Json:
        call_id = self._answered(fields, required(fields, "call_id"))
        said = "\n".join(texts(fields, "output", by_tool=True))
        self._gave(call_id, said)
        return {"type": kind, "call_id": call_id, "output": said, "status": "completed"}

    def _own_call(self, fields: Fields, kind: str) -> Json:
        call_id = required(fields, "call_id")
        arguments, kept = own_tools.asked(fields, kind)
        self._call(CalledTool(own_tools.name_of(kind), arguments, call_id))
        self._called_by[fields.text("id") or call_id] = call_id
        return {"type": kind, "call_id": call_id, "status": "completed"} | kept

    def _own_output(self, fields: Fields, kind: str) -> Json:
        call_id = fields.text("call_id")
        if not call_id and kind == _BY_ID:
            id = required(fields, "id")
            call_id = self._called_by.get(id, id)
        call_id = self._answered(fields, call_id or required(fields, "call_id"))
        said, kept = own_tools.given(fields, kind)
        self._gave(call_id, said)
        return {"type": kind, "call_id": call_id} | kept

    def _answered(self, fields: Fields, call_id: str) -> str:
        """The call's id, if there was such a call."""
        if call_id not in self._tool_names:
            path = fields.path("call_id")
            raise InvalidRequest(
                f"No tool call found for function call output with call_id {call_id[:80]}.",
                param=path,
            )
        return call_id

    def _gave(self, call_id: str, said: str) -> None:
        self._end_turn()
        name = self._tool_names[call_id]
        self._messages.append(Message("tool", said, tool_call_id=call_id, tool_name=name))

    def _more_tools(self, fields: Fields) -> Json:
        tools = read_tools(fields, more=True)
        self.tools += tools
        return {"type": "additional_tools", "role": "developer", "tools": tools}

    # -- the model's turn, which nothing that says nothing ends

    def _think(self, text: str) -> None:
        if not text.strip():
            return
        if self._turn is not None and self._turn.spoke:
            self._end_turn()
        self._going_on().thoughts.append(text)

    def _say(self, text: str) -> None:
        if self._turn is not None and self._turn.calls:
            if not text.strip():
                return
            self._end_turn()
        self._going_on().texts.append(text)

    def _call(self, call: CalledTool) -> None:
        self._tool_names[call.id] = call.name
        self._going_on().calls.append(call)

    def _going_on(self) -> _Turn:
        if self._turn is None:
            self._turn = _Turn()
        return self._turn

    def _end_turn(self) -> None:
        if self._turn is not None:
            self._messages.append(self._turn.message())
        self._turn = None


def _own_id(fields: Fields, kind: str) -> str:
    """Of the item itself; empty where it has none."""
    names_its_call = kind == _BY_ID and not fields.text("call_id")
    return "" if names_its_call else fields.text("id") or ""


def with_ids(items: Iterable[Json], call_id: str, taken: Iterable[str]) -> list[Json]:
    """Each with an id of its own, where the client gave it none or one that another has. `taken`:
    those of the conversation before.
    """
    known, found = set(taken), []
    for number, item in enumerate(items):
        id = item.get("id")
        if id is None or id in known:
            id = f"{PREFIXES[item['type']]}_{call_id}_in{number}"
        known.add(id)
        found.append(item | {"id": id})
    return found


def response_id(call_id: str) -> str:
    return f"resp_{call_id}"


def item_id(kind: str, call_id: str, index: int) -> str:
    """Of an item of an answer. It leads to the response that it is part of."""
    return f"{PREFIXES[kind]}_{call_id}_{index}"


def response_of(item_id: str) -> str:
    """The id of the response that an item is part of, by the item's own."""
    return response_id(item_id.partition("_")[2].rpartition("_")[0])


def output_text(text: str, logprobs: Iterable[Json] = ()) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}


def summary_text(text: str) -> Json:
    return {"type": "summary_text", "text": text}


def sealed(text: str) -> str:
    """Reasoning for a client that takes it along unread; nothing is secret about it."""
    return base64.b64encode(text.encode()).decode()


def _unsealed(text: str) -> str:
    """Empty for what another service has sealed."""
    try:
        return base64.b64decode(text, validate=True).decode()
    except (binascii.Error, UnicodeError, ValueError):
        return ""


def _call(call_id: str, name: str, namespace: str, kind: str) -> Json:
    item: Json = {"type": kind, "call_id": call_id, "name": name, "status": "completed"}
    return item | {"namespace": namespace} if namespace else item
