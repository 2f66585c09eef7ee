"""What an error has beside its words, for programs: the same in every API that has room for it."""

from __future__ import annotations

from mlxd.core.errors import MlxdError
from mlxd.dialects.fields import Json


def explanation(error: MlxdError) -> Json:
    """The line that decided, the numbers it went by, what would have passed, and when to come
    again; only what there is.
    """
    told: Json = {}
    if error.policy is not None:
        line = error.policy
        told["policy"] = {"key": line.key, "value": line.value, "place": line.place}
    if error.numbers:
        told["numbers"] = dict(error.numbers)
    if error.would_pass:
        told["would_pass"] = error.would_pass
    if error.retry_after is not None:
        told["retry_after"] = round(error.retry_after, 1)
    return told
