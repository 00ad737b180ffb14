"""Trees of Equinox, Haiku and levanter, as shapes, and the routes right for them.

Tables are as in `transformers_models`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax

from helpers.routing_proof.tree_building import Tree, shape


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


TREES: dict[str, Tree] = {
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
}
