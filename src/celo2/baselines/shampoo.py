"""Shampoo: momentum preconditioned by inverse roots of Kronecker factors, with Adam's step size.

    M ← β₁ M + (1 - β₁) G,    A ← β₂ A + (1 - β₂) G ⊙ G
    L ← β₂ L + (1 - β₂) G Gᵀ,    R ← β₂ R + (1 - β₂) Gᵀ G
    P = L^(-1/4) M R^(-1/4)
    step = ‖M / (√A + ε)‖ / ‖P‖ · P

with M, A, L and R divided by 1 - βᵗ. The roots are recomputed every ten steps. An axis longer than 1024 has
no factor, and the other axis then uses the inverse square root.

Source: arXiv 1802.09568; with exponential averages, bias correction and step size grafted from Adam as in
arXiv 2309.06497, algorithm 2, at its settings for replacing AdamW (betas 0.9 and 0.999). The ridge under
the roots is relative to the largest eigenvalue, as in arXiv 2002.09018, which float32 requires.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from celo2.baselines.from_optax import ADAM_RANGE
from celo2.baselines.matrix_optimizer import (
    MatrixRule,
    debiased,
    on_matrices,
    scale_by_matrix_rule,
)
from celo2.baselines.spec import OptimizerSpec, decoupled
from celo2.constants import MAX_BASIS_SIDE, TINY
from celo2.jax.harness.matrices import factorize_each


class Factors(NamedTuple):
    """Pair of factors `(batch, m, m)` and `(batch, n, n)`; None for an axis without one."""

    left: Array | None
    right: Array | None

    @property
    def order(self) -> int:
        """The number of factors."""
        return sum(factor is not None for factor in self)


def zero_factors(matrices: Array, max_dim: int) -> Factors:
    """Returns zero factors for the axes of `(batch, m, n)` that are no longer than `max_dim`."""

    def zeros(size: int) -> Array | None:
        return jnp.zeros((len(matrices), size, size), matrices.dtype) if size <= max_dim else None

    return Factors(zeros(matrices.shape[-2]), zeros(matrices.shape[-1]))


def accumulate(factors: Factors, grad: Array, decay: float) -> Factors:
    """Returns the factors updated with a gradient `(batch, m, n)`."""
    left, right = factors
    transposed = jnp.matrix_transpose(grad)
    return Factors(
        None if left is None else decay * left + (1 - decay) * (grad @ transposed),
        None if right is None else decay * right + (1 - decay) * (transposed @ grad),
    )


def sandwich(left: Array | None, matrices: Array, right: Array | None) -> Array:
    """Returns `left · matrices · right`, where None is the identity."""
    product = matrices if left is None else left @ matrices
    return product if right is None else product @ right


class ShampooState(NamedTuple):
    """State of one parameter; the first two are `(batch, reduction, output)`."""

    momentum: Array
    second_moment: Array
    factors: Factors
    roots: Factors


def scale_by_shampoo(
    b1: float = 0.9,
    b2: float = 0.999,
    *,
    eps: float = 1e-8,
    ridge: float = 1e-6,
    every: int = 10,
    max_dim: int = MAX_BASIS_SIDE,
) -> optax.GradientTransformationExtraArgs:
    """Computes Shampoo's direction; every parameter must have rank ≥ 2.

    Args:
        b1: Decay of the momentum, in [0, 1).
        b2: Decay of the factors and of Adam's second moment, in [0, 1).
        eps: Added to the root of Adam's second moment.
        ridge: Added to a factor's eigenvalues, as a fraction of the largest.
        every: Steps between recomputations of the roots, ≥ 1.
        max_dim: The longest axis that gets a factor.
    """

    def init(zeros: Array) -> ShampooState:
        factors = zero_factors(zeros, max_dim)
        return ShampooState(zeros, zeros, factors, factors)

    def update(grad: Array, state: ShampooState, count: Array) -> tuple[Array, ShampooState]:
        momentum = b1 * state.momentum + (1 - b1) * grad
        second = b2 * state.second_moment + (1 - b2) * grad**2
        factors = accumulate(state.factors, grad, b2)
        roots = jax.lax.cond(
            count % every == 0,
            lambda: jax.tree.map(
                lambda f: _inverse_root(debiased(f, b2, count), factors.order, ridge), factors
            ),
            lambda: state.roots,
        )
        mean = debiased(momentum, b1, count)
        adam = mean / (jnp.sqrt(debiased(second, b2, count)) + eps)
        step = _graft(sandwich(roots.left, mean, roots.right), adam) if factors.order else adam
        return step, ShampooState(momentum, second, factors, roots)

    return scale_by_matrix_rule(MatrixRule(init, update))


def _inverse_root(factor: Array, order: int, ridge: float) -> Array:
    """Returns `factor^(-1 / (2 · order))` of symmetric matrices `(batch, m, m)`."""
    values, vectors = factorize_each(jnp.linalg.eigh, factor)
    largest = jnp.maximum(values[..., -1:], TINY)
    powers = (jnp.maximum(values, 0.0) + ridge * largest) ** (-1 / (2 * order))
    return (vectors * powers[..., None, :]) @ jnp.matrix_transpose(vectors)


def _graft(direction: Array, size: Array) -> Array:
    """Scales each matrix of `direction` to the Frobenius norm of its counterpart in `size`."""
    own, wanted = (jnp.linalg.norm(x, axis=(-2, -1), keepdims=True) for x in (direction, size))
    return direction * (wanted / (own + TINY))


def _make(learning_rate: optax.ScalarOrSchedule, weight_decay: float) -> optax.GradientTransformation:
    matrices = decoupled(scale_by_shampoo(), learning_rate, weight_decay)
    return on_matrices(matrices, learning_rate, weight_decay, adamw_lr_scale=1.0)


SPEC = OptimizerSpec(
    "shampoo",
    "Shampoo on the hidden matrices (Adam's step size, roots every 10 steps), AdamW at its rate on the rest",
    _make,
    ADAM_RANGE,
    reference="arXiv 1802.09568, 2309.06497",
    origin="celo2.baselines.shampoo",
)
