"""What `mlxd bench` does: has the model in memory, measures, shows it, and tells the daemon."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mlxd.bench import plot
from mlxd.bench.client import BadAnswer
from mlxd.bench.contestants import Contestant, Daemon, Raw
from mlxd.bench.prompts import Prompts, UnknownVocabulary, vocabulary_of
from mlxd.bench.rounds import DAEMON, RAW, Load, Rounds, TooLong, measure, plan
from mlxd.cli import exits
from mlxd.cli.admin import AdminClient, Refused
from mlxd.cli.bench import STREAMS, table
from mlxd.cli.models.asking import asking, failed, print_json, print_lines
from mlxd.cli.models.words import size
from mlxd.core import versions
from mlxd.core.counts import plural
from mlxd.core.machine import machine

Json = dict[str, Any]

_STDOUT = "-"
_PATIENCE_SECONDS = 2.0
"""For what has just been answered to be off the books."""
_LOOK_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Options:
    """As they were given."""

    model: str
    streams: tuple[int, ...] | None
    """None: those of STREAMS for which there are slots."""
    prompt: int
    tokens: int
    rounds: int
    seconds: int
    raw: bool
    beside: bool
    json: str
    svg: str


class CannotBench(Exception):
    """Why not, for people."""


def bench(policies: str | None, state: str | None, options: Options) -> int:
    """The exit status."""

    def ask(daemon: AdminClient) -> int:
        try:
            return _bench(daemon, options)
        except (CannotBench, BadAnswer, TooLong, UnknownVocabulary, OSError) as error:
            return failed(f"{options.model}: {error}", as_json=False)

    return asking(policies, state, ask, as_json=False)


def _bench(daemon: AdminClient, options: Options) -> int:
    """Raises CannotBench, BadAnswer, TooLong, UnknownVocabulary, OSError."""
    if options.tokens < 2:
        raise CannotBench("--tokens: an answer of one token has no rate; at least 2")
    watch = _Watch(daemon, beside=options.beside)
    try:
        report = _measured(daemon, options, watch)
    finally:
        watch.say("")
    try:
        _show(report, options)
    finally:  # also where a file cannot be written
        _keep(daemon, report)
    return exits.DONE


def _measured(daemon: AdminClient, options: Options, watch: _Watch) -> Json:
    watch.others()
    shown = daemon.get("/admin/models/show", name=options.model)
    loads = _loads(daemon, shown, options)
    prompts = Prompts(vocabulary_of(Path(shown["path"])))
    watch.say(f"{shown['name']} is loaded, if it is not in memory")
    daemon.wait("/admin/load", {"model": options.model})
    with _contestants(daemon, shown, loads, options) as contestants:
        found = measure(
            contestants, loads, prompts,
            rounds=options.rounds, seconds=options.seconds, before=watch.before,
        )  # fmt: skip
    return _report(shown, options, found)


def _loads(daemon: AdminClient, shown: Json, options: Options) -> list[Load]:
    """What is asked at one time; never more than gets an answer at once."""
    context = shown["context"] or options.prompt + options.tokens
    if options.prompt + options.tokens > context:
        raise CannotBench(f"it takes {context} tokens of prompt and answer together, and no more")
    slots, key = _slots(daemon)
    wanted = options.streams or tuple(count for count in STREAMS if count <= slots) or (1,)
    if wanted[-1] > slots:
        raise CannotBench(
            f"{wanted[-1]} streams: {plural(slots, 'answer')} at one time is the most by {key};"
            f" --streams up to {slots}, or a higher limit"
        )
    return plan(wanted, options.prompt, options.tokens, context)


def _slots(daemon: AdminClient) -> tuple[int, str]:
    """How many answers there may be at one time, and the policy that says so."""
    group = "limits.concurrency"
    (mode,) = daemon.get("/admin/policy/explain", key=f"{group}.mode")["values"]
    if mode["value"] != "enforce":
        return sys.maxsize, group
    health = daemon.get("/admin/health")
    return health["free_slots"] + health["active_requests"], f"{group}.max_in_flight"


@contextmanager
def _contestants(
    daemon: AdminClient, shown: Json, loads: list[Load], options: Options
) -> Iterator[dict[str, Contestant]]:
    """The daemon, and raw beside it where that is wanted. Raises CannotBench, BadAnswer."""
    mine: dict[str, Contestant] = {
        DAEMON: Daemon(daemon.path, options.model, partial(_spans, daemon))
    }
    if not options.raw:
        yield mine
        return
    _check_room(daemon, loads, options)
    raw = Raw(Path(shown["path"]))
    try:
        raw.until_ready()
        yield mine | {RAW: raw}
    finally:
        raw.close()


def _spans(daemon: AdminClient, ids: Sequence[str]) -> list[float | None]:
    """Of each request, as its story has them; None: stories are not kept."""
    found: list[float | None] = []
    for id in ids:
        try:
            (story,) = daemon.get(f"/admin/requests/{id}")["requests"]
        except (Refused, ValueError):
            found.append(None)
        else:
            found.append(story["decode_seconds"] or None)
    return found


def _check_room(daemon: AdminClient, loads: list[Load], options: Options) -> None:
    """Whether the model fits twice. Raises CannotBench."""
    context = max(load.streams * (load.prompt + load.tokens) for load in loads)
    fit = daemon.post("/admin/plan", {"model": options.model, "context": context})
    if fit["needed_bytes"] * 2 > fit["available_bytes"]:
        raise CannotBench(
            f"--raw has the model in memory twice, {size(fit['needed_bytes'])} each, and there are"
            f" {size(fit['available_bytes'])}; unload others, or leave --raw out"
        )


class _Watch:
    """Says how far it is, and sees to it that nobody is disturbed."""

    def __init__(self, daemon: AdminClient, *, beside: bool) -> None:
        self._daemon = daemon
        self._beside = beside

    def before(self, words: str) -> None:
        """Of each load. Raises CannotBench."""
        self.others()
        self.say(words)

    def others(self) -> None:
        """Raises CannotBench where somebody is served."""
        if self._beside:
            return
        until = time.monotonic() + _PATIENCE_SECONDS
        while others := self._served():
            if time.monotonic() > until:
                raise CannotBench(
                    f"others are served ({others}), and would be disturbed; wait for them, or use"
                    " --beside"
                )
            time.sleep(_LOOK_SECONDS)

    def say(self, words: str) -> None:
        """In place of what was said before, where that can be done."""
        if sys.stderr.isatty():
            print(f"\r\033[K{words}", end="", file=sys.stderr, flush=True)
        elif words:
            print(words, file=sys.stderr, flush=True)

    def _served(self) -> int:
        health = self._daemon.get("/admin/health")
        return int(health["active_requests"] + health["queue"]["waiting"])


def _report(shown: Json, options: Options, found: Rounds) -> Json:
    return {
        "model": shown["name"],
        "digest": shown["digest"],
        "machine": machine(),
        "versions": versions.everything(),
        "prompt": options.prompt,
        "tokens": options.tokens,
        **found.report(),
    }


def _show(report: Json, options: Options) -> None:
    """Raises OSError where a file cannot be written."""
    if options.svg:
        Path(options.svg).write_text(plot.svg(report), encoding="utf-8")
    if options.json == _STDOUT:
        print_json(report)
        return
    if options.json:
        Path(options.json).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    rounds = f"{report['rounds']} round{'s' if report['rounds'] > 1 else ''}"
    said = f"{report['model']} on {report['machine']}; mlx {report['versions'].get('mlx', '?')}"
    print_lines([f"{said}; medians of {rounds}", "", *table.lines(report), "", *plot.lines(report)])


def _keep(daemon: AdminClient, report: Json) -> None:
    """From now on the daemon expects what was measured."""
    kept = daemon.post(
        "/admin/bench",
        {
            "model": report["model"],
            "prefill": [[row["prompt"], row["tokens_per_second"]] for row in report["prefill"]],
            "decode": [[row["streams"], row["tokens_per_second"]] for row in report["decode"]],
        },
    )
    for warning in kept["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
