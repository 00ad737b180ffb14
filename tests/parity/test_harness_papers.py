"""The transforms of the harness against the papers' equations in float64 NumPy, on arrays of every kind."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import celo2
from celo2.jax.harness import averages, decay, eigenbasis, norms, orthogonalizers, rows
from helpers import quick
from helpers.tolerances import relative_error, tolerance
from oracle import harness as oracle
from oracle import rule

STEPS = 13
LIMIT = tolerance("harness float64, oracle")
Array = np.ndarray
Leaves = dict[str, Array]

# A matrix, a convolution that is one 4 × 3 matrix, one with its outputs first, two matrices, no matrix.
SHAPES = {"kernel": (5, 3), "conv": (2, 1, 2, 3), "turned": (3, 4), "stack": (2, 3, 4), "vector": (4,)}
# Square matrices: of another, one basis of the first gradient's null space is as good as another.
SQUARE_SHAPES = {"kernel": (4, 4), "conv": (2, 1, 2, 4), "turned": (3, 3), "stack": (2, 3, 3), "vector": (4,)}
WIDE_SHAPES = {"kernel": (3, 6), "conv": (1, 1, 3, 5), "turned": (5, 2), "stack": (2, 3, 7), "vector": (4,)}
NUMBERS = {
    "kernel": None,
    "conv": celo2.DimensionNumbers(reduction_axis=(0, 1, 2), output_axis=3),
    "turned": celo2.DimensionNumbers(reduction_axis=1, output_axis=0),
    "stack": None,
    "vector": None,
}


def matrices_of(name: str, array: Array) -> list[Array]:
    """The matrices `(reduction, output)` of an array, one by one; a vector as it is."""
    if name == "conv":
        return [array.reshape(-1, array.shape[-1])]
    return list(array) if name == "stack" else [array.T if name == "turned" else array]


def array_of(name: str, matrices: list[Array], shape: tuple[int, ...]) -> Array:
    """Inverts `matrices_of`."""
    if name == "stack":
        return np.stack(matrices)
    return matrices[0].T if name == "turned" else matrices[0].reshape(shape)


def make_run(shapes: Mapping[str, tuple[int, ...]] = SHAPES) -> tuple[list[Leaves], list[Leaves]]:
    """Steps or gradients with a common part, and parameters that wander; both with a matrix of zeros once."""
    rng = np.random.default_rng(0)
    common = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    param = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    steps, params = [], []
    for t in range(STEPS):
        steps.append({n: common[n] + rng.standard_normal(s) for n, s in shapes.items()})
        params.append(param)
        param = {n: p + 0.3 * rng.standard_normal(p.shape) for n, p in param.items()}
        if t in (5, 6):
            steps[-1]["kernel"][:] = 0.0
            steps[-1]["stack"][1] = 0.0
    return steps, params


def replay(
    tx: optax.GradientTransformation, steps: list[Leaves], params: list[Leaves], read: Any = None
) -> list[Leaves]:
    """The updates of a transform, or what `read` finds in its states."""
    with jax.enable_x64(True):
        cast = partial(jax.tree.map, partial(jnp.asarray, dtype=jnp.float64))
        state = tx.init(cast(params[0]))
        update, found = jax.jit(tx.update), []
        for step, param in zip(steps, params, strict=True):
            updates, state = update(cast(step), state, cast(param))
            found.append(jax.tree.map(np.asarray, read(state) if read else updates))
    return found


def by_matrix(expect: Callable[..., list[Array]], *records: list[Leaves]) -> list[Leaves]:
    """Runs an oracle of one matrix's history for every matrix of every array."""
    expected: list[Leaves] = [{} for _ in records[0]]
    for name, first in records[0][0].items():
        histories = [zip(*(matrices_of(name, leaves[name]) for leaves in r), strict=True) for r in records]
        columns = [expect(*map(list, history)) for history in zip(*histories, strict=True)]
        for leaves, matrices in zip(expected, zip(*columns, strict=True), strict=True):
            leaves[name] = array_of(name, list(matrices), first.shape)
    return expected


def assert_agree(actual: list[Leaves], expected: list[Leaves]) -> None:
    """Every leaf of every step is within the tolerance."""
    for t, (ours, theirs) in enumerate(zip(actual, expected, strict=True)):
        errors = {name: relative_error(ours[name], theirs[name]) for name in theirs}
        assert ours.keys() == theirs.keys()
        assert max(errors.values()) <= LIMIT, f"step {t}: {errors}"


def on_matrices(function: Callable[..., list[Array]]) -> Callable[..., list[Array]]:
    """Leaves vectors as they are."""
    return lambda steps, *rest: function(steps, *rest) if steps[0].ndim > 1 else steps


@pytest.mark.parametrize("beta", [0.95, 0.0])
def test_row_normalization_matches_its_paper(beta: float) -> None:
    steps, params = make_run()
    tx = rows.normalize_rows(beta, dimension_numbers=NUMBERS)

    def expect(steps: list[Array]) -> list[Array]:  # a neuron is a row in the paper and a column here
        return [step.T for step in oracle.normalize_rows([step.T for step in steps], beta)]

    assert_agree(replay(tx, steps, params), by_matrix(on_matrices(expect), steps))


def test_cautious_decay_matches_its_paper() -> None:
    steps, params = make_run()
    params[3] = {name: np.where(param > 0.5, 0.0, param) for name, param in params[3].items()}
    tx = decay.add_cautious_weight_decay(0.1)
    pairs = zip(steps, params, strict=True)
    expected = [{n: oracle.cautious_decay(step[n], p[n], 0.1) for n in step} for step, p in pairs]
    assert_agree(replay(tx, steps, params), expected)


@pytest.mark.parametrize("ratio", [0.0, 1.0, 100.0])
def test_floor_of_the_update_ratio_matches_its_formula(ratio: float) -> None:
    steps, params = make_run()

    def expect(steps: list[Array], params: list[Array]) -> list[Array]:
        return [oracle.floor_ratio(*pair, ratio) for pair in zip(steps, params, strict=True)]

    tx = norms.floor_update_ratio(ratio, dimension_numbers=NUMBERS)
    expected = by_matrix(expect, steps, params)
    changed = sum(not np.array_equal(e[n], s[n]) for e, s in zip(expected, steps, strict=True) for n in s)
    assert {0.0: changed == 0, 1.0: 0 < changed < STEPS * len(SHAPES)}.get(ratio, changed > 0)
    assert_agree(replay(tx, steps, params), expected)


def test_projection_to_the_initial_norm_matches_its_paper() -> None:
    steps, params = make_run()
    params[0]["stack"][0] = 0.0  # at the start: this one is free

    def expect(steps: list[Array], params: list[Array]) -> list[Array]:
        radius = float(np.linalg.norm(params[0]))
        return [oracle.project(w, u, radius) for u, w in zip(steps, params, strict=True)]

    tx = norms.preserve_norms(dimension_numbers=NUMBERS)
    assert_agree(replay(tx, steps, params), by_matrix(on_matrices(expect), steps, params))


def polar(matrices: jax.Array) -> jax.Array:
    left, _, right = jnp.linalg.svd(matrices, full_matrices=False)
    return 7.0 * left @ right  # the scale does not matter


def test_own_orthogonalizer_acts_on_every_matrix_and_keeps_its_norm() -> None:
    steps, params = make_run()

    tx = orthogonalizers.orthogonalize_by(polar, dimension_numbers=NUMBERS)
    expected = by_matrix(on_matrices(lambda steps: list(map(oracle.polar_factor, steps))), steps)
    assert_agree(replay(tx, steps, params), expected)


@pytest.mark.parametrize(
    ("arguments", "expect"),
    [
        ({"decay": 0.6}, partial(oracle.exponential_means, beta=0.6)),
        ({"decay": 0.0}, partial(oracle.exponential_means, beta=0.0)),
        ({"decay": 1.0}, partial(oracle.tail_means, start=0)),
        ({"decay": 1.0, "start": 5}, partial(oracle.tail_means, start=5)),
        (
            {"decay": 0.6, "start": 5},
            lambda params: params[:5] + oracle.exponential_means(params[5:], beta=0.6),
        ),
    ],
    ids=["exponential", "last", "mean", "tail", "exponential-tail"],
)
def test_average_of_parameters_matches_its_formula(arguments: Any, expect: Any) -> None:
    steps, params = make_run()
    sums = [{n: step[n] + p[n] for n in step} for step, p in zip(steps, params, strict=True)]
    found = replay(averages.average_params(**arguments), steps, params, read=averages.averaged_params)
    assert_agree(found, by_matrix(expect, sums))


EVERY = 3  # so that the bases are renewed four times
CONFIG = celo2.RuleConfig(**quick.SMALL_RULE, ns_iters=2)
OPTIONS = rule.make_options({**quick.SMALL_RULE, "ns_iters": 2})


def make_theta() -> dict[str, Array]:
    rng = np.random.default_rng(4)
    return {name: rng.standard_normal(s).astype(np.float32) for name, s in CONFIG.weight_shapes().items()}


def make_rule(theta: Mapping[str, Array]) -> optax.GradientTransformation:
    """The rule behind `in_eigenbasis`, which shows it matrices with one batch axis."""
    return celo2.scale_by_celo2(
        celo2.Weights(dict(theta), CONFIG),
        dimension_numbers=lambda tree: jax.tree.map(
            lambda a: celo2.DimensionNumbers(1, 2) if a.ndim == 3 else None, tree
        ),
        skip_zero_gradients=True,
    )


@pytest.mark.parametrize(
    ("shapes", "sides", "options"),
    [(SQUARE_SHAPES, "LR", {}), (WIDE_SHAPES, "L", {"max_side": 3}), (SHAPES, "", {"max_side": 1})],
    ids=["both", "left", "none"],
)
def test_adam_in_the_eigenbasis_is_soap(shapes: Any, sides: str, options: Any) -> None:
    steps, params = make_run(shapes)
    tx = eigenbasis.in_eigenbasis(
        optax.scale_by_adam(0.9, 0.7), every=EVERY, decay=0.8, dimension_numbers=NUMBERS, **options
    )

    def expect(grads: list[Array], params: list[Array]) -> list[Array]:
        inner, chosen = oracle.Adam(grads[0].shape, betas=(0.9, 0.7)), sides if grads[0].ndim > 1 else ""
        return oracle.in_eigenbasis(grads, params, inner, every=EVERY, sides=chosen, beta=0.8)

    with jax.numpy_dtype_promotion("standard"):  # for Optax's Adam
        actual = replay(tx, steps, params)
    assert_agree(actual, by_matrix(expect, steps, params))


@pytest.mark.parametrize(
    ("shapes", "sides", "options"),
    [(SQUARE_SHAPES, "LR", {}), (WIDE_SHAPES, "L", {"max_side": 3})],
    ids=["both", "left"],
)
def test_celo2_in_the_eigenbasis_rotates_momenta_and_reorders_squares(
    shapes: Any, sides: str, options: Any
) -> None:
    steps, params = make_run(shapes)
    theta = make_theta()
    tx = eigenbasis.in_eigenbasis(
        make_rule(theta), every=EVERY, decay=0.8, dimension_numbers=NUMBERS, **options
    )

    def expect(grads: list[Array], params: list[Array]) -> list[Array]:
        inner, chosen = oracle.Rule(grads[0].shape, theta, OPTIONS), sides if grads[0].ndim > 1 else ""
        return oracle.in_eigenbasis(grads, params, inner, every=EVERY, sides=chosen, beta=0.8)

    assert_agree(replay(tx, steps, params), by_matrix(expect, steps, params))


@pytest.mark.parametrize("orthogonalizer", ["newton-schulz", polar], ids=["newton-schulz", "polar"])
def test_all_parts_act_in_their_order(orthogonalizer: Any) -> None:
    """AdamW's bias, which has none of them but the cautious decay, beside the rule's matrix."""
    rate, weight_decay, ratio, theta = 0.1, 0.3, 0.8, make_theta()
    parts = celo2.Harness(
        eigenbasis_every=EVERY,
        orthogonalizer=orthogonalizer,
        row_decay=0.9,
        min_update_ratio=ratio,
        cautious_decay=True,
        preserve_norms=True,
    )
    weights = celo2.Weights(theta, CONFIG)
    tx = celo2.celo2(rate, weights=weights, weight_decay=weight_decay, harness=parts, match="adamw")
    steps, params = (
        [{"kernel": leaves["kernel"], "bias": leaves["vector"]} for leaves in record]
        for record in make_run(SQUARE_SHAPES)
    )

    def expect(grads: list[Array], params: list[Array]) -> list[Array]:
        if grads[0].ndim == 1:
            adam = oracle.Adam(grads[0].shape, betas=(0.9, 0.95))
            made = [adam.step(g, p, lambda x: x) for g, p in zip(grads, params, strict=True)]
            return [
                -rate * oracle.cautious_decay(u, p, weight_decay) for u, p in zip(made, params, strict=True)
            ]
        options = dataclasses.replace(OPTIONS, orthogonalize=orthogonalizer == "newton-schulz")
        inner = oracle.Rule(grads[0].shape, theta, options)
        made = oracle.in_eigenbasis(grads, params, inner, every=EVERY, sides="LR", beta=0.95)
        made = made if options.orthogonalize else list(map(oracle.polar_factor, made))
        made = [step.T for step in oracle.normalize_rows([step.T for step in made], 0.9)]
        floored = [oracle.floor_ratio(*pair, ratio) for pair in zip(made, params, strict=True)]
        assert 0 < sum(not np.array_equal(*pair) for pair in zip(made, floored, strict=True)) < STEPS - 3
        radius, updates = float(np.linalg.norm(params[0])), []
        for step, w in zip(floored, params, strict=True):
            u = -rate * oracle.cautious_decay(0.2 * step, w, weight_decay)
            updates.append(oracle.project(w, u, radius))
        return updates

    with jax.numpy_dtype_promotion("standard"):  # for Optax's Adam
        actual = replay(tx, steps, params)
    assert_agree(actual, by_matrix(expect, steps, params))
