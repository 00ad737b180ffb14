"""Matrices in the middle of a run, and their updates by every implementation of the PyTorch rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from celo2.config import FEATURES, RuleConfig
from celo2.torch import weights as weights_lib
from celo2.torch.batching import Leaf, iterate_leaves
from celo2.torch.dimensions import make_layout
from celo2.torch.kernels import dispatch
from celo2.torch.optimizer.state import init_rule, rule_accumulators
from celo2.torch.weights import Network
from celo2.weights.checkpoint import Weights, load_checkpoint
from helpers.tolerances import relative_error

BASE = RuleConfig(orthogonalize=False)
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "features off": {"with_p": False, "with_fac_mom_mult": False, "with_fac_rms": False, "with_rms": False},
    "no vectors": {"with_fac_rms": False, "with_fac_rsqrt": False},
    "scaled": {"param_scale_mult": True, "precondition_output": True, "rmsmult": 0.5},
    "orthogonalized": {"orthogonalize": True, "ns_iters": 2},
}
_ALL_OFF = {feature.option: False for feature in FEATURES}
SMALL_NETWORKS: dict[str, dict[str, Any]] = {
    "one unit": {"ff_hidden_size": 1},
    "two units": {"ff_hidden_size": 2},
    "three units": {"ff_hidden_size": 3},
    "derived features": {
        "ff_hidden_size": 2,
        **_ALL_OFF,
        "with_rms_norm_g": True,
        "with_fac_norm_g": True,
        "with_fac_mom_mult": True,
    },
    "the gradient alone": {"ff_hidden_size": 2, **_ALL_OFF, "with_g": True},
}
OTHER_SIZES: dict[str, dict[str, Any]] = {
    "another network": {"ff_hidden_size": 3, "ff_hidden_layers": 3, "mlp_activation": "tanh"},
    "one layer": {"ff_hidden_layers": 1},
    "no hidden layer": {"ff_hidden_layers": 0, "ff_hidden_size": 3},
    "second moments": {"initial_rms_decays": (0.9, 0.95, 0.99)},
    "two decays": {
        "initial_momentum_decays": (0.9, 0.99),
        "initial_adafactor_decays": (0.9,),
        "with_fac_mom_mult": False,
    },
}
UNCOVERED: dict[str, dict[str, Any]] = {
    "bias correction": {"bias_correction": True},
    "magnitudes": {"exp_mult": 0.1},
    "raw inputs": {"normalize_input": False},
}


def make_network(*, skip_zero_gradients: bool = False, **options: Any) -> Network:
    config = BASE.replace(**options)
    rng = np.random.default_rng(0)
    arrays = {n: (0.3 * rng.standard_normal(s)).astype(np.float32) for n, s in config.weight_shapes().items()}
    return Network(Weights(arrays, config), config, skip_zero_gradients=skip_zero_gradients)


def make_shipped_network(name: str, *, simplified: bool = True) -> Network:
    """Shipped weights without Newton–Schulz, or all their units and features, as in the reference."""
    weights = load_checkpoint(name)
    config = weights.config.replace(orthogonalize=False)
    if simplified:
        return Network(weights, config)
    with patch.object(weights_lib, "simplify", lambda arrays, config: (dict(arrays), config)):
        return Network(weights, config)


def make_leaf(
    shape: tuple[int, ...],
    network: Network,
    dtype: torch.dtype,
    device: str = "cpu",
    seed: int = 1,
    state_dtype: torch.dtype | None = None,
) -> Leaf:
    """A gradient that the clip changes; accumulators at zero."""
    generator = torch.Generator().manual_seed(seed)

    def random(scale: float) -> Tensor:
        return (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(device, dtype)

    param, layout = random(1.0), make_layout(shape)
    state = init_rule(param, layout, network.config, state_dtype, on_device=False)
    state["step"] += 1
    return Leaf(random(600.0), param, rule_accumulators(state), state["step"], layout)


def update_leaves(network: Network, leaves: Sequence[Leaf], *, stack: bool = True) -> list[Tensor]:
    """The un-negated step of every leaf, in order."""
    steps = {id(leaf): step for leaf, step in iterate_leaves(network, leaves, stack=stack)}
    return [steps[id(leaf)] for leaf in leaves]


def update(
    name: Any,
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    state_dtype: torch.dtype | None = None,
    network: Network | None = None,
    **options: Any,
) -> list[Tensor]:
    """The step of two equal leaves after two updates, and their accumulators."""
    network = network or make_network(**options)
    leaves = [make_leaf(shape, network, dtype, device, seed, state_dtype) for seed in (1, 2)]
    with dispatch.use(name):
        update_leaves(network, leaves)
        smaller = [leaf._replace(grad=-1e-3 * leaf.grad) for leaf in leaves]
        steps = update_leaves(network, smaller)
    return steps + [tensor for leaf in leaves for family in leaf.accumulators for tensor in family]


def largest_error(actual: list[Tensor], expected: list[Tensor]) -> float:
    pairs = zip(actual, expected, strict=True)
    return max(relative_error(a.double().cpu().numpy(), b.double().cpu().numpy()) for a, b in pairs)
