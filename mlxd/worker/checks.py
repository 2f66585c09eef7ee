"""What a request must satisfy before the engine sees it. MLX checks no index: we do."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mlxd.core.request import Sampling
from mlxd.ipc.messages import Generate, Resume, unpacked
from mlxd.worker.grammar import Grammars
from mlxd.worker.job import Grammar, Job
from mlxd.worker.prompt import Prompter, Rendered
from mlxd.worker.refusal import Refusal
from mlxd.worker.room import Room
from mlxd.worker.stops import StopStrings

LONGEST_STOP = 1000


@dataclass(frozen=True, slots=True)
class Checks:
    """Turns requests into jobs for one model. Used by one thread."""

    prompter: Prompter
    grammars: Grammars
    vocabulary: int
    context: int

    def job_of(self, generate: Generate) -> Job:
        """Raises Refusal."""
        request = generate.request
        self._check_sampling(generate.sampling)
        _check_stops(request.stop)
        room = self._room(generate)
        earlier: list[int] = []
        if generate.resume is None:
            rendered = self.prompter.render(request, room)
        else:
            prompt, earlier = _begun(generate.resume)
            rendered = self.prompter.rendered(prompt)
            self._check_ids(earlier, "resume")
        self._check_prompt(rendered.tokens, room)
        return Job(
            id=generate.id,
            request=request,
            sampling=generate.sampling,
            tokens=rendered.tokens,
            max_tokens=_max_tokens(generate, room.context - len(rendered.tokens)),
            reasoning=rendered.reasoning,
            stops=StopStrings((*request.stop, *self.prompter.ends(request))),
            grammar=self._grammar(generate, rendered),
            expected_output=generate.expected_output,
            wait_seconds=generate.wait_seconds,
            earlier=earlier,
        )

    def _check_sampling(self, sampling: Sampling) -> None:
        for name in ("temperature", "top_p", "min_p", "repeat_penalty"):
            _check_finite(name, getattr(sampling, name))
        for name in ("presence_penalty", "frequency_penalty"):
            _check_finite(name, getattr(sampling, name))
        bias = sampling.logit_bias or ()
        self._check_ids([token for token, _ in bias], "logit_bias")
        for _, value in bias:
            _check_finite("logit_bias", value)

    def _room(self, generate: Generate) -> Room:
        """Policy may allow less than the model could take."""
        return Room(min(generate.context, self.context), generate.max_prompt)

    def _check_prompt(self, tokens: list[int], room: Room) -> None:
        if not tokens:
            raise Refusal("the prompt is empty", param="prompt")
        room.check(len(tokens))
        self._check_ids(tokens, "prompt")

    def _check_ids(self, tokens: list[int], param: str) -> None:
        for token in (min(tokens, default=0), max(tokens, default=0)):
            if not 0 <= token < self.vocabulary:
                raise Refusal(
                    f"token id {token} is not in the model's vocabulary "
                    f"(0 to {self.vocabulary - 1})",
                    param=param,
                )

    def _grammar(self, generate: Generate, rendered: Rendered) -> Grammar | None:
        format = generate.request.format
        if format is None:
            return None
        request = generate.request
        return self.grammars.compile(
            format,
            len(rendered.tokens),
            reasoning=rendered.reasoning,
            may_think=request.messages is not None and request.think is not False,
        )


def _begun(resume: Resume) -> tuple[list[int], list[int]]:
    try:
        return unpacked(resume.prompt), unpacked(resume.tokens)
    except ValueError as error:
        raise Refusal(
            "what another worker has begun is not in whole tokens", param="resume"
        ) from error


def _check_finite(name: str, value: float | None) -> None:
    if value is not None and not math.isfinite(value):
        raise Refusal(f"{name} must be a finite number", param=name)


def _check_stops(stops: tuple[str, ...]) -> None:
    if any(len(stop) > LONGEST_STOP for stop in stops):
        raise Refusal(f"a stop string has at most {LONGEST_STOP} characters", param="stop")


def _max_tokens(generate: Generate, left: int) -> int:
    """`left`: by the context."""
    asked = generate.request.max_tokens
    if asked is not None and asked < 1:
        raise Refusal("max_tokens must be at least 1", param="max_tokens")
    room = min(generate.max_output, left)
    return max(1, room if asked is None else min(asked, room))
