"""The network of the torch backend: it computes less than its weights have, and only it knows that."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from celo2.torch import Celo2Base
from celo2.torch.weights import make_network
from celo2.weights import load_checkpoint
from celo2.weights.sources import SHIPPED
from helpers import torch_examples


def make_optimizer(weights: str | dict[str, np.ndarray]) -> Celo2Base:
    """One step on a matrix and a vector."""
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(shape)) for shape in ((12, 20), (20,))]
    for param in params:
        param.grad = 0.1 * torch.randn_like(param)
    optimizer = Celo2Base(params, weights=weights)
    optimizer.step()
    return optimizer


@pytest.mark.parametrize("name", SHIPPED)
def test_a_network_keeps_its_weights_and_options_in_copies_too(name: str) -> None:
    weights = load_checkpoint(name)
    network = make_network(name, orthogonalize=weights.config.orthogonalize)
    for own in (network, copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert own.options == weights.config
        assert all(np.array_equal(own.weights.arrays[key], array) for key, array in weights.arrays.items())
        assert own.config == network.config
        assert own.config.ff_hidden_size == 2
        assert own.numbers == network.numbers


def test_tensors_of_the_network_have_its_size() -> None:
    network, like = make_network("celo2-base", orthogonalize=False), torch.zeros(1, dtype=torch.float64)
    assert network.tensor("b0", like=like).shape == (2,)
    assert network.layer(1, like=like).shape == (2, 3)


def test_state_is_that_of_any_weights() -> None:
    """A state dict saved with shipped weights fits an optimizer with a full network, and the reverse."""
    full = dict(torch_examples.make_network().weights.arrays)
    shipped, other = make_optimizer("celo2-base"), make_optimizer(full)
    for one, two in ((shipped, other), (other, shipped)):
        saved = one.state_dict()
        shapes = [
            {
                index: {name: value.shape for name, value in own.items()}
                for index, own in state["state"].items()
            }
            for state in (saved, two.state_dict())
        ]
        assert shapes[0] == shapes[1]
        two.load_state_dict(copy.deepcopy(saved))
        two.step()


def test_a_copied_optimizer_continues_bit_for_bit() -> None:
    optimizer = make_optimizer("celo2-base")
    others = [copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))]
    for own in (optimizer, *others):
        for group in own.param_groups:
            for param in group["params"]:
                param.grad = torch.full_like(param, 1e-3).cumsum(0)
        own.step()
    expected = optimizer.param_groups[0]["params"]
    for own in others:
        for actual, param in zip(own.param_groups[0]["params"], expected, strict=True):
            assert torch.equal(actual, param)
