"""The order of what is measured, and the medians of it.

Rounds are interleaved: a machine that is slower for a while is slower for everybody, so ratios
survive what rates do not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from mlxd.bench.client import BadAnswer, Json, TooLate
from mlxd.bench.contestants import Answers, Contestant
from mlxd.bench.figures import decode_rate, spread
from mlxd.bench.prompts import Prompts

DAEMON, RAW = "mlxd", "raw"
_LENGTHS = (0.25, 1.0, 4.0)
"""Of prompts to be read alone, by the usual one."""
_SHORTEST = 16


@dataclass(frozen=True, slots=True)
class Load:
    """So many requests at once."""

    streams: int
    prompt: int
    tokens: int

    @property
    def words(self) -> str:
        if self.tokens == 1:
            return f"a prompt of {self.prompt} tokens"
        return f"{self.streams} stream{'s' if self.streams > 1 else ''}"


def plan(streams: Sequence[int], prompt: int, tokens: int, context: int) -> list[Load]:
    """Of one round. Prompts are no longer than `context` allows."""
    lengths = {min(max(_SHORTEST, int(prompt * share)), context - 1) for share in _LENGTHS}
    reading = [Load(1, length, 1) for length in sorted(lengths)]
    return [*reading, *(Load(count, prompt, tokens) for count in sorted(set(streams)))]


class TooLong(Exception):
    """Not one round was done in the time that there was."""


@dataclass(slots=True)
class Rounds:
    """What each contestant did with each load, round by round."""

    loads: Sequence[Load]
    done: int = 0
    _figures: dict[tuple[str, Load], list[Json]] = field(default_factory=dict)

    def add(self, name: str, load: Load, answers: Answers) -> None:
        self._figures.setdefault((name, load), []).append(figures(load, answers))

    def end(self) -> None:
        """A round is whole."""
        self.done += 1

    def report(self) -> Json:
        """Medians over whole rounds; `ratio` is that of the ratios within each round."""
        rows = [(load, self._row(load)) for load in self.loads]
        return {
            "rounds": self.done,
            "prefill": [row for load, row in rows if load.tokens == 1],
            "decode": [row for load, row in rows if load.tokens > 1],
        }

    def _row(self, load: Load) -> Json:
        mine, theirs = (self._figures.get((name, load), [])[: self.done] for name in (DAEMON, RAW))
        count = {"prompt": load.prompt} if load.tokens == 1 else {"streams": load.streams}
        row: Json = {**count, **_medians(mine)}
        if theirs:
            row["raw"] = _medians(theirs)
            pairs = [*zip(mine, theirs, strict=True)]
            row["ratio"] = {
                key: median(a[key] / b[key] for a, b in pairs)
                for key in row["raw"]
                if all(b[key] for _, b in pairs)
            }
        return row


def _medians(rounds: Sequence[Json]) -> Json:
    return {key: median(one[key] for one in rounds) for key in rounds[0]}


def figures(load: Load, answers: Answers) -> Json:
    """Of a prompt that is read alone, how fast that is; else of the answers. Raises BadAnswer."""
    if load.tokens == 1:
        seconds = answers.times[0][0]
        return {"tokens_per_second": load.prompt / seconds, "ttft_p50_ms": seconds * 1e3}
    found, rate = spread(answers.times), decode_rate(answers.spans, load.tokens)
    if not rate:
        raise BadAnswer(f"answers of {load.tokens} tokens are too short to be measured")
    return {
        "tokens_per_second": rate,
        "ttft_p50_ms": found.ttft_p50_ms,
        "ttft_p99_ms": found.ttft_p99_ms,
        "gap_p50_ms": found.gap_p50_ms,
        "gap_p99_ms": found.gap_p99_ms,
    }


def measure(
    contestants: Mapping[str, Contestant],
    loads: Sequence[Load],
    prompts: Prompts,
    *,
    rounds: int,
    seconds: float,
    before: Callable[[str], None],
) -> Rounds:
    """One round to warm up, which does not count, and `rounds` of them, or as many as are whole
    after so many `seconds`. `before` is told of each load, and may raise to end it all.

    Raises BadAnswer, TooLong.
    """
    deadline = time.monotonic() + seconds
    found = Rounds(loads)
    warm_up = Rounds(loads)
    try:
        for number in range(rounds + 1):
            words = f"round {number} of {rounds}" if number else "warming up"
            into = found if number else warm_up
            for name, load in _round(contestants, loads, number):
                before(f"{words}: {name}, {load.words}")
                drawn = prompts.draw(load.prompt, load.streams)
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TooLate("the time is over")
                into.add(name, load, contestants[name].run(drawn, load.tokens, left))
            if number:
                found.end()
    except TooLate as error:
        if not found.done:
            raise TooLong(f"not one round was done within {seconds:.0f} s") from error
    return found


def _round(
    contestants: Mapping[str, Contestant], loads: Sequence[Load], number: int
) -> Iterator[tuple[str, Load]]:
    """Who goes first changes from round to round."""
    names = [*contestants] if number % 2 else [*contestants][::-1]
    for load in loads:
        for name in names:
            yield name, load
