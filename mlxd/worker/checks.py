"""What a request must satisfy before the engine sees it. MLX checks no index: we do."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from mlxd.core.request import GenerationRequest, Sampling
from mlxd.grammar.source import is_held
from mlxd.ipc.messages import TOKEN_BYTES, Generate, Resume, packed, unpacked
from mlxd.worker.grammar import Grammars
from mlxd.worker.job import Echo, Grammar, Job
from mlxd.worker.prefix.boundaries import Outlines
from mlxd.worker.prefix.keeping import Keeping, system_text
from mlxd.worker.prefix.outline import Outline
from mlxd.worker.prompt import Prompter, Rendered
from mlxd.worker.refusal import Refusal
from mlxd.worker.room import CountingRoom, InputRoom, Room
from mlxd.worker.stops import StopStrings

LONGEST_STOP = 1000
_NUMBERS = (
    "temperature", "top_p", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty",
)  # fmt: skip
LEAST_COUNTED, MOST_COUNTED = 1 << 16, 1 << 20
"""Tokens of a prompt that is only to be told: how much too long one is, is worth knowing, up to
twice the context."""


@dataclass(frozen=True, slots=True)
class Checks:
    """Turns requests into jobs for one model. Used by one thread."""

    prompter: Prompter
    grammars: Grammars
    vocabulary: int
    context: int
    answers: bool = True
    """Whether the model produces text."""
    outlines: Outlines | None = None
    """None: nothing that is read is kept for other prompts."""
    keeps: Callable[[], bool] = lambda: True
    """Whether anything is just now."""
    keeping: Keeping = field(default_factory=Keeping)
    """Is told what beginnings stand for."""

    def written(self, generate: Generate) -> str:
        """What the template of a request's client makes of it. May be called on a thread of its
        own. Raises Refusal.
        """
        return self.prompter.written(generate.request)

    def job_of(self, generate: Generate, written: str | None = None) -> Job:
        """`written`: by its client's template. Raises Refusal."""
        request = generate.request
        if request.want == "answer" and not self.answers:
            raise Refusal("this model makes vectors and produces no text", code="unsupported")
        self._check_sampling(generate.sampling)
        _check_stops(request.stop)
        room = self._room(generate)
        rendered, earlier = self._rendered(generate, room, written)
        self._check_prompt(rendered.tokens, room, _name_of(request))
        may_think = self._may_think(request)
        ids = packed(rendered.tokens)
        return Job(
            id=generate.id,
            request=request,
            sampling=generate.sampling,
            tokens=rendered.tokens,
            max_tokens=_max_tokens(generate, room.context - len(rendered.tokens)),
            reasoning=rendered.reasoning,
            may_think=may_think,
            stops=StopStrings((*request.stop, *self.prompter.ends(request))),
            grammar=self._grammar(request, rendered, may_think),
            expected_output=generate.expected_output,
            wait_seconds=generate.wait_seconds,
            earlier=earlier,
            echo=self._echo(generate, rendered),
            ids=ids,
            owner=generate.owner,
            trace=generate.trace,
            outline=self._outline(request, rendered, ids),
        )

    def prompt_of(self, generate: Generate, written: str | None = None) -> tuple[str, list[int]]:
        """A request's prompt as it reads, and in tokens. Raises Refusal."""
        most = min(MOST_COUNTED, max(LEAST_COUNTED, 2 * self.context))
        room = CountingRoom(most + 1, most)
        rendered = self.prompter.render(generate.request, room, written)
        self._check_prompt(rendered.tokens, room, "prompt")
        return self.prompter.text_of(rendered), rendered.tokens

    def _check_sampling(self, sampling: Sampling) -> None:
        for name in _NUMBERS:
            _check_finite(name, getattr(sampling, name))
        bias = sampling.logit_bias or ()
        self._check_ids([token for token, _ in bias], "logit_bias")
        for _, value in bias:
            _check_finite("logit_bias", value)

    def _room(self, generate: Generate) -> Room:
        """Policy may allow less than the model could take."""
        kind = InputRoom if generate.request.want == "embedding" else Room
        key = generate.context_key if generate.context < self.context else ""
        return kind(min(generate.context, self.context), generate.max_prompt, key)

    def _rendered(
        self, generate: Generate, room: Room, written: str | None
    ) -> tuple[Rendered, list[int]]:
        """The prompt, and what another worker has answered."""
        if generate.resume is None:
            return self.prompter.render(generate.request, room, written), []
        prompt, earlier = _begun(generate.resume)
        self._check_ids(earlier, "resume")
        rendered = self.prompter.rendered(prompt, generate.request)
        return replace(rendered, text=generate.request.text), earlier

    def _outline(self, request: GenerationRequest, rendered: Rendered, ids: bytes) -> Outline:
        if self.outlines is None or request.want != "answer" or not self.keeps():
            return Outline()
        added = self.prompter.added_before(rendered)
        outline = self.outlines.of(request, rendered.tokens, ids, rendered.text, added)
        if outline.shared and (text := system_text(request)):
            self.keeping.note(ids[: outline.shared * TOKEN_BYTES], text)
        return outline

    def _echo(self, generate: Generate, rendered: Rendered) -> Echo | None:
        told = generate.resume is not None and generate.resume.echoed
        if told or not generate.request.echo:
            return None
        return Echo(self.prompter.text_of(rendered), self.prompter.added_before(rendered))

    def _check_prompt(self, tokens: list[int], room: Room, name: str) -> None:
        if not tokens:
            raise Refusal(f"the {name} is empty", param=name)
        room.check(len(tokens))
        self._check_ids(tokens, name)

    def _check_ids(self, tokens: list[int], param: str) -> None:
        for token in (min(tokens, default=0), max(tokens, default=0)):
            if not 0 <= token < self.vocabulary:
                raise Refusal(
                    f"token id {token} is not in the model's vocabulary "
                    f"(0 to {self.vocabulary - 1})",
                    param=param,
                )

    def _may_think(self, request: GenerationRequest) -> bool:
        return self.prompter.thinks and request.messages is not None and request.think is not False

    def _grammar(
        self, request: GenerationRequest, rendered: Rendered, may_think: bool
    ) -> Grammar | None:
        if not is_held(request):
            return None
        return self.grammars.compile(request, reasoning=rendered.reasoning, may_think=may_think)


def _begun(resume: Resume) -> tuple[list[int], list[int]]:
    try:
        return unpacked(resume.prompt), unpacked(resume.tokens)
    except ValueError as error:
        raise Refusal(
            "what another worker has begun is not in whole tokens", param="resume"
        ) from error


def _name_of(request: GenerationRequest) -> str:
    return "input" if request.want == "embedding" else "prompt"


def _check_finite(name: str, value: float | None) -> None:
    if value is not None and not math.isfinite(value):
        raise Refusal(f"{name} must be a finite number", param=name)


def _check_stops(stops: tuple[str, ...]) -> None:
    if any(len(stop) > LONGEST_STOP for stop in stops):
        raise Refusal(f"a stop string has at most {LONGEST_STOP} characters", param="stop")


def _max_tokens(generate: Generate, left: int) -> int:
    """`left`: by the context."""
    request, asked = generate.request, generate.request.max_tokens
    if request.want == "embedding" or (request.echo and asked == 0):
        return 0
    if asked is not None and asked < 1:
        raise Refusal("max_tokens must be at least 1", param="max_tokens")
    room = min(generate.max_output, left)
    return max(1, room if asked is None else min(asked, room))
