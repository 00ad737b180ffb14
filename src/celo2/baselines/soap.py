"""SOAP: Adam in the eigenbasis of Shampoo's Kronecker factors.

    G' = Q_Lᵀ G Q_R
    M ← β₁ M + (1 - β₁) G,    M' = Q_Lᵀ M Q_R
    V ← β₂ V + (1 - β₂) G' ⊙ G'
    step = Q_L (M' / (√V + ε)) Q_Rᵀ,    M and V divided by 1 - βᵗ
    L ← β₂ L + (1 - β₂) G Gᵀ,    R ← β₂ R + (1 - β₂) Gᵀ G
    every ten steps: Q_L ← QR(L Q_L),    Q_R ← QR(R Q_R)

Source: arXiv 2409.11321, algorithms 3 and 4, β₁ = β₂ = 0.95. As in the authors' code, the first gradient
only initialises the bases, by an eigendecomposition, and the first step is zero: in the eigenbasis of its own
gradient, Adam would divide rounding errors by themselves. Also as in that code, the columns of Q, and V with
them, are sorted by decreasing eigenvalue before QR. An axis longer than 1024 keeps its own basis.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from celo2.baselines.from_optax import ADAM_RANGE
from celo2.baselines.kronecker import (
    DEFAULT_MAX_DIM,
    EVERY,
    Factors,
    accumulate,
    sandwich,
    zero_factors,
)
from celo2.baselines.matrix_optimizer import (
    MatrixRule,
    debiased,
    on_matrices,
    scale_by_matrix_rule,
)
from celo2.baselines.spec import OptimizerSpec, decoupled


class SoapState(NamedTuple):
    """State of one parameter; the first two are `(batch, reduction, output)`, the second in the basis."""

    momentum: Array
    second_moment: Array
    factors: Factors
    bases: Factors


def scale_by_soap(
    b1: float = 0.95,
    b2: float = 0.95,
    *,
    eps: float = 1e-8,
    every: int = EVERY,
    max_dim: int = DEFAULT_MAX_DIM,
) -> optax.GradientTransformationExtraArgs:
    """Computes SOAP's direction; every parameter must have rank ≥ 2. The first step is zero.

    Args:
        b1: Decay of the momentum, in [0, 1).
        b2: Decay of the second moment and of the factors, in [0, 1).
        eps: Added to the root of Adam's second moment.
        every: Steps between recomputations of the bases, ≥ 1.
        max_dim: The longest axis that gets a factor.
    """

    def init(zeros: Array) -> SoapState:
        factors = zero_factors(zeros, max_dim)
        return SoapState(zeros, zeros, factors, factors)

    def update(grad: Array, state: SoapState, count: Array) -> tuple[Array, SoapState]:
        left, right = state.bases
        taken = jnp.where(count > 0, grad, 0.0)  # the first gradient only initialises the bases
        momentum = b1 * state.momentum + (1 - b1) * taken
        second = b2 * state.second_moment + (1 - b2) * sandwich(_transpose(left), taken, right) ** 2
        age = jnp.maximum(count - 1, 0)  # updates of both averages before this one
        mean = sandwich(_transpose(left), debiased(momentum, b1, age), right)
        adam = mean / (jnp.sqrt(debiased(second, b2, age)) + eps)
        step = sandwich(left, adam, _transpose(right))
        factors = accumulate(state.factors, grad, b2)
        due = jnp.where(count == 0, 0, jnp.where(count % every == 0, 1, 2))
        bases, second = jax.lax.switch(
            due, (_first_bases, _next_bases, lambda _, *kept: kept), factors, state.bases, second
        )
        return step, SoapState(momentum, second, factors, bases)

    return scale_by_matrix_rule(MatrixRule(init, update))


def _first_bases(factors: Factors, bases: Factors, second: Array) -> tuple[Factors, Array]:
    """Returns eigenvectors as bases, those of the largest eigenvalue first."""
    del bases
    return jax.tree.map(lambda factor: jnp.linalg.eigh(factor)[1][..., ::-1], factors), second


def _next_bases(factors: Factors, bases: Factors, second: Array) -> tuple[Factors, Array]:
    """Takes one power iteration for each basis; the second moment follows the order of its columns."""
    left, right = bases
    if left is not None and factors.left is not None:
        left, order = _power_iteration(factors.left, left)
        second = jnp.take_along_axis(second, order[:, :, None], axis=-2)
    if right is not None and factors.right is not None:
        right, order = _power_iteration(factors.right, right)
        second = jnp.take_along_axis(second, order[:, None, :], axis=-1)
    return Factors(left, right), second


def _power_iteration(factor: Array, basis: Array) -> tuple[Array, Array]:
    """Returns the new basis `(batch, m, m)`, and the old index of each of its columns, `(batch, m)`."""
    product = factor @ basis
    order = jnp.argsort(-jnp.sum(basis * product, axis=-2), axis=-1)
    return jnp.linalg.qr(jnp.take_along_axis(product, order[:, None, :], axis=-1))[0], order


def _transpose(matrices: Array | None) -> Array | None:
    return None if matrices is None else jnp.matrix_transpose(matrices)


def _make(learning_rate: optax.ScalarOrSchedule, weight_decay: float) -> optax.GradientTransformation:
    matrices = decoupled(scale_by_soap(), learning_rate, weight_decay)
    return on_matrices(matrices, learning_rate, weight_decay, adamw_lr_scale=1.0)


SPEC = OptimizerSpec(
    "soap",
    "SOAP on the hidden matrices (betas 0.95, bases every 10 steps), AdamW at its rate on the rest",
    _make,
    ADAM_RANGE,
    reference="arXiv 2409.11321",
    origin="celo2.baselines.soap",
)
