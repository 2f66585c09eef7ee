"""Whether a model fits in memory: what `mlxd models fit` and `POST /admin/plan` tell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mlxd.core.errors import PolicyLine

Verdict = Literal["loaded", "fits", "fits_after_eviction", "fits_after_wait", "never"]
Confidence = Literal["computed", "learned", "measured"]
"""From the files alone; with what earlier runs measured; measured on the loaded model."""


@dataclass(frozen=True, slots=True)
class FitReport:
    """The answer, with its numbers. Bytes are of the whole load: weights, caches, work."""

    model: str
    verdict: Verdict
    needed_bytes: int
    available_bytes: int
    """For it, after what would be evicted."""
    context: int
    """Tokens of prompt and answer together that were asked about."""
    longest_context: int
    """The most that would fit, at most what the model was made for."""
    evicts: tuple[str, ...] = ()
    """Names of idle models that would leave, in order."""
    wait_seconds: float | None = None
    """Until that may happen at the earliest; None: nobody knows, a model is in use."""
    confidence: Confidence = "computed"
    observations: int = 0
    error_percent: float | None = None
    """Of earlier predictions against what was measured; None: there were none."""
    reason: str = ""
    """Why not now, in words."""
    policy: PolicyLine | None = None
    """The line that decides that it does not; None: it does, or none decides."""
