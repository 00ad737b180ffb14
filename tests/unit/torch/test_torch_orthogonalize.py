"""Newton–Schulz in torch: which form a matrix takes, and what it leaves alone."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import celo2
from celo2.config import RuleConfig
from celo2.torch import Celo2, orthogonalize

CONFIG = RuleConfig()


@pytest.mark.parametrize(
    ("shape", "dtype", "gram"),
    [
        pytest.param((128, 256), torch.float32, True, id="wide"),
        pytest.param((256, 128), torch.float64, True, id="tall"),
        pytest.param((128, 256), torch.bfloat16, False, id="low precision"),
        pytest.param((128, 255), torch.float32, False, id="nearly square"),
    ],
)
def test_form_of_a_matrix(
    shape: tuple[int, int], dtype: torch.dtype, gram: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    segments = []
    iterate = orthogonalize._iterate_gram
    monkeypatch.setattr(
        orthogonalize, "_iterate_gram", lambda x, own: segments.append(len(own)) or iterate(x, own)
    )
    matrix = torch.ones(shape, dtype=dtype)
    result = orthogonalize.compute(matrix, CONFIG)
    assert (result.shape, result.dtype) == (shape, dtype)
    assert segments == ([3, 2] if gram else [])


@pytest.mark.parametrize("shape", [(24, 40), (256, 256), (256, 512), (2, 256, 512)], ids=str)
def test_matrices_are_left_alone(shape: tuple[int, ...]) -> None:
    matrices = torch.arange(1.0, 1.0 + torch.Size(shape).numel()).sin().reshape(shape)
    before = matrices.clone()
    orthogonalize.compute(matrices, CONFIG)
    torch.testing.assert_close(matrices, before, rtol=0, atol=0)


def test_copies_and_pickles_keep_the_coefficients() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Linear(8, 8), torch.nn.Linear(8, 2))
    optimizer = Celo2(module, lr=1e-3, ns_coeffs=celo2.polar_express(4))
    for network in (copy.deepcopy(optimizer._network), pickle.loads(pickle.dumps(optimizer._network))):
        assert network.config.ns_iters == network.options.ns_iters == 4
        assert network.config.ns_coeffs == network.options.ns_coeffs == celo2.polar_express(4)
