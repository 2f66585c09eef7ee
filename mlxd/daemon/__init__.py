"""The composition root: makes the parts, joins them, runs them, ends them."""

from mlxd.daemon.life import run
from mlxd.daemon.log import Log

__all__ = ["Log", "run"]
