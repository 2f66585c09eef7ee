"""A small config for every kind of model that mlx-lm builds: a few layers, of each kind one."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]
LAYERS, WINDOW = 4, 32
_SLIDING = ["sliding_attention", "full_attention"] * 2
_LINEAR = ["linear_attention", "full_attention"] * 2
_ROPE: Json = {"rope_type": "default", "rope_theta": 10000.0}
_SCALED: Json = {
    **_ROPE,
    "llama_4_scaling_beta": 0.1,
    "original_max_position_embeddings": 4096,
}
_TABLE: Json = {"vocab_size": 512}
_BASE: Json = {
    "vocab_size": 512,
    "hidden_size": 256,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 128,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "norm_eps": 1e-5,
    "layer_norm_eps": 1e-5,
    "layer_norm_epsilon": 1e-5,
    "layernorm_epsilon": 1e-5,
    "norm_epsilon": 1e-5,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "partial_rotary_factor": 0.5,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
    "use_bias": False,
    "use_qk_norm": True,
    "qk_norm": True,
    "post_norm": False,
    "sliding_window": WINDOW,
    "sliding_window_pattern": 2,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "moe_intermediate_size": 64,
    "shared_intermediate_size": 64,
    "shared_expert_intermediate_size": 64,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "moe_layer_freq": 1,
    "first_k_dense_replace": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
    "n_group": 1,
    "topk_group": 1,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "kv_lora_rank": 64,
    "q_lora_rank": 64,
    "qk_rope_head_dim": 32,
    "qk_nope_head_dim": 32,
    "v_head_dim": 64,
    "embedding_multiplier": 1.0,
    "attention_multiplier": 0.125,
    "logits_scaling": 1.0,
    "residual_multiplier": 1.0,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_conv_kernel_dim": 4,
    "full_attention_interval": 2,
    "conv_L_cache": 3,
    "conv_bias": False,
}
"""What configs call the same things; of these a config has those that its model reads."""


@dataclass(frozen=True)
class Architecture:
    """One `model_type`, and what its config says beside `_BASE`."""

    name: str
    extra: Json = field(default_factory=dict)
    text: str = ""
    """The module whose arguments its `text_config` has; empty: it has none."""
    outer: Json = field(default_factory=dict)
    """Beside that."""

    @property
    def config(self) -> Json:
        """As config.json has it. Raises whatever the model's own module does."""
        if not self.text:
            return _stamped(self.name, _filled(self.name, "ModelArgs", self.extra))
        module, _, arguments = self.text.partition(".")
        text = _stamped(module, _filled(module, arguments or "ModelArgs", self.extra))
        return {**_stamped(self.name, self.outer), "text_config": text}


def _stamped(name: str, config: Json) -> Json:
    return {
        "architectures": ["AnyForCausalLM"],
        "model_type": name,
        **config,
        "eos_token_id": 0,
        "bos_token_id": 1,
        "torch_dtype": "float32",
    }


def _filled(module: str, arguments: str, extra: Mapping[str, Any]) -> Json:
    known = importlib.import_module(f"mlx_lm.models.{module}")
    names = {one.name for one in dataclasses.fields(getattr(known, arguments))}
    base = {key: value for key, value in _BASE.items() if key in names}
    return {**base, **extra}


_UNTIED: Json = {"tie_word_embeddings": False}
_MLA: Json = {"num_key_value_heads": 4}
_SHORT_ROUTES: Json = {"scoring_func": "sigmoid", "topk_method": "noaux_tc"}
_DSA: Json = {**_MLA, "index_head_dim": 32, "index_n_heads": 2, "index_topk": 24}
_MAMBA: Json = {
    "mamba_d_conv": 4,
    "mamba_d_state": 16,
    "mamba_expand": 2,
    "mamba_n_groups": 1,
    "mamba_n_heads": 4,
    "mamba_d_head": 32,
    "mamba_proj_bias": False,
    "mamba_conv_bias": True,
}
_GPT: Json = {"n_embd": 256, "n_head": 4, "n_layer": LAYERS, "n_positions": 4096, "n_ctx": 4096}
_KIMI_LINEAR: Json = {
    "linear_attn_config": {
        "kda_layers": [1, 3],
        "full_attn_layers": [2, 4],
        "num_heads": 4,
        "head_dim": 32,
        "short_conv_kernel_size": 4,
    },
    "num_key_value_heads": 4,
    "model_max_length": 4096,
}
_GEMMA3N: Json = {
    "layer_types": ["sliding_attention", "full_attention"] * 3,
    "num_hidden_layers": 6,
    "num_kv_shared_layers": 2,
    "vocab_size_per_layer_input": 512,
    "intermediate_size": [128] * 6,
    "rope_local_base_freq": 10000.0,
    "final_logit_softcapping": 30.0,
    "activation_sparsity_pattern": [0.5, 0.0] * 3,
    "hidden_size_per_layer_input": 32,
    "altup_num_inputs": 2,
    "altup_coef_clip": 120.0,
    "altup_correct_scale": True,
    "altup_active_idx": 0,
    "laurel_rank": 16,
}
_GEMMA4: Json = {
    "layer_types": ["sliding_attention", "full_attention"] * 3,
    "num_hidden_layers": 6,
    "num_kv_shared_layers": 2,
    "vocab_size_per_layer_input": 512,
    "hidden_size_per_layer_input": 32,
    "global_head_dim": 64,
    "enable_moe_block": False,
}
_LONGCAT: Json = {
    "attention_method": "MLA",
    "zero_expert_type": "identity",
    "ffn_hidden_size": 128,
    "moe_topk": 2,
    "expert_ffn_hidden_size": 64,
    "zero_expert_num": 2,
    "num_layers": 2,
    "mla_scale_q_lora": True,
    "mla_scale_kv_lora": True,
    "num_key_value_heads": 4,
}
_LLAMA4: Json = {
    "attention_chunk_size": 64,
    "interleave_moe_layer_step": 2,
    "intermediate_size_mlp": 128,
    "num_experts_per_tok": 1,
    "num_local_experts": 2,
}
_MINIMAX_M3: Json = {
    "dense_intermediate_size": 128,
    "rotary_dim": 32,
    "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
    "layer_types": ["full_attention", "minimax_m3_sparse"] * 2,
    "index_n_heads": 2,
    "index_head_dim": 32,
    "index_block_size": 16,
    "index_topk_blocks": 2,
}

_FIRST = (
    Architecture("llama"),
    Architecture("qwen2"),
    Architecture("qwen3"),
    Architecture("qwen3_moe"),
    Architecture("qwen3_5", {"num_experts": 0}, "qwen3_5.TextModelArgs"),
    Architecture("qwen3_5_moe", text="qwen3_5.TextModelArgs"),
    Architecture("qwen3_next"),
    Architecture("qwen3_vl", text="qwen3"),
    Architecture("qwen3_vl_moe", text="qwen3_moe"),
    Architecture("qwen2_vl", text="qwen2"),
    Architecture("qwen2_moe"),
    Architecture("gemma"),
    Architecture("gemma2"),
    Architecture("gemma3_text", {"query_pre_attn_scalar": 64}),
    Architecture("gemma3", {"query_pre_attn_scalar": 64}, "gemma3_text", _TABLE),
    Architecture("gemma3n", _GEMMA3N, "gemma3n.TextConfig"),
    Architecture("gemma4_text", _GEMMA4),
    Architecture("gemma4", _GEMMA4, "gemma4_text", _TABLE),
    Architecture("gpt_oss", {"layer_types": _SLIDING}),
    Architecture("mistral3", text="llama"),
    Architecture(
        "ministral3",
        {
            "layer_types": _SLIDING,
            "rope_parameters": _SCALED,
        },
    ),
    Architecture("mistral4", {**_MLA, "rope_parameters": _SCALED}),
    Architecture("mixtral"),
    Architecture("phi3", {"partial_rotary_factor": 1.0}),
    Architecture("phi"),
    Architecture(
        "deepseek_v2",
        {
            **_MLA,
            "topk_method": "greedy",
            "rope_scaling": {
                "type": "yarn",
                "factor": 2.0,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "original_max_position_embeddings": 2048,
                "beta_fast": 32,
                "beta_slow": 1,
            },
        },
    ),
    Architecture("deepseek_v3", _MLA),
    Architecture("deepseek_v32", _DSA),
    Architecture("glm4"),
    Architecture("glm4_moe"),
    Architecture("glm4_moe_lite", _MLA),
    Architecture("glm_moe_dsa", {**_DSA, **_SHORT_ROUTES, "rope_parameters": _ROPE}),
    Architecture("kimi_linear", _KIMI_LINEAR),
    Architecture("kimi_k25", _MLA, "deepseek_v3"),
    Architecture("kimi_vl", _MLA, "deepseek_v3"),
    Architecture(
        "lfm2",
        {
            "layer_types": ["conv", "full_attention"] * 2,
            "block_dim": 256,
            "block_ff_dim": 128,
            "block_multiple_of": 16,
            "block_ffn_dim_multiplier": 1.0,
            "block_auto_adjust_ff_dim": False,
        },
    ),
    Architecture(
        "lfm2_moe",
        {
            "layer_types": ["conv", "full_attention"] * 2,
            "use_expert_bias": True,
            "num_dense_layers": 1,
        },
    ),
    Architecture(
        "lfm2-vl",
        {
            "layer_types": ["conv", "full_attention"] * 2,
            "block_dim": 256,
            "block_ff_dim": 128,
            "block_multiple_of": 16,
            "block_ffn_dim_multiplier": 1.0,
            "block_auto_adjust_ff_dim": False,
        },
        "lfm2",
    ),
    Architecture(
        "granitemoehybrid",
        {**_MAMBA, "layer_types": ["mamba", "attention"] * 2, "mamba_n_heads": 16},
    ),
    Architecture("granite"),
    Architecture("granitemoe"),
    Architecture(
        "nemotron_h",
        {
            "hybrid_override_pattern": "M*-E",
            "mamba_num_heads": 4,
            "mamba_head_dim": 32,
            "mamba_proj_bias": False,
            "ssm_state_size": 16,
            "conv_kernel": 4,
            "n_groups": 1,
            "use_conv_bias": True,
            "moe_shared_expert_intermediate_size": 64,
            "time_step_limit": [0.0, 100.0],
        },
    ),
    Architecture("nemotron", {"hidden_act": "relu2"}),
    Architecture("smollm3"),
    Architecture("olmo2"),
    Architecture("olmo3", {"layer_types": _SLIDING}),
    Architecture("olmoe"),
    Architecture("seed_oss"),
    Architecture("llama4", _LLAMA4, "llama4.TextArgs"),
    Architecture("llama4_text", {"intermediate_size_mlp": 128, "no_rope_layers": [1, 0, 1, 0]}),
)
"""Families that people run most."""
_OTHERS = (
    Architecture("Klear"),
    Architecture(
        "afm7",
        {
            "hidden_dim": 256,
            "num_layers": 6,
            "num_kv_reuse_layers": 2,
            "num_heads": 4,
            "num_kv_heads": 2,
        },
    ),
    Architecture("afmoe", {"layer_types": _SLIDING, "num_dense_layers": 1}),
    Architecture("apertus"),
    Architecture("baichuan_m1", {"sliding_window_layers": [0, 2], "conv_window": 2, **_UNTIED}),
    Architecture("bailing_hybrid", {**_MLA, "layer_group_size": 2, "group_norm_size": 2}),
    Architecture("bailing_moe"),
    Architecture("bailing_moe_linear", {"layer_group_size": 2, "group_norm_size": 2}),
    Architecture(
        "bailing_moe_v3",
        {"layer_group_size": 2, "short_conv_kernel_size": 4, "num_key_value_heads": 4},
    ),
    Architecture("bitnet"),
    Architecture("cohere"),
    Architecture("cohere2"),
    Architecture(
        "dbrx",
        {
            "d_model": 256,
            "n_layers": 2,
            "n_heads": 4,
            "ffn_config": {"ffn_hidden_size": 128, "moe_num_experts": 4, "moe_top_k": 2},
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0},
        },
    ),
    Architecture("deepseek", {"num_key_value_heads": 4}),
    Architecture(
        "deepseek_v41",
        {
            "qk_rope_head_dim": 32,
            "o_groups": 2,
            "o_lora_rank": 32,
            "compress_ratios": [0, 0, 4, 8],
            "kv_source_layer_ids": [0, 1, 2, 3],
            "index_source_layer_ids": [0, 1, 2, 3],
            "index_n_heads": 2,
            "index_head_dim": 32,
            "index_topk": 8,
            "hc_mult": 2,
        },
    ),
    Architecture("dots1"),
    Architecture("ernie4_5"),
    Architecture("ernie4_5_moe", {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 64}),
    Architecture("exaone", {"num_layers": LAYERS}),
    Architecture("exaone4", {"sliding_window_pattern": "LG", "layer_types": _SLIDING}),
    Architecture("exaone_moe", {"layer_types": _SLIDING, "is_moe_layer": [False, True] * 2}),
    Architecture(
        "falcon_h1", {**_MAMBA, "mamba_d_ssm": 128, "mamba_expand": 1, "mamba_rms_norm": False}
    ),
    Architecture(
        "gear", {"layer_types": ["conv_mixer", "full_attention", "sliding_attention", "conv_mixer"]}
    ),
    Architecture("glm"),
    Architecture("gpt2", {**_GPT, **_MLA}),
    Architecture("gpt_bigcode", {**_GPT, "n_inner": 512}),
    Architecture("gpt_neox", {"rotary_emb_base": 10000, "rotary_pct": 0.25, **_MLA}),
    Architecture("gptj", {**_GPT, "rotary_dim": 32}),
    Architecture("helium"),
    Architecture(
        "hunyuan",
        {
            "moe_topk": 2,
            "num_shared_expert": 1,
            "use_mixed_mlp_moe": True,
            "use_cla": True,
            "cla_share_factor": 2,
            "rope_scaling": {"type": "dynamic", "alpha": 1000.0, "factor": 1.0},
        },
    ),
    Architecture("hunyuan_v1_dense"),
    Architecture("internlm2"),
    Architecture("internlm3"),
    Architecture("iquestloopcoder", {"loop_num": 2, "loop_window_size": WINDOW}),
    Architecture(
        "jamba",
        {
            **{key: _MAMBA[key] for key in ("mamba_d_conv", "mamba_d_state", "mamba_expand")},
            "attn_layer_offset": 1,
            "attn_layer_period": 2,
            "expert_layer_offset": 1,
            "expert_layer_period": 2,
        },
    ),
    Architecture(
        "kimi_k3",
        {
            **_KIMI_LINEAR,
            "num_shared_experts": 0,
            "attn_res_block_size": 2,
            "mla_use_nope": True,
            "activation_situ_beta": 1.0,
            "activation_situ_linear_beta": 1.0,
            "routed_expert_hidden_size": 64,
        },
        "kimi_k3.TextArgs",
    ),
    Architecture(
        "laguna",
        {
            "layer_types": _SLIDING,
            "mlp_layer_types": ["dense", "sparse"] * 2,
            "rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE},
        },
    ),
    Architecture("lille-130m", {**_GPT, "block_size": 4096, "n_kv_heads": 2}),
    Architecture("longcat_flash", _LONGCAT),
    Architecture(
        "longcat_flash_ngram",
        {**_LONGCAT, "ngram_vocab_size_ratio": 2, "emb_neighbor_num": 3, "emb_split_num": 2},
    ),
    Architecture(
        "mamba",
        {
            "intermediate_size": 256,
            "state_size": 16,
            "conv_kernel": 4,
            "use_conv_bias": True,
            "time_step_rank": 16,
        },
    ),
    Architecture(
        "mamba2",
        {
            "num_heads": 8,
            "intermediate_size": 512,
            "state_size": 16,
            "conv_kernel": 4,
            "n_groups": 1,
            "use_conv_bias": True,
            "time_step_limit": [0.0, 100.0],
            "time_step_rank": 16,
        },
    ),
    Architecture(
        "mellum",
        {
            "layer_types": _SLIDING,
            "rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE},
        },
    ),
    Architecture("mimo"),
    Architecture(
        "mimo_v2_flash",
        {
            **_SHORT_ROUTES,
            "hybrid_layer_pattern": [1, 0, 1, 0],
            "moe_layer_freq": [0, 1, 1, 1],
            "add_swa_attention_sink_bias": True,
            "add_full_attention_sink_bias": False,
            "sliding_window_size": WINDOW,
            "swa_rope_theta": 10000.0,
            "swa_num_attention_heads": 4,
            "swa_num_key_value_heads": 1,
            "swa_head_dim": 64,
            "swa_v_head_dim": 64,
        },
    ),
    Architecture("minicpm", {"dim_model_base": 256, "scale_depth": 1.4, "scale_emb": 1.0}),
    Architecture(
        "minicpm3",
        {
            **_MLA,
            "dim_model_base": 256,
            "scale_depth": 1.4,
            "scale_emb": 1.0,
            "rope_scaling": {
                "type": "longrope",
                "long_factor": [1.0] * 16,
                "short_factor": [1.0] * 16,
                "original_max_position_embeddings": 4096,
            },
        },
    ),
    Architecture("minimax", {"rotary_dim": 32}),
    Architecture("minimax_m3_vl", _MINIMAX_M3, "minimax_m3_vl.TextArgs"),
    Architecture("muse_glimmer", {"layer_types": _SLIDING, "rope_parameters": _ROPE}),
    Architecture(
        "muse_spark",
        {
            "layer_types": _SLIDING,
            "post_norm_eps": 1e-6,
            "rope_parameters": _ROPE,
            "layer_rope_theta": [10000.0, 0.0] * 2,
            "final_logit_softcapping": 20.0,
            "output_multiplier": 0.5,
            "moe_hidden_size": 64,
            "num_shared_experts": 0,
        },
        "muse_spark.TextArgs",
    ),
    Architecture("nanbeige", {"num_loops": 2}),
    Architecture("nanochat"),
    Architecture(
        "nemotron-nas",
        {
            "block_configs": [
                {"attention": {"n_heads_in_group": 2}, "ffn": {"ffn_mult": 1.0}},
                {"attention": {"no_op": True}, "ffn": {"ffn_mult": 1.0}},
                {"attention": {"replace_with_linear": True}, "ffn": {"no_op": True}},
                {"attention": {"n_heads_in_group": 4}, "ffn": {"ffn_mult": 1.0}},
            ]
        },
    ),
    Architecture("olmo_hybrid", {"layer_types": _LINEAR, "linear_allow_neg_eigval": True}),
    Architecture(
        "openelm",
        {
            "num_transformer_layers": 3,
            "model_dim": 256,
            "ffn_dim_divisor": 64,
            "num_query_heads": [4, 4, 8],
            "num_kv_heads": [2, 2, 4],
            "ffn_multipliers": [0.5, 1.0, 1.0],
        },
    ),
    Architecture(
        "phi3small",
        {
            "dense_attention_every_n_layers": 2,
            "ff_intermediate_size": 128,
            "gegelu_limit": 20.0,
            "blocksparse_num_local_blocks": 1,
        },
    ),
    Architecture(
        "phimoe",
        {
            "rope_scaling": {
                "type": "longrope",
                "long_factor": [1.0] * 32,
                "short_factor": [1.0] * 32,
                "long_mscale": 1.0,
                "short_mscale": 1.0,
                "original_max_position_embeddings": 4096,
            }
        },
    ),
    Architecture("phixtral", {"num_vocab": 512, "model_dim": 256, "num_heads": 4, "num_layers": 2}),
    Architecture("pixtral", text="llama"),
    Architecture("plamo", {"n_shared_head": 2}),
    Architecture(
        "plamo2",
        {
            "hidden_size_per_head": 64,
            "attention_window_size": WINDOW,
            "mamba_d_state": 16,
            "mamba_num_heads": 4,
        },
    ),
    Architecture("plamo3", {"window_size": WINDOW}),
    Architecture("qwen", {"kv_channels": 64, "intermediate_size": 256}),
    Architecture(
        "recurrent_gemma",
        {
            "conv1d_width": 4,
            "logits_soft_cap": 30.0,
            "attention_window_size": WINDOW,
            "block_types": ["recurrent", "recurrent", "attention"],
        },
    ),
    Architecture(
        "rwkv7",
        {
            "a_low_rank_dim": 16,
            "v_low_rank_dim": 16,
            "gate_low_rank_dim": 16,
            "decay_low_rank_dim": 16,
        },
    ),
    Architecture("solar_open"),
    Architecture(
        "spark2_5",
        {
            "layer_types": _SLIDING,
            "rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE},
        },
    ),
    Architecture("stablelm", {"use_qkv_bias": False}),
    Architecture("starcoder2"),
    Architecture(
        "step3p5",
        {
            "num_attention_groups": 2,
            "layer_types": _SLIDING,
            "moe_num_experts": 4,
            "moe_top_k": 2,
            "share_expert_dim": 64,
            "moe_layers_enum": "1,2,3",
            "attention_other_setting": {
                "attention_type": "sliding_attention",
                "num_attention_heads": 4,
                "num_attention_groups": 2,
                "head_dim": 64,
            },
        },
    ),
    Architecture("talkie"),
    Architecture("telechat3"),
    Architecture("youtu_llm", _MLA),
)
ARCHITECTURES = {one.name: one for one in (*_FIRST, *_OTHERS)}
SHORT = ("llama", "qwen3_next", "gemma3n", "deepseek_v3", "recurrent_gemma", "longcat_flash")
"""One of each sort of caches."""
