"""POST /v1/responses: a generation that may go on from a kept answer, and is kept in its turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec
from aiohttp import web

from mlxd.control.archive import Archive, Kept
from mlxd.core.errors import EarlierResponseNotFound, MlxdError
from mlxd.core.events import Burst, Completion
from mlxd.dialects.base import Call, Encoder, to_json
from mlxd.dialects.openai.responses import (
    Earlier,
    ResponsesCodec,
    ResponsesEncoder,
    references,
    response_of,
)
from mlxd.policy.load import PolicySet
from mlxd.server.edge import client_of
from mlxd.server.errors import Render, in_openai
from mlxd.server.generate import Generate, new_id
from mlxd.server.intake import in_thread, read_json
from mlxd.server.parts import Parts

Json = dict[str, Any]


class Respond:
    """Serves a codec's path; each request has an exchange of its own."""

    render_error: Render = staticmethod(in_openai)

    def __init__(self, parts: Parts, codec: ResponsesCodec) -> None:
        self._parts = parts
        self._codec = codec

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        return await _Exchange(self._parts, self._codec, client_of(request))(request)


class _Exchange(Generate):
    """One request and its answer."""

    def __init__(self, parts: Parts, codec: ResponsesCodec, owner: str) -> None:
        self._keeping = _Keeping(codec, parts.archive, owner)
        self._owner = owner
        super().__init__(parts, self._keeping)

    async def _read(self, request: web.BaseRequest, policies: PolicySet) -> Call:
        """What the body refers to is looked up here; long conversations are read in a thread."""
        keeps = policies.limits.responses.store != "off"
        parse = partial(self._keeping.parse, id=new_id(), now=self._parts.clock.wall(), keeps=keeps)

        def begin(body: Json) -> Call | Json:
            return body if any(references(body)) else parse(body)

        read = await read_json(request, policies, begin)
        if isinstance(read, Call):
            return read
        previous, ids = references(read)
        before = self._previous(previous, policies) if previous is not None else None
        self._keeping.before = before
        answers = {
            name: self._parts.archive.get(name, self._owner) for name in map(response_of, ids)
        }
        body = read
        return await in_thread(lambda: parse(body, earlier=_earlier(before, answers, ids)))

    def _previous(self, id: str, policies: PolicySet) -> Kept:
        kept = self._parts.archive.get(id, self._owner)
        if kept is None:
            off = policies.limits.responses.store == "off"
            raise EarlierResponseNotFound(
                f"Previous response with id '{id[:128]}' not found.",
                param="previous_response_id",
                policy=policies.line("limits.responses.store") if off else None,
            )
        return kept


class _Keeping:
    """A codec whose answers are kept before the client has them, as the client gets them."""

    def __init__(self, codec: ResponsesCodec, archive: Archive, owner: str) -> None:
        self.path = codec.path
        self.content_type = codec.content_type
        self.heartbeat = codec.heartbeat
        self.parse = codec.parse
        self.render_action = codec.render_action
        self.render_error = codec.render_error
        self.before: Kept | None = None
        """What this one goes on from."""
        self._codec = codec
        self._archive = archive
        self._owner = owner

    def encoder(self, call: Call) -> Encoder:
        return _KeptStream(self._codec.encoder(call), partial(self._keep, call))

    def render(self, call: Call, completions: Sequence[Completion], now: float) -> Json:
        whole = self._codec.render(call, completions, now)
        self._keep(call, whole)
        return whole

    def _keep(self, call: Call, whole: Json) -> None:
        if not call.about["settings"]["store"]:
            return
        response, said = to_json(whole), to_json(call.about["items"])
        self._archive.keep(Kept(whole["id"], self._owner, response, said, self.before))


class _KeptStream:
    """The encoder, and who is given the response before its last event goes out."""

    def __init__(self, encoder: ResponsesEncoder, keep: Callable[[Json], None]) -> None:
        self._encoder = encoder
        self._keep = keep

    def feed(self, burst: Burst, now: float, choice: int = 0) -> bytes:
        records = self._encoder.feed(burst, now, choice)
        if self._encoder.whole is not None:
            self._keep(self._encoder.whole)
        return records

    def fail(self, error: MlxdError) -> bytes:
        return self._encoder.fail(error)


def items_of(kept: Kept) -> list[Json]:
    """What was said in its turn, then what was answered."""
    said: list[Json] = msgspec.json.decode(kept.said)
    return said + output_of(kept)


def output_of(kept: Kept) -> list[Json]:
    response: Json = msgspec.json.decode(kept.response)
    output: list[Json] = response["output"]
    return output


def _earlier(
    before: Kept | None, answers: Mapping[str, Kept | None], ids: Sequence[str]
) -> Earlier:
    turns = before.conversation() if before is not None else []
    conversation = [item for turn in turns for item in items_of(turn)]
    known = {
        item["id"]: item for kept in answers.values() if kept is not None for item in items_of(kept)
    }
    return Earlier(conversation, {id: known[id] for id in ids if id in known})
