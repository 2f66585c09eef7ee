"""Every metric, in one object, on a registry of its own; docs/reference/metrics.md lists them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = CONTENT_TYPE_LATEST
Values = Iterable[tuple[tuple[str, ...], float]]
"""Values by their labels."""
_LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_WAIT_BUCKETS = (0.0, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0)
"""The first counts those who did not wait at all."""
_APPLY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """What is counted as it happens, and what is asked for when somebody scrapes."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # series that nobody asks for
        self.registry = CollectorRegistry(auto_describe=True)
        self.served = CollectorRegistry(auto_describe=True)
        """What clients got: tens of series for each of hundreds of models."""
        self._successful = self._gauge(
            "mlxd_policy_last_reload_successful",
            "1 if the last attempt to put policies in force succeeded, else 0; a rollback that is"
            " refused changes nothing.",
        )
        self._success_time = self._gauge(
            "mlxd_policy_last_reload_success_timestamp_seconds",
            "When an attempt last succeeded, in seconds since the epoch.",
        )
        self._reloads = Counter(
            "mlxd_policy_reloads_total",
            "Attempts to put policies in force, by result and by what asked for them.",
            ("result", "trigger"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "mlxd_policy_apply_seconds",
            "From the judging of the policy files to the new policies being in force.",
            buckets=_APPLY_BUCKETS,
            registry=self.registry,
        )
        self._hash = self._gauge(
            "mlxd_policy_hash_info",
            "1, with the hash of all values in force and where they are from.",
            ("hash", "source"),
        )
        self._error = self._gauge(
            "mlxd_policy_last_error_info",
            "1 while the policy files are refused, with the first reason; absent otherwise.",
            ("file", "line", "key", "message"),
        )
        self._would_deny = Counter(
            "mlxd_policy_would_deny_total",
            "Requests that a rule in mode dry_run would have refused.",
            ("rule",),
            registry=self.registry,
        )

        self._actions = Counter(
            "mlxd_memory_actions_total",
            "Times that something was done because memory was full, by its name in policy.",
            ("action",),
            registry=self.registry,
        )
        self._evictions = Counter(
            "mlxd_model_evictions_total",
            "Idle models that left memory, by reason.",
            ("reason",),
            registry=self.registry,
        )

        self._webhook = Counter(
            "mlxd_webhook_posts_total",
            "Events posted to the webhook, by result; given_up counts events, failed attempts.",
            ("result",),
            registry=self.registry,
        )
        self._exits = Counter(
            "mlxd_worker_exits_total",
            "Ends of engine processes, by how they ended.",
            ("model", "reason"),
            registry=self.registry,
        )
        self._restarts = Counter(
            "mlxd_worker_restarts_total",
            "Starts of a worker after one that failed.",
            ("model",),
            registry=self.registry,
        )
        self._replays = Counter(
            "mlxd_replays_total",
            "Requests whose worker died, by what became of them.",
            ("outcome",),
            registry=self.registry,
        )
        self._malformed = Counter(
            "mlxd_malformed_tool_calls_total",
            "Tool calls that could not be read, and were delivered as text.",
            ("model",),
            registry=self.registry,
        )
        self._drafts = Counter(
            "mlxd_draft_tokens_total",
            "Tokens that a model which drafts has proposed, and those of them that came true.",
            ("model", "kind"),
            registry=self.registry,
        )
        self._tenant_tokens = Counter(
            "mlxd_tenant_tokens_total",
            "Tokens of prompts and answers, by whose they were.",
            ("tenant", "kind"),
            registry=self.registry,
        )
        self._waits = Histogram(
            "mlxd_queue_wait_seconds",
            "How long requests that got a slot had waited for it, by class.",
            ("class",),
            buckets=_WAIT_BUCKETS,
            registry=self.registry,
        )
        self._refusals = Counter(
            "mlxd_refusals_total",
            "Generations and loads that were refused or failed, and requests without a known API"
            " key, by the code that the client got.",
            ("code",),
            registry=self.registry,
        )
        self._lag = Histogram(
            "mlxd_event_loop_lag_seconds",
            "How late the event loop was, each time that it was looked at: once a second.",
            buckets=_LAG_BUCKETS,
            registry=self.registry,
        )

    def reloaded(self, *, result: str, trigger: str, seconds: float, at: float) -> None:
        """Count one attempt; `at` in seconds since the epoch. A rollback that is refused has left
        the files as they were, and what is in force.
        """
        self._reloads.labels(result, trigger).inc()
        if result != "refused" or trigger != "rollback":
            self._successful.set(0 if result == "refused" else 1)
        if result != "refused":
            self._success_time.set(at)
        if result == "applied":
            self._seconds.observe(seconds)

    def policies(self, digest: str, source: str) -> None:
        """Say which policies are in force."""
        self._hash.clear()
        self._hash.labels(digest, source).set(1)

    def policy_error(self, file: str, line: str, key: str, message: str) -> None:
        """Say why the policy files are refused; all empty: they are not."""
        self._error.clear()
        if message:
            self._error.labels(file, line, key, message).set(1)

    def would_deny(self, rule: str) -> None:
        """Count a request that a rule on trial would have refused."""
        self._would_deny.labels(rule).inc()

    def memory_action(self, action: str) -> None:
        """Count what a watermark had done."""
        self._actions.labels(action).inc()

    def loop_lag(self, seconds: float) -> None:
        """Note how late the event loop was."""
        self._lag.observe(seconds)

    def evicted(self, reason: str, models: int = 1) -> None:
        """Count idle models that left memory; `reason` is one of a few words."""
        self._evictions.labels(reason).inc(models)

    def webhook_post(self, result: str) -> None:
        """Count a post of an event, or an event that is given up."""
        self._webhook.labels(result).inc()

    def worker_exited(self, model: str, reason: str) -> None:
        """Count the end of one; `model` is a name of the catalogue."""
        self._exits.labels(model, reason).inc()

    def worker_restarted(self, model: str) -> None:
        """Count a start after a failure."""
        self._restarts.labels(model).inc()

    def replayed(self, outcome: str) -> None:
        """Count a request whose worker died; `outcome` is one of a few words."""
        self._replays.labels(outcome).inc()

    def malformed_calls(self, model: str, calls: int) -> None:
        """Count tool calls of one answer that could not be read."""
        self._malformed.labels(model).inc(calls)

    def drafted(self, model: str, drafted: int, accepted: int) -> None:
        """Count the drafts of one answer; `model` is the one that they were made for."""
        self._drafts.labels(model, "drafted").inc(drafted)
        self._drafts.labels(model, "accepted").inc(accepted)

    def tenant_tokens(self, tenant: str, prompt: int, completion: int) -> None:
        """Count what one request took; `tenant` is that of a known key, or anonymous."""
        self._tenant_tokens.labels(tenant, "prompt").inc(prompt)
        self._tenant_tokens.labels(tenant, "completion").inc(completion)

    def waited(self, klass: str, seconds: float) -> None:
        """Note how long one waited that has its slot now."""
        self._waits.labels(klass).observe(seconds)

    def refused(self, code: str, count: int = 1) -> None:
        """Count answers that are an error; `code` is one of core/errors.py."""
        self._refusals.labels(code).inc(count)

    def watch(self, name: str, meaning: str, value: Callable[[], float]) -> None:
        """Ask `value` at each scrape."""
        self._gauge(name, meaning).set_function(value)

    def watch_each(
        self, name: str, meaning: str, labels: tuple[str, ...], values: Callable[[], Values]
    ) -> None:
        """Ask `values` at each scrape; what it does not tell any more is gone."""
        self.registry.register(_Each(name, meaning, labels, values))

    def watch_counts(
        self, name: str, meaning: str, labels: tuple[str, ...], values: Callable[[], Values]
    ) -> None:
        """As `watch_each`, of what only ever rises; it is served as `name` and `_total`."""
        self.registry.register(_Each(name, meaning, labels, values, CounterMetricFamily))

    def render(self) -> bytes:
        """All but `served`, in Prometheus' text format. On the event loop, whose parts it asks."""
        return generate_latest(self.registry)

    def render_served(self) -> bytes:
        """Of `served`, in any thread: with many models it takes long."""
        return generate_latest(self.served)

    def _gauge(self, name: str, meaning: str, labels: tuple[str, ...] = ()) -> Gauge:
        return Gauge(name, meaning, labels, registry=self.registry)


class _Each(Collector):
    def __init__(
        self,
        name: str,
        meaning: str,
        labels: tuple[str, ...],
        values: Callable[[], Values],
        kind: type[GaugeMetricFamily | CounterMetricFamily] = GaugeMetricFamily,
    ) -> None:
        self._name = name
        self._meaning = meaning
        self._labels = labels
        self._values = values
        self._kind = kind

    def collect(self) -> Iterator[Metric]:
        family = self._kind(self._name, self._meaning, labels=self._labels)
        for labels, value in self._values():
            family.add_metric(labels, value)
        yield family

    def describe(self) -> Iterator[Metric]:
        """Without values: a registration asks nobody."""
        yield self._kind(self._name, self._meaning, labels=self._labels)
