"""What an edit of slots, queue and keys would do, in words."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlxd.control.keys import Keys
from mlxd.core.clock import ManualClock
from mlxd.policy.diff import changes
from mlxd.policy.load import Override, load
from mlxd.policy.policy_set import PolicySet
from mlxd.server.effects import Effects

MODE = "limits.concurrency.mode"
SLOTS, PLACES = "limits.concurrency.max_in_flight", "limits.concurrency.max_waiting"


def policies(**values: Any) -> PolicySet:
    return load(None, [Override(key, str(value), "a test") for key, value in values.items()])


def told(running: int, queued: int, old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    admission: Any = SimpleNamespace(active=running, waiting={"high": 0, "low": queued})
    nobody: Any = None
    effects = Effects(nobody, admission, nobody, nobody, nobody)
    before, after = policies(**old), policies(**new)
    return list(effects._admitting(after, tuple(changes(before, after))))


@pytest.mark.parametrize(
    ("running", "queued", "old", "new", "words"),
    [
        (3, 0, {}, {SLOTS: 2}, "3 requests run now, 2 may: none is stopped, new ones are refused"
         " until 2 have ended"),
        (3, 1, {PLACES: 9}, {PLACES: 9, SLOTS: 2}, "3 requests run now, 2 may: none is stopped,"
         " new ones wait until 2 have ended"),
        (5, 7, {PLACES: 9}, {PLACES: 9, SLOTS: 8}, "5 requests run now, 8 may: up to 3 of the 7"
         " that wait get a slot at once"),
        (1, 0, {}, {SLOTS: 8}, "1 request runs now, 8 may"),
        (1, 0, {}, {SLOTS: 1}, "1 request runs now, 1 may: none is stopped, new ones are refused"
         " until 1 has ended"),
        (1, 1, {PLACES: 9}, {PLACES: 9, SLOTS: 8}, "1 request runs now, 8 may: up to 1 of the 1"
         " that waits gets a slot at once"),
        (5, 1, {PLACES: 9}, {PLACES: 1}, "1 request waits now, 1 may: none is sent away, new ones"
         " are refused until 1 has its slot"),
        (5, 1, {}, {"clients.priorities.low.weight": 2}, "the one that waits goes on in the order"
         " of the new weights"),
        (5, 0, {}, {PLACES: 9}, "0 requests wait now, 9 may: who finds no slot waits up to 30s for"
         " one"),
        (5, 7, {PLACES: 9}, {PLACES: 5}, "7 requests wait now, 5 may: none is sent away, new ones"
         " are refused until 3 have their slots"),
        (5, 7, {PLACES: 9}, {}, "7 requests wait now, 0 may: who finds no slot is refused at once;"
         " those that wait stay"),
        (5, 0, {PLACES: 9}, {}, "0 requests wait now, 0 may: who finds no slot is refused at"
         " once"),
        (9, 0, {MODE: "dry_run"}, {MODE: "dry_run", SLOTS: 2, PLACES: 3}, "limits.concurrency.mode"
         " is dry_run: whoever finds no slot is served all the same"),
        (9, 0, {MODE: "off"}, {MODE: "off", PLACES: 3}, "limits.concurrency.mode is off: whoever"
         " finds no slot is served all the same"),
        (5, 7, {}, {"timeouts.queue": "5s"}, "requests wait up to 5s for a slot; those that wait"
         " now keep the time that they came with"),
        (5, 7, {}, {"clients.priorities.low.weight": 2}, "the 7 that wait go on in the order of"
         " the new weights"),
    ],
)  # fmt: skip
def test_it_says_what_becomes_of_those_that_run_and_wait(
    running: int, queued: int, old: dict[str, Any], new: dict[str, Any], words: str
) -> None:
    assert told(running, queued, old, new) == [words]


REQUIRED, FILE = "clients.auth.required", "clients.auth.keys_file"
ON = "every client needs an API key: who sends none that is valid gets 401"
REFUSED = "as it is it would be refused: "
KEY = (
    "schema: mlxd-keys/v1\nkeys:\n"
    f"  - {{id: a, tenant: t, sha256: '{64 * '0'}', created: '2026-01-01T00:00:00Z'}}\n"
)


@pytest.mark.parametrize(
    ("old", "new", "keys", "lines"),
    [
        ({}, {REQUIRED: "true"}, KEY, [ON]),
        ({}, {"server.listen.host": "0.0.0.0"}, KEY, [ON]),
        ({}, {"server.listen.host": "0.0.0.0"}, "", [ON, REFUSED + "server.listen.host: "]),
        ({}, {REQUIRED: "true"}, "", [ON, REFUSED + "clients.auth.required: "]),
        ({}, {REQUIRED: "true"}, "keys: 3\n", [ON, REFUSED + "clients.auth.required: "]),
        ({REQUIRED: "true"}, {}, KEY, ["no client needs an API key any more"]),
        ({}, {FILE: "/nowhere/keys.yaml"}, "", ["clients are known by the keys of another file"]),
        ({REQUIRED: "true"}, {REQUIRED: "true", SLOTS: 3}, KEY, []),
        ({}, {}, "", []),
    ],
)
async def test_it_says_who_needs_a_key_and_whether_there_is_one(
    tmp_path: Path, old: dict[str, Any], new: dict[str, Any], keys: str, lines: list[str]
) -> None:
    if keys:
        (tmp_path / "keys.yaml").write_text(keys, encoding="utf-8")
    nobody: Any = None
    before, after = policies(**old), policies(**new)
    effects = Effects(nobody, nobody, nobody, nobody, Keys(before, tmp_path, ManualClock()))
    told = await effects._on_keys(before, after, tuple(changes(before, after)))
    assert len(told) == len(lines)
    assert all(one.startswith(line) for one, line in zip(told, lines, strict=True))
