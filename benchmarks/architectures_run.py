"""One kind of model in a process of its own: what mlxd's worker makes of it, and mlx-lm alone.

Its name and a folder to make it in as JSON on standard input; what came of each check as a line of
JSON on standard output.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import mlx.core as mx
import mlx_lm.utils
from mlx_lm.generate import BatchGenerator, generate_step
from mlx_lm.models.cache import make_prompt_cache

from benchmarks.architecture_shapes import ARCHITECTURES
from mlxd.control import shape as from_files
from mlxd.control.model_files import read_card
from mlxd.core.footprint import PREFILL_ALONE, Footprint
from mlxd.core.grouping import UNBOUNDED
from mlxd.ipc.messages import Budget, Text, Tuning
from mlxd.worker.engine import Engine, Prompt
from mlxd.worker.loading import load, prepare_mlx
from mlxd.worker.pace import FIRST_TOKENS
from mlxd.worker.refusal import LoadError
from mlxd.worker.sampling import greedy
from mlxd.worker.serial import SerialEngine
from tests.support.model_maker import Shape, write_model
from tests.worker.bench import Bench

Json = dict[str, Any]
EXACT, ENGINE, REFUSED, WRONG = "exact", "engine", "refused", "wrong"
"""As mlx-lm alone; mlx-lm's own limit; not offered, in words; mlxd's mistake."""
ANSWER = 10
SPREAD = 2.0
"""Wide enough that greedy text does not repeat itself."""
NEAR = 0.02
"""Log-probabilities no farther apart are those of the same caches."""
KV_BITS = 8
LENGTHS = (40, 5, 90, 21)
BEGINNING = (20, 50)
"""Where a conversation's turns end."""
LONG = 600
"""Tokens that are read while memory is measured."""
_ENDLESS = 10**6


@dataclass
class Answer:
    """Tokens, and the log-probability of each."""

    tokens: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)

    def begins_like(self, other: Answer) -> bool:
        """The same tokens as far as it goes, from the same caches; between two that are as likely
        anyone may come first, and then no more can be said.
        """
        for mine, theirs, score, wanted in zip(
            self.tokens, other.tokens, self.scores, other.scores, strict=False
        ):
            if not abs(score - wanted) <= NEAR:
                return False
            if mine != theirs:
                return True
        return True


class Alone:
    """What mlx-lm itself says, each prompt by itself."""

    def __init__(self, folder: Path) -> None:
        self.model: Any = mlx_lm.utils.load_model(folder)[0]

    def answer(self, tokens: list[int], count: int = ANSWER, **options: Any) -> Answer:
        answer = Answer()
        steps = generate_step(mx.array(tokens), self.model, max_tokens=count, **options)
        for token, scores in steps:
            answer.tokens.append(token)
            answer.scores.append(scores[token].item())
        return answer

    def together(self, prompts: Sequence[list[int]], every: int = 0) -> list[Answer]:
        """In a batch of mlx-lm's own: all at once, or one joins every few steps."""
        batches = BatchGenerator(self.model, max_tokens=ANSWER)
        answers: dict[int, Answer] = {}
        waiting = list(prompts)
        step = 0
        while waiting or any(len(answer.tokens) < ANSWER for answer in answers.values()):
            if waiting and (not every or step % every == 0):
                joining = [waiting.pop(0) for _ in range(1 if every else len(waiting))]
                answers |= {uid: Answer() for uid in batches.insert(joining)}
            for response in batches.next()[1]:
                answers[response.uid].tokens.append(response.token)
                answers[response.uid].scores.append(response.logprobs[response.token].item())
            step += 1
        return [answers[uid] for uid in sorted(answers)]


class Checks:
    """Of one model, one after the other; what each says is a verdict and words."""

    def __init__(self, folder: Path, alone: Alone, bench: Bench) -> None:
        self._folder = folder
        self._alone = alone
        self._bench = bench
        self._prompts = [_tokens(n, length) for n, length in enumerate(LENGTHS)]
        self._wanted = [alone.answer(tokens) for tokens in self._prompts]

    def __iter__(self) -> Iterator[tuple[str, Callable[[], tuple[str, str]]]]:
        yield "alone", self.each_alone
        yield "joined", self.joined
        yield "chunks", self.chunks
        yield "again", self.again
        yield "cancelled", self.cancelled
        yield "several", self.several
        yield "scored", self.scored
        yield "vector", self.vector
        yield "kv_bits", self.quantised
        yield "memory", self.memory

    def each_alone(self) -> tuple[str, str]:
        found = [self._said([tokens])[0] for tokens in self._prompts]
        return self._compared(found, self._wanted, self._wanted)

    def joined(self) -> tuple[str, str]:
        found = self._said(self._prompts, every=3)
        return self._compared(found, self._wanted, lambda: self._alone.together(self._prompts, 3))

    def chunks(self) -> tuple[str, str]:
        tuned = self._bench.loop._tuned
        before, tuned.now = tuned.now, Tuning(max_tokens=32)
        try:
            found = [self._said([tokens])[0] for tokens in self._prompts]
        finally:
            tuned.now = before
        return self._compared(found, self._wanted, self._in_chunks)

    def again(self) -> tuple[str, str]:
        """A conversation goes on, is asked again, and its beginning goes on otherwise."""
        first = self._prompts[2]
        more = [*first, *self._wanted[2].tokens, *_tokens(9, 30)]
        others = [[*first[:part], *_tokens(part, 20)] for part in (BEGINNING[1], 60)]
        asked = [first, more, first, *others, first[:70]]
        engine, found, reused = self._engine(), [], 0
        for tokens in asked:
            (answer,) = _run(engine, [_prompt(tokens, boundaries=BEGINNING)])
            found.append(answer)
            reused += bool(answer.cached)
        wanted = [self._alone.answer(tokens) for tokens in asked]
        verdict, words = self._compared(found, wanted, wanted)
        return verdict, words or f"{reused} of {len(asked)} found a beginning"

    def cancelled(self) -> tuple[str, str]:
        engine = self._engine()
        uids = engine.insert([_prompt(tokens) for tokens in self._prompts])
        answers = {uid: Said() for uid in uids}
        gone = False
        while len(engine):
            _note(engine, answers)
            if not gone and len(answers[uids[1]].tokens) >= 3:
                engine.remove([uids[1]])
                gone = True
        found = [answers[uid] for uid in uids]
        verdict, words = self._compared(
            found, self._wanted, lambda: self._alone.together(self._prompts)
        )
        if verdict != EXACT or not gone:
            return verdict, words
        (anew,) = _run(engine, [_prompt(self._prompts[1])])
        return self._compared([anew], self._wanted[1:2], self._wanted[1:2])

    def several(self) -> tuple[str, str]:
        """`n` of 2: the same request twice, through the whole worker."""
        tokens = self._prompts[0]
        asked: Json = {"token_ids": tuple(tokens), "max_tokens": ANSWER}
        heard = self._bench.run([self._bench.message(logprobs=2, **asked) for _ in range(2)])
        refused = [one.refused for one in heard if one.refused is not None]
        if refused:
            return WRONG, str(refused[0])
        found = [
            Answer(
                one.tokens,
                [s.logprob for p in one.pieces if isinstance(p, Text) for s in p.logprobs],
            )
            for one in heard
        ]
        if any(len(one.scores) < len(one.tokens) - 1 for one in found):  # an end has none
            return WRONG, f"{[len(one.scores) for one in found]} log-probabilities"
        return self._compared(found, self._wanted[:1] * 2, lambda: self._wanted[:1] * 2)

    def scored(self) -> tuple[str, str]:
        """A prompt's own log-probabilities."""
        tokens = self._prompts[3]
        message = self._bench.message(token_ids=tuple(tokens), echo=True, logprobs=1, max_tokens=0)
        (heard,) = self._bench.run([message])
        if heard.refused is not None:
            return REFUSED, heard.refused.message
        scores = [s.logprob for p in heard.pieces for s in getattr(p, "logprobs", ())][1:]
        logits = self._alone.model(
            mx.array([tokens]), cache=make_prompt_cache(self._alone.model)
        ).astype(mx.float32)[0, :-1]
        rows = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        wanted: Any = mx.take_along_axis(rows, mx.array(tokens[1:])[:, None], axis=-1)[
            :, 0
        ].tolist()
        if len(scores) != len(wanted):
            return WRONG, f"{len(scores)} of {len(wanted)} scores"
        most = max(abs(a - b) for a, b in zip(scores, wanted, strict=True))
        return (EXACT, "") if most <= NEAR else (WRONG, f"scores are up to {most:.2g} off")

    def vector(self) -> tuple[str, str]:
        message = self._bench.message(want="embedding", token_ids=tuple(self._prompts[3]))
        (heard,) = self._bench.run([message])
        if heard.refused is not None:
            return REFUSED, heard.refused.message
        return EXACT, ""

    def quantised(self) -> tuple[str, str]:
        options = {"kv_bits": KV_BITS, "kv_group_size": 64, "quantized_kv_start": 0}
        try:
            loaded = load(self._folder, kv_bits=KV_BITS)
        except LoadError as error:
            return REFUSED, str(error)
        try:
            wanted = [self._alone.answer(tokens, **options) for tokens in self._prompts]
        except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            return WRONG, f"mlx-lm cannot, but it is not refused: {_words(error)}"
        engine = SerialEngine(loaded.model, [], loaded.kv)
        return self._compared(_run(engine, [_prompt(t) for t in self._prompts], 3), wanted, wanted)

    def memory(self) -> tuple[str, str]:
        """The peak of a long prompt and a short answer, against what is said of it beforehand."""
        card = read_card(self._folder, "m")
        if card.unavailable:
            return WRONG, card.unavailable
        told = self._bench.ready.footprint
        computed = replace(
            from_files.footprint_of(card, fused=False), weights_bytes=told.weights_bytes
        )
        peak = self._peak()
        told_off, computed_off = (_predicted(f) / peak - 1 for f in (told, computed))
        off = f"{100 * told_off:+.0f} % told, {100 * computed_off:+.0f} % by files"
        words = f"{peak / 1e6:.0f} MB, {off}"
        return EXACT, words

    def _peak(self) -> int:
        engine: Any = self._engine()
        engine._clock = lambda: 0.0
        engine._pace.prefilled(PREFILL_ALONE, 0.0, beside=False)
        _run(engine, [Prompt([1] * FIRST_TOKENS, 1, greedy)])
        mx.clear_cache()
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        _run(engine, [Prompt(_tokens(3, LONG), 8, greedy)])
        weights = self._bench.ready.footprint.weights_bytes
        return mx.get_peak_memory() - before + weights

    # -- how

    def _engine(self) -> Engine:
        return self._bench.loop._make_engine()

    def _said(self, prompts: Sequence[list[int]], every: int = 1) -> list[Said]:
        return _run(self._engine(), [_prompt(tokens) for tokens in prompts], every)

    def _in_chunks(self) -> list[Answer]:
        return [self._alone.answer(tokens, prefill_step_size=32) for tokens in self._prompts]

    def _compared(
        self,
        found: Sequence[Answer],
        wanted: Sequence[Answer],
        upstream: Sequence[Answer] | Callable[[], Sequence[Answer]],
    ) -> tuple[str, str]:
        """`upstream`: what mlx-lm says when it does the same; asked only where it matters."""
        wrong = [n for n, one in enumerate(found) if not one.begins_like(wanted[n])]
        if not wrong:
            return EXACT, ""
        at = wrong[0]
        words = f"answers {wrong}: {_differ(found[at], wanted[at])}"
        try:
            others = upstream() if callable(upstream) else upstream
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
            return ENGINE, f"{words}; mlx-lm fails: {_words(error)}"
        if all(found[n].begins_like(others[n]) for n in wrong):
            return ENGINE, words
        if any(not others[n].begins_like(wanted[n]) for n in wrong):
            return ENGINE, f"{words}; mlx-lm's differ, too"
        return WRONG, words


@dataclass
class Said(Answer):
    cached: int = 0


def _run(engine: Engine, prompts: Sequence[Prompt], every: int = 1) -> list[Said]:
    """One joins every few steps."""
    waiting, answers, step = list(prompts), dict[int, Said](), 0
    while waiting or len(engine):
        if waiting and step % every == 0:
            (uid,) = engine.insert([waiting.pop(0)])
            answers[uid] = Said()
        _note(engine, answers)
        step += 1
    return [answers[uid] for uid in sorted(answers)]


def _note(engine: Engine, answers: dict[int, Said]) -> None:
    step = engine.step()
    for reuse in step.reused:
        answers[reuse.uid].cached = reuse.cached
    for token in step.tokens:
        answers[token.uid].tokens.append(token.token)
        if token.logprobs is not None:
            answers[token.uid].scores.append(token.logprobs[token.token].item())


def _prompt(tokens: list[int], **more: Any) -> Prompt:
    return Prompt(tokens, ANSWER, greedy, scored=True, **more)


def _tokens(n: int, length: int) -> list[int]:
    return [(n * 37 + i * 11 + i * i % 7) % 500 + 2 for i in range(length)]


def _differ(mine: Answer, theirs: Answer) -> str:
    for at, (a, b) in enumerate(zip(mine.scores, theirs.scores, strict=False)):
        if not abs(a - b) <= NEAR:
            return f"token {at}: {mine.tokens[at]} at {a:.3f}, not {theirs.tokens[at]} at {b:.3f}"
    return f"{len(mine.tokens)} tokens, not {len(theirs.tokens)}"


def _predicted(footprint: Footprint) -> int:
    return footprint.peak_bytes([], [LONG + 8], prompts=[LONG], room=UNBOUNDED)


def _words(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]


def _tell(check: str, verdict: str, words: str = "") -> None:
    print(json.dumps({"check": check, "verdict": verdict, "words": words}), flush=True)


def main() -> None:
    given = json.load(sys.stdin)
    folder = Path(given["folder"])
    prepare_mlx()
    try:
        write_model(folder, ARCHITECTURES[given["name"]].config, Shape(spread=SPREAD))
        alone = Alone(folder)
        scores = alone.answer(_tokens(0, 40)).scores
    except Exception as error:  # noqa: BLE001 - others' code, of which anything may come
        _tell("load", *_refused(folder, error))
        return
    if not all(score == score for score in scores):
        _tell("load", ENGINE, "its numbers are none (NaN)")
        return
    try:
        bench = Bench(folder, budget=Budget(0, 0, 0, prefix_bytes=2**28))
    except LoadError as error:
        _tell("load", WRONG, str(error))
        return
    _tell("load", EXACT, "" if bench.ready.batchable else "one sequence at a time")
    for check, run in Checks(folder, alone, bench):
        try:
            _tell(check, *run())
        except Exception as error:  # noqa: BLE001 - it is told
            import traceback

            traceback.print_exc()
            _tell(check, WRONG, _words(error))


def _refused(folder: Path, error: Exception) -> tuple[str, str]:
    """mlx-lm alone fails with `error`: so should a worker, in words."""
    if not (folder / "model.safetensors").exists():
        return ENGINE, f"cannot be made: {_words(error)}"
    try:
        load(folder)
    except LoadError as refused:
        return ENGINE, str(refused)
    return ENGINE, f"it fails after its load: {_words(error)}"


if __name__ == "__main__":
    main()
