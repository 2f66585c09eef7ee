"""Prompts that are read for what they say: for a vector, or for the odds of their own tokens.

One after the other, outside the batch, and in chunks whose length depends on the model alone: so
the numbers are the same whatever else runs, and however fast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.generate import generation_stream
from mlx_lm.models.cache import make_prompt_cache

from mlxd.core.footprint import PREFILL_APART
from mlxd.ipc.messages import Echoed, Logprob, Piece, Vector
from mlxd.worker.backbone import backbone_of
from mlxd.worker.encoder import Encoder
from mlxd.worker.job import Job
from mlxd.worker.logprobs import Scorer
from mlxd.worker.machine import has_gpu
from mlxd.worker.pooling import Pool, Recipe, UnknownRecipe
from mlxd.worker.quantised import QuantisedCache
from mlxd.worker.refusal import Refusal

LEAST_TOKENS, MOST_TOKENS = 16, PREFILL_APART
"""Of a chunk; a step was predicted to hold what a chunk of the most takes."""
BYTE_TOKENS, BYTE_TOKENS_ON_GPU = 2**31, 2**39
"""Bytes of weights times tokens that take some tenths of a second on a common machine."""
MOST_SCORES = 2**22
"""Numbers of a chunk's logits, which no prediction counts."""
MOST_TOLD = 4096
"""Log-probabilities that are told at a time."""
T = TypeVar("T")
Work = Iterator[list[Piece] | None]
"""None between two chunks; behind the last one what is to be said."""


class Reader:
    """Reads for one model, on the main thread."""

    def __init__(
        self,
        model: Any,
        width: int,
        kv: QuantisedCache | None,
        recipe: Callable[[], Recipe],
        scorer: Callable[[int], Scorer],
    ) -> None:
        """`width`: of a row of logits. `scorer`: of so many alternatives to each token."""
        self._model = model
        self._width = width
        self._kv = kv
        self._recipe = recipe
        self._scorer = scorer

    def read(self, job: Job) -> Work:
        """Raises Refusal, also between two chunks."""
        return self._vector(job) if job.request.want == "embedding" else self._scores(job)

    def _vector(self, job: Job) -> Work:
        backbone, recipe = self._means
        pool = Pool(recipe.ways)
        cache = make_prompt_cache(self._model)
        for at, chunk in _chunks(job.tokens, self._chunk):
            if at:
                yield None
            with mx.stream(generation_stream):
                pool.add(backbone(mx.array([chunk]), cache=cache)[0].astype(mx.float32))
                self._settle(cache, pool.arrays)
        yield [_made(job, recipe, pool)]

    def _scores(self, job: Job) -> Work:
        echo, scorer = job.echo, self._scorer(job.request.logprobs or 0)
        assert echo is not None
        entries: list[Logprob] = [scorer.unscored(job.tokens[0])]
        cache = make_prompt_cache(self._model)
        size = min(self._chunk, max(LEAST_TOKENS, MOST_SCORES // self._width))
        for at, chunk in _chunks(job.tokens, size):
            if at:
                yield None
            with mx.stream(generation_stream):
                logits = self._model(mx.array([chunk]), cache=cache)[0].astype(mx.float32)
                rows = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
                self._settle(cache, [rows])
            following = job.tokens[at + 1 : at + 1 + len(chunk)]
            values = np.asarray(rows)
            entries += [scorer.score_values(t, values[n]) for n, t in enumerate(following)]
        yield _echoed(job.id, echo.text, entries[echo.skipped :])

    def _settle(self, cache: list[Any], arrays: list[mx.array]) -> None:
        if self._kv is not None:
            self._kv.apply(cache)
        mx.eval(arrays, [layer.state for layer in cache])

    @cached_property
    def _means(self) -> tuple[Any, Recipe]:
        """How vectors are made; raises Refusal where this model makes none."""
        recipe = _known(self._recipe)
        backbone = backbone_of(self._model, self._width)
        if backbone is None:
            raise _makes_none("its hidden states cannot be had")
        return backbone, recipe

    @cached_property
    def _chunk(self) -> int:
        """The same for this model at every start."""
        gpu = has_gpu()
        held = sum(array.nbytes for _, array in tree_flatten(self._model.parameters()))
        return chunk_of(held, gpu=gpu)


class EncoderReader:
    """Reads with a model that sees a whole input at once: a step is one of its layers."""

    def __init__(self, model: Encoder, recipe: Callable[[], Recipe]) -> None:
        self._model = model
        self._recipe = recipe

    def read(self, job: Job) -> Work:
        """Raises Refusal."""
        recipe = _known(self._recipe)
        states = mx.array([])
        for layer, states in enumerate(self._model.states(mx.array([job.tokens]))):
            mx.eval(states)
            if layer + 1 < self._model.args.num_hidden_layers:
                yield None
        pool = Pool(recipe.ways)
        pool.add(states[0].astype(mx.float32))
        yield [_made(job, recipe, pool)]


def _known(made: Callable[[], T]) -> T:
    """Raises Refusal for an unknown recipe."""
    try:
        return made()
    except UnknownRecipe as error:
        raise _makes_none(str(error)) from error


def _made(job: Job, recipe: Recipe, pool: Pool) -> Vector:
    with mx.stream(generation_stream):
        vector = np.asarray(_known(partial(recipe.vector, pool)))
    if not np.isfinite(vector).all():
        raise Refusal("this input has no embedding: the model's numbers overflow", param="input")
    return Vector(job.id, vector.astype("<f4").tobytes())


def _echoed(id: int, text: str, entries: list[Logprob]) -> list[Piece]:
    """Each one short enough that whoever reads it may do something else soon."""
    size = max(1, MOST_TOLD // (1 + max((len(entry.top) for entry in entries), default=0)))
    parts = [entries[at : at + size] for at in range(0, len(entries), size)] or [[]]
    early: list[Piece] = [Echoed(id, "", part, more=True) for part in parts[:-1]]
    return [*early, Echoed(id, text, parts[-1])]


def chunk_of(weights_bytes: int, *, gpu: bool) -> int:
    """Tokens that are read at a time: a power of two."""
    tokens = (BYTE_TOKENS_ON_GPU if gpu else BYTE_TOKENS) // max(1, weights_bytes)
    power = 1 << max(0, tokens.bit_length() - 1)
    return min(MOST_TOKENS, max(LEAST_TOKENS, power))


def _chunks(tokens: list[int], size: int) -> Iterator[tuple[int, list[int]]]:
    """Each with its place."""
    return ((at, tokens[at : at + size]) for at in range(0, len(tokens), size))


def _makes_none(why: str) -> Refusal:
    return Refusal(f"this model does not support embeddings: {why}", code="unsupported")
