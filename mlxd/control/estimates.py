"""What earlier runs taught about predictions, in a file that outlives the daemon.

For each model as it is loaded: the last predictions beside what was measured, and the footprint
that the loaded model told. Nothing here ever fails for its caller: a file that cannot be read is
set aside, one that cannot be written is logged.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import statistics
from itertools import chain
from pathlib import Path

import msgspec

from mlxd.core import aside, durable
from mlxd.core.clock import Clock
from mlxd.core.footprint import Footprint, LayerGroup, Moment
from mlxd.core.threads import Threads

FILE = "estimates.json"
SCHEMA = 1
MOST_MODELS = 200
MOST_OBSERVATIONS = 32
MOST_SECONDS = 5
"""Loads whose time is remembered: a disk or a cache may have become another."""
_MOST_BYTES = 16 * 2**20
_IMPOSSIBLE = 2**48
"""More bytes, tokens or layers than anything that exists has."""
_LONGEST_LOAD = 86400.0
_APART_S = 30.0
"""Between two writes of what busy times taught: many may end in a second, and each write makes the
disk flush its memory. A daemon that is killed forgets no more than that."""
_PATIENCE_S = 2.0
_USUAL_LENGTH = 4096
"""Tokens for which a footprint has to be believable."""
_MOST_PARTS = 1000
"""Of a footprint: kinds of layers and moments."""
_SMALLEST, _LARGEST = 0.25, 4.0
"""A factor beyond these says that something else was measured."""
_TRUSTED = 5
"""Observations from which on a correction downwards is believed in full."""
_UPPER = 0.9
_log = logging.getLogger(__name__)


class Observation(msgspec.Struct, frozen=True, array_like=True):
    """Bytes, weights included."""

    predicted: int
    measured: int
    corrected: int
    """What would have been said, with all that was learned until then."""


class Estimate(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is known of one model."""

    used: float
    """Seconds since the epoch."""
    weights_bytes: int = 0
    observations: list[Observation] = []
    count: int = 0
    loads: list[Observation] = []
    footprint: Footprint | None = None
    engine: str = ""
    """The versions that measured it."""
    seconds: list[float] = []
    """How long its last loads took, in a process that was ready for them."""

    @property
    def error_percent(self) -> float | None:
        """The mean over what is kept; None when nothing is."""
        if not self.observations:
            return None
        errors = [abs(one.corrected - one.measured) / one.measured for one in self.observations]
        return 100 * statistics.fmean(errors)

    @property
    def load_seconds(self) -> float | None:
        """As a load takes usually; None: there was none."""
        return statistics.median(self.seconds) if self.seconds else None

    def expected(self, predicted: int) -> int:
        """What it will take, as likely more as less."""
        return _corrected(self.observations, self.weights_bytes, predicted, 0.5)

    def upper(self, predicted: int) -> int:
        """What it will hardly exceed: this is what room is made for."""
        return _corrected(self.observations, self.weights_bytes, predicted, _UPPER)

    def upper_load(self, predicted: int) -> int:
        return _corrected(self.loads, 0, predicted, _UPPER)


class _File(msgspec.Struct, frozen=True):
    schema: int
    models: dict[str, Estimate]


class _Version(msgspec.Struct, frozen=True):
    schema: int


class Estimates:
    """The estimates of one state folder. Used on one event loop; written in a thread."""

    def __init__(self, state: Path, clock: Clock) -> None:
        self._path = state / FILE
        self._clock = clock
        self._threads = Threads("estimates")
        self._models = aside.read(self._path, SCHEMA, _decoded, most=_MOST_BYTES) or {}
        self._writing: asyncio.Task[None] | None = None
        self._resting: asyncio.TimerHandle | None = None
        """After a write: until then the next one waits."""
        self._changed = False
        self._hurries = False
        """What has changed is not to wait."""
        self._failed = False
        """The last write did."""

    def get(self, key: str) -> Estimate | None:
        return self._models.get(key)

    def put(self, key: str, estimate: Estimate, *, now: bool = False) -> None:
        """Remember it, in place of those that were not used for longest. `now`: on disk, too."""
        self._models.pop(key, None)
        self._models[key] = msgspec.structs.replace(estimate, used=self._clock.wall())
        for old in list(self._models)[:-MOST_MODELS]:  # put in this order, whatever the date was
            del self._models[old]
        self._changed = True
        self._hurries |= now
        if self._hurries or self._resting is None:
            self._save()

    async def close(self) -> None:
        """Wait for the disk, but not for one that hangs: what is not written then is forgotten."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE_S):
                await self.saved()
        if self._resting is not None:
            self._resting.cancel()

    async def saved(self) -> None:
        """Wait until what is known now is on the disk, or could not be written."""
        while self._changed or self._writing is not None:
            self._save()
            if self._writing is not None:
                await asyncio.shield(self._writing)

    def _save(self) -> None:
        """One write at a time; what comes meanwhile goes into the next."""
        if self._writing is None:
            self._writing = asyncio.get_running_loop().create_task(self._write())

    async def _write(self) -> None:
        self._changed = self._hurries = False
        content = msgspec.json.encode(_File(SCHEMA, self._models))
        try:
            await self._threads.run(durable.put, self._path, content)
            self._failed = False
        except OSError as error:  # of the disk, or there is no thread for it
            if not self._failed:
                _log.warning("%s cannot be written: %s", FILE, error.strerror or error)
            self._failed = True
        finally:
            self._writing = None
            self._rest()

    def _rest(self) -> None:
        if self._resting is not None:
            self._resting.cancel()
        self._resting = asyncio.get_running_loop().call_later(_APART_S, self._rested)
        if self._hurries:
            self._save()

    def _rested(self) -> None:
        self._resting = None
        if self._changed:
            self._save()


def learned(estimate: Estimate, predicted: int, measured: int) -> Estimate:
    """With one more observation of a busy time."""
    observation = Observation(predicted, measured, estimate.expected(predicted))
    return msgspec.structs.replace(
        estimate,
        observations=[*estimate.observations, observation][-MOST_OBSERVATIONS:],
        count=estimate.count + 1,
    )


def timed(estimate: Estimate, seconds: float) -> Estimate:
    """With the time of one more load."""
    return msgspec.structs.replace(
        estimate, seconds=[*estimate.seconds, round(seconds, 3)][-MOST_SECONDS:]
    )


def loaded(estimate: Estimate, predicted: int, measured: int) -> Estimate:
    """With one more load."""
    observation = Observation(predicted, measured, estimate.upper_load(predicted))
    loads = [*estimate.loads, observation][-MOST_OBSERVATIONS:]
    return msgspec.structs.replace(estimate, loads=loads)


def _corrected(
    observations: list[Observation], weights: int, predicted: int, quantile: float
) -> int:
    """Predictions are wrong by a factor: of the whole, or of what comes beside the weights.

    The one that says the same of all observations is believed.
    """
    if not observations:
        return predicted
    whole = [one.measured / one.predicted for one in observations]
    beside = [
        (one.measured - weights) / (one.predicted - weights)
        for one in observations
        if one.predicted > weights
    ]
    if len(beside) < len(whole) or _spread(whole) <= _spread(beside):
        return int(predicted * _factor(whole, quantile))
    return weights + int(max(0, predicted - weights) * _factor(beside, quantile))


def _spread(factors: list[float]) -> float:
    """Of the factors around their median, as a share of it."""
    middle = statistics.median(factors)
    if middle <= 0:
        return float("inf")
    return statistics.median(abs(factor - middle) for factor in factors) / middle


def _factor(factors: list[float], quantile: float) -> float:
    """Few observations can raise a prediction, but do not lower it."""
    ordered = sorted(factors)
    if len(ordered) < _TRUSTED:
        found = max(1.0, ordered[-1]) if quantile > 0.5 else max(1.0, statistics.median(ordered))
    else:
        found = ordered[min(len(ordered) - 1, int(quantile * len(ordered)))]
    return min(max(found, _SMALLEST), _LARGEST)


def _decoded(content: bytes) -> dict[str, Estimate]:
    aside.check_version(msgspec.json.decode(content, type=_Version).schema, SCHEMA)
    models = msgspec.json.decode(content, type=_File).models
    return {key: _believable(estimate) for key, estimate in models.items()}


def _believable(estimate: Estimate) -> Estimate:
    """Without what cannot have been observed; arithmetic with the rest does not fail."""
    whole = 0 <= estimate.weights_bytes < _IMPOSSIBLE
    footprint = estimate.footprint
    return msgspec.structs.replace(
        estimate,
        weights_bytes=estimate.weights_bytes if whole else 0,
        observations=_possible(estimate.observations),
        count=max(0, min(estimate.count, _IMPOSSIBLE)),
        loads=_possible(estimate.loads),
        seconds=[s for s in estimate.seconds[-MOST_SECONDS:] if 0 < s < _LONGEST_LOAD],
        footprint=footprint if footprint is not None and _exists(footprint) else None,
    )


def _possible(observations: list[Observation]) -> list[Observation]:
    """Those of them that can have been made."""
    return [
        one
        for one in observations[-MOST_OBSERVATIONS:]
        if all(0 < n < _IMPOSSIBLE for n in (one.predicted, one.measured, one.corrected))
    ]


def _exists(footprint: Footprint) -> bool:
    """Whether a model can have it."""
    moments = (
        footprint.first, footprint.prefill, footprint.start, footprint.decode, footprint.join,
    )  # fmt: skip
    parts: list[LayerGroup | Moment] = [*footprint.groups, *chain.from_iterable(moments)]
    numbers = [n for part in parts for n in dataclasses.astuple(part)]
    numbers += [footprint.work_bytes, footprint.score_bytes]
    return (
        len(parts) <= _MOST_PARTS
        and 0 < footprint.weights_bytes < _IMPOSSIBLE
        and all(0 <= n < _IMPOSSIBLE for n in numbers)
        and footprint.peak_bytes((), (_USUAL_LENGTH,)) < _IMPOSSIBLE
    )
