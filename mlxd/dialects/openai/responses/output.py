"""The items of an answer while they grow, and the events that tell of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

from mlxd.core.events import ToolCall
from mlxd.dialects.base import to_json
from mlxd.dialects.fields import Json
from mlxd.dialects.openai.responses.items import item_id, output_text, sealed, summary_text
from mlxd.dialects.openai.responses.tools import Offer
from mlxd.dialects.tool_calls import tool_call_id

Event = tuple[str, Json]
"""Its type, and what it holds beside that and its number."""


class Growing:
    """An item that gets longer piece by piece."""

    kind: ClassVar[str]
    delta: ClassVar[str]
    """The type of the event that brings a piece."""

    def __init__(self, call_id: str, index: int) -> None:
        self.id = item_id(self.kind, call_id, index)
        self.index = index
        self._texts: list[str] = []
        values = to_json({"type": self.delta} | self._at() | self._beside())
        self._before = (
            f"event: {self.delta}\ndata: ".encode() + values[:-1] + b',"sequence_number":'
        )

    def begin(self) -> Iterator[Event]:
        """That it is there, and its only part."""
        yield "response.output_item.added", {"output_index": self.index, "item": self._begun()}
        yield self._part_event("added"), self._at() | {"part": self._part()}

    def add(self, text: str, number: int) -> bytes:
        """The event that brings a piece, with its number: the same bytes around the text each
        time.
        """
        self._texts.append(text)
        return b'%b%d,"delta":%b}\n\n' % (self._before, number, to_json(text))

    def end(self, status: str) -> Iterator[Event]:
        """That nothing more comes."""
        whole = {"text": "".join(self._texts)}
        yield self.delta.removesuffix("delta") + "done", self._at() | whole | self._beside()
        yield self._part_event("done"), self._at() | {"part": self._part()}
        done = {"output_index": self.index, "item": self.item(status)}
        yield "response.output_item.done", done

    def item(self, status: str) -> Json:
        """As far as it has come."""
        raise NotImplementedError

    def _begun(self) -> Json:
        raise NotImplementedError

    def _part(self) -> Json:
        raise NotImplementedError

    def _at(self) -> Json:
        """Where a piece belongs."""
        raise NotImplementedError

    def _beside(self) -> Json:
        """What goes along with a text."""
        return {}

    def _part_event(self, what: str) -> str:
        raise NotImplementedError


class Said(Growing):
    """A message."""

    kind = "message"
    delta = "response.output_text.delta"

    def __init__(self, call_id: str, index: int) -> None:
        self._logprobs: list[Json] = []
        super().__init__(call_id, index)

    def add_scored(self, text: str, logprobs: Sequence[Json]) -> Event:
        """A piece with its log-probabilities."""
        self._texts.append(text)
        self._logprobs += logprobs
        return self.delta, self._at() | {"delta": text, "logprobs": logprobs}

    def item(self, status: str) -> Json:
        return self._begun() | {"status": status, "content": [self._part()]}

    def _begun(self) -> Json:
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "status": "in_progress",
            "content": [],
        }

    def _part(self) -> Json:
        return output_text("".join(self._texts), self._logprobs)

    def _at(self) -> Json:
        return {"item_id": self.id, "output_index": self.index, "content_index": 0}

    def _beside(self) -> Json:
        return {"logprobs": list(self._logprobs)}

    def _part_event(self, what: str) -> str:
        return f"response.content_part.{what}"


class Thought(Growing):
    """What the model thought. Its summary is all of it."""

    kind = "reasoning"
    delta = "response.reasoning_summary_text.delta"

    def __init__(self, call_id: str, index: int, *, seals: bool = False) -> None:
        super().__init__(call_id, index)
        self._seals = seals

    def item(self, status: str) -> Json:
        item = self._begun() | {"status": status, "summary": [self._part()]}
        return item | {"encrypted_content": sealed("".join(self._texts))} if self._seals else item

    def _begun(self) -> Json:
        return {"id": self.id, "type": "reasoning", "status": "in_progress", "summary": []}

    def _part(self) -> Json:
        return summary_text("".join(self._texts))

    def _at(self) -> Json:
        return {"item_id": self.id, "output_index": self.index, "summary_index": 0}

    def _part_event(self, what: str) -> str:
        return f"response.reasoning_summary_part.{what}"


def called(event: ToolCall, offer: Offer | None, call_id: str, index: int) -> tuple[Json, str]:
    """The item of a tool call, and the name of the field that holds what the tool is given."""
    custom = offer is not None and offer.custom
    kind = "custom_tool_call" if custom else "function_call"
    item: Json = {
        "id": item_id(kind, call_id, index),
        "type": kind,
        "status": "completed",
        "call_id": tool_call_id(call_id, index),
        "name": offer.name if offer is not None else event.name,
    }
    if offer is not None and offer.namespace:
        item["namespace"] = offer.namespace
    if custom:
        return item | {"input": _free_text(event)}, "input"
    return item | {"arguments": to_json(event.arguments).decode()}, "arguments"


def events_of(item: Json, field: str, index: int) -> Iterator[Event]:
    """Of a tool call, which comes in one piece."""
    base = "function_call_arguments" if field == "arguments" else "custom_tool_call_input"
    at = {"item_id": item["id"], "output_index": index}
    begun = item | {"status": "in_progress", field: ""}
    yield "response.output_item.added", {"output_index": index, "item": begun}
    yield f"response.{base}.delta", at | {"delta": item[field]}
    yield f"response.{base}.done", at | {field: item[field]}
    yield "response.output_item.done", {"output_index": index, "item": item}


def _free_text(event: ToolCall) -> str:
    text = event.arguments.get("input")
    return text if isinstance(text, str) else to_json(event.arguments).decode()
