"""Everything that can go wrong for a client, drawn once.

MlxdError
├── InvalidRequest              invalid_request         the request itself is wrong
│   ├── ContextExceeded         context_exceeded        the prompt is longer than is allowed
│   ├── EarlierResponseNotFound previous_response_not_found  it would go on behind one that is gone
│   └── UnsupportedFeature      unsupported             understood, but not offered (by this model)
├── RequestTimeout              request_timeout         the client sent its request too slowly
├── RequestTooLarge             request_too_large       the body is over server.http.max_body
├── HeadersTooLarge             headers_too_large       too many headers, or too long
├── UnsupportedEncoding         unsupported_encoding    a Content-Encoding that is not read
├── Unauthorized                unauthorized            no API key, or one that is not known
├── Forbidden                   forbidden               something that policy does not allow
├── ModelNotFound               model_not_found         no model of that name
├── ResponseNotFound            response_not_found      no response of that id is kept
├── RequestNotFound             request_not_found       no story of a request of that id is kept
├── ResumeExpired               resume_expired          nothing is kept behind that Last-Event-ID
├── RateLimited                 rate_limited            this client's quota is used up
│   ├── TokensExhausted         tokens_exhausted        its tenant's quota of tokens is used up
│   ├── TenantBusy              tenant_busy             as many of its tenant's requests run as may
│   └── TooManyGuesses          too_many_guesses        too many unknown API keys from its address
├── Overloaded                  overloaded              every slot is taken, and nobody may wait
│   ├── QueueFull               queue_full              every place in the queue is taken
│   ├── QueueTimeout            queue_timeout           no slot was free within timeouts.queue
│   └── Shed                    shed                    requests of its class are refused now
├── Draining                    draining                the daemon is stopping
├── InsufficientMemory          insufficient_memory     a model or a request does not fit now
├── ModelsBusy                  models_busy             max_loaded models are loaded and all in use
├── ModelLoadFailed             model_load_failed       the model's worker did not become ready
├── WorkerCrashed               worker_crashed          the worker died while it served the request
├── WorkerStalled               worker_stalled          the worker lives and delivers nothing
├── BreakerOpen                 breaker_open            its worker keeps failing: it rests now
│   └── ModelQuarantined        model_quarantined       nor later, until it is reset or has changed
├── RequestQuarantined          request_quarantined     workers died of this very request
├── StartsHeld                  starts_held             the daemon keeps dying: nothing is started
├── ModelInUse                  model_in_use            it cannot be removed or replaced now
├── PullFailed                  pull_failed             the hub did not give what was asked
├── InsufficientStorage         insufficient_storage    the disk has no room for what is pulled
├── DeadlineExceeded            deadline_exceeded       a time limit of timeouts.yaml passed
├── PolicyConflict              policy_conflict         policies cannot be changed like this now
│   └── PolicyOutOfDate         policy_out_of_date      they are not those that the caller has seen
└── InternalError               internal_error          a defect of mlxd; the log has the trace

`code` is stable and machine-readable. The HTTP status of each is one table in server/errors.py; the
name each API has for it is in that dialect's `render_error`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class PolicyLine:
    """The line an operator changes to get another answer."""

    key: str
    """Dotted path, such as `limits.concurrency.max_in_flight`."""
    value: str
    """The value in force, as it would be written in YAML."""
    place: str
    """Where that value was set: `limits.yaml:5`, `environment MLX_API_PORT`, `built-in default`."""

    def __str__(self) -> str:
        return f"{self.key}: {self.value} ({self.place})"


@dataclass(frozen=True, slots=True)
class Again:
    """How the same request would fare again."""

    still: Callable[[], bool]
    """Whether it would be refused in the same way now; then it has been, and counts as such. Says
    no where that is not known for sure.
    """
    whatever: bool = False
    """So would be whatever else its caller asks a model to answer."""


class MlxdError(Exception):
    """A failure that a client is told about, in its own dialect.

    `retry_after` is in seconds. `policy` names the line that decided, if one did. `numbers` are
    what it decided by, by names that stay; `would_pass` says in words what would have passed.
    """

    code: ClassVar[str] = "internal_error"
    quotes: ClassVar[bool] = False
    """Whether its message may quote what the client sent: then it is for the client alone."""
    in_vain: bool = False
    """Whether a program that asks the same again, by itself and soon, is refused again, or only has
    the work done again.
    """

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        retry_after: float | None = None,
        policy: PolicyLine | None = None,
        numbers: Mapping[str, float | str] | None = None,
        would_pass: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after
        self.policy = policy
        self.numbers = numbers or {}
        self.would_pass = would_pass
        self.again: Again | None = None
        """Where that can be said at little cost, by who has refused it."""

    def explained(self) -> str:
        """The message, and behind it what it does not say: numbers, the policy line to change, what
        would have passed.
        """
        more = [*self._more()]
        return ". ".join([self.message.rstrip("."), *more]) if more else self.message

    def _more(self) -> Iterator[str]:
        said = _NUMBER.findall(self.message) if self.numbers else ()
        numbers = (
            (name, _spoken(number) if type(number) is float else str(number))
            for name, number in self.numbers.items()
            if not isinstance(number, str)  # names, for programs
        )
        unsaid = [f"{name} {number}" for name, number in numbers if number not in said]
        if unsaid:
            yield f"Numbers: {', '.join(unsaid)}"
        if self.policy is not None:
            yield f"Policy: {self.policy}"
        if self.would_pass:
            yield f"Would pass: {self.would_pass}"


_NUMBER = re.compile(r"\d+(?:\.\d+)?")


def _spoken(number: float) -> str:
    """Three digits are enough, and all that are before the point, without an exponent."""
    return f"{number:.0f}" if abs(number) >= 999.5 else f"{number:.3g}"


class InvalidRequest(MlxdError):
    code = "invalid_request"
    quotes = True


class ContextExceeded(InvalidRequest):
    code = "context_exceeded"
    quotes = False


class EarlierResponseNotFound(InvalidRequest):
    code = "previous_response_not_found"


class UnsupportedFeature(InvalidRequest):
    code = "unsupported"


class RequestTimeout(MlxdError):
    code = "request_timeout"


class RequestTooLarge(MlxdError):
    code = "request_too_large"


class HeadersTooLarge(MlxdError):
    code = "headers_too_large"


class UnsupportedEncoding(MlxdError):
    code = "unsupported_encoding"
    quotes = True


class Unauthorized(MlxdError):
    code = "unauthorized"
    in_vain = True  # there are agents that ask ten times


class Forbidden(MlxdError):
    code = "forbidden"
    quotes = True


LONGEST_NAME = 350
"""Characters of a model's name that are repeated to whoever asked for it, and to the log."""


def quoted(name: str) -> str:
    """A name that a client sent, which may be of megabytes."""
    return name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}..."


class ModelNotFound(MlxdError):
    """`model` is the name as the client sent it: the dialects quote it in their own words."""

    code = "model_not_found"
    quotes = True

    def __init__(self, model: str, hint: str = "", *, policy: PolicyLine | None = None) -> None:
        super().__init__(f"model '{quoted(model)}' not found{hint}", param="model", policy=policy)
        self.model = model


WRONG = (
    InvalidRequest,
    ContextExceeded,
    EarlierResponseNotFound,
    UnsupportedFeature,
    ModelNotFound,
)
"""What a request is told that is wrong in itself: it does not count towards rates."""


class ResponseNotFound(MlxdError):
    code = "response_not_found"
    quotes = True


class RequestNotFound(MlxdError):
    code = "request_not_found"
    quotes = True


class ResumeExpired(MlxdError):
    code = "resume_expired"
    quotes = True


class RateLimited(MlxdError):
    code = "rate_limited"


class TokensExhausted(RateLimited):
    code = "tokens_exhausted"


class TenantBusy(RateLimited):
    code = "tenant_busy"


class TooManyGuesses(RateLimited):
    code = "too_many_guesses"


class Overloaded(MlxdError):
    code = "overloaded"


class QueueFull(Overloaded):
    code = "queue_full"


class QueueTimeout(Overloaded):
    code = "queue_timeout"


class Shed(Overloaded):
    code = "shed"


class Draining(MlxdError):
    code = "draining"


AFTER_DRAIN = "the same request once the next daemon serves"


class InsufficientMemory(MlxdError):
    """`needed_bytes` and `available_bytes` are what was compared; 0 where nothing was."""

    code = "insufficient_memory"

    def __init__(
        self,
        message: str,
        *,
        needed_bytes: int = 0,
        available_bytes: int = 0,
        retry_after: float | None = None,
        policy: PolicyLine | None = None,
        numbers: Mapping[str, float | str] | None = None,
        would_pass: str = "",
    ) -> None:
        compared = {"needed_bytes": needed_bytes, "available_bytes": available_bytes}
        super().__init__(
            message, retry_after=retry_after, policy=policy, would_pass=would_pass,
            numbers={**(compared if needed_bytes else {}), **(numbers or {})},
        )  # fmt: skip
        self.needed_bytes = needed_bytes
        self.available_bytes = available_bytes


class ModelsBusy(MlxdError):
    code = "models_busy"


class ModelLoadFailed(MlxdError):
    code = "model_load_failed"
    final = False
    """Whether another attempt would end the same: the worker has said why."""
    setting = ""
    """Of the model's entry in models.yaml: what the worker could not do; empty: it is not that."""
    of_files = False
    """Its files are no model now: the catalogue tells of that, for as long as it is so."""


class WorkerCrashed(MlxdError):
    code = "worker_crashed"


class WorkerStalled(MlxdError):
    code = "worker_stalled"


class BreakerOpen(MlxdError):
    code = "breaker_open"


class ModelQuarantined(BreakerOpen):
    code = "model_quarantined"


class RequestQuarantined(MlxdError):
    code = "request_quarantined"
    in_vain = True


class StartsHeld(MlxdError):
    code = "starts_held"


class ModelInUse(MlxdError):
    code = "model_in_use"


class PullFailed(MlxdError):
    code = "pull_failed"


class InsufficientStorage(MlxdError):
    code = "insufficient_storage"


class DeadlineExceeded(MlxdError):
    code = "deadline_exceeded"


class PolicyConflict(MlxdError):
    code = "policy_conflict"


class PolicyOutOfDate(PolicyConflict):
    code = "policy_out_of_date"


class InternalError(MlxdError):
    code = "internal_error"
