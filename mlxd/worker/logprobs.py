"""Log-probabilities of generated tokens, for the requests that ask."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import numpy as np

from mlxd.ipc.messages import Logprob
from mlxd.worker.detokenize import Detokenizers

FLOOR = -9999.0
"""Stands for minus infinity, which JSON cannot say: a token that was not allowed at all."""


class Scorer:
    """Reads one sequence's evaluated rows; `top` alternatives to each token."""

    def __init__(self, detokenizers: Detokenizers, top: int) -> None:
        self._detokenizers = detokenizers
        self._top = top

    def score(self, token: int, row: Any) -> Logprob:
        if row.dtype != mx.float32:
            row = row.astype(mx.float32)
        return self.score_values(token, np.asarray(row))

    def score_values(self, token: int, row: Any) -> Logprob:
        """The same, of numbers that are numpy's."""
        values = np.nan_to_num(row, nan=FLOOR, neginf=FLOOR)
        text, raw, logprob = self._entry(token, values)
        return Logprob(text, raw, logprob, [self._entry(t, values) for t in self._best(values)])

    def unscored(self, token: int) -> Logprob:
        """Of a token that nothing stands before."""
        raw = self._detokenizers.bytes_of(token)
        return Logprob(raw.decode("utf-8", "ignore"), raw, math.nan)

    def _best(self, values: Any) -> list[int]:
        if not self._top:
            return []
        best = np.argpartition(values, -self._top)[-self._top :]
        ranked: list[int] = best[np.argsort(-values[best], kind="stable")].tolist()
        return ranked

    def _entry(self, token: int, values: Any) -> tuple[str, bytes, float]:
        raw = self._detokenizers.bytes_of(token)
        return raw.decode("utf-8", "ignore"), raw, max(float(values[token]), FLOOR)
