"""Networks of `transformers`, small and without memory (meta device), and the routes right for them.

A route is `adamw`, or the matrices as `count of outputs × inputs` with their axes `[inputs → outputs]`.
Names are patterns of `fnmatch` without the last `.weight`; the first that matches counts, and each must
match. Vectors are left out: all get AdamW.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers
from torch import nn

hf: Any = transformers  # whose configurations take options that their signatures do not name

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 300,
}
KV = {"num_key_value_heads": 2, "head_dim": 12}
BART = {
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 160,
    "decoder_ffn_dim": 160,
}

SQUARE = "64 × 64 [1 → 0]"
UP, DOWN = "160 × 64 [1 → 0]", "64 × 160 [1 → 0]"
LLAMA_ATTENTION = {
    "*.self_attn.q_proj": "48 × 64 [1 → 0]",
    "*.self_attn.[kv]_proj": "24 × 64 [1 → 0]",
    "*.self_attn.o_proj": "64 × 48 [1 → 0]",
}
LLAMA_MLP = {"*.mlp.gate_proj": UP, "*.mlp.up_proj": UP, "*.mlp.down_proj": DOWN}
EMBED_AND_HEAD = {"model.embed_tokens": "adamw", "lm_head": "adamw"}
BART_BODY = {
    "*embed_positions": "adamw",
    "*attn.*_proj": SQUARE,
    "*.fc1": UP,
    "*.fc2": DOWN,
}


def experts(parts: int, width: int, axes: str = "2 → 1") -> dict[str, str]:
    """Of four experts with fused gate and up kernels, stored `(experts, out, in)` or the other way."""
    return {
        "*experts.gate_up_proj": f"{4 * parts} of {width} × 64 [{axes}]",
        "*experts.down_proj": f"4 of 64 × {width * parts // 2} [{axes}]",
    }


Model = tuple[Callable[[], nn.Module], dict[str, str]]

MODELS: dict[str, Model] = {
    "GPT-2, with cross-attention": (
        lambda: hf.GPT2LMHeadModel(
            hf.GPT2Config(
                n_embd=64,
                n_layer=2,
                n_head=4,
                vocab_size=300,
                n_positions=32,
                add_cross_attention=True,
                bos_token_id=1,
                eos_token_id=2,
            )
        ),
        {
            "transformer.w[tp]e": "adamw",
            "*.attn.c_attn": "3 of 64 × 64 [0 → 1]",
            "*.crossattention.c_attn": "2 of 64 × 64 [0 → 1]",
            "*.crossattention.q_attn": "64 × 64 [0 → 1]",
            "*attn.c_proj": "64 × 64 [0 → 1]",
            "*attention.c_proj": "64 × 64 [0 → 1]",
            "*.mlp.c_fc": "256 × 64 [0 → 1]",
            "*.mlp.c_proj": "64 × 256 [0 → 1]",
        },
    ),
    "Llama": (
        lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SIZES, **KV)),
        EMBED_AND_HEAD | LLAMA_ATTENTION | LLAMA_MLP,
    ),
    "Llama, sequence classification": (
        lambda: hf.LlamaForSequenceClassification(
            hf.LlamaConfig(**SIZES, **KV, num_labels=5, pad_token_id=0)
        ),
        {"model.embed_tokens": "adamw", "score": "adamw"} | LLAMA_ATTENTION | LLAMA_MLP,
    ),
    "Gemma 3, tied": (
        lambda: hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**SIZES, **KV)),
        {"model.embed_tokens": "adamw"} | LLAMA_ATTENTION | LLAMA_MLP,
    ),
    "Phi-3": (
        lambda: hf.Phi3ForCausalLM(hf.Phi3Config(**SIZES, pad_token_id=0)),
        EMBED_AND_HEAD
        | {
            "*.qkv_proj": "3 of 64 × 64 [1 → 0]",
            "*.o_proj": SQUARE,
            "*.gate_up_proj": "2 of 160 × 64 [1 → 0]",
            "*.down_proj": DOWN,
        },
    ),
    "Phi-3, grouped queries": (
        lambda: hf.Phi3ForCausalLM(hf.Phi3Config(**SIZES, num_key_value_heads=2, pad_token_id=0)),
        EMBED_AND_HEAD
        | {
            "*.qkv_proj": "128 × 64 [1 → 0]",  # unequal parts, which stay one matrix
            "*.o_proj": SQUARE,
            "*.gate_up_proj": "2 of 160 × 64 [1 → 0]",
            "*.down_proj": DOWN,
        },
    ),
    "OPT, tied behind a projection": (
        lambda: hf.OPTForCausalLM(
            hf.OPTConfig(
                hidden_size=64,
                ffn_dim=160,
                num_hidden_layers=2,
                num_attention_heads=4,
                vocab_size=300,
                word_embed_proj_dim=32,
            )
        ),
        BART_BODY
        | {
            "*.embed_tokens": "adamw",
            "*.project_in": "64 × 32 [1 → 0]",
            "*.project_out": "32 × 64 [1 → 0]",  # the tied head reads it
        },
    ),
    "GPT-NeoX": (
        lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**SIZES)),
        {
            "gpt_neox.embed_in": "adamw",
            "*.query_key_value": "192 × 64 [1 → 0]",  # all three of each head together: no equal parts
            "*.attention.dense": SQUARE,
            "*.dense_h_to_4h": UP,
            "*.dense_4h_to_h": DOWN,
            "lm_head": "adamw",
        },
    ),
    "BLOOM, tied": (
        lambda: hf.BloomForCausalLM(hf.BloomConfig(hidden_size=64, n_layer=2, n_head=4, vocab_size=300)),
        {
            "*.word_embeddings": "adamw",
            "*.query_key_value": "192 × 64 [1 → 0]",
            "*.self_attention.dense": SQUARE,
            "*.dense_h_to_4h": "256 × 64 [1 → 0]",
            "*.dense_4h_to_h": "64 × 256 [1 → 0]",
        },
    ),
    "MPT, tied": (
        lambda: hf.MptForCausalLM(hf.MptConfig(d_model=64, n_heads=4, n_layers=2, vocab_size=300)),
        {
            "transformer.wte": "adamw",
            "*.Wqkv": "3 of 64 × 64 [1 → 0]",
            "*.out_proj": SQUARE,
            "*.ffn.up_proj": "256 × 64 [1 → 0]",
            "*.ffn.down_proj": "64 × 256 [1 → 0]",
        },
    ),
    "CodeGen": (
        lambda: hf.CodeGenForCausalLM(
            hf.CodeGenConfig(
                n_embd=64,
                n_layer=2,
                n_head=4,
                vocab_size=300,
                n_positions=32,
                rotary_dim=8,
                bos_token_id=1,
                eos_token_id=2,
            )
        ),
        {
            "transformer.wte": "adamw",
            "*.qkv_proj": "192 × 64 [1 → 0]",  # kept in groups, each with all three
            "*.out_proj": SQUARE,
            "*.fc_in": "256 × 64 [1 → 0]",
            "*.fc_out": "64 × 256 [1 → 0]",
            "lm_head": "adamw",
        },
    ),
    "Mixtral": (
        lambda: hf.MixtralForCausalLM(hf.MixtralConfig(**SIZES, **KV, num_local_experts=4)),
        EMBED_AND_HEAD | LLAMA_ATTENTION | {"*.mlp.gate": "adamw"} | experts(2, 160),
    ),
    "Qwen 3, mixture": (
        lambda: hf.Qwen3MoeForCausalLM(
            hf.Qwen3MoeConfig(**SIZES, **KV, num_experts=4, moe_intermediate_size=32)
        ),
        EMBED_AND_HEAD | LLAMA_ATTENTION | {"*.mlp.gate": "adamw"} | experts(2, 32),
    ),
    "DeepSeek V3": (
        lambda: hf.DeepseekV3ForCausalLM(
            hf.DeepseekV3Config(
                **SIZES,
                num_key_value_heads=4,
                n_routed_experts=4,
                n_group=1,
                topk_group=1,
                moe_intermediate_size=32,
                q_lora_rank=24,
                kv_lora_rank=16,
                qk_rope_head_dim=8,
                qk_nope_head_dim=8,
                v_head_dim=12,
                first_k_dense_replace=1,
            )
        ),
        EMBED_AND_HEAD
        | {
            "*.q_a_proj": "24 × 64 [1 → 0]",
            "*.q_b_proj": "64 × 24 [1 → 0]",
            "*.kv_a_proj_with_mqa": "24 × 64 [1 → 0]",
            "*.kv_b_proj": "80 × 16 [1 → 0]",
            "*.o_proj": "64 × 48 [1 → 0]",
            "*.mlp.gate": "adamw",
            "*.shared_experts.gate_proj": "32 × 64 [1 → 0]",
            "*.shared_experts.up_proj": "32 × 64 [1 → 0]",
            "*.shared_experts.down_proj": "64 × 32 [1 → 0]",
        }
        | LLAMA_MLP
        | experts(2, 32),
    ),
    "Llama 4, experts stored (in, out)": (
        lambda: hf.Llama4ForCausalLM(
            hf.Llama4TextConfig(**SIZES, **KV, num_local_experts=4, intermediate_size_mlp=128)
        ),
        EMBED_AND_HEAD
        | LLAMA_ATTENTION
        | {"*.router": "adamw"}
        | experts(2, 160, "1 → 2")
        | {"*.shared_expert.gate_proj": UP, "*.shared_expert.up_proj": UP, "*.shared_expert.down_proj": DOWN},
    ),
    "GPT-OSS, gate and up in turns": (
        lambda: hf.GptOssForCausalLM(
            hf.GptOssConfig(**SIZES, **KV, num_local_experts=4, layer_types=["full_attention"] * 2)
        ),
        EMBED_AND_HEAD
        | LLAMA_ATTENTION
        | {
            "*.router": "adamw",
            "*_bias": "adamw",
            "*experts.gate_up_proj": "4 of 320 × 64 [1 → 2]",
            "*experts.down_proj": "4 of 64 × 160 [1 → 2]",
        },
    ),
    "Granite, mixture": (
        lambda: hf.GraniteMoeForCausalLM(hf.GraniteMoeConfig(**SIZES, num_local_experts=4)),
        {"model.embed_tokens": "adamw", "lm_head": "adamw", "*.router": "adamw", "*attn.*_proj": SQUARE}
        | experts(2, 160),
    ),
    "Switch Transformers": (
        lambda: hf.SwitchTransformersForConditionalGeneration(
            hf.SwitchTransformersConfig(
                d_model=64,
                d_kv=12,
                d_ff=96,
                num_layers=2,
                num_heads=4,
                num_experts=4,
                vocab_size=300,
                num_sparse_encoder_layers=1,
                num_sparse_decoder_layers=1,
                num_decoder_layers=2,
            )
        ),
        {
            "shared": "adamw",
            "*.relative_attention_bias": "adamw",
            "*Attention.[qkv]": "48 × 64 [1 → 0]",
            "*Attention.o": "64 × 48 [1 → 0]",
            "*.router.classifier": "adamw",
            "*.wi": "96 × 64 [1 → 0]",
            "*.wo": "64 × 96 [1 → 0]",
        },
    ),
    "Mamba, one layer, tied": (
        lambda: hf.MambaForCausalLM(
            hf.MambaConfig(hidden_size=64, num_hidden_layers=1, vocab_size=300, state_size=8)
        ),
        {
            "backbone.embeddings": "adamw",
            "*.A_log": "adamw",
            "*.conv1d": "adamw",
            "*.in_proj": "256 × 64 [1 → 0]",
            "*.x_proj": "20 × 128 [1 → 0]",
            "*.dt_proj": "128 × 4 [1 → 0]",
            "*.out_proj": "64 × 128 [1 → 0]",
        },
    ),
    "Jamba": (
        lambda: hf.JambaForCausalLM(
            hf.JambaConfig(
                **SIZES,
                num_key_value_heads=2,
                num_experts=4,
                mamba_dt_rank=8,
                use_mamba_kernels=False,
                attn_layer_period=2,
                attn_layer_offset=1,
                expert_layer_period=2,
                expert_layer_offset=1,
            )
        ),
        EMBED_AND_HEAD
        | {
            "*.A_log": "adamw",
            "*.conv1d": "adamw",
            "*.in_proj": "256 × 64 [1 → 0]",
            "*.x_proj": "40 × 128 [1 → 0]",
            "*.dt_proj": "128 × 8 [1 → 0]",
            "*.out_proj": "64 × 128 [1 → 0]",
            "*.self_attn.[qo]_proj": SQUARE,
            "*.self_attn.[kv]_proj": "32 × 64 [1 → 0]",
            "*.router": "adamw",
            "*.feed_forward.gate_proj": UP,
            "*.feed_forward.up_proj": UP,
            "*.feed_forward.down_proj": DOWN,
        }
        | experts(2, 160),
    ),
    "RWKV": (
        lambda: hf.RwkvForCausalLM(
            hf.RwkvConfig(hidden_size=64, num_hidden_layers=2, vocab_size=300, attention_hidden_size=64)
        ),
        {
            "rwkv.embeddings": "adamw",
            "*.attention.*": SQUARE,
            "*.feed_forward.key": "256 × 64 [1 → 0]",
            "*.feed_forward.receptance": SQUARE,
            "*.feed_forward.value": "64 × 256 [1 → 0]",
            "head": "adamw",
        },
    ),
}
