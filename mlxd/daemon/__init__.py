"""The composition root: makes the parts, joins them, runs them, ends them."""

from mlxd.daemon.life import run

__all__ = ["run"]
