"""Anthropic's conversations -> mlxd's messages."""

from __future__ import annotations

from dataclasses import dataclass, field

from mlxd.core.errors import InvalidRequest, UnsupportedFeature
from mlxd.core.request import CalledTool, Message
from mlxd.dialects.anthropic.errors import missing, required
from mlxd.dialects.arguments import Arguments
from mlxd.dialects.fields import Fields
from mlxd.dialects.media import unread

ROLES = ("user", "assistant", "system")
_PICTURES_AND_FILES = ("image", "container_upload")
NOT_FOR_THE_MODEL = (
    "redacted_thinking",
    "server_tool_use",
    "web_search_tool_result",
    "web_fetch_tool_result",
    "code_execution_tool_result",
    "bash_code_execution_tool_result",
    "text_editor_code_execution_tool_result",
    "tool_search_tool_result",
    "advisor_tool_result",
    "mcp_tool_use",
    "mcp_tool_result",
    "mcp_tool_listing",
    "fallback",
)
"""What Anthropic's own servers thought and did in an earlier turn: only they can read it."""
_BILLING = "x-anthropic-billing-header:"
"""Of a coding agent, among its instructions: it says nothing to a model, and differs each time."""
_SHOWN = 40


@dataclass(slots=True)
class _Turn:
    """One turn, as it is read: joined once, however many neighbours of its role there are."""

    role: str
    texts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    calls: list[CalledTool] = field(default_factory=list)
    tool_name: str = ""
    tool_call_id: str = ""

    def message(self) -> Message:
        return Message(
            self.role,
            "\n".join(filter(None, self.texts)),
            thinking="\n".join(filter(None, self.thoughts)),
            tool_calls=tuple(self.calls),
            tool_name=self.tool_name,
            tool_call_id=self.tool_call_id,
        )


class Conversation:
    """Reads one conversation in order: a tool's result finds the name of what was called."""

    def __init__(self, fields: Fields) -> None:
        self._tool_names: dict[str, str] = {}
        self._arguments = Arguments()
        self._turns: list[_Turn] = []
        instructions = _system(fields)
        if instructions:
            self._turn("system").texts.append(instructions)
        for turn in fields.each("messages"):
            self._read(turn)
        if not fields.array("messages"):
            raise InvalidRequest("messages: at least one message is required", param="messages")
        messages = [turn.message() for turn in self._turns]
        self.goes_on = _left_open(messages)
        """The last turn is the assistant's: the answer goes on from there."""
        self.messages = tuple(messages)

    def _turn(self, role: str) -> _Turn:
        """Neighbours of one role are one turn."""
        if not self._turns or self._turns[-1].role != role:
            self._turns.append(_Turn(role))
        return self._turns[-1]

    def _read(self, fields: Fields) -> None:
        role = fields.text("role")
        if role not in ROLES:
            raise InvalidRequest(
                f"{fields.path('role')}: expected one of {', '.join(ROLES)}",
                param=fields.path("role"),
            )
        content = fields.get("content")
        if content is None:
            raise missing(fields, "content")
        if isinstance(content, str):
            self._turn(role).texts.append(content)
        elif not isinstance(content, list):
            raise fields.wrong("content", "string or array of content blocks")
        elif role == "assistant":
            self._read_answer(fields)
        else:
            self._read_question(role, fields)

    def _read_answer(self, fields: Fields) -> None:
        turn = self._turn("assistant")
        for block in fields.each("content"):
            match block.text("type"):
                case "thinking":
                    turn.thoughts.append(block.text("thinking") or "")
                case "tool_use":
                    turn.calls.append(self._called(block))
                case kind:
                    if kind not in NOT_FOR_THE_MODEL:
                        turn.texts.append(words_of(block))

    def _called(self, block: Fields) -> CalledTool:
        called = CalledTool(
            name=required(block, "name"),
            arguments=self._arguments.read(block.get("input"), block.path("input")),
            id=required(block, "id"),
        )
        self._tool_names[called.id] = called.name
        return called

    def _read_question(self, role: str, fields: Fields) -> None:
        """Results of tools come first: what was asked for follows directly on who asked."""
        texts: list[str] = []
        results = 0
        for block in fields.each("content"):
            if block.text("type") == "tool_result":
                self._turns.append(self._result(block))
                results += 1
            else:
                texts.append(words_of(block))
        if texts or not results:
            self._turn(role).texts += texts

    def _result(self, block: Fields) -> _Turn:
        call_id = required(block, "tool_use_id")
        failed = block.flag("is_error")
        text = _given(block)
        return _Turn(
            "tool",
            [text or ("error" if failed else "")],
            tool_name=self._tool_names.get(call_id, ""),
            tool_call_id=call_id,
        )


def _left_open(messages: list[Message]) -> bool:
    """Whether the last turn is to go on. One that says nothing yet is taken away."""
    last = messages[-1]
    if last.role != "assistant":
        return False
    if last.tool_calls:
        raise InvalidRequest(
            "messages: the last turn calls a tool; its tool_result has to follow",
            param="messages",
        )
    if last.content:
        return True
    if len(messages) > 1:
        messages.pop()
    return False


def words_of(block: Fields) -> str:
    """What a block says. Raises UnsupportedFeature for what is no text."""
    match block.text("type"):
        case "text":
            text = block.text("text")
            if text is None:
                raise missing(block, "text")
            return text
        case "document":
            return _document(block)
        case "search_result":
            return _found(block)
        case "compaction":
            return block.text("content") or ""
        case "tool_reference":
            return required(block, "tool_name")
        case kind if kind in _PICTURES_AND_FILES:
            raise UnsupportedFeature(
                f"{block.path('type')}: Could not process {kind}: this model reads text only",
                param=block.path("type"),
            )
        case kind:
            raise InvalidRequest(
                f"{block.path('type')}: a block of type {(kind or '')[:_SHOWN]!r} is not known "
                "here",
                param=block.path("type"),
            )


def _document(block: Fields) -> str:
    source = block.fields("source")
    if source is None:
        raise missing(block, "source")
    match source.text("type"):
        case "text":
            body = source.text("data") or ""
        case "content":
            body = _content(source)
        case _:
            raise UnsupportedFeature(
                f"{source.path('type')}: The PDF specified was not valid: documents are read as "
                "text only: send a source of type text",
                param=source.path("type"),
            )
    return _under(body, block.text("title"), block.text("context"))


def _found(block: Fields) -> str:
    return _under(_content(block), block.text("title"), block.text("source"))


def _content(fields: Fields) -> str:
    if not isinstance(fields.get("content"), list):
        return fields.text("content") or ""
    return "\n".join(words_of(part) for part in fields.each("content"))


def _given(result: Fields) -> str:
    """By a tool. A medium among it is named and not read."""
    if not isinstance(result.get("content"), list):
        return result.text("content") or ""
    return "\n".join(
        unread(str(part.text("type"))) if _is_medium(part) else words_of(part)
        for part in result.each("content")
    )


def _is_medium(block: Fields) -> bool:
    """A picture or a file, but none of text."""
    kind = block.text("type")
    if kind != "document":
        return kind in _PICTURES_AND_FILES
    source = block.fields("source")
    return source is not None and source.text("type") not in ("text", "content")


def _under(body: str, *headings: str | None) -> str:
    return "\n".join([*(heading for heading in headings if heading), body])


def _system(fields: Fields) -> str:
    value = fields.get("system")
    if value is None or isinstance(value, str):
        return value or ""
    if not isinstance(value, list):
        raise fields.wrong("system", "string or array of text blocks")
    texts = [words_of(block) for block in fields.each("system")]
    return "\n".join(text for text in texts if not text.startswith(_BILLING))
