"""What a client asks, in mlxd's own words: no HTTP, no dialect."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from mlxd.core.caller import Priority

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn. None means "not said"; see `over` for who decides then."""

    temperature: float | None = None
    """0 is greedy."""
    top_p: float | None = None
    """1 is off."""
    top_k: int | None = None
    """0, or anything from the vocabulary's size up, is off."""
    min_p: float | None = None
    repeat_penalty: float | None = None
    """Divides (multiplies, when negative) the logits of recent tokens; 1 is off."""
    repeat_last_n: int | None = None
    """How many last tokens, the prompt's included, the penalties look at; 0 is off, -1 all."""
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: tuple[tuple[int, float], ...] | None = None
    """(token id, added to its logit)."""
    seed: int | None = None
    """None draws a fresh one; the same seed and prompt give the same text in any batch."""

    def over(self, other: Sampling) -> Sampling:
        """Each field of this, or where this says nothing, of `other`."""
        return Sampling(
            *[
                getattr(other, name) if (mine := getattr(self, name)) is None else mine
                for name in _SAMPLING
            ]
        )


_SAMPLING = tuple(one.name for one in fields(Sampling))


@dataclass(frozen=True, slots=True)
class CalledTool:
    """A tool call that stands in a conversation."""

    name: str
    arguments: Json
    id: str = ""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    """system, user, assistant or tool."""
    content: str = ""
    thinking: str = ""
    tool_calls: tuple[CalledTool, ...] = ()
    tool_name: str = ""
    tool_call_id: str = ""


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """What the client leaves the model to decide about tools."""

    required: bool = False
    """The answer is at least one call, and no text."""
    names: tuple[str, ...] = ()
    """The tools that may be called; empty: any."""
    parallel: bool = True
    """False: one call at most."""


Want = Literal["answer", "embedding", "prompt"]
"""What is wanted of a model: that it goes on behind a prompt; what the prompt means, as a vector;
or how the prompt reads, and how many tokens it has, without running the model.
"""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One generation. Exactly one of `messages`, `text`, `token_ids` is given."""

    model: str
    """The name as the client sent it."""
    want: Want = "answer"
    messages: tuple[Message, ...] | None = None
    """Rendered by the model's own chat template."""
    continue_last: bool = False
    """The last message is the beginning of the answer, which goes on behind it."""
    text: str | None = None
    """Tokenised as it is."""
    token_ids: tuple[int, ...] | None = None
    suffix: str | None = None
    """What stands behind the gap that `text` ends at: the answer fills it. Not for every model."""
    context: tuple[int, ...] = ()
    """Tokens of an earlier exchange, which the conversation goes on from."""
    tell_context: bool = False
    """`Finished.context` is wanted."""
    echo: bool = False
    """The prompt is told before the answer, scored like it where `logprobs` are asked for; with
    `max_tokens` 0 there is no answer.
    """
    truncate: bool = False
    """With "embedding": a prompt that is too long is cut; otherwise it is refused."""
    template: str = ""
    """A chat template (Jinja) in place of the model's own."""
    tools: tuple[Json, ...] = ()
    """`{"type": "function", "function": {...}}`, as chat templates want them."""
    tool_choice: ToolChoice = ToolChoice()
    think: bool | str | None = None
    """None leaves it to the model's template; a string is an effort such as "low"."""
    think_or_refuse: bool = False
    """A model that cannot think refuses `think`; otherwise it ignores it."""
    template_options: Json = field(default_factory=dict)
    """More variables for the chat template."""
    format: str | Json | None = None
    """None is free text, "json" any JSON object, a mapping a JSON schema."""
    pattern: str = ""
    """A regular expression that the whole answer matches; not together with `format`."""
    max_tokens: int | None = None
    min_tokens: int = 0
    """Until the answer has so many, the model does not end it; a stop string does, or the one call
    that is wanted.
    """
    ignore_eos: bool = False
    """The model does not end the answer, however long it is."""
    stop: tuple[str, ...] = ()
    """Strings that end the text; none of them appears in it."""
    sampling: Sampling = field(default_factory=Sampling)
    """What the client said."""
    fallback: Sampling = field(default_factory=Sampling)
    """What its dialect assumes where neither the client nor the model's own files say."""
    logprobs: int | None = None
    """None: not asked. 0 to 20: the sampled token's, and this many alternatives."""
    keep_alive: float | None = None
    """Seconds the model stays loaded after this; inf for ever; None keeps what is in force."""
    priority: Priority | None = None
    """The class that the client asks for; None: it does not say."""
    user: str = ""
    """For whom the client asks, by the client's own word; a rate rule may count by it."""
    stream: bool = True
