"""Every optimizer of the package, one row each; the contract tests run over all rows.

A new optimizer is one new row: nothing in the tests names an optimizer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import celo2
from celo2 import zoo
from celo2.baselines import adamuon, normuon, soap
from celo2.baselines.matrix_optimizer import on_matrices
from celo2.baselines.shampoo import scale_by_shampoo
from celo2.baselines.spec import decoupled
from celo2.jax.gradient_scale import normalize_gradients, watch_gradients
from celo2.jax.harness import averages, decay, eigenbasis, norms, orthogonalizers, rows

# The contract does not depend on the network's size or features, but the time to compile it does.
SMALL = celo2.RuleConfig(
    with_grad_clip_feat=False,
    with_rms=False,
    with_rms_norm_g=False,
    with_rsqrt_rms=False,
    with_rms_only_norm_g=False,
    with_fac_rsqrt=False,
    with_fac_mom_mult=False,
    ff_hidden_size=1,
    ff_hidden_layers=1,
    initial_momentum_decays=(0.9,),
    initial_adafactor_decays=(0.9,),
    ns_iters=1,
)


def make_weights(config: celo2.RuleConfig) -> celo2.Weights:
    """Dense random weights."""
    rng = np.random.default_rng(0)
    arrays = {n: rng.standard_normal(s).astype(np.float32) for n, s in config.weight_shapes().items()}
    return celo2.Weights(arrays, config)


CELO2 = make_weights(SMALL)
CELO2_BASE = make_weights(SMALL.replace(orthogonalize=False))


def direction(learning_rate: optax.ScalarOrSchedule, weights: celo2.Weights) -> optax.GradientTransformation:
    """`scale_by_celo2`, which has no learning rate, with one behind it."""
    return optax.chain(celo2.scale_by_celo2(weights), optax.scale_by_learning_rate(learning_rate))


def normalized_sgd(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """Gradient descent behind `normalize_gradients`, which has no learning rate either."""
    return optax.chain(normalize_gradients(1e-2), optax.scale_by_learning_rate(learning_rate))


def watched_sgd(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """Gradient descent behind `watch_gradients`."""
    return optax.chain(watch_gradients(1e-4, 1.0), optax.scale_by_learning_rate(learning_rate))


def conditioned_shampoo(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """Shampoo with a ridge that keeps its inverse roots from amplifying float32's rounding."""
    matrices = decoupled(scale_by_shampoo(ridge=1e-2), learning_rate, 0.1)
    return on_matrices(matrices, learning_rate, 0.1, adamw_lr_scale=1.0)


def polar(matrices: jax.Array) -> jax.Array:
    """An orthogonaliser of a user's own."""
    left, _, right = jnp.linalg.svd(matrices, full_matrices=False)
    return left @ right


def eigenbasis_adam(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """Adam in the basis of its short sides: of longer ones, the first null space leaves a choice."""
    direction = eigenbasis.in_eigenbasis(optax.scale_by_adam(0.9, 0.9), every=1, max_side=3)
    return optax.chain(direction, optax.scale_by_learning_rate(learning_rate))


def harnessed_sign_descent(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """All transforms of the harness that take a direction of the user's."""
    return optax.chain(
        optax.scale_by_sign(),
        orthogonalizers.orthogonalize_by(polar),
        rows.normalize_rows(),
        norms.floor_update_ratio(HIGH_RATIO),
        decay.add_cautious_weight_decay(0.1),
        optax.scale_by_learning_rate(learning_rate),
        norms.preserve_norms(),
    )


def averaged_descent(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """Gradient descent that keeps an average of the weights."""
    return optax.chain(optax.sgd(learning_rate), averages.average_params(0.9))


HIGH_RATIO = 100.0  # of a step to weights whose root mean square is 0.1: the floor acts


def harness_row(name: str, *, harness: Mapping[str, Any] | None = None, **promises: Any) -> Row:
    """The row of Celo2 with parts of the harness."""
    parts = celo2.Harness(**harness or {})
    return Row(name, celo2.celo2, {"weights": CELO2, "weight_decay": 0.1, "harness": parts}, **promises)


ZOO_STEPS = 10
ZOO_SIZES: Mapping[str, Mapping[str, int]] = {
    "celo": {"lstm_size": 3},
    "celo_phase1": {"lstm_size": 3},
    "celo_adam": {"lstm_size": 3},
    "adafac_mlp": {},
    "rnn_mlp": {"lstm_size": 3},
    "nn_adam": {"lstm_size": 3},
    "velo": {"lstm_size": 3, "num_mlps": 2},
}


@functools.cache
def make_zoo_member(name: str) -> optax.GradientTransformationExtraArgs:
    """An optimizer of the zoo with dense weights, large enough that its steps are seen.

    Its update is jitted, so that the tests that run op by op share one compilation.
    """
    rng = np.random.default_rng(3)
    start = zoo.init_theta(name, jax.random.key(0), **ZOO_SIZES[name])
    weights = {n: np.asarray(a + rng.standard_normal(a.shape), np.float32) for n, a in start.items()}
    tx = zoo.make(name, weights=weights, num_steps=ZOO_STEPS)
    return optax.GradientTransformationExtraArgs(tx.init, jax.jit(tx.update))  # type: ignore[arg-type]


def predecessor(learning_rate: optax.ScalarOrSchedule, name: str) -> optax.GradientTransformation:
    """An optimizer of the zoo, whose steps have their size and sign, with a learning rate behind it."""
    return optax.chain(make_zoo_member(name), optax.scale_by_learning_rate(learning_rate, flip_sign=False))


def zoo_row(name: str, *, reads_params: bool = False, **promises: Any) -> Row:
    """The row of an optimizer of the zoo."""
    memory = {"state_reads_params": reads_params, "other_state": ("memory",)}
    return Row(name, predecessor, {"name": name}, extra={"value": 0.7}, **memory, **promises)


@dataclass(frozen=True)
class Row:
    """One optimizer.

    Attributes:
        name: The test's id.
        factory: Takes `learning_rate` as its first argument.
        options: Further keywords.
        needs_params: Whether `update` refuses `params=None`.
        accumulates: Whether the floating-point arrays of its state belong to parameters.
        other_state: Fields of its state whose arrays do not, though `accumulates` says so.
        state_reads_params: Whether its state depends on the parameters' values.
        follows_params: Whether its state holds the parameters as they are trained, an average of them, say.
        extra: What the optimizer takes as Optax's extra arguments, `value` say.
        silent_steps: First updates that leave matrices where they are.
        multiplies_rate: Whether its updates are proportional to the learning rate.
        largest_gradient: The largest gradient that it promises a finite update for.
    """

    name: str
    factory: Callable[..., optax.GradientTransformation]
    options: Mapping[str, Any] = field(default_factory=dict)
    needs_params: bool = True
    accumulates: bool = True
    other_state: tuple[str, ...] = ()
    state_reads_params: bool = False
    follows_params: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)
    silent_steps: int = 0
    multiplies_rate: bool = True
    largest_gradient: float = float(np.finfo(np.float32).max)

    def make(self, learning_rate: optax.ScalarOrSchedule = 0.01) -> optax.GradientTransformationExtraArgs:
        return optax.with_extra_args_support(self.factory(learning_rate, **self.options))


ROWS = (
    Row("celo2", celo2.celo2, {"weights": CELO2, "weight_decay": 0.1}),
    Row("celo2_base", celo2.celo2_base, {"weights": CELO2_BASE, "weight_decay": 0.1}),
    Row("celo2_bfloat16", celo2.celo2, {"weights": CELO2, "state_dtype": "bfloat16"}),
    Row("celo2_int8", celo2.celo2, {"weights": CELO2, "state_dtype": "int8"}),
    Row("celo2_finite", celo2.celo2, {"weights": CELO2, "skip_nonfinite_gradients": True}),
    harness_row("celo2_eigenbasis", harness={"eigenbasis_every": 1}, silent_steps=1),
    harness_row("celo2_polar_express", harness={"orthogonalizer": "polar-express"}),
    harness_row("celo2_own_orthogonalizer", harness={"orthogonalizer": polar}),
    harness_row("celo2_rows", harness={"row_decay": 0.9}, state_reads_params=True),
    harness_row("celo2_cautious", harness={"cautious_decay": True}),
    Row("celo2_matched", celo2.celo2, {"weights": CELO2, "weight_decay": 0.1, "match": "adamw"}),
    harness_row("celo2_floor", harness={"min_update_ratio": HIGH_RATIO}),
    harness_row(
        "celo2_norms", harness={"preserve_norms": True}, multiplies_rate=False, state_reads_params=True
    ),
    harness_row(
        "celo2_harness",
        harness={
            "eigenbasis_every": 1,
            "orthogonalizer": polar,
            "row_decay": 0.9,
            "min_update_ratio": HIGH_RATIO,
            "cautious_decay": True,
            "preserve_norms": True,
        },
        state_reads_params=True,
        silent_steps=1,
        multiplies_rate=False,
    ),
    Row("eigenbasis_adam", eigenbasis_adam, needs_params=False, silent_steps=1, largest_gradient=1e18),
    Row("averaged_descent", averaged_descent, state_reads_params=True, follows_params=True),
    Row("harnessed_sign", harnessed_sign_descent, state_reads_params=True, multiplies_rate=False),
    Row("scale_by_celo2", direction, {"weights": CELO2}),
    Row("normalize_gradients", normalized_sgd, needs_params=False),
    Row("watch_gradients", watched_sgd, needs_params=False, accumulates=False),
    Row("adamuon", adamuon.SPEC.make, {"weight_decay": 0.1}),
    Row("normuon", normuon.SPEC.make, {"weight_decay": 0.1}),
    # sums of squares must be finite: eigenvalues of infinite matrices are not numbers
    Row("shampoo", conditioned_shampoo, largest_gradient=1e18),
    Row("soap", soap.SPEC.make, {"weight_decay": 0.1}, silent_steps=1, largest_gradient=1e18),
    zoo_row("celo"),
    zoo_row("celo_phase1"),
    zoo_row("celo_adam"),
    zoo_row("adafac_mlp", largest_gradient=1e18),  # it clips no gradient; sums of squares must be finite
    zoo_row("rnn_mlp", reads_params=True),
    zoo_row("nn_adam", reads_params=True),
    zoo_row("velo", reads_params=True),
)


def make_params(dtype: Any = jnp.float32) -> dict[str, Any]:
    """A small tree whose leaves every routing knows: a hidden matrix, its bias, an embedding."""
    rng = np.random.default_rng(1)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(0.1 * rng.standard_normal(shape), dtype)

    return {
        "embedding": normal(5, 3),
        "block": {"up": {"kernel": normal(3, 4), "bias": normal(4)}},
    }


def make_grads(params: Any, seed: int = 2) -> Any:
    """Gradients of the parameters' shapes and dtypes."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: jnp.asarray(rng.standard_normal(p.shape), p.dtype), params)


def signature(tree: Any) -> Any:
    """Structure, shapes, dtypes and weak types: what must not change from step to step."""
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), jax.tree.map(jnp.asarray, tree))


def assert_trees_close(actual: Any, expected: Any, rtol: float = 1e-5) -> None:
    """Equal up to rounding: XLA fuses differently inside other transformations."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=1e-7)
