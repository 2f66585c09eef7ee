"""`mlxd status`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from mlxd.cli import exits
from mlxd.cli.client import NoAnswer, address_of, health_of, silence
from mlxd.cli.models.words import size
from mlxd.cli.moments import clock_of
from mlxd.core import places
from mlxd.core.counts import plural
from mlxd.core.instance import authority
from mlxd.core.lines import json_line, one_line

Json = dict[str, Any]


def status(policies: str | None, state: str | None, *, as_json: bool) -> int:
    """Show what the daemon says of itself."""
    found = places.find(policies, state)
    address = address_of(found)
    try:
        health = health_of(found)
    except NoAnswer as error:
        kind, words = silence(found, error)
        if as_json:
            print(json_line({"status": kind, "error": str(error)}))
        else:
            print(one_line(words), file=sys.stderr)
        return exits.FAILED
    if health.get("service") != "mlxd":
        words = f"what answers at http://{authority(*address)} is not mlxd"
        if as_json:
            kind, _ = silence(found, NoAnswer(words))
            print(json_line({"status": kind, "error": words}))
        else:
            print(words, file=sys.stderr)
        return exits.FAILED
    if as_json:
        print(json_line(health))
    else:
        for line in lines(health, address):  # one by one: what another version does not say is last
            print(one_line(line))
    return exits.DONE


def lines(health: Json, address: tuple[str, int]) -> Iterator[str]:
    """Each begins with what it is about."""
    url = f"http://{authority(*address)}"
    pid = f"  pid {health['pid']}" if "pid" in health else ""
    yield f"mlxd {health['version']}  {health['status']}  {url}{pid}"
    yield f"requests  {health['active_requests']} of {health['max_concurrent']}"
    if "memory" not in health:
        yield "the rest is told to those with an API key, and on the admin socket"
        return
    yield f"queue     {_queue(health)}"
    yield f"memory    {_memory(health['memory'])}"
    yield f"models    {health['models_cached']} loaded of {health['total_models']}"
    for model in health["cached_models"]:
        yield f"          {_model(model)}"
    if health["spares"]:
        yield f"spares    {_spares(health['spares'])}"
    yield f"default   {health['default_model']}"
    yield f"policy    {_policy(health['policy'])}"
    for warning in health["warnings"]:
        yield f"warning   {warning}"
    for event in health.get("recent_events", ()):
        yield f"event     {clock_of(event['at'])}  {event['message']}"


def _queue(health: Json) -> str:
    queue, waits = health["queue"], health["expected_wait_seconds"]
    if not queue["max_waiting"] and not queue["waiting"]:
        return "off: who finds no slot is refused"
    expected = ", ".join(f"{klass} {seconds:g} s" for klass, seconds in waits.items())
    return f"{queue['waiting']} of {queue['max_waiting']} wait; one more would for: {expected}"


def _policy(policy: Json) -> str:
    where = f"{policy['folder'] or 'built-in defaults'}, generation {policy['generation']}"
    last = policy["last_reload"]
    if policy["source"] == "lkg":
        return f"{where}: the last good one, since the files are refused"
    if last["result"] == "refused":
        return f"{where} stays: the edit of {last['at']} is refused"
    return f"{where}, {last['result']} by {last['trigger']} at {last['at']}"


def _memory(memory: Json) -> str:
    if memory["used_percent"] is None:
        return "cannot be read"
    return (
        f"{memory['used_percent']} % of {memory['total_gb']} GiB used"
        f" (warning {memory['warning_threshold']:g}, critical {memory['critical_threshold']:g})"
    )


def _spares(spares: list[Json]) -> str:
    ready = sum(spare["state"] == "ready" for spare in spares)
    held = sum(spare["bytes"] for spare in spares)
    return f"{ready} of {len(spares)} ready for a load, {held / 1e6:.0f} MB"


def _model(model: Json) -> str:
    if model["is_loading"]:
        return f"{model['name']}  {model['loading']['words']}"
    uses = plural(model["use_count"], "use")
    kept = (model["memory_bytes"] or {}).get("prefix", 0)
    keeps = f", keeps {size(kept)} of prompts" if kept else ""
    return f"{model['name']}  {model['active_requests']} running, {uses}{keeps}"
