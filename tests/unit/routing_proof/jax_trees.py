"""Trees of networks in JAX, as shapes, and the routes that are right for them.

Tables are as in `transformers_models`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp

Tree = tuple[Callable[[], Any], dict[str, str]]


def shape(*sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def dense(*sizes: int, bias: bool = True) -> dict[str, Any]:
    """A layer of Flax: its kernel, and the bias of its outputs."""
    return {"kernel": shape(*sizes)} | ({"bias": shape(sizes[-1])} if bias else {})


def norm(*sizes: int) -> dict[str, Any]:
    return {"scale": shape(*sizes)}


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


class EqxBlock(eqx.Module):
    attention: eqx.nn.MultiheadAttention
    norm: eqx.nn.LayerNorm
    up: eqx.nn.Linear
    down: eqx.nn.Linear

    def __init__(self, key: jax.Array):
        keys = jax.random.split(key, 3)
        self.attention = eqx.nn.MultiheadAttention(4, 64, qk_size=12, vo_size=12, key=keys[0])
        self.norm = eqx.nn.LayerNorm(64)
        self.up, self.down = eqx.nn.Linear(64, 160, key=keys[1]), eqx.nn.Linear(160, 64, key=keys[2])


class EqxLanguageModel(eqx.Module):
    table: eqx.nn.Embedding  # a name that says nothing
    places: eqx.nn.Embedding
    blocks: list[EqxBlock]
    last_norm: eqx.nn.LayerNorm
    unembed: eqx.nn.Linear

    def __init__(self) -> None:
        keys = jax.random.split(jax.random.key(0), 5)
        self.table, self.places = (
            eqx.nn.Embedding(300, 64, key=keys[0]),
            eqx.nn.Embedding(32, 64, key=keys[1]),
        )
        self.blocks = [EqxBlock(key) for key in keys[2:4]]
        self.last_norm, self.unembed = eqx.nn.LayerNorm(64), eqx.nn.Linear(64, 300, key=keys[4])


class EqxConvolutions(eqx.Module):
    first: eqx.nn.Conv2d
    depthwise: eqx.nn.Conv2d
    grouped: eqx.nn.Conv2d
    up: eqx.nn.ConvTranspose2d
    fc: eqx.nn.Linear

    def __init__(self) -> None:
        keys = jax.random.split(jax.random.key(0), 5)
        self.first = eqx.nn.Conv2d(1, 16, 3, key=keys[0])
        self.depthwise = eqx.nn.Conv2d(16, 16, 3, groups=16, key=keys[1])
        self.grouped = eqx.nn.Conv2d(16, 32, 3, groups=4, key=keys[2])
        self.up = eqx.nn.ConvTranspose2d(32, 24, 4, key=keys[3])
        self.fc = eqx.nn.Linear(24, 10, key=keys[4])


class EqxRecurrent(eqx.Module):
    cell: eqx.nn.LSTMCell
    gru: eqx.nn.GRUCell
    readout: eqx.nn.Linear

    def __init__(self) -> None:
        keys = jax.random.split(jax.random.key(0), 3)
        self.cell, self.gru = eqx.nn.LSTMCell(12, 32, key=keys[0]), eqx.nn.GRUCell(32, 20, key=keys[1])
        self.readout = eqx.nn.Linear(20, 5, key=keys[2])


def equinox(make: Callable[[], Any]) -> Callable[[], Any]:
    """The trainable leaves of a module, without making arrays."""
    return lambda: eqx.filter_eval_shape(lambda: eqx.filter(make(), eqx.is_inexact_array))


def equinox_scanned() -> Any:
    """Blocks that `eqx.filter_vmap` made, one in each entry of the first axis."""

    def make() -> Any:
        blocks = eqx.filter_vmap(EqxBlock)(jax.random.split(jax.random.key(0), 3))
        return eqx.filter(
            {"blocks": blocks, "head": eqx.nn.Linear(64, 10, key=jax.random.key(1))}, eqx.is_inexact_array
        )

    return eqx.filter_eval_shape(make)


def levanter() -> Any:
    """Weights stored (out…, in), layers stacked in front."""
    attention = {
        name: {"weight": shape(3, heads, 12, 64)}
        for name, heads in {"q_proj": 4, "k_proj": 2, "v_proj": 2}.items()
    }
    attention |= {"o_proj": {"weight": shape(3, 64, 4, 12)}}
    mlp = {
        "gate_proj": {"weight": shape(3, 160, 64)},
        "up_proj": {"weight": shape(3, 160, 64)},
        "down_proj": {"weight": shape(3, 64, 160)},
    }
    layers = {"stacked": {"self_attn": attention, "mlp": mlp, "input_layernorm": {"weight": shape(3, 64)}}}
    embeddings = {"token_embeddings": {"weight": shape(300, 64)}}
    return {
        "embeddings": embeddings,
        "transformer": {"layers": layers, "norm": {"weight": shape(64)}},
        "lm_head": {"weight": shape(300, 64)},
    }


def haiku_transformer() -> Any:
    def layer(index: int) -> dict[str, Any]:
        attention = f"transformer/h{index}_attn"
        tree = {
            f"{attention}/{name}": {"w": shape(64, 48), "b": shape(48)} for name in ("query", "key", "value")
        }
        tree |= {f"{attention}/linear": {"w": shape(48, 64), "b": shape(64)}}
        mlp = f"transformer/h{index}_mlp"
        return tree | {
            f"{mlp}/linear": {"w": shape(64, 160), "b": shape(160)},
            f"{mlp}/linear_1": {"w": shape(160, 64), "b": shape(64)},
        }

    embed = {"embed": {"embeddings": shape(300, 64)}}
    return embed | layer(0) | layer(1) | {"linear": {"w": shape(64, 300), "b": shape(300)}}


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
    "Equinox language model": (
        equinox(EqxLanguageModel),
        {
            "table": "adamw",
            "places": "adamw",
            "blocks.*.attention.output_proj": "64 × 48 [1 → 0]",
            "blocks.*.attention.*_proj": "48 × 64 [1 → 0]",
            "blocks.*.up": "160 × 64 [1 → 0]",
            "blocks.*.down": "64 × 160 [1 → 0]",
            "unembed": "adamw",
        },
    ),
    "Equinox convolutions": (
        equinox(EqxConvolutions),
        {
            "first": "16 × 9 [1,2,3 → 0]",
            "depthwise": "adamw",
            "grouped": "4 of 8 × 36 [1,2,3 → 0]",
            "up": "24 × 512 [1,2,3 → 0]",
            "fc": "adamw",
        },
    ),
    "Equinox recurrent cells": (
        equinox(EqxRecurrent),
        {
            "cell.weight_ih": "4 of 32 × 12 [1 → 0]",
            "cell.weight_hh": "4 of 32 × 32 [1 → 0]",
            "gru.weight_ih": "3 of 20 × 32 [1 → 0]",
            "gru.weight_hh": "3 of 20 × 20 [1 → 0]",
            "readout": "adamw",
        },
    ),
    "Equinox blocks under a scan": (
        equinox_scanned,
        {
            "blocks.attention.output_proj": "3 of 64 × 48 [2 → 1]",
            "blocks.attention.*_proj": "3 of 48 × 64 [2 → 1]",
            "blocks.up": "3 of 160 × 64 [2 → 1]",
            "blocks.down": "3 of 64 × 160 [2 → 1]",
            "blocks.norm*": "adamw",
            "blocks.*.bias": "adamw",
            "head": "adamw",
        },
    ),
    "levanter, stacked": (
        levanter,
        {
            "embeddings.token_embeddings": "adamw",
            "*.q_proj": "3 of 48 × 64 [3 → 1,2]",
            "*.[kv]_proj": "3 of 24 × 64 [3 → 1,2]",
            "*.o_proj": "3 of 64 × 48 [2,3 → 1]",
            "*.gate_proj": "3 of 160 × 64 [2 → 1]",
            "*.up_proj": "3 of 160 × 64 [2 → 1]",
            "*.down_proj": "3 of 64 × 160 [2 → 1]",
            "*.input_layernorm": "adamw",
            "lm_head": "adamw",
        },
    ),
    "Haiku transformer": (
        haiku_transformer,
        {
            "embed": "adamw",
            "*.query": "48 × 64 [0 → 1]",
            "*.key": "48 × 64 [0 → 1]",
            "*.value": "48 × 64 [0 → 1]",
            "*_attn.linear": "64 × 48 [0 → 1]",
            "*_mlp.linear": "160 × 64 [0 → 1]",
            "*_mlp.linear_1": "64 × 160 [0 → 1]",
            "linear": "adamw",
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
