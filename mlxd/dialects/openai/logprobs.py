"""One token's log-probability as chat completions and responses tell it."""

from __future__ import annotations

from mlxd.core.events import TokenLogprob
from mlxd.dialects.base import logprob_of
from mlxd.dialects.fields import Json


def entry_of(entry: TokenLogprob) -> Json:
    alternatives = [_alternative(*alternative) for alternative in entry.top]
    shown = _alternative(entry.token, entry.raw, entry.logprob)
    return shown | {"top_logprobs": alternatives}


def _alternative(token: str, raw: bytes, logprob: float) -> Json:
    return {"token": token, "logprob": logprob_of(logprob), "bytes": list(raw)}
