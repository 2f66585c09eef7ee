"""What clients got, as metrics: counted when a request ends, by its story."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

from mlxd.core.story import Story

OTHER = "other"
_LEFT = 499
"""The status of a request whose client left before its end."""
MOST_MODELS = 500
"""Clients may make models: those beyond so many are counted together."""
_TTFT_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_GAP_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 5.0)
_WHOLE_BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)


class Served:
    """On the registry of `Metrics`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._models: set[str] = set()
        self._requests = Counter(
            "mlxd_requests_total",
            "Requests that ended, by what they wanted and by their error's code, or left, or ok.",
            ("want", "code"),
            registry=registry,
        )
        self._seconds = Histogram(
            "mlxd_request_seconds",
            "From the arrival of a request that a model served to its end.",
            ("want",),
            buckets=_WHOLE_BUCKETS,
            registry=registry,
        )
        self._ttft = Histogram(
            "mlxd_time_to_first_token_seconds",
            "From the arrival of a request to its first token.",
            ("model",),
            buckets=_TTFT_BUCKETS,
            registry=registry,
        )
        self._gap = Histogram(
            "mlxd_token_gap_seconds",
            "Between two tokens of an answer, its mean.",
            ("model",),
            buckets=_GAP_BUCKETS,
            registry=registry,
        )
        self._tokens = Counter(
            "mlxd_tokens_total",
            "Tokens of prompts, those of them that were not computed again, and of answers.",
            ("model", "kind"),
            registry=registry,
        )

    def ended(self, story: Story) -> None:
        """Count it."""
        want = story.want or OTHER
        self._requests.labels(want, story.code or ("left" if story.status == _LEFT else "ok")).inc()
        if story.leased is None:
            return
        if story.ended is not None:
            self._seconds.labels(want).observe(story.ended)
        model = self._bounded(story.model)
        if story.first_token is not None:
            self._ttft.labels(model).observe(story.first_token)
        gaps = story.completion_tokens - story.requests
        if gaps > 0 and story.decode_seconds > 0:
            self._gap.labels(model).observe(story.decode_seconds / gaps)
        if not story.computed:
            return
        for kind, tokens in (
            ("prompt", story.prompt_tokens),
            ("cached", story.cached_tokens),
            ("completion", story.completion_tokens),
        ):
            self._tokens.labels(model, kind).inc(tokens)

    def _bounded(self, model: str) -> str:
        if len(self._models) < MOST_MODELS:
            self._models.add(model)
        return model if model in self._models else OTHER
