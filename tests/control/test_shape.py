"""What a model's files say about the memory that it takes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mlxd.control.shape import footprint_of, groups_of, item_bytes, loading_bytes
from mlxd.core.dimensions import Dimensions
from mlxd.core.footprint import LayerGroup
from mlxd.core.models import ModelCard

LLAMA = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
KV = 2 * 2 * 16
"""Numbers of one token in one layer."""


def card(quantization: str = "f16", size: int = 1000, **config: Any) -> ModelCard:
    return ModelCard(
        "m", "/m", size, "0" * 64, 0.0, "llama", 1, quantization, 4096, config={**LLAMA, **config}
    )


def groups(**config: Any) -> tuple[LayerGroup, ...]:
    return footprint_of(card(**config), fused=False).groups


def test_weights_are_the_bytes_of_the_files() -> None:
    assert footprint_of(card(size=12345)).weights_bytes == 12345


def test_a_layer_of_full_attention_keeps_keys_and_values_of_its_heads() -> None:
    assert groups() == (LayerGroup(6, KV * 2),)
    assert groups(quantization="f32") == (LayerGroup(6, KV * 4),)


def test_without_their_own_number_all_heads_keep_keys() -> None:
    assert groups(num_key_value_heads=None, head_dim=None) == (LayerGroup(6, 2 * 128 * 2),)


def test_some_families_know_no_other_size_of_a_head() -> None:
    assert groups(model_type="qwen2", head_dim=64) == (LayerGroup(6, KV * 2),)


def test_windows_are_named_layer_by_layer() -> None:
    types = ["sliding_attention", "sliding_attention", "full_attention"] * 2
    assert groups(layer_types=types, sliding_window=64) == (
        LayerGroup(2, KV * 2),
        LayerGroup(4, KV * 2, window=64),
    )


def test_a_window_that_no_layer_is_said_to_keep_does_not_count() -> None:
    assert groups(sliding_window=64) == (LayerGroup(6, KV * 2),)


def test_windows_come_by_a_pattern() -> None:
    assert groups(model_type="gemma3_text", sliding_window=64, sliding_window_pattern=3) == (
        LayerGroup(2, KV * 2),
        LayerGroup(4, KV * 2, window=64),
    )


def test_a_pattern_may_go_without_saying() -> None:
    assert groups(model_type="gemma3_text", sliding_window=64)[1].layers == 5


def test_linear_attention_keeps_a_state() -> None:
    found = groups(
        full_attention_interval=3,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=16,
        linear_conv_kernel_dim=4,
    )
    constant = 4 * 16 * 8 * 4 + 3 * (2 * 2 * 8 + 4 * 16) * 2
    assert found == (LayerGroup(2, KV * 2), LayerGroup(4, 0, constant_bytes=constant))


def test_a_state_space_model_keeps_nothing_else() -> None:
    (found,) = groups(
        model_type="mamba2", num_heads=8, head_dim=32, state_size=32, conv_kernel=4, n_groups=1,
        intermediate_size=256, quantization="f32",
    )  # fmt: skip
    assert found == LayerGroup(6, 0, constant_bytes=8 * 32 * 32 * 4 + 3 * (256 + 64) * 4)


def test_a_latent_is_kept_in_place_of_keys_and_values() -> None:
    found = groups(model_type="deepseek_v3", kv_lora_rank=48, qk_rope_head_dim=16)
    assert found == (LayerGroup(6, (48 + 16) * 2),)


def test_a_latent_that_is_unpacked_keeps_keys_and_values_of_all_heads() -> None:
    latent = {"kv_lora_rank": 64, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 24}
    heads = {"num_key_value_heads": 8}
    for family in ("deepseek_v2", "minicpm3"):
        assert groups(model_type=family, **latent, **heads) == (LayerGroup(6, 8 * (48 + 24) * 2),)


def test_a_layer_of_longcat_attends_twice() -> None:
    assert groups(model_type="longcat_flash") == (LayerGroup(12, KV * 2),)


def test_a_layer_of_a_kind_that_is_not_known_keeps_all_tokens() -> None:
    types = ["full_attention", "minimax_m3_sparse", "mlp"] * 2
    assert groups(layer_types=types) == (LayerGroup(4, KV * 2),)


def test_attention_comes_at_every_so_many_layers_between_states() -> None:
    found = groups(
        model_type="jamba", attn_layer_period=3, attn_layer_offset=1, mamba_expand=2,
        mamba_d_conv=4, mamba_d_state=16,
    )  # fmt: skip
    inner = 2 * 128
    assert found == (
        LayerGroup(2, KV * 2),
        LayerGroup(4, 0, 0, 4 * inner * 16 + 3 * inner * 2),
    )


def test_each_groups_last_layer_attends_and_those_behind_the_last_group() -> None:
    grouped = {"layer_group_size": 2, "num_hidden_layers": 5}
    state = 8 * 16 * 16 * 4
    for family, ends in (("bailing_moe_linear", 0), ("bailing_moe_v3", 3 * 3 * 128 * 2)):
        kernel = {"short_conv_kernel_size": 4} if ends else {}
        found = groups(model_type=family, **grouped, **kernel)
        assert found == (LayerGroup(3, KV * 2), LayerGroup(2, 0, 0, state + ends))


@pytest.mark.parametrize(
    ("family", "config", "heads"),
    [
        ("afm7", {"num_kv_heads": 2}, 2),
        ("phixtral", {}, 8),
        ("lille-130m", {"n_kv_heads": 2}, 2),
        ("dbrx", {"attn_config": {"kv_n_heads": 2}}, 2),
        ("plamo", {"n_shared_head": 4}, 2),
        ("step3p5", {"num_attention_groups": 2}, 2),
        ("gpt_bigcode", {}, 1),
        ("gpt_bigcode", {"multi_query": False}, 8),
        ("openelm", {"num_query_heads": [4, 8], "num_kv_heads": [1, 2]}, 2),
    ],
)
def test_families_have_words_of_their_own_for_heads(
    family: str, config: dict[str, Any], heads: int
) -> None:
    named = {"num_heads": 8} if family in ("afm7", "phixtral") else {"n_head": 8}
    named = {} if family == "openelm" else named
    width = "n_embd" if "n_head" in named else {"afm7": "hidden_dim"}.get(family, "model_dim")
    whole = {"model_type": family, "num_layers": 6, width: 128, **named, **config}
    assert groups_of(whole, Dimensions.of(whole, 2), 0) == (LayerGroup(6, 2 * heads * 16 * 2),)


def test_layers_that_use_keys_of_others_keep_none() -> None:
    config = {
        "model_type": "afm7", "num_layers": 6, "num_kv_reuse_layers": 2, "hidden_dim": 128,
        "num_heads": 8, "num_kv_heads": 2,
    }  # fmt: skip
    assert groups_of(config, Dimensions.of(config, 2), 0) == (LayerGroup(4, KV * 2),)


@pytest.mark.parametrize("fused", [False, True])
def test_a_scan_that_holds_the_states_of_all_tokens_is_foreseen(fused: bool) -> None:
    jamba: dict[str, Any] = {"model_type": "jamba", "mamba_expand": 2, "mamba_d_state": 16}
    found = footprint_of(card(quantization="f32", attn_layer_period=2, **jamba), fused=fused)
    assert max(moment.token for moment in found.prefill) > 12 * 4 * 2 * 128 * 16


def test_the_first_mamba_keeps_a_state_for_each_number_of_its_width() -> None:
    found = groups(model_type="mamba", state_size=16, conv_kernel=4)
    assert found == (LayerGroup(6, 0, 0, 4 * 256 * 16 + 3 * 256 * 2),)


def test_rwkv_keeps_a_matrix_for_each_head() -> None:
    (found,) = groups(model_type="rwkv7")
    assert (found.layers, found.token_bytes) == (6, 0)
    assert found.constant_bytes == pytest.approx(4 * 128 * 16, rel=0.1)


def test_a_quantised_cache_keeps_bits_and_scales() -> None:
    numbers = 2 * 2 * 64
    (group,) = groups_with_kv_bits(4, head_dim=64)
    assert group.token_bytes == numbers * 4 // 8 + 2 * (numbers // 64) * 2


def groups_with_kv_bits(bits: int, **config: Any) -> tuple[LayerGroup, ...]:
    given = {**LLAMA, **config}
    return groups_of(given, Dimensions.of(given, 2), bits)


def test_fused_attention_keeps_no_scores() -> None:
    unfused = footprint_of(card(), fused=False).prefill
    fused = footprint_of(card(), fused=True).prefill
    assert min(moment.pair for moment in unfused) >= 8 * 2
    assert max(moment.pair for moment in fused) == 1


def test_scores_of_the_last_layer_are_never_asked_for() -> None:
    linear = ["linear_attention"] * 5
    last = footprint_of(card(layer_types=[*linear, "full_attention"]), fused=False)
    first = footprint_of(card(layer_types=["full_attention", *linear]), fused=False)
    assert all(moment.pair == 0 for moment in last.prefill)
    assert all(moment.pair > 0 for moment in first.prefill)


def test_quantised_weights_are_computed_with_in_halves() -> None:
    assert item_bytes(card(quantization="4bit")) == 2
    assert item_bytes(card(quantization="4bit", torch_dtype="float32")) == 4
    assert item_bytes(card(quantization="f32")) == 4


def test_experts_are_put_together_while_they_are_loaded() -> None:
    assert loading_bytes(card(size=6000)) == 6000
    apart = replace(card(size=6000, num_experts=8), experts_apart=True)
    assert loading_bytes(apart) == 8000
    assert loading_bytes(replace(apart, experts_apart=False)) == 6000, "they are together on disk"


def test_the_largest_matrix_of_float32_is_held_twice_where_it_is_laid_out() -> None:
    whole = card("f32", size=10**6, vocab_size=1000)
    assert loading_bytes(whole, laid_out=True) == 10**6 + 4 * 128 * 1000
    assert loading_bytes(whole, laid_out=False) == 10**6
    experts = card(
        "f32", size=10**6, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=200
    )
    assert loading_bytes(experts, laid_out=True) == 10**6 + 4 * 128 * 8 * 200
    assert loading_bytes(card("f32", vocab_size=10**6), laid_out=True) == 2000, "it has no more"
    for other in ("f16", "4bit"):
        assert loading_bytes(card(other, vocab_size=1000), laid_out=True) == 1000


def test_weights_of_8_bits_are_unpacked_while_they_are_loaded() -> None:
    assert loading_bytes(card(quantization_config={"quant_method": "fp8"})) == 2000


@pytest.mark.parametrize(
    "config",
    [
        {"num_hidden_layers": None},
        {"num_hidden_layers": "six"},
        {"layer_types": [1, None, "what"]},
        {"num_attention_heads": 0, "hidden_size": -5},
        {"sliding_window": 2**62, "sliding_window_pattern": 3},
        {"quantization_config": "fp8"},
        {"model_type": ["llama"]},
        {"model_type": {}, "sliding_window": 64},
    ],
)
def test_whatever_a_config_says_there_is_a_footprint(config: dict[str, Any]) -> None:
    found = footprint_of(card(**config))
    assert found.peak_bytes((), [4096]) >= 1000


@pytest.mark.parametrize(
    "config",
    [
        {"num_hidden_layers": 2**40 - 1},
        {"layer_types": ["full_attention"] * 10_000},
        {"hybrid_override_pattern": "*" * 10_000},
    ],
    ids=lambda config: next(iter(config)),
)
def test_more_layers_than_any_model_has_are_not_counted(config: dict[str, Any]) -> None:
    assert groups(**config) == (LayerGroup(4096, KV * 2),)
