"""The life of one request, on one page: resolve, admit, lease, generate."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

from mlxd.control.admission import Admission
from mlxd.control.catalog import Catalog
from mlxd.control.generation import Limits
from mlxd.control.residency import Residency
from mlxd.control.worker import Order
from mlxd.core.clock import Clock
from mlxd.core.errors import UnsupportedFeature
from mlxd.core.events import Burst
from mlxd.core.models import ModelCard
from mlxd.core.request import GenerationRequest
from mlxd.policy.load import PolicySet
from mlxd.policy.store import PolicyStore


class Dispatcher:
    """Strings the parts together. Holds nothing of its own."""

    def __init__(
        self,
        policies: PolicyStore,
        catalog: Catalog,
        admission: Admission,
        residency: Residency,
        clock: Clock,
    ) -> None:
        self._policies = policies
        self._catalog = catalog
        self._admission = admission
        self._residency = residency
        self._clock = clock

    @asynccontextmanager
    async def open(
        self, request: GenerationRequest, client: str
    ) -> AsyncIterator[AsyncIterator[Burst]]:
        """Everything acquired here is given back on the way out, whatever the way out is."""
        arrived = self._clock.monotonic()
        policies = self._policies.current
        card = await self._catalog.resolve(request.model, policies)
        _check_capabilities(request, card)
        async with (
            self._admission.admit(client, card.name, policies),
            self._residency.lease(card, request.keep_alive, policies) as worker,
            aclosing(worker.generate(_order(request, card, policies, arrived))) as bursts,
        ):
            yield bursts

    async def load(self, model: str, keep_alive: float | None) -> None:
        """Have a model in memory. Not a generation: neither counted nor limited.

        Raises Draining; ModelNotFound; what leasing raises.
        """
        self._admission.check_open()
        policies = self._policies.current
        card = await self._catalog.resolve(model, policies)
        async with self._residency.lease(card, keep_alive, policies):
            pass

    async def unload(self, model: str) -> None:
        """Let a model go when nothing uses it any more; returns at once."""
        self._residency.unload(await self._catalog.resolve(model, self._policies.current))


def _check_capabilities(request: GenerationRequest, card: ModelCard) -> None:
    """Raises UnsupportedFeature, in the words that Ollama's clients look for."""
    if request.tools and "tools" not in card.capabilities:
        raise UnsupportedFeature(f"{request.model} does not support tools", param="tools")
    if request.think and request.think_or_refuse and "thinking" not in card.capabilities:
        raise UnsupportedFeature(f'"{request.model}" does not support thinking', param="think")


def _order(
    request: GenerationRequest, card: ModelCard, policies: PolicySet, arrived: float
) -> Order:
    """The client decides, then the model's own files, then the dialect."""
    timeouts = policies.timeouts
    return Order(
        request=request,
        sampling=request.sampling.over(card.sampling).over(request.fallback),
        max_prompt=policies.limits.tokens.max_prompt,
        max_output=policies.limits.tokens.max_output,
        context=card.context,
        limits=Limits(
            generation=float(timeouts.generation),
            first_token=float(timeouts.first_token),
            inter_token=float(timeouts.inter_token_stall),
            cancel_ack=float(timeouts.worker_cancel_ack),
            line=policies.line,
        ),
        arrived=arrived,
    )
