"""What a client has left, and how busy mlxd is, for the headers of an answer or refusal."""

from __future__ import annotations

from collections.abc import Iterator

from aiohttp import web

from mlxd.control.rates import RateState
from mlxd.policy.policy_set import PolicySet
from mlxd.server.edge import QUOTA, STORY, caller_of
from mlxd.server.errors import speaks_anthropic
from mlxd.server.parts import Parts
from mlxd.server.queue_report import load_headers, room
from mlxd.server.ratelimits import Api, headers_of


def note_quota(request: web.BaseRequest, parts: Parts, policies: PolicySet) -> None:
    """Keep them for the answer to this request, whatever it will be."""
    story = request[STORY]
    states = parts.admission.rate_states(caller_of(request), policies, story.user)
    told = headers_of([*states, *_queue(parts, policies)], _api_of(request), parts.clock.wall())
    request[QUOTA] = told | load_headers(parts, story)


def _queue(parts: Parts, policies: PolicySet) -> Iterator[RateState]:
    """The places in it are everybody's, and say nothing of time."""
    if (queue := room(parts, policies)) is not None:
        yield RateState("queue", queue.places, 0.0, queue.free, 0.0, "concurrent-requests")


def _api_of(request: web.BaseRequest) -> Api:
    if speaks_anthropic(request):
        return "anthropic"
    return "openai" if request.path.startswith("/v1/") else "ollama"
