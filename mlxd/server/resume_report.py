"""Answers that clients may come back to after a cut, as metrics."""

from __future__ import annotations

from collections.abc import Iterator

from mlxd.server.parts import Parts

_OUTCOMES = ("resumed", "taken_over", "attached", "expired")


def measure(parts: Parts) -> None:
    """Have them scraped."""
    resumption, metrics = parts.resumption, parts.metrics

    def outcomes() -> Iterator[tuple[tuple[str, ...], float]]:
        for outcome in _OUTCOMES:
            yield (outcome,), resumption.outcomes[outcome]

    metrics.watch_counts(
        "mlxd_resumes_total",
        "Requests that came back to an answer, by what came of it.",
        ("outcome",),
        outcomes,
    )
    metrics.watch(
        "mlxd_resume_kept",
        "Answers whose connection is gone, and that their clients may come back to.",
        lambda: len(resumption),
    )
    metrics.watch(
        "mlxd_resume_kept_bytes",
        "What they take, with what is told of answers under way.",
        lambda: resumption.size,
    )
