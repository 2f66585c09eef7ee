"""What a model that a client created says before every request, and where a request is silent."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from mlxd.core.request import GenerationRequest, Message, Sampling


@dataclass(frozen=True, slots=True)
class Preset:
    """Empty fields say nothing."""

    system: str = ""
    template: str = ""
    """A chat template (Jinja) in place of the model's own."""
    messages: tuple[Message, ...] = ()
    """Turns that stand before those of every conversation."""
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    context: int | None = None
    """Tokens of prompt and answer together, at most."""
    license: str = ""

    def over(self, other: Preset) -> Preset:
        """Each field of this, or where this says nothing, of `other`."""
        return Preset(
            system=self.system or other.system,
            template=self.template or other.template,
            messages=self.messages or other.messages,
            sampling=self.sampling.over(other.sampling),
            max_tokens=other.max_tokens if self.max_tokens is None else self.max_tokens,
            stop=self.stop or other.stop,
            context=other.context if self.context is None else self.context,
            license=self.license or other.license,
        )

    def applied(self, request: GenerationRequest) -> GenerationRequest:
        """The request as it is run; how it samples is resolved with the model's files."""
        request = replace(
            request,
            stop=request.stop or self.stop,
            max_tokens=self.max_tokens if request.max_tokens is None else request.max_tokens,
        )
        if request.messages is None:
            return request
        return replace(
            request,
            template=request.template or self.template,
            messages=self._turns(request, request.messages),
        )

    def _turns(self, request: GenerationRequest, turns: tuple[Message, ...]) -> tuple[Message, ...]:
        """A request's own system text replaces the stored one; an earlier exchange (`context`)
        has the stored turns in it already.
        """
        said = bool(turns) and turns[0].role == "system"
        stored = () if request.context else self.messages
        if said:
            return (turns[0], *stored, *turns[1:])
        system = (Message("system", self.system),) if self.system else ()
        return (*system, *stored, *turns)
