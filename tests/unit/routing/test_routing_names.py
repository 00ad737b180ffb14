"""What one leaf tells: its names, its identity, its type."""

from __future__ import annotations

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from celo2.jax.routing.labels import named_leaves, param_labels
from celo2.jax.routing.params import path_name
from helpers.routing_models import (
    VOCAB,
    shape,
)


@pytest.mark.parametrize(
    "path",
    [
        "overhead/kernel",
        "headroom/kernel",
        "multi_head_attention/query/kernel",
        "MultiHeadAttention_0/out/kernel",
        "attn/heads/0/query/kernel",
        "block_0/output_projection/kernel",
        "attn/attention_logits/kernel",
        "mlp/gate_proj/kernel",
        "gru/update_gate/kernel",
        "token_mixing/fc/kernel",
        "embedder/block_0/mlp/kernel",
        "position_wise_ffn/kernel",
        "attn/linear_pos/kernel",
        "composition/kernel",
        "scale_proj/kernel",
        "lora_b",
        "B",
        "remember/kernel",
        "encoder/decoder_layer_1/mlp/kernel",
        "patch_embed/proj/kernel",
        "embed/Dense_0/kernel",
        "pre_logits/kernel",
    ],
)
def test_param_labels_matches_whole_words_only(path):
    other = {"Dense_0": {"kernel": shape(8, 8)}}
    labels = dict(named_leaves(param_labels({path: shape(16, 8), "other": other}, undecided="allow")))
    assert labels[path] == "celo2"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("token_type_embeddings/weight", "embedding"),
        ("model/wte/embedding", "embedding"),
        ("TokenEmbedder_0/w", "embedding"),
        ("register_tokens", "token"),
        ("perceiver/latents", "token"),
        ("layers_0/mamba/A_log", "decays"),
        ("Transformer/posembed_input/pos_embedding", "positional"),
        ("attn/relative_position_bias_table", "bias"),
        ("decoder/logits_dense/kernel", "head"),
        ("LMHead_0/kernel", "head"),
        ("transformer/lm_head/kernel", "head"),
        ("final_layer/linear/kernel", "head"),
        ("mlp_head/layers/0/weight", "head"),
        ("classifier/kernel", "head"),
        ("block_3/moe/router_weights/w", "router"),
        ("layers/layernorm_2/weight", "vectors"),
        ("layers/fc/b1", "vectors"),
        ("blocks/gamma", "vectors"),
    ],
)
def test_param_labels_knows_a_name(path, reason):
    labels = dict(named_leaves(param_labels({path: shape(16, 8), "other": shape(8, 8)}, undecided="raise")))
    assert labels[path] == "adamw"
    assert reason in labels[path].reason


@pytest.mark.parametrize("name", ["lm_head", "something"])
def test_param_labels_recognises_a_tied_embedding_under_any_name(name):
    table = jnp.ones((8, 8))
    params = {"wte": {"embedding": table}, name: {"kernel": table}, "h": {"w": jnp.ones((8, 8))}}
    labels = param_labels(params)
    assert labels[name]["kernel"] == "adamw"
    assert labels[name]["kernel"].reason == "tied to wte/embedding"
    assert labels["h"]["w"] == "celo2"


def test_param_labels_sees_shapes_only():
    params = {"wte": np.ones((VOCAB, 8)), "h": {"w": np.ones((8, 8)), "b": np.ones(8)}}
    seen = []
    jax.jit(lambda tree: seen.append(param_labels(tree)))(params)
    assert seen == [param_labels(params)]
    assert param_labels(jax.eval_shape(lambda tree: tree, params)) == param_labels(params)


def test_param_labels_leaves_holes_alone():
    params = {"w": shape(8, 8), "frozen": optax.MaskedNode(), "nothing": None}
    assert param_labels(params) == {"w": "celo2", "frozen": optax.MaskedNode(), "nothing": None}


def test_path_name_drops_flax_boxes_only():
    class Raw(eqx.Module):
        key: jax.Array
        value: jax.Array

    boxed = {"kernel": nn.Partitioned(jnp.ones((2, 2)), names=(None, None))}
    assert [path for path, _ in named_leaves(boxed)] == ["kernel"]
    raw = {"attn": Raw(jnp.ones(2), jnp.ones(2))}
    assert [path for path, _ in named_leaves(raw)] == ["attn/key", "attn/value"]
    assert path_name(jax.tree_util.tree_leaves_with_path(raw)[1][0]) == "attn/value"


@pytest.mark.parametrize(
    ("leaf", "found"),
    [(jnp.zeros((), jnp.int32), "int32"), (jnp.zeros((2, 2), bool), "bool"), (len, "builtin_"), (3, "int")],
    ids=["counter", "mask", "function", "int"],
)
def test_param_labels_refuses_what_cannot_be_trained(leaf, found):
    with pytest.raises(
        TypeError, match=rf"'net/step' cannot be trained: expected floating-point numbers, got {found}"
    ):
        param_labels({"net": {"step": leaf, "w": jnp.ones((2, 2))}})


def test_param_labels_sends_complex_matrices_to_adamw():
    assert param_labels({"w": jnp.ones((4, 4), jnp.complex64)})["w"] == "adamw"
