"""Several answers to one prompt: `n`, and `best_of`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from statistics import fmean

from mlxd.core.errors import InvalidRequest
from mlxd.core.events import Completion
from mlxd.core.request import GenerationRequest
from mlxd.dialects.base import Call
from mlxd.dialects.fields import Fields

MOST = 128
"""Of one prompt."""
MOST_IN_ALL = 2048
"""What one body may make of itself; limits.choices allows no more."""
LARGEST_SEED = 2**63 - 1


def read_count(fields: Fields) -> int:
    return fields.integer("n", low=1, high=MOST) or 1


def read_best_of(fields: Fields, wanted: int, *, stream: bool) -> int:
    """How many answers are made of each prompt, so that the likeliest can be told."""
    made = fields.integer("best_of", low=1, high=MOST) or wanted
    if made < wanted:
        raise InvalidRequest("best_of must be at least n", param="best_of")
    if made > wanted and stream:
        raise InvalidRequest(
            "best_of above n cannot be streamed: which answer is best is known at the end",
            param="best_of",
        )
    return made


def choices_of(request: GenerationRequest, count: int) -> list[GenerationRequest]:
    """A seed is the first one's; each of the others has the next, so that no two are alike."""
    sampling = request.sampling
    if sampling.seed is None:
        return [request] * count
    seeds = (sampling.seed + index & LARGEST_SEED for index in range(count))
    return [replace(request, sampling=replace(sampling, seed=seed)) for seed in seeds]


def told(call: Call, completions: Sequence[Completion]) -> list[Completion]:
    """The answers that the client gets, in order of their prompts."""
    if not call.kept:
        return list(completions)
    starts = range(0, len(completions), call.choices)
    of_each = (completions[start : start + call.choices] for start in starts)
    return list(chain.from_iterable(_best(answers, call.kept) for answers in of_each))


def _best(answers: Sequence[Completion], count: int) -> list[Completion]:
    return sorted(answers, key=_likelihood, reverse=True)[:count]


def _likelihood(answer: Completion) -> float:
    """The mean of its tokens' log-probabilities."""
    return fmean(entry.logprob for entry in answer.logprobs) if answer.logprobs else 0.0
