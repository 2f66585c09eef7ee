"""POST /v1/responses: a generation that may go on from a kept answer, and is kept in its turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec
from aiohttp import web

from mlxd.control.archive import Archive, Kept
from mlxd.core.errors import EarlierResponseNotFound, InvalidRequest, MlxdError
from mlxd.core.events import Burst, Completion
from mlxd.dialects.base import Call, Encoder, to_json
from mlxd.dialects.openai.responses import (
    Earlier,
    ResponsesCodec,
    ResponsesEncoder,
    references,
    response_of,
)
from mlxd.policy.policy_set import PolicySet
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
        budget = _Budget(policies)
        body = read
        return await in_thread(lambda: parse(body, earlier=_earlier(before, answers, ids, budget)))

    async def _whole(
        self,
        call: Call,
        completions: Sequence[Completion],
        request: web.BaseRequest,
        policies: PolicySet,
    ) -> web.StreamResponse:
        answer = await super()._whole(call, completions, request, policies)
        self._keeping.keep_rendered()
        return answer

    def _previous(self, id: str, policies: PolicySet) -> Kept:
        kept = self._parts.archive.get(id, self._owner)
        if kept is None:
            off = policies.limits.responses.store == "off"
            raise EarlierResponseNotFound(
                f"Previous response with id '{id[:128]}' not found.",
                param="previous_response_id",
                policy=policies.line("limits.responses.store") if off else None,
                would_pass="the whole conversation as `input`, without previous_response_id",
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
        self._rendered: Kept | None = None
        """Made wherever it was rendered, which may be another thread than the archive's."""
        self._codec = codec
        self._archive = archive
        self._owner = owner

    def encoder(self, call: Call) -> Encoder:
        return _KeptStream(self._codec.encoder(call), partial(self._keep, call))

    def render(self, call: Call, completions: Sequence[Completion], now: float) -> Json:
        whole = self._codec.render(call, completions, now)
        self._rendered = self._kept(call, whole)
        return whole

    def keep_rendered(self) -> None:
        """What `render` has made, where it is to be kept."""
        if self._rendered is not None:
            self._archive.keep(self._rendered)

    def _keep(self, call: Call, whole: Json) -> None:
        kept = self._kept(call, whole)
        if kept is not None:
            self._archive.keep(kept)

    def _kept(self, call: Call, whole: Json) -> Kept | None:
        if not call.about["settings"]["store"]:
            return None
        response, said = to_json(whole), to_json(call.about["items"])
        return Kept(whole["id"], self._owner, response, said, self.before)


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


class _Answer(msgspec.Struct):
    output: list[msgspec.Raw]


class _Item(msgspec.Struct):
    id: str = ""


_said = msgspec.json.Decoder(list[msgspec.Raw])
_answer = msgspec.json.Decoder(_Answer)
_item = msgspec.json.Decoder(_Item)


def items_of(kept: Kept) -> list[Json]:
    """What was said in its turn, then what was answered."""
    return [msgspec.json.decode(item) for item in _written(kept)]


def _written(kept: Kept) -> list[msgspec.Raw]:
    """Its items, none of them read yet."""
    return _said.decode(kept.said) + _answer.decode(kept.response).output


class _Budget:
    """What a request refers to is as long as a body may be, at most."""

    def __init__(self, policies: PolicySet) -> None:
        self._policies = policies
        self._most = int(policies.server.http.max_body)
        self._size = 0

    def spend(self, size: int, param: str) -> None:
        """Raises InvalidRequest."""
        self._size += size
        if self._size > self._most:
            raise InvalidRequest(
                f"{param} refers to more than {self._most} bytes of earlier items: begin a new"
                " conversation, or send what matters of this one",
                param=param,
                policy=self._policies.line("server.http.max_body"),
            )


def _earlier(
    before: Kept | None,
    answers: Mapping[str, Kept | None],
    ids: Sequence[str],
    budget: _Budget,
) -> Earlier:
    """Nothing is read before its length is known to be within the budget."""
    turns = before.conversation() if before is not None else []
    conversation: list[Json] = []
    for kept in turns:
        for item in _written(kept):
            budget.spend(len(item), "previous_response_id")
            conversation.append(msgspec.json.decode(item))
    wanted = set(ids)
    written: dict[str, msgspec.Raw] = {}
    for kept in filter(None, answers.values()):
        written |= {id: item for item in _written(kept) if (id := _item.decode(item).id) in wanted}
    for id in ids:
        budget.spend(len(written.get(id, b"")), "input")
    return Earlier(conversation, {id: msgspec.json.decode(item) for id, item in written.items()})
