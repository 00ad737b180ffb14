"""Every leaf of the usual kinds of network gets the label that the published recipe means for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import numpy as np
import optax
import pytest

from celo2.jax.routing.labels import named_leaves, param_labels
from celo2.routing import RoutingWarning
from helpers.routing_models import (
    abstract,
    actor_critic,
    conv_net,
    eqx_shared,
    eqx_tied,
    eqx_transformer,
    gpt2,
    linen_transformer,
    linen_vit,
    moe,
    nameless_head,
    nnx_split,
    nnx_tied,
    nnx_transformer,
    one_layer_of_bytes,
    scanned,
    shape,
)

MODELS: dict[str, tuple[Callable[[], Any], set[str]]] = {
    "linen transformer": (
        linen_transformer,
        {
            f"MultiHeadDotProductAttention_{i}/{name}/kernel"
            for i in range(2)
            for name in ("query", "key", "value", "out")
        }
        | {f"Dense_{i}/kernel" for i in range(4)},
    ),
    "linen ViT": (
        linen_vit,
        {f"encoderblock_0/{name}/kernel" for name in ("query", "key", "value", "out")} | {"embedding/kernel"},
    ),
    "nnx transformer": (
        nnx_transformer,
        {f"attention/{name}/kernel" for name in ("query", "key", "value", "out")}
        | {"layers/0/kernel", "layers/1/kernel"},
    ),
    "nnx split": (
        nnx_split,
        {f"attention/{name}/kernel" for name in ("query", "key", "value", "out")}
        | {"layers/0/kernel", "layers/1/kernel"},
    ),
    "nnx shared variable": (
        nnx_tied,
        {f"attention/{name}/kernel" for name in ("query", "key", "value", "out")}
        | {"layers/0/kernel", "layers/1/kernel"},
    ),
    "eqx transformer, tied": (
        eqx_tied,
        {f"attention/{name}_proj/weight" for name in ("query", "key", "value", "output")}
        | {"mlp/layers/0/weight", "mlp/layers/1/weight"},
    ),
    "eqx transformer, no head": (
        lambda: eqx_transformer(head=False),
        {f"attention/{name}_proj/weight" for name in ("query", "key", "value", "output")}
        | {"mlp/layers/0/weight", "mlp/layers/1/weight"},
    ),
    "eqx shared": (eqx_shared, {"body/layers/0/weight", "body/layers/1/weight"}),
    "gpt-2, tied": (
        gpt2,
        {
            f"h{i}/{name}/w"
            for i in range(2)
            for name in ("attn/c_attn", "attn/c_proj", "mlp/c_fc", "mlp/c_proj")
        },
    ),
    "mixture of experts": (
        moe,
        {
            f"layers/{place}/{name}_proj"
            for place in (
                "0/mlp",
                "1/moe/experts",
                "2/block_sparse_moe/experts/0",
                "2/block_sparse_moe/experts/1",
                "3/mlp/shared_expert",
            )
            for name in ("gate", "up", "down")
        },
    ),
    "scan over layers": (scanned, {"layers/attn/q/kernel", "layers/mlp/w_in", "layers/mlp/w_out"}),
    "head known by the vocabulary": (nameless_head, {"Dense_0/kernel"}),
    "vocabulary as wide as the MLP": (
        one_layer_of_bytes,
        {"layer/attn/qkv", "layer/attn/out", "layer/mlp/up", "layer/mlp/down"},
    ),
    "actor-critic": (actor_critic, {"torso/Dense_0/kernel", "torso/Dense_1/kernel"}),
    "attention alone": (
        lambda: {
            "query": shape(8, 2, 4),
            "key": shape(8, 2, 4),
            "value": shape(8, 2, 4),
            "out": shape(2, 4, 8),
        },
        {"query", "key", "value", "out"},
    ),
    "MLP with a named output": (
        lambda: {"l1": {"w": shape(9, 7)}, "l2": {"w": shape(7, 5)}, "out": {"w": shape(5, 3)}},
        {"l1/w", "l2/w"},
    ),
    "autoencoder": (lambda: {"encoder": shape(20, 4), "decoder": shape(4, 20)}, {"encoder"}),
    "one matrix": (lambda: {"w": shape(8, 4), "b": shape(4)}, {"w"}),
    "plain MLP": (
        lambda: {"w0": shape(784, 128), "w1": shape(128, 128), "w2": shape(128, 10)},
        {"w0", "w1"},
    ),
    "two layers with biases": (
        lambda: [{"kernel": shape(64, 32), "bias": shape(32)}, {"kernel": shape(32, 10), "bias": shape(10)}],
        {"0/kernel"},
    ),
    "haiku MLP of 11 layers": (
        lambda: {f"mlp/~/linear_{i}": {"w": shape(7, 7 if i < 10 else 3)} for i in range(11)},
        {f"mlp/~/linear_{i}/w" for i in range(10)},
    ),
    "haiku MLP": (
        lambda: {"mlp/~/linear": {"w": shape(9, 5)}, "mlp/~/linear_1": {"w": shape(5, 3)}},
        {"mlp/~/linear/w"},
    ),
    "eqx MLP": (
        lambda: abstract(lambda: eqx.nn.MLP(9, 3, 5, 2, key=jax.random.key(0))),
        {"layers/0/weight", "layers/1/weight"},
    ),
    "eqx recurrent": (
        lambda: abstract(
            lambda: [eqx.nn.GRUCell(4, 8, key=jax.random.key(0)), eqx.nn.Linear(8, 3, key=jax.random.key(1))]
        ),
        {"0/weight_ih", "0/weight_hh"},
    ),
    "conv net": (conv_net, {"Conv_0/kernel", "Conv_1/kernel", "Dense_0/kernel"}),
    "MLP back to its input's size": (lambda: [shape(20, 8), shape(8, 8), shape(8, 20)], {"0", "1"}),
    "empty": (dict, set()),
}


@pytest.mark.parametrize(("make", "hidden"), MODELS.values(), ids=MODELS)
def test_param_labels_finds_the_hidden_matrices(make, hidden):
    labels = param_labels(make(), undecided="raise")
    assert {path for path, label in named_leaves(labels) if label == "celo2"} == hidden


@pytest.mark.parametrize("make", [make for make, _ in MODELS.values()], ids=MODELS)
def test_param_labels_keeps_the_structure(make):
    params = make()
    assert jax.tree.structure(param_labels(params)) == jax.tree.structure(params)


UNDECIDED: dict[str, tuple[Callable[[], Any], set[str]]] = {
    "nameless transformer's head": (
        lambda: {"embed": shape(32, 8), "up": shape(8, 32), "down": shape(32, 8), "thing": shape(8, 32)},
        {"up", "thing"},
    ),
    "stack of something": (
        lambda: {"layers": {"kernel": shape(3, 8, 8), "ls1": shape(3, 8)}, "head": shape(8, 4)},
        {"layers/ls1"},
    ),
}


@pytest.mark.parametrize(("make", "undecided"), UNDECIDED.values(), ids=UNDECIDED)
def test_param_labels_shows_what_it_cannot_decide(make, undecided):
    params = make()
    with pytest.warns(RoutingWarning) as record:
        labels = param_labels(params)
    assert len(record) == 1
    assert record[0].filename == __file__
    found = {path: label for path, label in named_leaves(labels) if not label.decided}
    assert set(found) == undecided
    assert set(found.values()) == {"celo2"}
    assert all(path in str(record[0].message) for path in undecided)


@pytest.mark.parametrize(
    "make",
    [
        lambda: {"wte": shape(9, 4), "h": [shape(4, 4), shape(4)], "frozen": None},
        nnx_transformer,
        eqx_tied,
        dict,
    ],
    ids=["dict", "nnx", "equinox", "empty"],
)
def test_labels_partition_an_update(make):
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), make())
    labels = param_labels(params)
    tx = optax.partition({"celo2": optax.scale(-1.0), "adamw": optax.scale(-2.0)}, labels)
    updates, _ = tx.update(params, tx.init(params), params)
    steps = {path: np.unique(update).item() for path, update in named_leaves(updates)}
    assert steps == {path: -1.0 if label == "celo2" else -2.0 for path, label in named_leaves(labels)}


def test_an_array_by_itself_is_no_adapter_of_itself() -> None:
    """Its path is empty, as is the owner of what adapts nothing."""
    assert param_labels(np.ones((8, 8), np.float32)).reason == "hidden matrix"
