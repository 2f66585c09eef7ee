"""What an answer says it was computed by, so that a client can tell when that has changed."""

from __future__ import annotations

import hashlib
from functools import cache, lru_cache

from mlxd import __version__
from mlxd.core import versions
from mlxd.core.models import ModelCard
from mlxd.core.request import Sampling

_KEPT = 256
_DIGITS = 10


def fingerprint_of(card: ModelCard) -> str:
    """`fp_` and 10 hex digits: others as soon as the model's files and its adapter's (by their
    digest), its template, its own sampling, its cache or a version of what computes with it change.
    """
    return _fingerprint(card.digest, card.chat_template, card.sampling, card.kv_bits)


@lru_cache(_KEPT)
def _fingerprint(digest: str, template: str, sampling: Sampling, kv_bits: int) -> str:
    parts = (_engine(), digest, template, sampling, kv_bits)
    return "fp_" + hashlib.sha256(repr(parts).encode()).hexdigest()[:_DIGITS]


@cache
def _engine() -> str:
    return repr({"mlxd": __version__, **versions.engine()})
