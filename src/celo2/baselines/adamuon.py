"""AdaMuon: the orthogonalised sign of the momentum, divided elementwise by the root of its second moment.

    M ← β M + G
    O = NewtonSchulz(sign(M))
    V ← β V + (1 - β) O ⊙ O
    Ô = O / (√V + ε)
    step = rms · √(mn) / ‖Ô‖ · Ô

Source: arXiv 2507.11005v3, algorithm 1, with β = 0.95, ε = 1e-8 and rms = 0.2. The sign makes the scale of
M irrelevant, and the final norm that of V, so neither is bias-corrected.
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


class AdaMuonState(NamedTuple):
    """State of one parameter; each array is `(batch, reduction, output)`."""

    momentum: Array
    second_moment: Array


def scale_by_adamuon(
    beta: float = 0.95, *, eps: float = 1e-8, rms: float = 0.2
) -> optax.GradientTransformationExtraArgs:
    """Computes AdaMuon's direction; every parameter must have rank ≥ 2.

    Args:
        beta: Decay of both averages, in [0, 1).
        eps: Added to the root of the second moment.
        rms: Root mean square of a step.
    """

    def update(grad: Array, state: AdaMuonState, count: Array) -> tuple[Array, AdaMuonState]:
        del count
        momentum = beta * state.momentum + grad
        orthogonal = orthogonalize.compute(jnp.sign(momentum), NEWTON_SCHULZ)
        second = beta * state.second_moment + (1 - beta) * orthogonal**2
        step = with_rms(orthogonal / (jnp.sqrt(second) + eps), rms)
        return step, AdaMuonState(momentum, second)

    return scale_by_matrix_rule(MatrixRule(lambda zeros: AdaMuonState(zeros, zeros), update))


def _make(learning_rate: optax.ScalarOrSchedule, weight_decay: float) -> optax.GradientTransformation:
    matrices = decoupled(scale_by_adamuon(rms=1.0), learning_rate, weight_decay)
    return on_matrices(matrices, learning_rate, weight_decay, adamw_lr_scale=ADAMW_LR_SCALE)


SPEC = OptimizerSpec(
    "adamuon",
    "AdaMuon on the hidden matrices (beta 0.95, step RMS 1), AdamW at 20 × the rate on the rest",
    _make,
    UNIT_STEP_RANGE,
    reference="arXiv 2507.11005",
    origin="celo2.baselines.adamuon",
)
