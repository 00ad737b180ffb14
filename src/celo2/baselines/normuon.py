"""NorMuon: Muon with the step normalised per output neuron.

    M ← β₁ M + (1 - β₁) G
    O = NewtonSchulz(β₁ M + (1 - β₁) G)      (Nesterov; of M itself in the paper's box)
    v ← β₂ v + (1 - β₂) mean of O ⊙ O over a neuron's inputs
    Ô = O / (√v + ε)
    step = rms · √(mn) / ‖Ô‖ · Ô

Source: arXiv 2510.05491, algorithm 1, with β₁ = β₂ = 0.95 and rms = 0.2; Nesterov momentum and ε = 1e-10 are
from the authors' code. A neuron is a row of their matrices (output, input) and a column of ours.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from celo2.baselines.matrix_optimizer import (
    UNIT_STEP_RANGE,
    MatrixRule,
    on_matrices,
    scale_by_matrix_rule,
    with_rms,
)
from celo2.baselines.spec import OptimizerSpec, decoupled
from celo2.config import RuleConfig
from celo2.constants import ADAMW_LR_SCALE
from celo2.jax import orthogonalize

NEWTON_SCHULZ = RuleConfig()  # Celo2's coefficients and iterations are Muon's


class NorMuonState(NamedTuple):
    """State of one parameter: momentum `(batch, reduction, output)`, second moment `(batch, 1, output)`."""

    momentum: Array
    second_moment: Array


def scale_by_normuon(
    b1: float = 0.95, b2: float = 0.95, *, eps: float = 1e-10, rms: float = 0.2, nesterov: bool = True
) -> optax.GradientTransformationExtraArgs:
    """Computes NorMuon's direction; every parameter must have rank ≥ 2.

    Args:
        b1: Decay of the momentum, in [0, 1).
        b2: Decay of the neurons' second moments, in [0, 1).
        eps: Added to the root of the second moment.
        rms: Root mean square of a step.
        nesterov: Whether the momentum looks one gradient ahead.
    """

    def init(zeros: Array) -> NorMuonState:
        return NorMuonState(zeros, zeros[:, :1, :])

    def update(grad: Array, state: NorMuonState, count: Array) -> tuple[Array, NorMuonState]:
        del count
        momentum = b1 * state.momentum + (1 - b1) * grad
        ahead = b1 * momentum + (1 - b1) * grad if nesterov else momentum
        orthogonal = orthogonalize.compute(ahead, NEWTON_SCHULZ)
        mean_square = jnp.mean(orthogonal**2, axis=-2, keepdims=True)
        second = b2 * state.second_moment + (1 - b2) * mean_square
        step = with_rms(orthogonal / (jnp.sqrt(second) + eps), rms)
        return step, NorMuonState(momentum, second)

    return scale_by_matrix_rule(MatrixRule(init, update))


def _make(learning_rate: optax.ScalarOrSchedule, weight_decay: float) -> optax.GradientTransformation:
    matrices = decoupled(scale_by_normuon(rms=1.0), learning_rate, weight_decay)
    return on_matrices(matrices, learning_rate, weight_decay, adamw_lr_scale=ADAMW_LR_SCALE)


SPEC = OptimizerSpec(
    "normuon",
    "NorMuon on the hidden matrices (betas 0.95, Nesterov, step RMS 1), AdamW at 20 × the rate on the rest",
    _make,
    UNIT_STEP_RANGE,
    reference="arXiv 2510.05491",
    origin="celo2.baselines.normuon",
)
