"""Trees of Flax's networks, as shapes, and the routes right for them; tables as in `transformers_models`."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from helpers.routing_proof.tree_building import Tree, dense, norm, shape


def maxtext() -> Any:
    """Layers under a scan whose axis is the second."""
    attention = {
        "query": {"kernel": shape(64, 3, 4, 12)},
        "key": {"kernel": shape(64, 3, 2, 12)},
        "value": {"kernel": shape(64, 3, 2, 12)},
        "out": {"kernel": shape(4, 3, 12, 64)},
    }
    mlp = {
        "wi_0": {"kernel": shape(64, 3, 160)},
        "wi_1": {"kernel": shape(64, 3, 160)},
        "wo": {"kernel": shape(160, 3, 64)},
    }
    layers = {"self_attention": attention, "mlp": mlp, "pre_self_attention_layer_norm": norm(64, 3)}
    decoder = {"layers": layers, "decoder_norm": norm(64), "logits_dense": dense(64, 300, bias=False)}
    return {"token_embedder": {"embedding": shape(300, 64)}, "decoder": decoder}


def maxtext_mixture() -> Any:
    experts = {
        "gate": {"kernel": shape(64, 3, 8)},
        "wi_0": shape(8, 3, 64, 96),
        "wi_1": shape(8, 3, 64, 96),
        "wo": shape(8, 3, 96, 64),
    }
    layers = {"MoeBlock_0": experts, "pre_norm": norm(64, 3)}
    return {
        "token_embedder": {"embedding": shape(300, 64)},
        "decoder": {"layers": layers, "decoder_norm": norm(64)},
    }


def t5x() -> Any:
    attention = {name: dense(64, 48, bias=False) for name in ("query", "key", "value")} | {
        "out": dense(48, 64, bias=False)
    }
    mlp = {
        "wi_0": dense(64, 160, bias=False),
        "wi_1": dense(64, 160, bias=False),
        "wo": dense(160, 64, bias=False),
    }

    def stack(*attentions: str) -> dict[str, Any]:
        layer = dict.fromkeys(attentions, attention) | {"mlp": mlp, "pre_mlp_layer_norm": norm(64)}
        return {"layers_0": layer, "layers_1": layer, "relpos_bias": {"rel_embedding": shape(4, 32)}}

    return {
        "token_embedder": {"embedding": shape(300, 64)},
        "encoder": stack("attention") | {"encoder_norm": norm(64)},
        "decoder": stack("self_attention", "encoder_decoder_attention")
        | {"logits_dense": dense(64, 300, bias=False)},
    }


def big_vision() -> Any:
    """A ViT whose blocks are under a scan along the first axis."""
    attention = {
        name: {"kernel": shape(3, 64, 4, 12), "bias": shape(3, 4, 12)} for name in ("query", "key", "value")
    }
    block = {
        "LayerNorm_0": {"scale": shape(3, 64), "bias": shape(3, 64)},
        "MultiHeadDotProductAttention_0": attention
        | {"out": {"kernel": shape(3, 4, 12, 64), "bias": shape(3, 64)}},
        "MlpBlock_0": {
            "Dense_0": {"kernel": shape(3, 64, 160), "bias": shape(3, 160)},
            "Dense_1": {"kernel": shape(3, 160, 64), "bias": shape(3, 64)},
        },
    }
    return {
        "embedding": dense(8, 8, 3, 64),
        "pos_embedding": shape(1, 16, 64),
        "cls": shape(1, 1, 64),
        "Transformer": {"encoderblock": block, "encoder_norm": norm(64)},
        "pre_logits": dense(64, 48),
        "head": dense(48, 10),
    }


def resnet() -> Any:
    def block(inputs: int, outputs: int) -> dict[str, Any]:
        return {
            "Conv_0": {"kernel": shape(3, 3, inputs, outputs)},
            "Conv_1": {"kernel": shape(3, 3, outputs, outputs)},
            "BatchNorm_0": norm(outputs),
        }

    blocks = {
        "ResNetBlock_0": block(16, 16),
        "ResNetBlock_1": block(16, 32) | {"conv_proj": {"kernel": shape(1, 1, 16, 32)}},
    }
    return (
        {"conv_init": {"kernel": shape(7, 7, 3, 16)}, "bn_init": norm(16)}
        | blocks
        | {"Dense_0": dense(32, 10)}
    )


def gray_resnet() -> Any:
    """Its first convolution reads one channel, as depthwise ones do."""
    tree = resnet()
    return tree | {"conv_init": {"kernel": shape(7, 7, 1, 16)}}


class LinenRecurrent(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(50, 24)(tokens)
        x = nn.RNN(nn.OptimizedLSTMCell(32))(x)
        return nn.Dense(50)(x)


def linen_recurrent() -> Any:
    return jax.eval_shape(LinenRecurrent().init, jax.random.key(0), jnp.zeros((1, 6), jnp.int32))["params"]


def diffusion() -> Any:
    def block(inputs: int, outputs: int) -> dict[str, Any]:
        return {
            "conv1": dense(3, 3, inputs, outputs),
            "time_emb_proj": dense(128, outputs),
            "conv2": dense(3, 3, outputs, outputs),
        }

    return {
        "conv_in": dense(3, 3, 4, 32),
        "time_embedding": {"linear_1": dense(32, 128), "linear_2": dense(128, 128)},
        "down_blocks_0": {"resnets_0": block(32, 64)},
        "up_blocks_0": {"resnets_0": block(128, 32)},
        "conv_norm_out": norm(32),
        "conv_out": dense(3, 3, 32, 4),
    }


def attention_with_fused_kernel() -> Any:
    attention = {
        "qkv": {"kernel": shape(64, 3, 4, 12), "bias": shape(3, 4, 12)},
        "out": {"kernel": shape(4, 12, 64), "bias": shape(64)},
    }
    mlp = {"gate_up_proj": dense(64, 320, bias=False), "down_proj": dense(160, 64, bias=False)}
    return {f"layers_{index}": {"attn": attention, "mlp": mlp} for index in range(2)} | {
        "head": dense(64, 10)
    }


def gemma() -> Any:
    """Kernels of einsums, with the heads first."""
    attention = {
        "q_einsum": {"w": shape(4, 64, 12)},
        "kv_einsum": {"w": shape(2, 2, 64, 12)},
        "attn_vec_einsum": {"w": shape(4, 12, 64)},
    }
    mlp = {"gating_einsum": shape(2, 64, 160), "linear": shape(160, 64)}
    layers = {
        f"layer_{index}": {"attn": attention, "mlp": mlp, "pre_attention_norm": norm(64)}
        for index in range(2)
    }
    return {"embedder": {"input_embedding": shape(300, 64)}, "final_norm": norm(64)} | layers


TREES: dict[str, Tree] = {
    "Gemma in Flax, tied": (
        gemma,
        {
            "embedder.input_embedding": "adamw",
            "*.q_einsum": "48 × 64 [1 → 0,2]",
            "*.kv_einsum": "2 of 24 × 64 [2 → 1,3]",
            "*.attn_vec_einsum": "64 × 48 [0,1 → 2]",
            "*.gating_einsum": "2 of 160 × 64 [1 → 2]",
            "*.linear": "64 × 160 [0 → 1]",
        },
    ),
    "MaxText, scanned along axis 1": (
        maxtext,
        {
            "token_embedder": "adamw",
            "*.query": "3 of 48 × 64 [0 → 2,3]",
            "*.key": "3 of 24 × 64 [0 → 2,3]",
            "*.value": "3 of 24 × 64 [0 → 2,3]",
            "*.out": "3 of 64 × 48 [0,2 → 3]",
            "*.wi_?": "3 of 160 × 64 [0 → 2]",
            "*.wo": "3 of 64 × 160 [0 → 2]",
            "*_norm.scale": "adamw",
            "decoder.logits_dense": "adamw",
        },
    ),
    "MaxText, mixture of experts": (
        maxtext_mixture,
        {
            "token_embedder": "adamw",
            "*.gate": "adamw",
            "*.wi_?": "24 of 96 × 64 [2 → 3]",
            "*.wo": "24 of 64 × 96 [2 → 3]",
            "*_norm.scale": "adamw",
        },
    ),
    "T5X": (
        t5x,
        {
            "token_embedder": "adamw",
            "*.rel_embedding": "adamw",
            "*.query": "48 × 64 [0 → 1]",
            "*.key": "48 × 64 [0 → 1]",
            "*.value": "48 × 64 [0 → 1]",
            "*.out": "64 × 48 [0 → 1]",
            "*.wi_?": "160 × 64 [0 → 1]",
            "*.wo": "64 × 160 [0 → 1]",
            "decoder.logits_dense": "adamw",
        },
    ),
    "big_vision ViT, scanned along axis 0": (
        big_vision,
        {
            "embedding": "64 × 192 [0,1,2 → 3]",
            "pos_embedding": "adamw",
            "*.scale": "adamw",
            "*.bias": "adamw",
            "*.query": "3 of 48 × 64 [1 → 2,3]",
            "*.key": "3 of 48 × 64 [1 → 2,3]",
            "*.value": "3 of 48 × 64 [1 → 2,3]",
            "*.out": "3 of 64 × 48 [1,2 → 3]",
            "*.Dense_0": "3 of 160 × 64 [1 → 2]",
            "*.Dense_1": "3 of 64 × 160 [1 → 2]",
            "pre_logits": "48 × 64 [0 → 1]",
            "head": "adamw",
        },
    ),
    "ResNet in Flax": (
        resnet,
        {
            "conv_init": "16 × 147 [0,1,2 → 3]",
            "ResNetBlock_0.Conv_?": "16 × 144 [0,1,2 → 3]",
            "ResNetBlock_1.Conv_0": "32 × 144 [0,1,2 → 3]",
            "ResNetBlock_1.Conv_1": "32 × 288 [0,1,2 → 3]",
            "ResNetBlock_1.conv_proj": "32 × 16 [0,1,2 → 3]",
            "Dense_0": "adamw",
        },
    ),
    "ResNet on gray images": (
        gray_resnet,
        {"conv_init": "16 × 49 [0,1,2 → 3]", "ResNetBlock_*": "* [0,1,2 → 3]", "Dense_0": "adamw"},
    ),
    "LSTM in Flax": (
        linen_recurrent,
        {
            "Embed_0": "adamw",
            "OptimizedLSTMCell_0.i?": "32 × 24 [0 → 1]",
            "OptimizedLSTMCell_0.h?": "32 × 32 [0 → 1]",
            "Dense_0": "adamw",
        },
    ),
    "U-Net in Flax": (
        diffusion,
        {
            "conv_in": "32 × 36 [0,1,2 → 3]",
            "time_embedding.linear_1": "128 × 32 [0 → 1]",
            "time_embedding.linear_2": "128 × 128 [0 → 1]",
            "*.time_emb_proj": "* [0 → 1]",
            "conv_out": "adamw",
            "*": "* [0,1,2 → 3]",
        },
    ),
    "fused kernels in Flax": (
        attention_with_fused_kernel,
        {
            "*.qkv": "3 of 48 × 64 [0 → 2,3]",
            "*.qkv.bias": "adamw",
            "*.attn.out": "64 × 48 [0,1 → 2]",
            "*.gate_up_proj": "2 of 160 × 64 [0 → 1]",
            "*.down_proj": "64 × 160 [0 → 1]",
            "head": "adamw",
        },
    ),
}
