"""Optimizers of matrices: a rule for one matrix becomes an Optax transform, and AdamW takes the rest.

They share Celo2's routing (`param_labels`): what they are compared with works on the same matrices.
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
from celo2.constants import ADAMW_BETAS
from celo2.jax.dimensions import MatrixView, make_view
from celo2.jax.routing.labels import param_labels

UNIT_STEP_RANGE = (1e-4, 3e-2)  # of optimizers whose step on a matrix has root mean square 1
TINY = 1e-30  # added to norms that are divided by


class MatrixRule(NamedTuple):
    """An optimizer of matrices `(batch, reduction, output)`, without its learning rate.

    Attributes:
        init: Zeros of the matrices' shape, in the state's dtype → state.
        update: `(gradients, state, count) → (un-negated steps, state)`; the count starts at 0.
    """

    init: Callable[[Array], Any]
    update: Callable[[Array, Any, Array], tuple[Array, Any]]


class ScaleByMatrixRuleState(NamedTuple):
    """The state: updates so far, and a tree like the parameters with the rule's state for each."""

    count: Array  # type: ignore[assignment]  # Optax's own name, tuple.count is not meant
    matrices: Any


def scale_by_matrix_rule(rule: MatrixRule) -> optax.GradientTransformationExtraArgs:
    """Applies a rule to every parameter, each of rank ≥ 2, seen as matrices by `matrix_axes`.

    The state is float32, or float64 for float64 parameters; updates have the gradient's dtype.

    `update` takes the extra argument `step`, the number of updates so far, where the caller knows it:
    it must equal the state's own count, which it replaces. Under `jax.vmap` the state's count differs
    from run to run for all that JAX knows, so that work of every n-th step is done, and thrown away, in
    each; with a `step` from outside of the vmap it is not.
    """

    def init(params: optax.Params) -> ScaleByMatrixRuleState:
        def init_one(param: Array) -> Any:
            state = rule.init(jnp.zeros(_view(param).shape, _state_dtype(param)))
            return jax.tree.map(jnp.copy, state)  # no array twice: each may be donated

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
    """An optimizer for the hidden matrices, AdamW at `adamw_lr_scale` × the rate for everything else."""
    adamw = optax.adamw(scaled(learning_rate, adamw_lr_scale), *ADAMW_BETAS, weight_decay=weight_decay)
    return optax.partition({"celo2": optimizer, "adamw": adamw}, param_labels)


def matrix_axes(rank: int) -> MuonDimensionNumbers:
    """A kernel of rank 4 is a convolution (HWIO) and one matrix, one of another rank a stack of matrices."""
    return MuonDimensionNumbers(reduction_axis=(0, 1, 2) if rank == 4 else -2, output_axis=-1)


def debiased(average: Array, decay: float, count: Array) -> Array:
    """An exponential average that started at 0, divided by its weights' sum after `count` + 1 updates."""
    return average / (1 - decay ** (count + 1).astype(average.dtype))


def with_rms(matrices: Array, rms: float) -> Array:
    """Each matrix scaled to a root mean square; zeros stay zeros."""
    norm = jnp.linalg.norm(matrices, axis=(-2, -1), keepdims=True)
    size = matrices.shape[-2] * matrices.shape[-1]
    return matrices * (rms * size**0.5 / (norm + TINY))


def _view(param: Array) -> MatrixView:
    return make_view(param.shape, matrix_axes(param.ndim))


def _state_dtype(param: Array) -> jnp.dtype:
    return np.promote_types(param.dtype, np.float32)  # jnp.promote_types obeys strict promotion
