"""Gradient normalisation and metric in PyTorch, against those of JAX."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

import celo2
from celo2.torch import GradientNormalizer, share_outside
from helpers.torch_contract_table import grad_of

NAN = float("nan")
SCALES = [(1e-9, 1.0), (3e-9, NAN), (1e-7, 0.0), (0.0, 4.0)]  # of two gradients, step after step


def test_normalised_gradients_are_those_of_jax() -> None:
    patterns = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    params = [nn.Parameter(torch.zeros(3, 4)) for _ in patterns] + [nn.Parameter(torch.zeros(2))]
    normalizer, loaded = GradientNormalizer(params, 1e-2), GradientNormalizer(params, 1e-2)
    transform = celo2.normalize_gradients(1e-2)
    state = transform.init([jnp.zeros((3, 4))] * 2)
    expected: Any
    for scales in SCALES:
        grads = [scale * pattern for scale, pattern in zip(scales, patterns, strict=True)]
        expected, state = transform.update([jnp.asarray(grad) for grad in grads], state)
        for param, grad in zip(params, grads, strict=False):
            param.grad = torch.from_numpy(grad.copy())
        loaded.load_state_dict(normalizer.state_dict())
        normalizer, loaded = loaded, normalizer
        normalizer()
        for param, own in zip(params, expected, strict=False):
            np.testing.assert_allclose(grad_of(param), own, rtol=5e-7)  # a few float32 roundings
    assert params[2].grad is None


def test_bfloat16_gradients_keep_their_dtype() -> None:
    param = nn.Parameter(torch.zeros(4, dtype=torch.bfloat16))
    param.grad = torch.full_like(param, 2**-60)
    GradientNormalizer([param], 1.0)()
    assert param.grad.dtype == torch.bfloat16
    assert param.grad.tolist() == [1.0] * 4


@pytest.mark.parametrize(("target", "decay"), [(0.0, 0.9), (1.0, 1.0)])
def test_values_out_of_range_are_refused(target: float, decay: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        GradientNormalizer([], target, decay=decay)


def test_the_share_outside_is_that_of_jax() -> None:
    arrays = [np.full((3, 2), 1e-25), np.full(5, 1e-2), np.full(7, NAN), np.zeros(9), np.full(2, 1e30)]
    grads = [array.astype(np.float32) for array in arrays]
    share = share_outside([*map(torch.from_numpy, grads), None, torch.zeros(0)])
    assert float(share) == float(celo2.share_outside([jnp.asarray(grad) for grad in grads])) == 15 / 20
    assert float(share_outside([])) == 0
