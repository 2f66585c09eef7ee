"""One generation as a worker is asked for it, and as that travels."""

from __future__ import annotations

from dataclasses import dataclass, field

from mlxd.control.generation import Limits
from mlxd.control.transcript import Push
from mlxd.core.caller import Priority
from mlxd.core.errors import InvalidRequest, PolicyLine
from mlxd.core.request import GenerationRequest, Sampling, Want
from mlxd.core.story import Story, untold
from mlxd.ipc import messages as ipc


@dataclass(frozen=True, slots=True)
class Order:
    """The request with everything resolved."""

    request: GenerationRequest
    sampling: Sampling
    max_prompt: int
    max_output: int
    context: int
    limits: Limits
    arrived: float
    """When the client's request came, on the monotonic clock."""
    expected_output: int = 1024
    """Tokens of the answer that memory is kept for at first."""
    wait_seconds: float = 300.0
    """How long it may wait for memory in the worker; 0: not at all."""
    fingerprint: str = ""
    """Of the model and of what computes with it; for the client, not for the worker."""
    priority: Priority = "medium"
    """The class that it runs in; the worker does not go by it."""
    context_key: str = ""
    """The policy that allows no more `context`; empty: the model does not."""
    owner: str = ""
    """The tenant, whose prompts share what was read of them; empty: nobody that is known."""
    story: Story = field(default_factory=untold)
    """Of the call that it is a part of."""
    push: Push | None = None
    """Asked to take what comes behind the first of its answer."""

    def frame(self, id: int, resume: ipc.Resume | None, span_id: str = "") -> bytes:
        """`span_id`: of what it becomes there.

        Raises InvalidRequest for what no message can carry.
        """
        trace = self.story.trace
        message = ipc.Generate(
            id=id,
            request=self.request,
            sampling=self.sampling,
            max_prompt=self.max_prompt,
            max_output=self.max_output,
            context=self.context,
            expected_output=self.expected_output,
            wait_seconds=self.wait_seconds,
            resume=resume,
            context_key=self.context_key,
            owner=self.owner,
            trace=trace.below(span_id).header if trace is not None else "",
        )
        try:
            return ipc.encode(message)
        except ipc.TooLong as error:
            raise InvalidRequest(f"the request is too large for a worker: {error}") from error
        except ipc.Unsendable as error:
            raise InvalidRequest(f"the request holds an unusable value: {error}") from error


def canary(
    model: str, context: int, timeout: float, stall: float, now: float, *, want: Want = "answer"
) -> Order:
    """One greedy token, which is for nobody, behind one token that every vocabulary has; or that
    one's vector.

    `stall`: how long the engine may make no step after one that was late is cancelled.
    """
    return Order(
        request=GenerationRequest(model=model, want=want, token_ids=(0,), max_tokens=1),
        sampling=Sampling(temperature=0.0),
        max_prompt=context, max_output=1, context=context,
        limits=Limits(2 * timeout, timeout, stall, timeout, _no_line),
        arrived=now,
        expected_output=1, wait_seconds=timeout / 2,  # so that its refusal is in time
    )  # fmt: skip


def _no_line(key: str) -> PolicyLine:
    """For a generation that no policy limits."""
    return PolicyLine(key, "", "")
