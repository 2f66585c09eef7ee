"""What each request of a log takes once it runs: what it took; or, where it was refused, what its
like took.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from statistics import median

from mlxd.control.costs import took
from mlxd.core.errors import WRONG
from mlxd.policy.schema.clients import Tenant
from mlxd.policy.schema.limits import Tokens
from mlxd.simulate.traffic.pace import Paces
from mlxd.telemetry.traffic import Request

_WRONG = frozenset(error.code for error in WRONG)
_OF_MEMORY = ("insufficient_memory", "models_busy")
"""Codes of those that had a slot and no model: whether they get one is decided anew."""


@dataclass(frozen=True, slots=True)
class Service:
    """One request's."""

    first: float
    """Seconds from having its model in memory to its first token; or to its end, without one."""
    work: float
    """Steps of its model behind that; see pace.py. 0: there is no more."""
    prompt: int
    completion: int
    code: str = ""
    """That it ends with all the same, once it has run."""
    refund: bool = False
    """It turns out to be wrong in itself, and so does not count towards rates."""
    answers: bool = True
    """Whether it has a first token."""
    cached: int = 0
    """Of the prompt, tokens that were not computed again."""

    @property
    def tokens(self) -> int:
        return self.prompt + self.completion

    @property
    def took(self) -> float:
        """As turns in the queue count it."""
        return took(self.tokens, self.cached)


@dataclass(frozen=True, slots=True)
class _Typical:
    """Of one model, or of all: medians over what was served."""

    first: float = 0.0
    per_token: float = 0.0
    """Steps."""
    prompt: int = 0
    completion: int = 0


class Services:
    """Knows every request of a log, by its place in it."""

    def __init__(self, requests: Iterable[Request], paces: Paces) -> None:
        self._paces = paces
        served: dict[tuple[str, str], list[tuple[Request, float]]] = defaultdict(list)
        for index, one in enumerate(requests):
            if one.waited is not None and one.status == 200:
                work = paces.work.get(index, 0.0)
                served[one.model, one.want].append((one, work))
                served["", one.want].append((one, work))
        self._typical = {kind: _typical(of) for kind, of in served.items()}
        self.guessed: set[str] = set()
        """Models that the log never shows at work."""

    def of(self, index: int, one: Request, tokens: Tokens, tenant: Tenant) -> Service:
        """Under these bounds of what an answer may be."""
        ran = one.waited is not None and one.code not in _OF_MEMORY
        service = self._measured(index, one) if ran else self._guess(one)
        return _within(service, one, tokens, tenant)

    def _measured(self, index: int, one: Request) -> Service:
        slot = (one.judged or 0.0) + (one.waited or 0.0)
        if one.ttft is not None:
            until, work = one.ttft - slot, self._paces.work.get(index, 0.0)
        else:
            until, work = one.held, 0.0
        if one.left:  # it would have gone on: how long, nobody knows
            until, work = (until, math.inf) if one.ttft is not None else (math.inf, 0.0)
        return Service(
            first=max(0.0, until - one.load),
            work=work,
            prompt=one.prompt,
            completion=one.completion,
            code="" if one.left else one.code,
            refund=one.code in _WRONG and not one.left,
            answers=one.ttft is not None,
            cached=one.cached,
        )

    def _guess(self, one: Request) -> Service:
        typical = self._typical.get((one.model, one.want))
        if typical is None:
            self.guessed.add(one.model)
            typical = self._typical.get(("", one.want), _Typical())
        completion = typical.completion * one.choices
        if one.max_tokens is not None:
            completion = min(completion, one.max_tokens * one.choices)
        return Service(
            first=typical.first,
            work=typical.per_token * completion / one.choices,
            prompt=one.prompt or typical.prompt,
            completion=completion,
            answers=one.want == "answer",
        )


def _typical(served: list[tuple[Request, float]]) -> _Typical:
    spoken = [(one, work) for one, work in served if one.completion]
    firsts = [
        max(0.0, one.ttft - (one.judged or 0.0) - (one.waited or 0.0) - one.load)
        if one.ttft is not None
        else max(0.0, one.held - one.load)
        for one, _ in served
    ]
    return _Typical(
        first=median(firsts),
        per_token=median([work * one.choices / one.completion for one, work in spoken] or [0.0]),
        prompt=round(median(one.prompt for one, _ in served)),
        completion=round(median([one.completion / one.choices for one, _ in spoken] or [0.0])),
    )


def _within(service: Service, one: Request, tokens: Tokens, tenant: Tenant) -> Service:
    """Cut to what policy allows; refused where the prompt is too long for it."""
    prompt = service.prompt / one.choices
    context = tenant.max_context or math.inf
    longest = context - 1 if one.want == "answer" else context
    if tokens.mode == "enforce":
        longest = min(longest, tokens.max_prompt)
    if prompt > longest:
        return Service(0.0, 0.0, service.prompt, 0, "context_exceeded", True, False)
    room = min(tokens.max_output, tenant.max_output or math.inf, context - prompt)
    most = round(room * one.choices)
    if service.completion <= most:
        return service
    work = service.work * most / service.completion
    return replace(service, work=work, completion=most)
