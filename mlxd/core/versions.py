"""Which versions are installed of what decides how a model runs. Nothing of it is imported."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from mlxd import __version__

_ENGINE = ("mlx", "mlx-lm")
_BACKENDS = ("mlx-metal", "mlx-cpu", "mlx-cuda-12", "mlx-cuda-13")


def engine() -> dict[str, str]:
    """By package: the engine's, and those of its backends that are there."""
    return {name: found for name in (*_ENGINE, *_BACKENDS) if (found := _version(name))}


def everything() -> dict[str, str]:
    """mlxd's own first, Python's last."""
    return {"mlxd": __version__, **engine(), "python": platform.python_version()}


def _version(package: str) -> str:
    """Empty: it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
