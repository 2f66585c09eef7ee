"""What the admin socket has for `mlxd bench`: answers that count towards no rate, and a place for
what was measured.
"""

from __future__ import annotations

from typing import Any

from aiohttp import web

from mlxd.control.benched import Bench
from mlxd.core.errors import InvalidRequest
from mlxd.dialects.openai import CompletionCodec
from mlxd.policy.policy_set import PolicySet
from mlxd.server.action import Action, Answer
from mlxd.server.answers import iso
from mlxd.server.edge import policies_of
from mlxd.server.endpoints import ASKING, READING, Table
from mlxd.server.generate import Generate
from mlxd.server.intake import read_json
from mlxd.server.parts import Parts
from mlxd.server.pull import named

Json = dict[str, Any]
_Points = list[tuple[int, float]]


class AdminBench:
    """The rates of models, as they were measured from outside."""

    def __init__(self, parts: Parts, reading: PolicySet) -> None:
        """Bodies are read under `reading`: no policy can lock its operator out."""
        self._parts = parts
        self._reading = reading

    def routes(self) -> Table:
        asked = Generate(self._parts, CompletionCodec(), rated=False)
        return {
            "/admin/bench": (READING | ASKING, Action(self._act)),
            "/admin/completions": (ASKING, asked),
        }

    async def _act(self, request: web.BaseRequest) -> Answer:
        if request.method == "POST":
            return await self._put(request)
        policies = policies_of(request)
        name = request.query.get("name", "")
        if not name.strip():
            raise InvalidRequest("name is required: a model", param="name")
        card = await self._parts.catalog.look_up(name, policies)
        bench = self._parts.benches.get(card)
        return {"model": card.name, "bench": _told(bench) if bench else None}, policies.etag

    async def _put(self, request: web.BaseRequest) -> Answer:
        policies = policies_of(request)
        name, prefill, decode = await read_json(request, self._reading, _measured)
        card = await self._parts.catalog.look_up(name, policies)
        try:
            bench = await self._parts.benches.put(card, prefill, decode)
        except ValueError as error:
            raise InvalidRequest(f"prefill, decode: {error}", param="prefill") from error
        self._parts.admission.scheduler.forget(card.original)  # it learned of the bench's requests
        slow = self._parts.expected.slow_model(card, policies)
        warnings = [slow] if slow is not None else []
        return {"model": card.name, "bench": _told(bench), "warnings": warnings}, policies.etag


def _told(bench: Bench) -> Json:
    return {
        "at": iso(bench.at),
        "engine": bench.engine,
        "machine": bench.machine,
        "prefill": bench.prefill,
        "decode": bench.decode,
    }


def _measured(body: Json) -> tuple[str, _Points, _Points]:
    return named(body, "model"), _points(body, "prefill"), _points(body, "decode")


def _points(body: Json, key: str) -> _Points:
    """Raises InvalidRequest unless it is a list of pairs, a whole number and a number each."""
    found = body.get(key)
    if not isinstance(found, list) or not all(map(_is_point, found)):
        raise InvalidRequest(f"{key}: expected a list of [COUNT, TOKENS_PER_SECOND]", param=key)
    return [(count, float(rate)) for count, rate in found]


def _is_point(value: object) -> bool:
    if not isinstance(value, list) or len(value) != 2:
        return False
    count, rate = value
    return type(count) is int and type(rate) in (int, float)
