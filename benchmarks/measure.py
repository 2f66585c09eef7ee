"""From rounds to figures: what one load showed, and the medians over all of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import median
from typing import Any

from benchmarks.client import APIS, Answer, BadAnswer, read_answer, request_bytes, run_load
from benchmarks.servers import Raw, Server
from mlxd.bench.figures import quantile, spread

__all__ = ["Load", "Rounds", "ask_raw", "ask_server", "quantile"]

Json = dict[str, Any]
TOGETHER = 0.1
"""Records of one stream nearer than this share of its median gap came together."""


@dataclass(frozen=True)
class Load:
    """What one contestant did with one set of prompts."""

    tokens_per_second: float
    cpu_ms_per_token: float
    ttft_p50_ms: float | None = None
    ttft_p99_ms: float | None = None
    gap_p50_ms: float | None = None
    gap_p99_ms: float | None = None
    records_per_token: float | None = None
    held: float | None = None
    """Share of tokens that came together with the next one of their stream."""
    held_longer: float | None = None
    """Share of tokens that came together with the next two: held beyond the next step."""


FIGURES = tuple(Load.__dataclass_fields__)
RATIOS = ("tokens_per_second", "cpu_ms_per_token", "ttft_p50_ms", "ttft_p99_ms")


def ask_raw(raw: Raw, prompts: list[str], tokens: int) -> Load:
    """Raises BadAnswer where a stream ended early."""
    result = raw.run(prompts, tokens)
    times: list[list[float]] = result["times"]
    if short := [len(stream) for stream in times if len(stream) != tokens]:
        raise BadAnswer(f"raw: {short[0]} tokens instead of {tokens}")
    total = tokens * len(prompts)
    ended = max(stream[-1] for stream in times)
    return _load(total, ended, result["cpu"], times, records=total)


def ask_server(
    server: Server, prompts: list[str], tokens: int, *, stream: bool, api: str = "openai"
) -> Load:
    """Raises BadAnswer, also where a stream ended early."""
    dialect = APIS[api]
    requests = [
        request_bytes(dialect.path, dialect.body(server.model, prompt, tokens, stream))
        for prompt in prompts
    ]
    cpu: list[float] = []
    exchanges = run_load(
        server.port,
        requests,
        timeout=120.0,
        window=lambda: cpu.append(server.watched.cpu_seconds()),
    )
    answers = [read_answer(exchange, dialect, stream=stream) for exchange in exchanges]
    for answer in answers:
        if answer.tokens != tokens:
            raise BadAnswer(f"{server.name}: {answer.tokens} tokens instead of {tokens}")
    return _figures(answers, cpu[1] - cpu[0], stream=stream)


def _figures(answers: list[Answer], cpu: float, *, stream: bool) -> Load:
    total = sum(answer.tokens for answer in answers)
    ended = max(answer.ended for answer in answers)
    if not stream:
        return Load(total / ended, cpu / total * 1e3)
    times = [list(answer.times) for answer in answers]
    return _load(total, ended, cpu, times, records=sum(map(len, times)))


def _load(total: int, ended: float, cpu: float, times: list[list[float]], records: int) -> Load:
    held, held_longer = _held(times)
    return Load(
        tokens_per_second=total / ended,
        cpu_ms_per_token=cpu / total * 1e3,
        **asdict(spread(times)),
        records_per_token=records / total,
        held=held,
        held_longer=held_longer,
    )


def _held(times: Iterable[Sequence[float]]) -> tuple[float, float]:
    """Shares of tokens that came together with the next one, and with the next two."""
    once = longer = total = 0
    for stream in times:
        gaps = [b - a for a, b in pairwise(stream)]
        together = [gap < TOGETHER * median(gaps) for gap in gaps]
        total += len(stream)
        once += sum(together)
        longer += sum(a and b for a, b in pairwise(together))
    return once / total, longer / total


Key = tuple[str, str, int]
"""Contestant, mode (raw, whole, streamed), streams."""


class Rounds:
    """Every load of every round, and raw's beside it."""

    def __init__(self) -> None:
        self._loads: dict[Key, list[Load]] = defaultdict(list)
        self._beside: dict[Key, list[Load]] = defaultdict(list)

    def add(self, name: str, mode: str, streams: int, load: Load, raw: Load) -> None:
        self._loads[name, mode, streams].append(load)
        self._beside[name, mode, streams].append(raw)

    def rows(self) -> list[Json]:
        """One per contestant, mode and number of streams: medians, and medians of the ratios."""
        return [
            {
                "contestant": name, "mode": mode, "streams": streams, "rounds": len(loads),
                **{figure: _median(loads, figure) for figure in FIGURES},
                "ratio": {f: _ratio(loads, self._beside[name, mode, streams], f) for f in RATIOS},
            }
            for (name, mode, streams), loads in sorted(
                self._loads.items(), key=lambda item: item[0][2]
            )
        ]  # fmt: skip

    def loads(self) -> list[Json]:
        """Everything that was measured, in order."""
        return [
            {"contestant": name, "mode": mode, "streams": streams, "round": i, **asdict(load)}
            for (name, mode, streams), loads in self._loads.items()
            for i, load in enumerate(loads)
        ]


def _median(loads: list[Load], figure: str) -> float | None:
    values = [v for load in loads if (v := getattr(load, figure)) is not None]
    return median(values) if values else None


def _ratio(loads: list[Load], beside: list[Load], figure: str) -> float | None:
    pairs = [
        (mine, theirs)
        for load, raw in zip(loads, beside, strict=True)
        if (mine := getattr(load, figure)) is not None
        and (theirs := getattr(raw, figure)) is not None
    ]
    return median(mine / theirs for mine, theirs in pairs) if pairs else None
