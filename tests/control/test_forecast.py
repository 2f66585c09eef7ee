"""What models will take, before and after they were loaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mlxd.control import forecast
from mlxd.control.forecast import Forecasts, key_of
from mlxd.core.clock import ManualClock
from mlxd.core.footprint import Footprint, LayerGroup
from mlxd.core.models import ModelCard
from mlxd.ipc.messages import Observed, Ready
from mlxd.policy.load import load
from mlxd.policy.policy_set import PolicySet
from tests.support.daemon import write_policies

MIB = 2**20
CARD = ModelCard(
    "m", "/m", 100 * MIB, "ab" * 32, 0.0, "llama", 1, "f16", 4096,
    config={
        "model_type": "llama", "hidden_size": 128, "intermediate_size": 256,
        "num_hidden_layers": 6, "num_attention_heads": 8, "num_key_value_heads": 2,
    },
)  # fmt: skip
MEASURED = Footprint(101 * MIB, (LayerGroup(6, 2000),))


def forecasts(state: Path) -> Forecasts:
    return Forecasts(state, ManualClock())


def ready(footprint: Footprint = MEASURED, peak: int = 0) -> Ready:
    return Ready(True, 1, 1, 1.0, 1, False, False, footprint, peak_bytes=peak)


def observed(predicted: int, measured: int) -> Observed:
    return Observed(predicted * MIB, measured * MIB, 1, 100)


@pytest.fixture
def policies(tmp_path: Path) -> PolicySet:
    return load(write_policies(tmp_path / "policies", {}))


def reserving(tmp_path: Path, words: str) -> PolicySet:
    return load(write_policies(tmp_path / "others", {"memory": f"reserve: {{{words}}}\n"}))


def test_at_first_a_footprint_is_computed_from_the_files(tmp_path: Path) -> None:
    told = forecasts(tmp_path)
    assert told.footprint(CARD).weights_bytes == CARD.size_bytes
    assert told.footprint(CARD).groups[0].layers == 6
    assert told.confidence(CARD) == ("computed", 0, None)
    assert told.correct(CARD, 5) == 5


async def test_a_loaded_model_tells_its_own(tmp_path: Path) -> None:
    told = forecasts(tmp_path)
    told.loaded(CARD, ready())
    assert told.footprint(CARD) == MEASURED
    assert told.confidence(CARD) == ("measured", 0, None)
    await told.saved()


async def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    earlier = forecasts(tmp_path)
    assert earlier.measured(CARD) is None
    earlier.loaded(CARD, ready())
    await earlier.saved()
    assert forecasts(tmp_path).measured(CARD) == MEASURED
    assert forecasts(tmp_path).measured(replace(CARD, size_bytes=2**40)) is None


async def test_what_other_versions_measured_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = forecasts(tmp_path)
    earlier.loaded(CARD, ready())
    await earlier.saved()
    monkeypatch.setattr(forecast, "engine", lambda: "mlx 0.1")
    told = forecasts(tmp_path)
    assert told.measured(CARD) is None
    assert told.footprint(CARD) == MEASURED


async def test_an_earlier_daemon_has_taught(tmp_path: Path) -> None:
    earlier = forecasts(tmp_path)
    earlier.loaded(CARD, ready())
    for _ in range(6):
        earlier.observed(CARD, observed(200, 300))
    await earlier.saved()
    told = forecasts(tmp_path)
    assert told.footprint(CARD) == MEASURED
    kind, count, error = told.confidence(CARD)
    assert (kind, count) == ("learned", 6)
    assert error is not None
    assert 0 < error < 34
    assert told.correct(CARD, 200 * MIB) == pytest.approx(300 * MIB, rel=0.01)


async def test_a_model_quantised_otherwise_is_another(tmp_path: Path) -> None:
    told = forecasts(tmp_path)
    told.observed(CARD, observed(200, 300))
    other = replace(CARD, quantization="4bit")
    assert told.correct(other, 200 * MIB) == 200 * MIB
    assert key_of(CARD) != key_of(replace(CARD, digest="cd" * 32)) != key_of(other)
    await told.saved()


def test_a_load_is_never_less_than_its_weights(tmp_path: Path, policies: PolicySet) -> None:
    empty = replace(CARD, config={})
    assert forecasts(tmp_path).load_bytes(empty, policies) >= CARD.size_bytes


def test_the_first_generation_is_reserved_with_a_load(tmp_path: Path, policies: PolicySet) -> None:
    told = forecasts(tmp_path)
    expected = told.footprint(CARD).peak_bytes((), (2048,), prompts=(1024,))
    assert told.load_bytes(CARD, policies) == expected > CARD.size_bytes


def test_less_is_reserved_where_shorter_answers_are_expected(
    tmp_path: Path, policies: PolicySet
) -> None:
    told = forecasts(tmp_path)
    short = reserving(tmp_path, "expected_output: 100")
    assert told.load_bytes(CARD, short) < told.load_bytes(CARD, policies)


def test_a_reserve_in_bytes_stands_beside_the_weights(tmp_path: Path) -> None:
    policies = reserving(tmp_path, "per_request: 7MiB")
    assert forecasts(tmp_path).load_bytes(CARD, policies) == 107 * MIB


def test_no_more_is_reserved_than_the_context_holds(tmp_path: Path, policies: PolicySet) -> None:
    told = forecasts(tmp_path)
    small = replace(CARD, context=256, digest="ef" * 32)
    assert told.load_bytes(small, policies) < told.load_bytes(CARD, policies)


async def test_a_load_that_took_more_is_expected_to_again(
    tmp_path: Path, policies: PolicySet
) -> None:
    told = forecasts(tmp_path)
    told.loaded(CARD, ready(peak=250 * MIB))
    assert told.load_bytes(CARD, policies) == pytest.approx(250 * MIB, rel=0.01)
    await told.saved()


async def test_what_was_observed_corrects_the_reserve(tmp_path: Path, policies: PolicySet) -> None:
    told = forecasts(tmp_path)
    before = told.load_bytes(CARD, policies)
    told.observed(CARD, observed(200, 400))
    assert told.load_bytes(CARD, policies) == pytest.approx(2 * before, rel=0.01)
    await told.saved()


@pytest.mark.parametrize("nothing", [observed(0, 100), observed(100, 0)])
def test_nothing_is_learned_from_nothing(tmp_path: Path, nothing: Observed) -> None:
    told = forecasts(tmp_path)
    told.observed(CARD, nothing)
    assert told.confidence(CARD) == ("computed", 0, None)


@pytest.mark.parametrize("weights", [10 * MIB, 100_000 * MIB])
async def test_a_footprint_of_other_weights_is_not_believed(tmp_path: Path, weights: int) -> None:
    told = forecasts(tmp_path)
    card = replace(CARD, size_bytes=5000 * MIB)
    told.loaded(card, ready(Footprint(weights, (LayerGroup(6, 2000),))))
    assert told.footprint(card).weights_bytes == card.size_bytes
    await told.close()


def test_a_config_that_nothing_can_be_computed_from_is_no_failure(
    tmp_path: Path, policies: PolicySet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def odd(card: ModelCard) -> Footprint:
        raise TypeError(card.config)

    monkeypatch.setattr("mlxd.control.shape.footprint_of", odd)
    assert forecasts(tmp_path).footprint(CARD) == Footprint(CARD.size_bytes, ())
    assert forecasts(tmp_path).load_bytes(CARD, policies) == CARD.size_bytes


async def test_a_model_that_drafts_counts_with_the_one_that_it_drafts_for(
    tmp_path: Path, policies: PolicySet
) -> None:
    small = replace(CARD, name="s", path="/s", size_bytes=10 * MIB, digest="cd" * 32)
    drafted = replace(CARD, draft=small)
    told = forecasts(tmp_path)
    footprint = told.footprint(drafted)
    assert footprint.weights_bytes == 110 * MIB
    assert footprint.draft == told.footprint(small).groups
    one = told.footprint(small).cache_bytes([2000])
    assert footprint.cache_bytes([2000] * 3) == told.footprint(CARD).cache_bytes([2000] * 3) + one
    assert told.load_bytes(drafted, policies) >= told.load_bytes(CARD, policies) + 10 * MIB
    assert key_of(drafted) != key_of(CARD)


async def test_without_a_reserve_a_load_takes_what_loading_holds(tmp_path: Path) -> None:
    told = forecasts(tmp_path)
    assert told.bare_bytes(CARD) == told.footprint(CARD).weights_bytes
    told.loaded(CARD, ready(peak=250 * MIB))
    assert told.bare_bytes(CARD) == pytest.approx(250 * MIB, rel=0.01)
    await told.saved()
