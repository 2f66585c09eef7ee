"""What a tenant may, towards one model."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlxd.control.model_settings import settings_of, settled, with_preset
from mlxd.control.rights import Rights, rights_of
from mlxd.control.scan import Findings
from mlxd.core.caller import Caller
from mlxd.core.errors import Forbidden
from mlxd.core.models import ModelCard, canonical
from mlxd.core.preset import Preset
from mlxd.policy.load import load
from mlxd.policy.schema import clients
from tests.support.daemon import write_policies

CARD = ModelCard(
    "Org/Qwen2.5-Coder-32B-4bit", "/m", 1, "0" * 64, 0.0, "qwen2", 1, "4bit", 4096,
    ("completion",), short_name="qwen2.5-coder:32b", aliases=("fast",),
)  # fmt: skip
OWN_CONTEXT = 'models.models["qwen2.5-coder:32b"].context'


def rights(folder: Path, limits: str, caller: Caller | None = None, **card: Any) -> Rights:
    policies = load(write_policies(folder, {"clients": f"tenants: {{agents: {{{limits}}}}}\n"}))
    return rights_of(caller or Caller("10.0.0.1", "k", "agents"), CARD, policies)


@pytest.mark.parametrize(
    ("models", "allowed"),
    [
        ("[]", True),
        ("['qwen2.5-coder:*']", True),
        ("['ORG/qwen2.5-coder-32b-4BIT']", True),
        ("[other, fast]", True),
        ("['*']", True),
        ("[other, 'llama*']", False),
        ("['qwen']", False),
    ],
)
def test_a_tenant_may_use_the_models_of_its_list(
    tmp_path: Path, models: str, *, allowed: bool
) -> None:
    mine = rights(tmp_path, f"models: {models}")
    if allowed:
        mine.check_model()
        return
    with pytest.raises(Forbidden) as refused:
        mine.check_model()
    assert refused.value.policy is not None
    assert refused.value.policy.key == "clients.tenants.agents.models"
    assert CARD.name in refused.value.message


def test_the_owner_is_not_held_by_what_holds_those_without_a_key(tmp_path: Path) -> None:
    anonymous = "tenants: {anonymous: {models: [none], max_output: 5}}\n"
    policies = load(write_policies(tmp_path, {"clients": anonymous}))
    stranger, owner = (
        rights_of(Caller("local", owner=is_owner), CARD, policies) for is_owner in (False, True)
    )
    assert (stranger.allowed, stranger.max_output(9)) == (False, 5)
    assert (owner.allowed, owner.max_output(9)) == (True, 9)


def test_another_tenants_list_is_nobody_elses(tmp_path: Path) -> None:
    rights(tmp_path, "models: [other]", Caller("10.0.0.1")).check_model()


def test_a_tenants_own_limits_count_where_they_are_the_lower(tmp_path: Path) -> None:
    mine = rights(tmp_path, "max_output: 100, max_context: 1000")
    assert [mine.max_output(most) for most in (50, 8192)] == [50, 100]
    assert mine.context() == (1000, "clients.tenants.agents.max_context")


def test_a_model_that_takes_less_is_the_reason_itself(tmp_path: Path) -> None:
    assert rights(tmp_path, "max_context: 4096").context() == (4096, "")
    (tmp_path / "other").mkdir()
    assert rights(tmp_path / "other", "").context() == (4096, "")


@pytest.mark.parametrize(
    ("default", "own", "context", "key"),
    [
        ("1000", "{}", 1000, "models.defaults.context"),
        ("auto", "{context: 1000}", 1000, OWN_CONTEXT),
        ("50", "{context: 1000}", 1000, OWN_CONTEXT),
        ("50", "{context: auto}", 4096, ""),
        ("4096", "{}", 4096, ""),
        ("9000", "{}", 4096, ""),
        ("auto", "{context: 4096}", 4096, ""),
    ],
)
def test_a_context_that_policy_has_set_is_named(
    tmp_path: Path, default: str, own: str, context: int, key: str
) -> None:
    models = f"defaults: {{context: {default}}}\nmodels: {{'qwen2.5-coder:32b': {own}}}\n"
    policies = load(write_policies(tmp_path, {"models": models}))
    said = settings_of(CARD.name, policies.models)
    card = settled(CARD, said, policies.models, Findings(()))
    copy = replace(card, name="mine", copy_of=card.name)
    for one in (card, copy):
        assert rights_of(Caller("10.0.0.1"), one, policies).context() == (context, key)
    assert not key or policies.line(key).value == str(context)


def test_a_context_that_a_models_creator_has_set_is_no_policys(tmp_path: Path) -> None:
    policies = load(write_policies(tmp_path, {"models": "defaults: {context: 1000}"}))
    card = with_preset(settled(CARD, None, policies.models, Findings(())), Preset(context=100))
    assert rights_of(Caller("10.0.0.1"), card, policies).context() == (100, "")


@pytest.mark.parametrize(
    ("limits", "asked", "counts"),
    [
        ("", None, None),
        ("", 0.0, 0.0),
        ("", math.inf, math.inf),
        ("max_keep_alive: 10m", math.inf, 600.0),
        ("max_keep_alive: 10m", 60.0, 60.0),
        ("max_keep_alive: 10m", None, None),
        ("unload: false", 0.0, None),
        ("unload: false", 1.0, None),
        ("unload: false", 3600.0, 3600.0),
        ("unload: false, max_keep_alive: 10m", 3600.0, 600.0),
    ],
)
def test_what_of_a_keep_alive_counts(
    tmp_path: Path, limits: str, asked: float | None, counts: float | None
) -> None:
    assert rights(tmp_path, limits).keep_alive(asked) == counts


def test_unloading_is_a_right(tmp_path: Path) -> None:
    assert not rights(tmp_path, "unload: false").may_unload


def test_a_list_of_hundreds_of_models_costs_hundreds_of_models_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[str] = []

    def noted(name: str) -> str:
        compared.append(name)
        return canonical(name)

    monkeypatch.setattr(clients, "canonical", noted)
    names = ", ".join(f"org/model-{n}" for n in range(300))
    terms = rights(tmp_path, f"models: [{names}, 'other/*']").terms
    cards = [replace(CARD, name=f"Org/Model-{n}") for n in range(1000)]
    began = time.thread_time()
    allowed = [card.name for card in cards if Rights(terms, card).allowed]
    assert time.thread_time() - began < 0.3
    assert allowed == [f"Org/Model-{n}" for n in range(300)]
    assert len(compared) == 301, "not for each model anew"
