"""Input features of the per-parameter networks of Celo, VeLO and AdaFac-MLP.

Sources: arXiv 2203.11860 and its public code; Celo's (arXiv 2501.12670).

They differ from Celo2's in three ways: the reciprocal root of the second moment adds 1e-6 under the root, not
1e-8; tensors of rank < 2 also have the factored groups, from their full second moment `d`; and channels are
normalised over the whole tensor, by `rsqrt(mean(x²) + 1e-5)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from celo2.config import RuleConfig
from celo2.constants import RSQRT_EPS
from celo2.jax import features as celo2_features
from celo2.jax import mlp
from celo2.jax.accumulators import Leaf
from celo2.jax.dimensions import Axes
from celo2.jax.features import FeatureGroups
from celo2.zoo.specs import MLP14

RMS_EPS = 1e-6  # under the reciprocal root of the second moment
NORM_EPS = 1e-5  # under the root of the normaliser
PARAM_EPS = 1e-9  # under the root of the parameter's mean square
PRE_STEP = 0.001  # factor of the networks' directions


def compute(leaf: Leaf, axes: Axes | None, config: RuleConfig, *, diagonal_eps: float = 0.0) -> FeatureGroups:
    """Returns the enabled features of one array of any rank, grouped by the name of their weight matrix.

    Args:
        leaf: Gradient, parameter, and the accumulators already updated with this gradient.
        axes: The factored axes, None for rank < 2.
        config: The options that enable features and set their channels.
        diagonal_eps: Added to `d` under the root of the factored momentum, rank < 2. Without it, the
            smallest `d` is 1e-33, a normal float32 number.
    """
    grad, param, accumulators = leaf
    groups = celo2_features.compute(grad, param, accumulators, axes, config, rms_eps=RMS_EPS)
    if axes is not None:
        return groups
    inverse = tuple(jax.lax.rsqrt(d + RSQRT_EPS) for d in accumulators.row)
    roots = (jax.lax.rsqrt(d + diagonal_eps) for d in accumulators.row)
    factored = tuple(m * root for m, root in zip(accumulators.momentum, roots, strict=True))
    full = {
        "row": accumulators.row,
        "col": accumulators.row,
        "rsqrt_row": inverse,
        "rsqrt_col": inverse,
        "factored_momentum": factored,
    }
    names = {feature.name: name for name, feature in config.feature_groups(2)}
    return groups | {names[name]: channels for name, channels in full.items()}


def normalize(mean_squares: Array) -> Array:
    """Returns `rsqrt(mean over all axes + 1e-5)` of per-channel mean squares over the last two axes."""
    whole = jnp.mean(mean_squares, axis=tuple(range(1, mean_squares.ndim)), keepdims=True)
    return jax.lax.rsqrt(whole + NORM_EPS)


def step_mlp14(weights: Mapping[str, Any], leaf: Leaf, axes: Axes | None) -> Array:
    """Returns the step of Celo and VeLO before its multiplier, in the parameter's shape.

    It is `0.001 · D · sqrt(mean(p²) + 1e-9) · exp(0.001 E)` with the network's outputs D and E.

    Args:
        weights: The network's arrays by name (`w0__0` … `b2`), with the shapes of `MLP14`.
        leaf: See `compute`.
        axes: See `compute`.
    """
    groups = compute(leaf, axes, MLP14)
    direction, magnitude = mlp.compute(groups, mlp.input_scales(groups, normalize), weights, MLP14)
    assert magnitude is not None
    size = jnp.sqrt(jnp.mean(jnp.square(leaf.param)) + PARAM_EPS)
    return PRE_STEP * direction * size * jnp.exp(MLP14.exp_mult * magnitude)
