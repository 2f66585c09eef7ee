"""What an engine asks of the machine that it runs on."""

from __future__ import annotations

import sys

import mlx.core as mx

from mlxd.worker.pace import Pace
from mlxd.worker.tuning import Tuned


def has_gpu() -> bool:
    """Whether models run on one."""
    return mx.metal.is_available() or mx.cuda.is_available()


def has_reference_blas() -> bool:
    """Whether float32 is multiplied by the BLAS of MLX's wheel for Linux, on a CPU."""
    return sys.platform == "linux" and not has_gpu()


def pace(tuned: Tuned | None) -> Pace:
    """Of a model on this machine, of which nothing is known yet."""
    return Pace(tuned, gpu=has_gpu(), plans=mx.cuda.is_available())
