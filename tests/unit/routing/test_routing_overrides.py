"""What the user says and sees: overrides, undecided leaves, labels, the table."""

from __future__ import annotations

import copy
import pickle
import re
import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest

import celo2
from celo2.jax.routing.labels import Label, label_table, named_leaves, param_labels
from celo2.routing import RoutingWarning
from helpers.routing_models import (
    abstract,
    shape,
)

NET = {"body": {"w1": shape(8, 8), "w10": shape(8, 8)}, "head": {"kernel": shape(8, 3), "bias": shape(3)}}

DEFAULT = {"body/w1": "celo2", "body/w10": "celo2", "head/bias": "adamw", "head/kernel": "adamw"}


UNCLEAR = {"embed": shape(32, 8), "mlp": {"up": shape(8, 32), "down": shape(32, 8)}, "thing": shape(8, 32)}


def test_param_labels_undecided_is_an_argument():
    with pytest.raises(ValueError, match=r"1 of 4 parameters .*\n  thing  \(8, 32\)"):
        param_labels(UNCLEAR, undecided="raise")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        labels = named_leaves(param_labels(UNCLEAR, undecided="allow"))
        assert [path for path, label in labels if not label.decided] == ["thing"]
    with pytest.raises(ValueError, match="undecided must be one of"):
        param_labels(UNCLEAR, undecided="ignore")  # type: ignore[arg-type]


def test_param_labels_follows_the_remedy_of_its_own_warning():
    labels = param_labels(UNCLEAR, overrides={"thing": "adamw"}, undecided="raise")
    assert labels["thing"] == "adamw"


FLATTENED = jax.ShapeDtypeStruct((4096,), "float32")


def test_a_flattened_network_is_pointed_out():
    with pytest.raises(
        ValueError, match=r"one bare vector of 4,096 elements, which gets 'adamw'.*optax.flatten"
    ):
        param_labels(FLATTENED, undecided="raise")
    network = {"up": jnp.ones((32, 64)), "down": jnp.ones((64, 32))}
    with pytest.warns(RoutingWarning, match="one bare vector") as warned:
        optax.flatten(celo2.celo2(1e-3)).init(network)
    assert warned[0].filename == __file__


@pytest.mark.parametrize(
    ("params", "options"),
    [
        (FLATTENED, {"overrides": {"": "adamw"}}),
        (FLATTENED, {"undecided": "allow"}),
        (jax.ShapeDtypeStruct((4095,), "float32"), {}),
        ({"scale": FLATTENED}, {}),
    ],
    ids=["override", "allowed", "short", "named"],
)
def test_other_vectors_are_just_vectors(params, options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "adamw" in [label for _, label in named_leaves(param_labels(params, **options))]


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
        ({"body": "muon"}, "unknown label 'muon' for body. Valid labels are"),
        (lambda *_: True, "unknown label True for body/w1. Valid labels are"),
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
        assert (copied, hash(copied)) == ("adamw", hash("adamw"))
        assert (copied.reason, copied.decided) == ("rank 1", False)


def test_label_table_shows_every_leaf_and_the_totals():
    assert label_table(UNCLEAR | {"b": shape(8)}).splitlines() == [
        "name      shape    algorithm  matrix         reason",
        "b         (8,)     adamw                     rank 1",
        "embed     (32, 8)  adamw                     embedding, name 'embed'",
        "mlp/down  (32, 8)  celo2      8 × 32  0 → 1  hidden matrix",
        "mlp/up    (8, 32)  celo2      32 × 8  0 → 1  hidden matrix",
        "thing     (8, 32)  celo2 ?    32 × 8  0 → 1  "
        "32 is the vocabulary, but a hidden size too: an output head?",
        "celo2: 3 tensors, 768 parameters",
        "adamw: 2 tensors, 264 parameters",
    ]


def test_label_table_gives_equal_layers_one_line_and_shows_the_axes():
    block = {"attn": {"qkv": {"kernel": shape(8, 24)}, "out": {"kernel": shape(2, 4, 8)}}}
    table = label_table({f"block_{i}": block for i in range(12)} | {"conv": {"kernel": shape(3, 3, 8, 16)}})
    assert table.splitlines()[1:4] == [
        "block_[0-11]/attn/out/kernel  (2, 4, 8)      celo2      8 × 8  0,1 → 2      hidden, attention",
        "block_[0-11]/attn/qkv/kernel  (8, 24)        celo2      3 of 8 × 8  0 → 1   "
        "hidden, split into q, k, v",
        "conv/kernel                   (3, 3, 8, 16)  celo2      16 × 72  0,1,2 → 3  hidden, convolution",
    ]


def test_label_table_points_at_matrices_that_look_fused():
    """Grouped queries make unequal parts, which no number of equal parts cuts."""
    attention = {"qkv": {"kernel": shape(8, 16)}, "out": {"kernel": shape(8, 8)}}
    table = label_table({f"block_{i}": {"attn": attention} for i in range(2)})
    assert "hidden matrix; fused? see dimension_numbers" in table


def test_label_table_takes_plain_labels():
    table = label_table({"w0": shape(9, 5), "w1": shape(5, 3)}, {"w0": "adamw", "w1": "celo2"})
    assert "celo2: 1 tensor, 15 parameters" in table
    with pytest.raises(ValueError, match="expected 2 leaves, got 1"):
        label_table({"w0": shape(9, 5), "w1": shape(5, 3)}, {"w0": "adamw"})
    with pytest.raises(ValueError, match="unknown label 'rule' for w1"):
        label_table({"w1": shape(9, 5)}, {"w1": "rule"})
