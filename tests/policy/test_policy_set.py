"""The set in force: its values, where each was set, and what it warns of."""

from __future__ import annotations

from pathlib import Path

import pydantic
import pytest

from mlxd.policy.load import load
from mlxd.policy.policy_set import PolicySet


@pytest.fixture
def found(tmp_path: Path) -> PolicySet:
    folder = tmp_path / "policies"
    folder.mkdir()
    (folder / "limits.yaml").write_text(
        "schema: mlxd/v1\nconcurrency:\n  # busy\n  max_in_flight: 9\n"
        "  per_model: {'qwen2.5:7b': 2}\nrate_limit:\n  - requests: 3\n    window: 1h30m\n"
    )
    return load(folder)


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("limits.concurrency.max_in_flight", "9 (policies/limits.yaml:4)"),
        ('limits.concurrency.per_model["qwen2.5:7b"]', "2 (policies/limits.yaml:5)"),
        ("limits.rate_limit[0].window", "1h30m (policies/limits.yaml:8)"),
        (
            "limits.rate_limit[0].max_keys",
            "100000 (built-in default; set it in policies/limits.yaml)",
        ),
        ("timeouts.generation", "300s (built-in default; set it in policies/timeouts.yaml)"),
        ("models.chains.coding", "[] (built-in default; set it in policies/models.yaml)"),
        ("models.max_loaded", "auto (built-in default; set it in policies/models.yaml)"),
        (
            "limits.tokens",
            "{max_prompt: 131072, max_output: 8192, mode: enforce, max_batch_tokens: auto} "
            "(built-in default; set it in policies/limits.yaml)",
        ),
    ],
)
def test_a_line_names_key_value_and_place(found: PolicySet, key: str, line: str) -> None:
    assert str(found.line(key)) == f"{key}: {line}"


@pytest.mark.parametrize(
    "key",
    ["", "limit", "limits.concurrency.max", "limits.rate_limit[1]", "limits.tokens.x", "a[0]"],
)
def test_a_key_that_is_not_there_is_a_key_error(found: PolicySet, key: str) -> None:
    with pytest.raises(KeyError):
        found.line(key)


def test_the_place_names_the_folder_by_its_last_part(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "timeouts.yaml").write_text("schema: mlxd/v1\nqueue: 5s\n")
    assert load(folder).line("timeouts.queue").place == "mine/timeouts.yaml:2"
    assert load(folder).line("timeouts.generation").place.endswith("set it in mine/timeouts.yaml")


def test_a_set_never_changes(found: PolicySet) -> None:
    with pytest.raises(AttributeError):
        found.generation = 2  # type: ignore[misc]
    with pytest.raises(pydantic.ValidationError):
        found.limits.concurrency.max_in_flight = 2
    with pytest.raises(TypeError):
        found.sources[()] = None  # type: ignore[index]


def test_the_defaults_ask_for_nothing_that_is_not_there() -> None:
    assert load().warnings() == []
