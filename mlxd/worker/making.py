"""What a job becomes as it goes into the engine: a prompt there, an answer here."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from mlxd.grammar.source import calls_are_forced, calls_are_free, is_held
from mlxd.ipc.messages import Piece, packed
from mlxd.worker.answer import Answer, PlainAnswer
from mlxd.worker.detokenize import Detokenizers
from mlxd.worker.engine import Processor, Prompt
from mlxd.worker.harmony import Harmony
from mlxd.worker.held import Calls, Held, Reader, Words
from mlxd.worker.job import Job
from mlxd.worker.logprobs import Scorer
from mlxd.worker.markup import Markup, Separator
from mlxd.worker.running import Running
from mlxd.worker.sampling import Guard, no_end, processors_of, sampler_of

MOST_LOGPROBS = 20


@dataclass(frozen=True, slots=True)
class Maker:
    """Makes them for one model."""

    detokenizers: Detokenizers
    markup: Markup
    vocabulary: int
    ends: tuple[int, ...] = ()
    """The tokens that end an answer."""

    def prompt(self, job: Job, guard: Guard, answer: list[int]) -> Prompt:
        """`answer`: its tokens so far; the sequence goes on behind them."""
        sampling = job.sampling
        processors: list[Processor] = processors_of(sampling, guard, prompt_tokens=len(job.tokens))
        least = inf if job.request.ignore_eos else job.request.min_tokens
        if least and job.grammar is None and self.ends:
            processors.append(guard.processor(no_end(self.ends, len(job.tokens), least)))
        return Prompt(
            tokens=job.tokens + answer,
            max_tokens=max(1, job.max_tokens - len(answer)),
            sampler=sampler_of(sampling, guard, vocabulary=self.vocabulary, drawn=len(answer)),
            processors=tuple(processors),
            constraint=job.grammar(guard, answer) if job.grammar is not None else None,
            scored=job.request.logprobs is not None,
            answered=len(answer),
            boundaries=job.outline.boundaries,
            owner=job.owner,
            shared=job.outline.shared,
            ids=job.packed + packed(answer),
        )

    def running(self, job: Job, guard: Guard) -> Running:
        """What its earlier tokens have made known is not said again."""
        answer = self._answer(job)
        said: list[Piece] = []
        for token in job.earlier:
            answer.take(token, None, said)
        return Running(job, answer, guard, list(job.earlier), told=len(job.earlier))

    def _answer(self, job: Job) -> Answer | PlainAnswer:
        request = job.request
        goes_on = request.messages is None or request.continue_last
        spaced = goes_on or bool(request.pattern)
        detokenizer = self.detokenizers.make(spaced=spaced)
        separator = self._separator(job)
        if separator is None and job.stops.empty and request.logprobs is None:
            return PlainAnswer(job.id, detokenizer)
        scorer = None
        if request.logprobs is not None:
            top = min(max(request.logprobs, 0), MOST_LOGPROBS, self.vocabulary)
            scorer = Scorer(self.detokenizers, top)
        calls, one = bool(request.tools), not request.tool_choice.parallel
        return Answer(job.id, detokenizer, separator, job.stops, scorer, calls=calls, one_call=one)

    def _separator(self, job: Job) -> Separator | Harmony | Held | None:
        """Of what a grammar holds nothing needs to be looked for but the end of the thinking."""
        request = job.request
        if not is_held(request):
            return self.markup.separator(request.tools, reasoning=job.reasoning)
        reader: Reader = Words()
        if calls_are_forced(request):
            reader = Calls()
        elif calls_are_free(request):
            reader = self.markup.words_or_calls(request.tools) or reader
        elif not job.reasoning and not job.may_think:
            return None
        return self.markup.held(reader, job.reasoning, job.may_think)
