"""Builds Optax transforms from rules for single matrices, with AdamW for all other parameters.

They share Celo2's routing (`param_labels`), so all compared optimizers update the same matrices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike
from optax.contrib import MuonDimensionNumbers

from celo2.baselines.spec import scaled
from celo2.constants import ADAMW_BETAS, TINY
from celo2.jax.dimensions import MatrixView, make_view
from celo2.jax.routing.labels import param_labels

UNIT_STEP_RANGE = (1e-4, 3e-2)  # for optimizers whose step on a matrix has root mean square 1


class MatrixRule(NamedTuple):
    """Optimizer of matrices `(batch, reduction, output)`, without its learning rate.

    Attributes:
        init: Makes the state from zeros of the matrices' shape, in the state's dtype.
        update: Takes a step, `(gradients, state, count) → (un-negated steps, state)`; count starts at 0.
    """

    init: Callable[[Array], Any]
    update: Callable[[Array, Any, Array], tuple[Array, Any]]


class ScaleByMatrixRuleState(NamedTuple):
    """State of `scale_by_matrix_rule`: the update count, and the rule's state for each parameter."""

    count: Array  # type: ignore[assignment]  # Optax's own name, tuple.count is not meant
    matrices: Any


def scale_by_matrix_rule(rule: MatrixRule) -> optax.GradientTransformationExtraArgs:
    """Applies a rule to every parameter of rank ≥ 2, viewed as matrices by `matrix_axes`.

    The state is float32, or float64 for float64 parameters; updates have the gradient's dtype.

    `update` accepts the optional extra argument `step`, the number of previous updates: it must equal the
    state's own count, which it replaces. Under `jax.vmap` the state's count is batched, so work due every
    n steps is computed, and discarded, at each step; an unbatched `step` avoids this.
    """

    def init(params: optax.Params) -> ScaleByMatrixRuleState:
        def init_one(param: Array) -> Any:
            state = rule.init(jnp.zeros(_view(param).shape, _state_dtype(param)))
            return jax.tree.map(jnp.copy, state)  # copies, so that no array is donated twice

        return ScaleByMatrixRuleState(jnp.zeros([], jnp.int32), jax.tree.map(init_one, params))

    def update(
        updates: optax.Updates,
        state: ScaleByMatrixRuleState,
        params: optax.Params | None = None,
        *,
        step: ArrayLike | None = None,
        **extra: Any,
    ) -> tuple[optax.Updates, ScaleByMatrixRuleState]:
        del params, extra
        count = jnp.asarray(state.count if step is None else step)
        grads, treedef = jax.tree.flatten(updates)
        steps, states = [], []
        for grad, old in zip(grads, treedef.flatten_up_to(state.matrices), strict=True):
            view = _view(grad)
            made, new = rule.update(view.to_matrices(grad).astype(_state_dtype(grad)), old, count)
            steps.append(view.from_matrices(made).astype(grad.dtype))
            states.append(new)
        next_count = jnp.asarray(optax.safe_increment(state.count))
        return treedef.unflatten(steps), ScaleByMatrixRuleState(next_count, treedef.unflatten(states))

    return optax.GradientTransformationExtraArgs(init, update)  # type: ignore[arg-type]


def on_matrices(
    optimizer: optax.GradientTransformation,
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: float,
    *,
    adamw_lr_scale: float,
) -> optax.GradientTransformationExtraArgs:
    """Applies an optimizer to the hidden matrices, and AdamW at `adamw_lr_scale` × the rate to the rest."""
    adamw = optax.adamw(scaled(learning_rate, adamw_lr_scale), *ADAMW_BETAS, weight_decay=weight_decay)
    return optax.partition({"celo2": optimizer, "adamw": adamw}, param_labels)


def matrix_axes(rank: int) -> MuonDimensionNumbers:
    """Returns the matrix axes by rank: 4 is one convolution (HWIO), any other a stack of matrices."""
    return MuonDimensionNumbers(reduction_axis=(0, 1, 2) if rank == 4 else -2, output_axis=-1)


def axes_of_all(params: optax.Params) -> Any:
    """Returns the matrix axes of every parameter, all of rank ≥ 2, in the form for Optax's Muon."""
    return jax.tree.map(lambda param: matrix_axes(param.ndim), params)


def debiased(average: Array, decay: float, count: Array) -> Array:
    """Returns the bias-corrected exponential average after `count` + 1 updates from zero."""
    return average / (1 - decay ** (count + 1).astype(average.dtype))


def with_rms(matrices: Array, rms: float) -> Array:
    """Scales each matrix to a root mean square; zeros stay zeros."""
    norm = jnp.linalg.norm(matrices, axis=(-2, -1), keepdims=True)
    size = matrices.shape[-2] * matrices.shape[-1]
    return matrices * (rms * size**0.5 / (norm + TINY))


def _view(param: Array) -> MatrixView:
    return make_view(param.shape, matrix_axes(param.ndim))


def _state_dtype(param: Array) -> jnp.dtype:
    return np.promote_types(param.dtype, np.float32)  # jnp.promote_types obeys strict promotion
