"""What models will take: computed, measured, and corrected by what they took before."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import msgspec

from mlxd import __version__
from mlxd.control import shape
from mlxd.control.estimates import Estimate, Estimates, learned, timed
from mlxd.control.estimates import loaded as learned_load
from mlxd.control.fit import Confidence
from mlxd.core import versions
from mlxd.core.clock import Clock
from mlxd.core.footprint import Footprint
from mlxd.core.models import ModelCard
from mlxd.ipc import messages as ipc
from mlxd.policy.policy_set import PolicySet

_DIGITS = 32
"""Of a digest, enough to tell models apart."""
_TIMES = 4
"""A footprint whose weights are so much more or less than the files' is another model's."""
_BESIDE = 2**28
"""Bytes that may be held beside the weights of the smallest model."""


class Forecasts:
    """One per daemon; used on its event loop."""

    def __init__(self, state: Path, clock: Clock) -> None:
        self._estimates = Estimates(state, clock)
        self._computed: dict[str, Footprint] = {}
        self._measured: set[str] = set()
        """Of models that this daemon has seen loaded."""

    def footprint(self, card: ModelCard) -> Footprint:
        """As the loaded model told it, now or at an earlier time; else from its files."""
        return self._told(card) or self._from_files(card)

    def measured(self, card: ModelCard) -> Footprint | None:
        """As it was told by a model that these versions of everything have loaded."""
        estimate = self._estimates.get(key_of(card))
        known = estimate is not None and estimate.engine == engine()
        return self._told(card) if known else None

    def load_bytes(self, card: ModelCard, policies: PolicySet) -> int:
        """The most that loading holds, or what the first generation takes."""
        return max(self._loading_bytes(card), self.working_bytes(card, policies))

    def bare_bytes(self, card: ModelCard) -> int:
        """What loading holds, where nothing is kept for a generation; no less than the weights."""
        weights = self.footprint(card).weights_bytes
        return max(self._loading_bytes(card), weights, card.weights_bytes)

    def working_bytes(self, card: ModelCard, policies: PolicySet) -> int:
        """What the first generation takes; never less than the weights.

        That generation is what `memory.reserve` says: bytes, or a prompt and an answer of
        `expected_output` tokens each.
        """
        footprint, reserve = self.footprint(card), policies.memory.reserve
        if reserve.per_request == "auto":
            length = 2 * reserve.expected_output
            length = min(length, card.context) if card.context else length
            first = footprint.peak_bytes((), (length,), prompts=((length + 1) // 2,))
            first = self.correct(card, first)
        else:
            first = footprint.weights_bytes + int(reserve.per_request)
        return max(first, footprint.weights_bytes, card.weights_bytes)

    def correct(self, card: ModelCard, predicted: int) -> int:
        """A predicted peak as it will hardly be exceeded, by what was observed so far."""
        estimate = self._estimates.get(key_of(card))
        return predicted if estimate is None else estimate.upper(predicted)

    def loaded(self, card: ModelCard, ready: ipc.Ready) -> None:
        """Learn from a load."""
        key = key_of(card)
        estimate = timed(self._known(key), ready.load_seconds)
        if ready.footprint.groups:
            estimate = msgspec.structs.replace(
                estimate,
                footprint=ready.footprint,
                weights_bytes=ready.footprint.weights_bytes,
                engine=engine(),
            )
        foreseen = shape.loading_bytes(card) + _draft_bytes(card)
        if ready.peak_bytes > 0 and foreseen > 0:
            estimate = learned_load(estimate, foreseen, ready.peak_bytes)
        self._measured.add(key)
        self._estimates.put(key, estimate, now=True)

    def observed(self, card: ModelCard, observed: ipc.Observed) -> None:
        """Learn from a busy time."""
        if observed.predicted_bytes <= 0 or observed.measured_bytes <= 0:
            return
        key = key_of(card)
        estimate = learned(self._known(key), observed.predicted_bytes, observed.measured_bytes)
        self._estimates.put(key, estimate)

    def load_seconds(self, card: ModelCard) -> float | None:
        """How long a load of it takes, without the start of a process; None: nobody knows."""
        estimate = self._estimates.get(key_of(card))
        return estimate.load_seconds if estimate is not None else None

    def confidence(self, card: ModelCard) -> tuple[Confidence, int, float | None]:
        """What predictions rest on, the busy times observed, and their mean error in percent."""
        key = key_of(card)
        estimate = self._estimates.get(key)
        if estimate is None:
            return "computed", 0, None
        kind: Confidence = "measured" if key in self._measured else "learned"
        return kind, estimate.count, estimate.error_percent

    async def close(self) -> None:
        """At the daemon's end: let what was learned reach the disk, if that takes no long."""
        await self._estimates.close()

    async def saved(self) -> None:
        """Wait until what was learned is on the disk."""
        await self._estimates.saved()

    def _loading_bytes(self, card: ModelCard) -> int:
        loading = shape.loading_bytes(card) + _draft_bytes(card)
        estimate = self._estimates.get(key_of(card))
        return loading if estimate is None else estimate.upper_load(loading)

    def _known(self, key: str) -> Estimate:
        return self._estimates.get(key) or Estimate(used=0.0)

    def _told(self, card: ModelCard) -> Footprint | None:
        estimate = self._estimates.get(key_of(card))
        told = estimate.footprint if estimate is not None else None
        return told if told is not None and _is_of(card, told) else None

    def _from_files(self, card: ModelCard) -> Footprint:
        key = key_of(card)
        if key not in self._computed:
            self._computed[key] = _computed(card)
        return self._computed[key]


@cache
def engine() -> str:
    """The versions of what measures and of what is measured, mlx's backend included."""
    found = {"mlxd": __version__, **versions.engine()}
    return ", ".join(f"{package} {version}" for package, version in found.items())


def _is_of(card: ModelCard, footprint: Footprint) -> bool:
    """Whether its weights can be those of the card's files."""
    files = (card.weights_bytes or card.size_bytes) + _draft_bytes(card)
    held = footprint.weights_bytes
    return held <= _TIMES * files + _BESIDE and files <= _TIMES * held + _BESIDE


def _computed(card: ModelCard) -> Footprint:
    """By the config; by the files' sizes alone where nothing can be computed from it."""
    try:
        return shape.footprint_of(card)
    except (ArithmeticError, TypeError, ValueError):
        return Footprint(card.size_bytes + _draft_bytes(card), ())


def _draft_bytes(card: ModelCard) -> int:
    """The weights of the model that drafts for it."""
    return card.draft.size_bytes if card.draft is not None else 0


def key_of(card: ModelCard) -> str:
    """(model, quantisation, kind of cache, and the model that drafts for it): what makes two
    predictions comparable.
    """
    bits = card.spec.kv_bits
    draft = f" {card.draft.digest[:_DIGITS]}" if card.draft is not None else ""
    return f"{card.digest[:_DIGITS]} {card.quantization} {f'kv{bits}' if bits else 'kv'}{draft}"
