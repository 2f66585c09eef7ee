"""What may go wrong where, by the classes of core/errors.py; their statuses are one table."""

from __future__ import annotations

from mlxd.core import errors
from mlxd.server.openapi.operation import Errors

EDGE: Errors = (
    errors.Forbidden,
    errors.Draining,
    errors.InsufficientMemory,
    errors.InternalError,
    errors.Unauthorized,
    errors.TooManyGuesses,
    errors.HeadersTooLarge,
    errors.Overloaded,
)
"""Of whatever is asked. The admin socket says nothing of keys."""
QUERY: Errors = (errors.InvalidRequest,)
FILE: Errors = (errors.InvalidRequest, errors.RequestTimeout, errors.UnsupportedEncoding)
"""Of a body that is taken as it comes."""
BODY: Errors = (*FILE, errors.RequestTooLarge)
"""Of a body that is read whole."""
NAMED: Errors = (errors.ModelNotFound, errors.ModelLoadFailed)
"""Of a model that is looked at."""
LEASED: Errors = (
    *NAMED,
    errors.ModelsBusy,
    errors.WorkerCrashed,
    errors.WorkerStalled,
    errors.BreakerOpen,
    errors.ModelQuarantined,
    errors.StartsHeld,
    errors.DeadlineExceeded,
)
"""Of a model that is to be in memory."""
READ: Errors = (
    *LEASED,
    errors.ContextExceeded,
    errors.UnsupportedFeature,
    errors.RequestQuarantined,
)
"""Of a prompt that a worker is to read."""
RUN: Errors = (
    *READ,
    errors.RateLimited,
    errors.TokensExhausted,
    errors.TenantBusy,
    errors.Overloaded,
    errors.QueueFull,
    errors.QueueTimeout,
    errors.Shed,
)
"""Of a generation, which needs a slot."""
RESUMED: Errors = (errors.ResumeExpired,)
KEPT: Errors = (errors.ModelInUse, errors.InsufficientStorage)
"""Of a change of which models there are."""
