"""The parameters of small networks of every kind, mostly as shapes only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

VOCAB, WIDTH, LENGTH = 50, 8, 6


def shape(*sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


class LinenTransformer(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(VOCAB, WIDTH)(tokens)
        x = x + self.param("pos_embedding", nn.initializers.zeros, (1, LENGTH, WIDTH))
        for _ in range(2):
            y = nn.LayerNorm()(x)
            x = x + nn.MultiHeadDotProductAttention(num_heads=2)(y, y)
            x = x + nn.Dense(WIDTH)(nn.gelu(nn.Dense(4 * WIDTH)(nn.RMSNorm()(x))))
        return nn.Dense(VOCAB, name="lm_head")(x)


class LinenViT(nn.Module):
    @nn.compact
    def __call__(self, images):
        x = nn.Conv(WIDTH, (4, 4), strides=(4, 4), name="embedding")(images)
        x = x.reshape(1, -1, WIDTH)
        cls = self.param("cls", nn.initializers.zeros, (1, 1, WIDTH))
        x = jnp.concatenate([cls, x], axis=1)
        x = x + self.param("pos_embedding", nn.initializers.normal(), (1, x.shape[1], WIDTH))
        x = x + nn.MultiHeadDotProductAttention(2, name="encoderblock_0")(nn.LayerNorm(name="LayerNorm_0")(x))
        return nn.Dense(10, name="head")(x[:, 0])


class LinenConvNet(nn.Module):
    @nn.compact
    def __call__(self, images):
        x = nn.relu(nn.Conv(4, (3, 3))(images))
        x = nn.relu(nn.Conv(8, (3, 3))(x))
        x = nn.relu(nn.Dense(16)(x.reshape(1, -1)))
        return nn.Dense(10)(x)


class NNXTransformer(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.embed = nnx.Embed(VOCAB, WIDTH, rngs=rngs)
        self.pos = nnx.Param(jnp.zeros((LENGTH, WIDTH)))
        self.attention = nnx.MultiHeadAttention(2, WIDTH, rngs=rngs)
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.layers = nnx.List(
            [nnx.Linear(WIDTH, 2 * WIDTH, rngs=rngs), nnx.Linear(2 * WIDTH, WIDTH, rngs=rngs)]
        )
        self.head = nnx.Linear(WIDTH, VOCAB, rngs=rngs)


class EqxTransformer(eqx.Module):
    embedding: eqx.nn.Embedding
    positions: jax.Array
    norm: eqx.nn.LayerNorm
    attention: eqx.nn.MultiheadAttention
    mlp: eqx.nn.MLP
    decoder: eqx.nn.Linear | None

    def __init__(self, *, head: bool):
        keys = jax.random.split(jax.random.key(0), 4)
        self.embedding = eqx.nn.Embedding(VOCAB, WIDTH, key=keys[0])
        self.positions = jnp.zeros((LENGTH, WIDTH))
        self.norm = eqx.nn.LayerNorm((LENGTH, WIDTH))
        self.attention = eqx.nn.MultiheadAttention(2, WIDTH, key=keys[1])
        self.mlp = eqx.nn.MLP(WIDTH, WIDTH, 4 * WIDTH, 1, key=keys[2])
        self.decoder = eqx.nn.Linear(WIDTH, VOCAB, use_bias=False, key=keys[3]) if head else None


def linen(model: nn.Module, example: jax.Array) -> Any:
    return jax.eval_shape(model.init, jax.random.key(0), example)["params"]


def linen_transformer() -> Any:
    return linen(LinenTransformer(), jnp.zeros((1, LENGTH), jnp.int32))


def linen_vit() -> Any:
    return linen(LinenViT(), jnp.zeros((1, 8, 8, 3)))


def abstract(make: Callable[[], Any]) -> Any:
    """The trainable leaves of an Equinox module, without making arrays."""
    return eqx.filter_eval_shape(lambda: eqx.filter(make(), eqx.is_inexact_array))


def conv_net() -> Any:
    return linen(LinenConvNet(), jnp.zeros((1, 8, 8, 1)))


def nnx_transformer() -> Any:
    return nnx.state(nnx.eval_shape(lambda: NNXTransformer(nnx.Rngs(0))), nnx.Param)


def nnx_split() -> Any:
    return nnx.split(nnx.eval_shape(lambda: NNXTransformer(nnx.Rngs(0))), nnx.Param, ...)[1]


def nnx_tied() -> Any:
    model = nnx.eval_shape(lambda: NNXTransformer(nnx.Rngs(0)))
    model.head.kernel = model.embed.embedding
    return nnx.state(model, nnx.Param)


def eqx_transformer(*, head: bool) -> Any:
    return abstract(lambda: EqxTransformer(head=head))


def eqx_tied() -> Any:
    model = eqx_transformer(head=True)
    return eqx.tree_at(lambda m: m.decoder.weight, model, model.embedding.weight)


def eqx_shared() -> Any:
    def make():
        key = jax.random.key(0)
        layers = (eqx.nn.Embedding(VOCAB, WIDTH, key=key), eqx.nn.Linear(WIDTH, VOCAB, key=key))
        shared = eqx.nn.Shared(layers, lambda pair: pair[1].weight, lambda pair: pair[0].weight)
        return {"embeddings": shared, "body": eqx.nn.MLP(WIDTH, WIDTH, 2 * WIDTH, 1, key=key)}

    return abstract(make)


def gpt2() -> Any:
    block = {
        "ln_1": {"scale": shape(8), "bias": shape(8)},
        "attn": {"c_attn": {"w": shape(8, 24), "b": shape(24)}, "c_proj": {"w": shape(8, 8), "b": shape(8)}},
        "ln_2": {"scale": shape(8), "bias": shape(8)},
        "mlp": {"c_fc": {"w": shape(8, 32), "b": shape(32)}, "c_proj": {"w": shape(32, 8), "b": shape(8)}},
    }
    return {
        "wte": shape(VOCAB, 8),
        "wpe": shape(64, 8),
        "h0": block,
        "h1": block,
        "ln_f": {"scale": shape(8)},
    }


def moe() -> Any:
    experts = {"gate_proj": shape(4, 8, 32), "up_proj": shape(4, 8, 32), "down_proj": shape(4, 32, 8)}
    dense = {"gate_proj": shape(8, 32), "up_proj": shape(8, 32), "down_proj": shape(32, 8)}
    return {
        "embed_tokens": shape(VOCAB, 8),
        "layers": [
            {"mlp": dense},
            {"moe": {"router": {"kernel": shape(8, 4)}, "experts": experts}},
            {"block_sparse_moe": {"gate": {"weight": shape(4, 8)}, "experts": {"0": dense, "1": dense}}},
            {"mlp": {"gate": shape(8, 4), "shared_expert_gate": shape(8, 1), "shared_expert": dense}},
        ],
        "lm_head": {"kernel": shape(8, VOCAB)},
    }


def scanned() -> Any:
    layers = {
        "attn": {"q": {"kernel": shape(3, 8, 2, 4), "bias": shape(3, 2, 4)}},
        "ln": {"weight": shape(3, 8)},
        "attn_norm": shape(3, 8),
        "mlp": {
            "w_in": shape(3, 8, 32),
            "b_in": shape(3, 32),
            "w_out": shape(3, 32, 8),
            "scale": shape(3, 8),
        },
    }
    return {"tok_emb": shape(VOCAB, 8), "layers": layers, "unembed": shape(8, VOCAB)}


def nameless_head() -> Any:
    return {"Embed_0": {"embedding": shape(VOCAB, 8)}, "Dense_0": {"kernel": shape(8, 8)}} | {
        "Dense_1": {"kernel": shape(8, VOCAB)}
    }


def one_layer_of_bytes() -> Any:
    mlp = {"up": shape(64, 256), "down": shape(256, 64)}
    return {
        "embed": shape(256, 64),
        "layer": {"attn": {"qkv": shape(64, 192), "out": shape(64, 64)}, "mlp": mlp},
    }


def actor_critic() -> Any:
    torso = {"Dense_0": {"kernel": shape(16, 64)}, "Dense_1": {"kernel": shape(64, 64)}}
    return {"torso": torso, "policy_head": {"kernel": shape(64, 4)}, "value": {"kernel": shape(64, 1)}}
