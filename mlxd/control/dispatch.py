"""The life of one request, on one page: resolve, admit, lease, generate, replay."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    aclosing,
    asynccontextmanager,
)
from dataclasses import dataclass, replace

from mlxd.control.admission import Admission
from mlxd.control.applicant import Applicant
from mlxd.control.catalog import Catalog
from mlxd.control.costs import cost_of, prompt_of, took
from mlxd.control.fingerprint import fingerprint_of
from mlxd.control.generation import Limits
from mlxd.control.headway import Headway
from mlxd.control.merging import closing_all, merged
from mlxd.control.order import Order
from mlxd.control.prompts import Prompts
from mlxd.control.queue_view import OnWait
from mlxd.control.replay import Replays, fresh_seed
from mlxd.control.residency import Lease, Residency
from mlxd.control.rights import Rights, rights_of
from mlxd.control.suspects import Case
from mlxd.control.telling import leased
from mlxd.control.ticket import Ticket
from mlxd.control.transcript import Push
from mlxd.core.caller import Caller, Priority
from mlxd.core.clock import Clock
from mlxd.core.errors import InvalidRequest, ModelLoadFailed, UnsupportedFeature
from mlxd.core.events import Burst, Started
from mlxd.core.models import ModelCard
from mlxd.core.request import GenerationRequest, Sampling
from mlxd.core.story import Story, untold
from mlxd.grammar.source import is_held
from mlxd.policy.policy_set import PolicySet


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks, and under which policies: the same from the first wall to the last token."""

    caller: Caller
    policies: PolicySet
    would_deny: Callable[[str], None]
    """Told the name of each rule on trial that would have refused the request."""
    story: Story
    """Told what becomes of the request."""
    priority: Priority | None = None
    """The class that its header asks for; it goes before the body's."""
    on_wait: OnWait | None = None
    """Told how it stands while the request waits for a slot."""
    push: Push | None = None
    """Asked to take text of the answer that comes while the reader of the bursts waits for the next
    one; all up to the first of it, its end, and what is not text come as bursts. Of a call with
    several generations nothing is pushed.
    """
    rated: bool = True
    """Whether its answers count towards rates."""

    @property
    def client(self) -> str:
        """Whose share and belongings they are."""
        return self.caller.name


@dataclass(frozen=True, slots=True)
class _Call:
    """What is to run, on one model."""

    card: ModelCard
    keep_alive: float | None
    cases: list[Case]
    orders: list[Order]


class Dispatcher:
    """Strings the parts together. Holds nothing of its own but the line for prompts."""

    def __init__(
        self,
        catalog: Catalog,
        admission: Admission,
        residency: Residency,
        replays: Replays,
        *,
        clock: Clock,
        draw_seed: Callable[[], int] = fresh_seed,
        check_grammar: Callable[[GenerationRequest, str], Awaitable[None]] | None = None,
    ) -> None:
        """`check_grammar` raises what is wrong with what an answer is to be held to; it is told the
        client, too.
        """
        self.arriving = 0
        """Calls that have come, and are judged before they ask for a slot."""
        self._catalog = catalog
        self._admission = admission
        self._residency = residency
        self._replays = replays
        self._clock = clock
        self._draw_seed = draw_seed
        self._check_grammar = check_grammar
        self._prompts = Prompts()

    @asynccontextmanager
    async def open(
        self, request: GenerationRequest, asker: Asker, headway: Headway | None = None
    ) -> AsyncIterator[AsyncIterator[Burst]]:
        """Everything acquired here is given back on the way out, whatever the way out is.

        It goes on from `headway`, which is kept up to date: whoever has it can go on from there.
        """
        async with self._begun((request,), asker, headway or Headway()) as (bursts,):
            yield bursts

    @asynccontextmanager
    async def open_all(
        self,
        requests: Sequence[GenerationRequest],
        asker: Asker,
        headway: Headway | None = None,
    ) -> AsyncIterator[AsyncIterator[tuple[int, Burst]]]:
        """Several generations of one call to one model: it has one slot, and counts once. Each
        burst comes with the number of its request. The first failure ends them all.
        """
        headway = headway or Headway()
        async with (
            self._begun(requests, replace(asker, push=None), headway) as each,
            aclosing(merged(each, headway.give_back)) as bursts,
        ):
            yield bursts

    @asynccontextmanager
    async def _begun(
        self, requests: Sequence[GenerationRequest], asker: Asker, headway: Headway
    ) -> AsyncIterator[list[AsyncIterator[Burst]]]:
        policies, arrived = asker.policies, self._clock.monotonic()
        self.arriving += 1
        try:
            card = await self._catalog.resolve(requests[0].model, policies, asker.caller)
            asker.story.model = card.original
            call = await self._drawn_up(requests, card, asker, headway, arrived)
        finally:
            self.arriving -= 1
        async with (
            self._admitted(call.orders, card, asker, again=headway.free) as ticket,
            self._leased(call, requests, asker, headway) as (call, lease),
        ):
            leased(asker.story, lease.load)
            runs = [
                self._replays.run(order, case, lease, policies, transcript=transcript)
                for order, case, transcript in zip(
                    call.orders, call.cases, headway.transcripts, strict=True
                )
            ]
            if ticket is not None:
                ticket.loaded()
            enforced = policies.limits.tokens.mode == "enforce"
            async with closing_all(runs):
                yield [run if enforced else _judged(run, asker) for run in runs]

    async def _drawn_up(
        self,
        requests: Sequence[GenerationRequest],
        card: ModelCard,
        asker: Asker,
        headway: Headway,
        arrived: float,
    ) -> _Call:
        """Judged, and ready to run on that model. Raises what is wrong with it."""
        policies, card = asker.policies, self._residency.as_served(card)
        rights = rights_of(asker.caller, card, policies)
        rights.check_model()
        cases = [_case(request, card, asker) for request in requests]
        for case in cases:
            _check_capabilities(case.request, card)
            _check_beginning(case.request)
            self._replays.check(case, policies)
        if self._check_grammar is not None:
            for request in _distinct_grammars(cases):
                await self._check_grammar(request, asker.client)
        samplings = headway.begin(card, [case.sampling for case in cases], self._draw_seed)
        orders = [
            _order(case, rights, asker, arrived, sampling)
            for case, sampling in zip(cases, samplings, strict=True)
        ]
        return _Call(card, rights.keep_alive(requests[0].keep_alive), cases, orders)

    @asynccontextmanager
    async def _leased(
        self,
        call: _Call,
        requests: Sequence[GenerationRequest],
        asker: Asker,
        headway: Headway,
    ) -> AsyncIterator[tuple[_Call, Lease]]:
        """Where an edit keeps the model from being loaded, the call is drawn up anew for what was
        served before, in the same slot: nothing of it is judged by what does not serve.
        """
        policies = asker.policies
        async with AsyncExitStack() as held:
            try:
                lease = await held.enter_async_context(self._lease(call, policies))
            except ModelLoadFailed:
                card = await self._catalog.resolve(requests[0].model, policies, asker.caller)
                if not card.held or card.spec == call.card.spec:
                    raise
                headway.forget()
                arrived = call.orders[0].arrived
                call = await self._drawn_up(requests, card, asker, headway, arrived)
                lease = await held.enter_async_context(self._lease(call, policies))
            yield _by_files(call, lease.digest, headway), lease

    def _lease(self, call: _Call, policies: PolicySet) -> AbstractAsyncContextManager[Lease]:
        return self._residency.lease(call.card, call.keep_alive, policies)

    @asynccontextmanager
    async def _admitted(
        self, orders: Sequence[Order], card: ModelCard, asker: Asker, *, again: bool
    ) -> AsyncIterator[Ticket | None]:
        """A slot, for whatever steps the engine; a place in the rate, for an answer alone, and once
        where it is gone on with `again`. A prompt that is only to be told waits for the client's
        others.
        """
        if orders[0].request.want == "prompt":
            self._admission.check_open()
            async with self._prompts.turn(asker.client):
                yield None
            return
        applicant = _applicant(orders, card, asker, again=again)
        asker.story.keep_alive = _told_keep_alive(orders[0].request.keep_alive)
        async with self._admission.admit(
            applicant,
            asker.would_deny,
            story=asker.story,
            on_wait=asker.on_wait,
        ) as ticket:
            try:
                yield ticket
            finally:
                story = asker.story
                ticket.tokens = story.tokens
                ticket.took = took(story.tokens, story.cached_tokens)

    async def load(
        self,
        model: str,
        keep_alive: float | None,
        policies: PolicySet,
        caller: Caller | None = None,
        *,
        story: Story | None = None,
    ) -> None:
        """Have a model in memory. Not a generation: neither counted nor limited, but by what the
        caller's tenant may; None: an administrator's.

        Raises Draining; ModelNotFound; Forbidden; what leasing raises.
        """
        self._admission.check_open()
        story = story or untold()
        card = await self._catalog.resolve(model, policies, caller)
        story.model = card.original
        if caller is not None:
            rights = rights_of(caller, card, policies)
            rights.check_model()
            keep_alive = rights.keep_alive(keep_alive)
        async with self._residency.lease(card, keep_alive, policies) as lease:
            leased(story, lease.load)

    async def unload(
        self,
        model: str,
        policies: PolicySet,
        caller: Caller | None = None,
        *,
        story: Story | None = None,
    ) -> None:
        """Let a model go when nothing uses it any more; returns at once. Ignored where the caller's
        tenant may not have that. Raises ModelNotFound; Forbidden.
        """
        card = await self._catalog.resolve(model, policies, caller)
        if story is not None:
            story.model = card.original
        if caller is not None:
            rights = rights_of(caller, card, policies)
            rights.check_model()
            if not rights.may_unload:
                return
        self._residency.unload(card)


def _by_files(call: _Call, digest: str, headway: Headway) -> _Call:
    """The call by the files that its model was loaded from, where the catalogue had not seen yet
    that they were replaced.
    """
    if digest in ("", call.card.digest):
        return call
    headway.by_other_files()
    fingerprint = fingerprint_of(replace(call.card, digest=digest))
    return replace(call, orders=[replace(one, fingerprint=fingerprint) for one in call.orders])


def _told_keep_alive(seconds: float | None) -> float | None:
    """As a story has it."""
    return -1.0 if seconds == math.inf else seconds


def _applicant(orders: Sequence[Order], card: ModelCard, asker: Asker, *, again: bool) -> Applicant:
    """One call, however many generations it is."""
    first = orders[0].request
    return Applicant(
        caller=asker.caller,
        policies=asker.policies,
        model=card.original,
        called=card.name,
        priority=asker.priority or first.priority,
        cost=sum(map(cost_of, orders)),
        reading=sum(map(prompt_of, orders)),
        rated=asker.rated and first.want == "answer" and not again,
        user=first.user,
    )


async def _judged(bursts: AsyncIterator[Burst], asker: Asker) -> AsyncIterator[Burst]:
    """The same, having said whether limits.tokens.max_prompt, on trial, would have refused it."""
    limits = asker.policies.limits.tokens
    async for burst in bursts:
        for event in burst:
            first = event if isinstance(event, Started) and event.reuse is None else None
            too_long = first is not None and first.prompt_tokens > limits.max_prompt
            if too_long and limits.mode == "dry_run":
                asker.would_deny("tokens")
        yield burst


def _check_capabilities(request: GenerationRequest, card: ModelCard) -> None:
    """Raises UnsupportedFeature, in the words that Ollama's clients look for."""
    if request.want == "embedding" and "embedding" not in card.capabilities:
        raise UnsupportedFeature(f'"{request.model}" does not support embeddings', param="model")
    if request.want == "answer" and "completion" not in card.capabilities:
        chats = request.messages is not None and not request.tell_context
        what = "chat" if chats else "generate"
        raise UnsupportedFeature(f'"{request.model}" does not support {what}', param="model")
    if request.tools and "tools" not in card.capabilities:
        raise UnsupportedFeature(f"{request.model} does not support tools", param="tools")
    if request.suffix is not None and "insert" not in card.capabilities:
        raise UnsupportedFeature(f"{request.model} does not support insert", param="suffix")
    if request.think and request.think_or_refuse and "thinking" not in card.capabilities:
        raise UnsupportedFeature(f'"{request.model}" does not support thinking', param="think")


def _check_beginning(request: GenerationRequest) -> None:
    """Raises InvalidRequest: a grammar holds an answer from its first token on."""
    if request.want == "answer" and request.continue_last and is_held(request):
        raise InvalidRequest(
            "messages: an answer whose format is given, or that must be a tool call, cannot go on"
            " behind a last message of the assistant",
            param="messages",
        )


def _case(request: GenerationRequest, card: ModelCard, asker: Asker) -> Case:
    """The client decides, then who created the model, its files, then the dialect."""
    if card.preset is not None:
        request = card.preset.applied(request)
    sampling = request.sampling.over(card.sampling).over(request.fallback)
    return Case(asker.client, card, request, sampling)


def _distinct_grammars(cases: Sequence[Case]) -> Iterable[GenerationRequest]:
    """A request for each grammar of a call: most often all its choices have the same."""
    each = [case.request for case in cases]
    return {(id(r.format), r.pattern, id(r.tools), r.tool_choice): r for r in each}.values()


def _engine_bytes(policies: PolicySet) -> int:
    limit = policies.memory.worker_limits.mlx_memory_limit
    return 0 if limit == "auto" else int(limit)


def _order(case: Case, rights: Rights, asker: Asker, arrived: float, sampling: Sampling) -> Order:
    policies = asker.policies
    timeouts, tokens, reserve = policies.timeouts, policies.limits.tokens, policies.memory.reserve
    context, context_key = rights.context()
    return Order(
        request=case.request,
        sampling=sampling,
        max_prompt=tokens.max_prompt if tokens.mode == "enforce" else case.card.context,
        max_output=rights.max_output(tokens.max_output),
        context=context,
        limits=Limits(
            generation=float(timeouts.generation),
            first_token=float(timeouts.first_token),
            inter_token=float(timeouts.inter_token_stall),
            cancel_ack=float(timeouts.worker_cancel_ack),
            line=policies.line,
            engine_bytes=_engine_bytes(policies),
        ),
        arrived=arrived,
        expected_output=reserve.expected_output,
        wait_seconds=float(timeouts.generation) if reserve.when_full == "wait" else 0.0,
        fingerprint=fingerprint_of(case.card),
        context_key=context_key,
        priority=rights.terms.klass(asker.priority or case.request.priority),
        owner=asker.caller.tenant,
        story=asker.story,
        push=asker.push,
    )
