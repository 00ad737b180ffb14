"""Every leaf of the usual kinds of network gets the label that the published recipe means for it."""

from __future__ import annotations

import copy
import pickle
import re
import warnings
from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from celo2.jax.routing import (
    Label,
    RoutingWarning,
    label_table,
    named_leaves,
    param_labels,
    path_name,
)

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


def actor_critic() -> Any:
    torso = {"Dense_0": {"kernel": shape(16, 64)}, "Dense_1": {"kernel": shape(64, 64)}}
    return {"torso": torso, "policy_head": {"kernel": shape(64, 4)}, "value": {"kernel": shape(64, 1)}}


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
    "linen ViT": (linen_vit, {f"encoderblock_0/{name}/kernel" for name in ("query", "key", "value", "out")}),
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
    "plain MLP": (lambda: {"w0": shape(784, 128), "w1": shape(128, 128), "w2": shape(128, 10)}, {"w2"}),
    "two layers with biases": (
        lambda: [{"kernel": shape(64, 32), "bias": shape(32)}, {"kernel": shape(32, 10), "bias": shape(10)}],
        {"1/kernel"},
    ),
    "haiku MLP of 11 layers": (
        lambda: {f"mlp/~/linear_{i}": {"w": shape(7, 7 if i < 10 else 3)} for i in range(11)},
        {"mlp/~/linear_10/w"},
    ),
    "haiku MLP": (
        lambda: {"mlp/~/linear": {"w": shape(9, 5)}, "mlp/~/linear_1": {"w": shape(5, 3)}},
        {"mlp/~/linear_1/w"},
    ),
    "eqx MLP": (
        lambda: abstract(lambda: eqx.nn.MLP(9, 3, 5, 2, key=jax.random.key(0))),
        {"layers/2/weight"},
    ),
    "conv net": (lambda: linen(LinenConvNet(), jnp.zeros((1, 8, 8, 1))), {"Dense_1/kernel"}),
    "MLP back to its input's size": (lambda: [shape(20, 8), shape(8, 8), shape(8, 20)], {"2"}),
    "nameless transformer's head": (
        lambda: {"embed": shape(32, 8), "up": shape(8, 32), "down": shape(32, 8), "thing": shape(8, 32)},
        {"up", "down", "thing"},
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


def test_param_labels_undecided_is_an_argument():
    params = [shape(9, 5), shape(5, 3)]
    with pytest.raises(ValueError, match=r"1 of 2 parameters .*\n  1  \(5, 3\)"):
        param_labels(params, undecided="raise")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [label.decided for label in param_labels(params, undecided="allow")] == [True, False]
    with pytest.raises(ValueError, match="undecided must be one of"):
        param_labels(params, undecided="ignore")  # type: ignore[arg-type]


def test_param_labels_follows_the_remedy_of_its_own_warning():
    labels = param_labels([shape(9, 5), shape(5, 3)], overrides={"1": "adamw"}, undecided="raise")
    assert labels == ["celo2", "adamw"]


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
        ("patch_embed/proj/kernel", "embedding"),
        ("TokenEmbedder_0/w", "embedding"),
        ("register_tokens", "embedding"),
        ("Transformer/posembed_input/pos_embedding", "positional"),
        ("attn/relative_position_bias_table", "bias"),
        ("decoder/logits_dense/kernel", "head"),
        ("LMHead_0/kernel", "head"),
        ("transformer/lm_head/kernel", "head"),
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


NET = {"body": {"w1": shape(8, 8), "w10": shape(8, 8)}, "head": {"kernel": shape(8, 3), "bias": shape(3)}}

DEFAULT = {"body/w1": "celo2", "body/w10": "celo2", "head/bias": "adamw", "head/kernel": "adamw"}

OVERRIDES: dict[str, tuple[Any, dict[str, str]]] = {
    "none": (None, {}),
    "callable": (
        lambda path, leaf: "adamw" if path == "body/w1" and leaf.ndim == 2 else None,
        {"body/w1": "adamw"},
    ),
    "pattern": ({r"w\d+$": "adamw"}, {"body/w1": "adamw", "body/w10": "adamw"}),
    "compiled pattern": ({re.compile("W1$", re.IGNORECASE): "adamw"}, {"body/w1": "adamw"}),
    "first pattern wins": ({r"w10": "celo2", r"w1": "adamw"}, {"body/w1": "adamw"}),
    "tree with a hole": ({"body": {"w1": "adamw", "w10": None}}, {"body/w1": "adamw"}),
    "module": ({"head": "celo2"}, {"head/kernel": "celo2", "head/bias": "celo2"}),
    "path": ({"body/w1": "adamw"}, {"body/w1": "adamw"}),
    "module and exception": ({"head": "celo2", "head/bias": "adamw"}, {"head/kernel": "celo2"}),
    "one label": ("adamw", dict.fromkeys(DEFAULT, "adamw")),
    "earlier labels": (param_labels(NET), {}),
}


@pytest.mark.parametrize(("overrides", "changes"), OVERRIDES.values(), ids=OVERRIDES)
def test_overrides_change_what_they_name(overrides, changes):
    assert dict(named_leaves(param_labels(NET, overrides=overrides))) == DEFAULT | changes


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"heed/kernel": "adamw"}, "'heed/kernel' matches no parameter; did you mean 'head/kernel'"),
        ({"body": {"w2": "adamw"}}, "'body/w2' is no parameter or module; did you mean 'body/w1'"),
        ({"w1": "adam"}, "unknown label 'adam' for the pattern 'w1'; did you mean 'adamw'"),
        ({"body": "muon"}, "unknown label 'muon' for body; valid labels are"),
        (lambda *_: True, "unknown label True for body/w1; valid labels are"),
        ({"(": "adamw"}, r"'\(' is not a regular expression"),
    ],
    ids=["pattern", "tree", "label", "module", "callable", "syntax"],
)
def test_overrides_that_mean_nothing_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        param_labels(NET, overrides=overrides)


def test_overrides_may_be_a_module_that_can_be_called():
    params = abstract(lambda: eqx.nn.MLP(9, 3, 5, 1, key=jax.random.key(0)))
    labels = param_labels(params, undecided="allow")
    labels = eqx.tree_at(lambda mlp: mlp.layers[1].weight, labels, "adamw")
    assert param_labels(params, overrides=labels, undecided="raise").layers[1].weight == "adamw"


def test_label_is_a_string_that_survives_a_copy():
    label = Label("adamw", "rank 1", decided=False)
    for copied in (label, copy.deepcopy(label), pickle.loads(pickle.dumps(label))):
        assert copied == "adamw"
        assert hash(copied) == hash("adamw")
        assert (copied.reason, copied.decided) == ("rank 1", False)


def test_label_table_shows_every_leaf_and_the_totals():
    params = {"w0": shape(9, 5), "b0": shape(5), "w1": shape(5, 3)}
    assert label_table(params).splitlines() == [
        "path  shape   label    reason",
        "b0    (5,)    adamw    rank 1",
        "w0    (9, 5)  celo2    hidden matrix",
        "w1    (5, 3)  celo2 ?  no other matrix has its 3 outputs: an output head?",
        "celo2: 2 tensors, 60 parameters",
        "adamw: 1 tensor, 5 parameters",
    ]


def test_label_table_takes_plain_labels():
    table = label_table({"w0": shape(9, 5), "w1": shape(5, 3)}, {"w0": "adamw", "w1": "celo2"})
    assert "celo2: 1 tensor, 15 parameters" in table
    with pytest.raises(ValueError, match="expected 2 leaves, got 1"):
        label_table({"w0": shape(9, 5), "w1": shape(5, 3)}, {"w0": "adamw"})
    with pytest.raises(ValueError, match="unknown label 'rule' for w1"):
        label_table({"w1": shape(9, 5)}, {"w1": "rule"})


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
