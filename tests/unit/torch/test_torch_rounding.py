"""Stochastic rounding: exact on average, exact where bfloat16 is, and the same in a repeated run."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from celo2.torch import Celo2Base
from celo2.torch.rounding import round_all

NUM_DRAWS = 4096

torch.set_num_threads(1)  # of a process that is one of several: two threads would wait for each other


def rounded(tensors: list[Tensor], count: int = 1, number: int = 0) -> list[Tensor]:
    outputs = [torch.empty_like(tensor, dtype=torch.bfloat16) for tensor in tensors]
    round_all(tensors, outputs, torch.tensor(float(count)), number)
    return outputs


def test_rounding_is_unbiased_and_between_the_neighbours() -> None:
    rng = np.random.default_rng(0)
    exact = (rng.standard_normal(64) * 10.0 ** rng.integers(-12, 12, 64)).astype(np.float32)
    values = torch.tensor(exact)
    drawn = torch.stack([rounded([values, -values, values], count)[2] for count in range(NUM_DRAWS)])
    drawn = drawn.double().numpy()
    gap = 2.0**-7 * np.abs(exact)  # at most, between neighbours
    assert (np.abs(drawn - exact) < gap).all()
    np.testing.assert_allclose(drawn.mean(0), exact, atol=0, rtol=5 * 2.0**-7 / 2 / np.sqrt(NUM_DRAWS))
    assert (drawn.min(0) < exact).sum() > 50  # to nearest, each value would have one result
    assert (drawn.max(0) > exact).sum() > 50


def test_elements_tensors_steps_and_parameters_are_rounded_independently() -> None:
    values = torch.full((NUM_DRAWS,), 1.0 + 2.0**-8)  # half way between two neighbours
    draws = [*rounded([values] * 4), *rounded([values], count=2), *rounded([values], number=1)]
    up = torch.stack(draws).double().numpy()
    noise = 5 / np.sqrt(NUM_DRAWS)
    assert (np.abs(np.corrcoef(up) - np.eye(len(draws))) < noise).all()
    for lag in (1, 2, 64):
        assert abs(np.corrcoef(up[0, lag:], up[0, :-lag])[0, 1]) < noise


def test_exact_values_infinities_and_nan_are_kept() -> None:
    values = torch.tensor([0.0, -0.0, 1.5, -(2.0**-120), np.inf, -np.inf, np.nan])
    for count in range(8):
        (result,) = rounded([values], count)
        np.testing.assert_array_equal(result.float().numpy(), values.numpy())
        assert torch.signbit(result[1])


def test_state_stays_close_to_float32_where_rounding_to_nearest_would_not_move() -> None:
    """Momentum 0.999 moves by less than half a bfloat16 step each time; on average it must arrive."""
    params = [nn.Parameter(torch.ones(32, 32)) for _ in range(2)]
    optimizers = [Celo2Base([params[0]], state_dtype=torch.bfloat16, lr=0.0), Celo2Base([params[1]], lr=0.0)]
    for _ in range(120):
        for param, optimizer in zip(params, optimizers, strict=True):
            param.grad = torch.full_like(param, 0.75)
            optimizer.step()
    small, exact = (o.state[p]["momentum_2"].float() for o, p in zip(optimizers, params, strict=True))
    assert optimizers[0].state[params[0]]["momentum_2"].dtype == torch.bfloat16
    assert optimizers[0].state[params[0]]["row_0"].dtype == torch.float32
    torch.testing.assert_close(small.mean(), exact.mean(), rtol=2e-3, atol=0.0)
    assert small.std() > 0
