"""Muon: the orthogonalised momentum of a matrix.

References:
    Jordan et al., 2024 (kellerjordan.github.io/posts/muon); arXiv 2502.16982 for the step size.
"""

from __future__ import annotations

import optax

from celo2.baselines.matrix_optimizer import UNIT_STEP_RANGE, axes_of_all, on_matrices
from celo2.baselines.spec import OptimizerSpec
from celo2.constants import ADAMW_LR_SCALE

BETA = 0.95  # Nesterov momentum, the published setting


def _make(learning_rate: optax.ScalarOrSchedule, weight_decay: float) -> optax.GradientTransformation:
    muon = optax.contrib.muon(
        learning_rate,
        beta=BETA,
        nesterov=True,
        weight_decay=weight_decay,
        muon_weight_dimension_numbers=axes_of_all,
        consistent_rms=1.0,
    )
    return on_matrices(muon, learning_rate, weight_decay, adamw_lr_scale=ADAMW_LR_SCALE)


SPEC = OptimizerSpec(
    "muon",
    "Muon on the hidden matrices (Nesterov momentum 0.95, step RMS 1), AdamW at 20 × the rate on the rest",
    _make,
    UNIT_STEP_RANGE,
    reference="Jordan et al., 2024; arXiv 2502.16982",
    origin="optax.contrib.muon",
)
