"""timeouts.yaml: every time limit on a request and on a worker."""

from __future__ import annotations

from mlxd.policy.schema.base import Policy, field, section
from mlxd.policy.units import Duration


class Shutdown(Policy):
    term_grace: Duration = field(
        "10s", "From a worker's SIGTERM to its SIGKILL.", unit="duration", example="30s"
    )


class Timeouts(Policy):
    """Every time limit on a request and on a worker."""

    generation: Duration = field(
        "300s", "From a worker's acceptance to the last token, over all workers that it takes; "
        "then 504.",
        unit="duration", example="15m",
    )  # fmt: skip
    queue: Duration = field(
        "30s", "Longest wait for a free slot; then 503.",
        unit="duration", example="2m",
    )  # fmt: skip
    first_byte: Duration = field(
        "10s", "After this the status line goes out even without a token, and an event stream "
        "is kept awake with comments.",
        unit="duration", example="5s",
    )  # fmt: skip
    first_token: Duration = field(
        "120s", "From a worker's acceptance to the first token; then 504.",
        unit="duration", example="4m",
    )  # fmt: skip
    inter_token_stall: Duration = field(
        "30s", "Longest pause between two tokens; then the worker is ended if it does not answer, "
        "else the request cancelled, and either way replayed. A worker that a signal stops for as "
        "long while it loads is ended, too.",
        unit="duration", example="1m",
    )  # fmt: skip
    model_load: Duration = field(
        "300s", "Time for a model's worker to become ready; then 503.",
        unit="duration", example="10m",
    )  # fmt: skip
    client_write: Duration = field(
        "30s", "Longest time a client may take nothing of its answer, or less than 1 KiB of what "
        "waits for it; then it is cancelled.",
        unit="duration", example="1m",
    )  # fmt: skip
    worker_cancel_ack: Duration = field(
        "2s", "Time for a worker to confirm a cancel; then it counts as hung.",
        unit="duration", example="5s",
    )  # fmt: skip
    shutdown: Shutdown = section("How workers are ended.")
