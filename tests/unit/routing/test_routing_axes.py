"""The complete optimizers in JAX infer each leaf's matrix, and take the user's word on it."""

from __future__ import annotations

import re
import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest
from optax.contrib import MuonDimensionNumbers

import celo2
from celo2 import DimensionNumbers
from celo2.jax.routing.labels import find_dimension_numbers, label_table, param_labels
from celo2.jax.routing.params import path_name
from celo2.routing import RoutingWarning
from helpers.routing_models import abstract, shape
from helpers.tolerances import relative_error, tolerance

NET = {
    "conv": {"kernel": shape(3, 3, 4, 8)},
    "attn": {"query": {"kernel": shape(8, 2, 4)}, "out": {"kernel": shape(2, 4, 8)}},
    "head": {"kernel": shape(8, 5)},
}
INFERRED = {
    "conv": DimensionNumbers((0, 1, 2), 3),
    "query": DimensionNumbers(0, (1, 2)),
    "out": DimensionNumbers((0, 1), 2),
}


def numbers_of(options: Any) -> dict[str, Any]:
    found = find_dimension_numbers(NET, options)
    attention = {name: found["attn"][name]["kernel"] for name in ("query", "out")}
    return {"conv": found["conv"]["kernel"], **attention}


def steps_of(params: Any, grads: Any, **options: Any) -> Any:
    tx = celo2.celo2(1.0, **options)
    updates, _ = jax.jit(tx.update)(grads, tx.init(params), params)
    return updates


def random_like(tree: Any, seed: int) -> Any:
    leaves, treedef = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return treedef.unflatten([jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)])


def test_a_step_is_that_of_the_layers_matrix_whatever_its_storage(standard_promotion: None) -> None:
    """A convolution as Flax stores it and as PyTorch does, a linear layer as both: the same step."""
    turned = (3, 2, 0, 1)
    with jax.enable_x64(True):  # exactness of the axes is the point, not rounding
        kernels = [random_like(shape(3, 3, 4, 8), seed) for seed in (0, 1)]
        matrices = [random_like(shape(6, 6), seed) for seed in (2, 3)]
        pairs = list(zip(kernels, matrices, strict=True))
        flax = [{"conv": {"kernel": x}, "fc": {"kernel": y}} for x, y in pairs]
        pytorch = [{"conv": {"weight": x.transpose(turned)}, "fc": {"weight": y.T}} for x, y in pairs]
        step, other = (steps_of(*trees, overrides=lambda *_: "celo2") for trees in (flax, pytorch))
    within = tolerance("jax float64, oracle")
    assert relative_error(other["conv"]["weight"], step["conv"]["kernel"].transpose(turned)) <= within
    assert relative_error(other["fc"]["weight"], step["fc"]["kernel"].T) <= within


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        (None, {}),
        ({"query": DimensionNumbers(0, 2)}, {"query": DimensionNumbers(0, 2)}),
        ({re.compile("QUERY", re.I): MuonDimensionNumbers(0, 2)}, {"query": DimensionNumbers(0, 2)}),
        ({r"kernel$": None}, dict.fromkeys(INFERRED)),
        ({"attn/query/kernel": DimensionNumbers(0, 2)}, {"query": DimensionNumbers(0, 2)}),
        ({"attn": {"query": {"kernel": DimensionNumbers(0, 2)}}}, {"query": DimensionNumbers(0, 2)}),
        (lambda _: {"conv": {"kernel": DimensionNumbers(2, 3)}}, {"conv": DimensionNumbers(2, 3)}),
        ({"conv": {"kernel": None}, "attn": None}, {}),
    ],
    ids=["nothing", "pattern", "compiled", "as stored", "path", "tree", "callable", "None in a tree of ours"],
)
def test_dimension_numbers_are_inferred_unless_given(options: Any, changes: dict[str, Any]) -> None:
    assert numbers_of(options) == INFERRED | changes


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"kernal": DimensionNumbers(0, 1)}, ValueError, "'kernal' matches no parameter"),
        ({"conv": {"kernle": DimensionNumbers(0, 1)}}, ValueError, "did you mean 'conv/kernel'"),
        ({"conv/kernel": DimensionNumbers(0, 9)}, ValueError, "does not have"),
        ({"(": DimensionNumbers(0, 1)}, ValueError, "is not a regular expression"),
        ({"conv": {"kernel": 3}}, TypeError, "must be DimensionNumbers or None"),
        ({"conv/kernel": (0, 1)}, TypeError, r"must be DimensionNumbers or None, got \(0, 1\)"),
        ({r"kernel$": ((0, 1), 2)}, TypeError, r"must be DimensionNumbers or None, got \(\(0, 1\), 2\)"),
    ],
    ids=["pattern", "tree", "axis", "syntax", "type", "tuple", "tuple by a pattern"],
)
def test_dimension_numbers_that_mean_nothing_are_refused(options: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        celo2.celo2(1.0, dimension_numbers=options).init(random_like(NET, 0))


def trained_by_the_rule(state: Any) -> dict[str, bool]:
    """Which leaves have accumulators of the rule in the state of `celo2.celo2`."""
    momentum = state.inner_states["celo2"].inner_state[0].momentum[0]
    leaves = jax.tree_util.tree_leaves_with_path(momentum, is_leaf=lambda x: isinstance(x, optax.MaskedNode))
    return {path_name(path): not isinstance(leaf, optax.MaskedNode) for path, leaf in leaves}


def test_none_among_optaxs_own_dimension_numbers_means_adamw_as_there() -> None:
    params = random_like({"proj": shape(8, 8), "mix": shape(8, 8), "vector": shape(8)}, 0)
    numbers = {"proj": MuonDimensionNumbers(0, 1), "mix": None, "vector": None}
    expected = {"proj": True, "mix": False, "vector": False}
    assert trained_by_the_rule(celo2.celo2(1.0, dimension_numbers=numbers).init(params)) == expected
    ours = {"proj": DimensionNumbers(0, 1), "mix": None}
    assert trained_by_the_rule(celo2.celo2(1.0, dimension_numbers=ours).init(params)) == expected | {
        "mix": True
    }


def shapes_of(tree: Any) -> list[tuple[int, ...]]:
    return [leaf.shape for leaf in jax.tree.leaves(tree)]


def test_the_base_optimizer_takes_the_same_matrices_and_the_direction_alone_none() -> None:
    params = random_like(NET, 0)
    state: Any = celo2.celo2_base(1.0).init(params)
    direction, *_ = state
    given = celo2.scale_by_celo2(orthogonalize=False, dimension_numbers=celo2.find_dimension_numbers)
    stored = celo2.scale_by_celo2(orthogonalize=False)
    assert shapes_of(direction) == shapes_of(given.init(params))
    assert shapes_of(direction) != shapes_of(stored.init(params))
    assert find_dimension_numbers(NET, base=True) == find_dimension_numbers(NET)
    by_optax = {"conv": {"kernel": MuonDimensionNumbers(2, 3)}, "attn": {"query": {"kernel": None}}}
    found = find_dimension_numbers(NET, by_optax, base=True)
    assert found["attn"]["query"]["kernel"] is None
    assert found["attn"]["out"]["kernel"] == INFERRED["out"]


BLOCK = {"fc": {"kernel": shape(8, 6)}, "proj": {"kernel": shape(6, 5)}}


@pytest.mark.parametrize("wrap", ["masked", "partition"])
def test_a_part_of_a_network_raises_no_false_alarm(wrap: str) -> None:
    """Inside of `optax.masked` and `partition`, others may read what nothing seems to read."""
    params = random_like({"embed": shape(30, 8), "block": BLOCK, "thing": shape(8, 30)}, 0)
    parts = {"embed": False, "block": jax.tree.map(lambda _: True, BLOCK), "thing": True}
    state: Any
    with warnings.catch_warnings():
        warnings.simplefilter("error", RoutingWarning)
        if wrap == "masked":
            state = optax.masked(celo2.celo2(1.0), parts).init(params)
        else:
            labels = jax.tree.map(lambda own: "rule" if own else "rest", parts)
            tx = optax.partition({"rule": celo2.celo2(1.0), "rest": optax.sgd(1.0)}, lambda _: labels)
            state = tx.init(params)
            state = state.inner_states["rule"]
    found = trained_by_the_rule(state.inner_state)
    assert found == {"embed": False, "block/fc/kernel": True, "block/proj/kernel": True, "thing": True}


def test_the_table_shows_the_axes_that_the_user_gave() -> None:
    table = label_table(NET, dimension_numbers={"query": DimensionNumbers(0, 2)})
    (line,) = (line for line in table.splitlines() if "query" in line)
    assert "2 of 4 × 8  0 → 2" in line


class Own(eqx.nn.Linear):
    """A class that derives from a layer is that layer."""


def test_a_class_that_derives_from_equinoxs_layer_is_one() -> None:
    own: Any = Own  # a type checker expects the fields
    params = abstract(
        lambda: {
            "embedding": own(8, 6, key=jax.random.key(0)),
            "x": eqx.nn.Linear(6, 3, key=jax.random.key(1)),
        }
    )
    labels = param_labels(params, undecided="raise")
    label = labels["embedding"].weight
    assert (label, label.numbers) == ("celo2", DimensionNumbers(1, 0))


@pytest.mark.parametrize(
    "dims", [(8, 6), (3, 8, 6), (2, 3, 8, 6)], ids=["matrix", "stack", "stack of stacks"]
)
def test_a_bare_array_is_its_last_two_axes(dims: tuple[int, ...]) -> None:
    label = param_labels({"u": shape(*dims), "v": shape(6, 8)}, undecided="allow")["u"]
    expected = None if len(dims) == 2 else DimensionNumbers(len(dims) - 2, len(dims) - 1)
    assert label.numbers == expected


def test_complete_optimizers_compile_once_with_inferred_matrices(standard_promotion: None) -> None:
    tx = celo2.celo2(1e-3)
    params = random_like({"conv": NET["conv"], "head": NET["head"]}, 0)
    update: Any = jax.jit(tx.update)
    state = tx.init(params)
    for seed in range(2):
        updates, state = update(random_like(params, seed), state, params)
        params = optax.apply_updates(params, updates)
    assert update._cache_size() == 1
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
