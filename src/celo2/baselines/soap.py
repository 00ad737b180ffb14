"""SOAP: Adam in the eigenbasis of Shampoo's Kronecker factors.

`celo2.jax.harness.eigenbasis` has the algorithm. Source: arXiv 2409.11321, algorithms 3 and 4, with
β₁ = β₂ = 0.95 and bases every ten steps. An axis longer than 1024 keeps its own basis.
"""

from __future__ import annotations

import optax

from celo2.baselines.from_optax import ADAM_RANGE
from celo2.baselines.matrix_optimizer import axes_of_all, on_matrices
from celo2.baselines.spec import OptimizerSpec, decoupled
from celo2.constants import MAX_BASIS_SIDE
from celo2.jax.harness.eigenbasis import in_eigenbasis


def scale_by_soap(
    b1: float = 0.95,
    b2: float = 0.95,
    *,
    eps: float = 1e-8,
    every: int = 10,
    max_dim: int = MAX_BASIS_SIDE,
) -> optax.GradientTransformationExtraArgs:
    """Computes SOAP's direction; every parameter must have rank ≥ 2. The first step is zero.

    Args:
        b1: Decay of the momentum, in [0, 1).
        b2: Decay of the second moment and of the factors, in [0, 1).
        eps: Added to the root of Adam's second moment.
        every: Steps between recomputations of the bases, ≥ 1.
        max_dim: The longest axis that gets a factor.
    """
    adam = optax.scale_by_adam(b1, b2, eps)
    return in_eigenbasis(adam, every=every, decay=b2, max_side=max_dim, dimension_numbers=axes_of_all)


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
