"""What the user says and sees: overrides, undecided leaves, labels, the table."""

from __future__ import annotations

import copy
import pickle
import re
import warnings
from typing import Any

import equinox as eqx
import jax
import pytest
from routing_models import (
    abstract,
    shape,
)

from celo2.jax.routing import Label, label_table, named_leaves, param_labels

NET = {"body": {"w1": shape(8, 8), "w10": shape(8, 8)}, "head": {"kernel": shape(8, 3), "bias": shape(3)}}

DEFAULT = {"body/w1": "celo2", "body/w10": "celo2", "head/bias": "adamw", "head/kernel": "adamw"}


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
