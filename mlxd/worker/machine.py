"""What an engine asks of the machine that it runs on."""

from __future__ import annotations

import mlx.core as mx

from mlxd.worker.pace import Pace
from mlxd.worker.tuning import Tuned


def has_gpu() -> bool:
    """Whether models run on one."""
    return mx.metal.is_available() or mx.cuda.is_available()


def pace(tuned: Tuned | None) -> Pace:
    """Of a model on this machine, of which nothing is known yet."""
    return Pace(tuned, gpu=has_gpu(), plans=mx.cuda.is_available())
