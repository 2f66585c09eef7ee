"""What the daemon says of its workers: in /health, in lists of models, and as metrics."""

from __future__ import annotations

from typing import Any

from mlxd.control import resting
from mlxd.control.breaker import RESTING, State
from mlxd.control.slot import Slot
from mlxd.control.worker import Worker
from mlxd.server.parts import Parts
from mlxd.telemetry.metrics import Values

Json = dict[str, Any]


def workers(parts: Parts) -> list[Json]:
    """`workers` in /health: those that start, serve, or have failed."""
    return [
        {
            "model": slot.name,
            "state": str(slot.state),
            "pid": slot.pid,
            "failures": slot.failures,
            "restarts": slot.restarts,
            "next_start_in": round(slot.wait, 3) if slot.next_start is not None else None,
            "reason": slot.reason if slot.state in RESTING else "",
        }
        for slot in parts.supervisor.slots()
        if slot.state is not State.IDLE
    ]


def warnings(parts: Parts) -> list[str]:
    """A line for each that rests, for each that serves and lacks something else, and for each
    that serves without the model that was to draft.
    """
    slots = parts.supervisor.slots()
    lines = [words for slot in slots if (words := resting.words_of(slot))]
    lines += [f"{slot.name}: {lack}" for slot in slots if (lack := lacking(slot))]
    return lines + [
        f"no model drafts for {slot.name}: {reason}"
        for slot in slots
        if (reason := undrafted(slot))
    ]


def lacking(slot: Slot) -> str:
    """What its worker cannot do for now, beside what requests ask for."""
    return slot.serving.lacks if slot.serving is not None else ""


def undrafted(slot: Slot) -> str:
    """Why its worker has no model that drafts, where one was named."""
    ready = slot.serving.ready if slot.serving is not None else None
    return ready.draft_refused if ready is not None else ""


def states(parts: Parts) -> dict[str, Slot]:
    """By the name of their model, those that rest."""
    return {slot.name: slot for slot in parts.supervisor.slots() if slot.state in RESTING}


def measure(parts: Parts) -> None:
    """The metrics that are asked for at each scrape."""
    parts.metrics.watch_each(
        "mlxd_worker_up",
        "1 while a model's worker serves, 0 while one that was asked for does not.",
        ("model",),
        lambda: [((slot.name,), slot.state is State.SERVING) for slot in _known(parts)],
    )
    parts.metrics.watch_each(
        "mlxd_breaker_state",
        "1, with the state of a model's worker.",
        ("model", "state"),
        lambda: _each_state(parts),
    )
    parts.metrics.watch_each(
        "mlxd_worker_running",
        "Sequences that a model's worker has, those included whose prompts are not read.",
        ("model",),
        lambda: _running(parts),
    )
    parts.metrics.watch_counts(
        "mlxd_worker_steps",
        "Steps of a model's engine: each reads a part of prompts, or gives each answer a token.",
        ("model",),
        lambda: [((slot.name,), worker.step) for slot, worker in _serving(parts)],
    )


def _each_state(parts: Parts) -> Values:
    return [((slot.name, str(slot.state)), 1.0) for slot in _known(parts)]


def _known(parts: Parts) -> list[Slot]:
    """Of the catalogue's models: there are no more label values than of those. Of one that is being
    replaced, which has two workers, the later.
    """
    names = {card.name for card in parts.catalog.known()}
    slots = parts.supervisor.slots()
    return list({slot.name: slot for slot in slots if slot.name in names}.values())


def _running(parts: Parts) -> Values:
    """On the worker that is being replaced, too."""
    known = {slot.name for slot in _known(parts)}
    running: dict[str, int] = {}
    for slot in parts.supervisor.slots():
        if slot.name in known and slot.serving is not None:
            running[slot.name] = running.get(slot.name, 0) + slot.serving.running
    return [((name,), count) for name, count in running.items()]


def _serving(parts: Parts) -> list[tuple[Slot, Worker]]:
    return [(slot, slot.serving) for slot in _known(parts) if slot.serving is not None]
