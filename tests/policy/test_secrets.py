"""A webhook's path may be a token: no view of policies shows it, and an edit of it is one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlxd.policy.diff import changes
from mlxd.policy.explain import explain
from mlxd.policy.load import Override, load
from mlxd.policy.policy_set import PolicySet
from mlxd.policy.sharing import sharing
from tests.support.daemon import write_policies

KEY = "supervision.events.webhook.url"
TOKEN = "T024BE7LH-canary"
SHOWN = "https://hooks.example:8443/..."


def hooked(folder: Path, token: str, *overrides: Override) -> PolicySet:
    url = f"https://hooks.example:8443/services/{token}"
    text = f"events: {{webhook: {{url: '{url}'}}}}\n"
    return load(write_policies(folder, {"supervision": text}), overrides)


def test_it_is_shown_without_its_path(tmp_path: Path) -> None:
    found = hooked(tmp_path, TOKEN)
    (told,) = explain(found, KEY)
    assert told["value"] == found.line(KEY).value == SHOWN
    assert found.value(KEY).endswith(TOKEN)


@pytest.mark.parametrize("url", ["https://hooks.example", "http://127.0.0.1:9/", "credential:hook"])
def test_one_without_a_path_is_shown_whole(tmp_path: Path, url: str) -> None:
    text = f"events: {{webhook: {{url: '{url}'}}}}\n"
    found = load(write_policies(tmp_path, {"supervision": text}))
    assert found.line(KEY).value == url


def test_another_token_is_a_change_that_shows_neither(tmp_path: Path) -> None:
    old, new = hooked(tmp_path / "a", TOKEN), hooked(tmp_path / "b", f"{TOKEN}2")
    (change,) = changes(old, new)
    assert (change.old, change.new) == (SHOWN, SHOWN)
    assert TOKEN not in json.dumps(change.as_json())
    assert old.digest != new.digest
    assert sharing(new, old).value(KEY).endswith("canary2")


def test_one_that_another_source_hides_is_not_shown(tmp_path: Path) -> None:
    over = Override(KEY, "https://other.example/x", "environment MLXD_TEST")
    found = hooked(tmp_path, TOKEN, over)
    assert found.shadowed
    assert TOKEN not in json.dumps(explain(found, ""))
