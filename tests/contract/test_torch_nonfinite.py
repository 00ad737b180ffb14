"""Gradients that are not finite: left out, counted and told, where that is asked for."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from celo2.torch import Celo2, Celo2Base
from helpers.torch_contract_table import assert_same, grad_of, make_model, train

every_optimizer = pytest.mark.parametrize("factory", [Celo2, Celo2Base])
BAD = [float("nan"), float("inf"), -float("inf")]


def make(factory: Any, model: nn.Module, **options: Any) -> Celo2:
    return factory(model, lr=0.01, weight_decay=0.1, skip_nonfinite_gradients=True, **options)


def backward(model: nn.Module) -> None:
    for seed, param in enumerate(model.parameters()):
        param.grad = torch.randn(param.shape, generator=torch.Generator().manual_seed(seed))


@every_optimizer
@pytest.mark.parametrize("bad", BAD, ids=str)
@pytest.mark.parametrize("options", [{}, {"foreach": False}, {"state_dtype": torch.bfloat16}], ids=str)
def test_a_parameter_is_left_out_as_if_it_had_no_gradient(
    factory: Any, bad: float, options: dict[str, Any]
) -> None:
    """One of the rule's and one of AdamW's (or a vector of the rule's), in the second step of three."""
    model, twin = make_model(), make_model()
    optimizer, expected = make(factory, model, **options), make(factory, twin, **options)
    for step in range(3):
        backward(model)
        backward(twin)
        if step == 1:
            grad_of(model.up.weight)[3, 4] = grad_of(model.norm.bias)[2] = bad
            twin.up.weight.grad = twin.norm.bias.grad = None
            with pytest.warns(UserWarning, match="norm.bias, up.weight are not finite"):
                optimizer.step()
        else:
            optimizer.step()
        expected.step()
    assert_same(model, twin)
    assert (optimizer.num_nonfinite, expected.num_nonfinite) == (2, 0)


def test_the_warning_comes_once_and_the_count_goes_on_in_copies() -> None:
    model = make_model()
    optimizer = make(Celo2, model)
    backward(model)
    grad_of(model.up.weight)[0, 0] = float("nan")
    with pytest.warns(UserWarning, match=r"up.weight are not finite.*num_nonfinite"):
        optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
        for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
            own = other.param_groups[0]["params"]
            for param, theirs in zip(own, model.parameters(), strict=True):
                param.grad = theirs.grad
            other.step()
            assert other.num_nonfinite == 3
    assert optimizer.num_nonfinite == 2


@pytest.mark.parametrize("wrapped", [False, True], ids=["alone", "with a scheduler"])
def test_the_warning_is_located_at_the_users_line(wrapped: bool) -> None:
    model = make_model()
    optimizer = make(Celo2, model)
    if wrapped:
        torch.optim.lr_scheduler.StepLR(optimizer, 1)
    backward(model)
    grad_of(model.up.weight)[0, 0] = float("nan")
    with pytest.warns(UserWarning, match="not finite") as record:
        optimizer.step()
    assert [warning.filename for warning in record] == [__file__]


def test_many_names_are_not_all_said() -> None:
    model = make_model()
    optimizer = make(Celo2, model)
    for param in model.parameters():
        param.grad = torch.full_like(param, float("nan"))
    with pytest.warns(UserWarning, match=r"and \d+ more are not finite"):
        optimizer.step()
    assert optimizer.num_nonfinite == len(list(model.parameters()))
    assert not any(optimizer.state.values())


@every_optimizer
def test_without_the_option_it_makes_its_matrix_nan_and_no_other(factory: Any) -> None:
    model = make_model()
    optimizer = factory(model, lr=0.01)
    backward(model)
    grad_of(model.up.weight)[3, 4] = float("nan")
    optimizer.step()
    assert model.up.weight.isnan().any()
    assert all(p.isfinite().all() for name, p in model.named_parameters() if name != "up.weight")
    assert optimizer.num_nonfinite == 0


@every_optimizer
def test_what_is_finite_trains_as_without_the_option(factory: Any) -> None:
    model, twin = make_model(), make_model()
    train(model, make(factory, model))
    train(twin, factory(twin, lr=0.01, weight_decay=0.1))
    assert_same(model, twin)


def test_it_does_not_go_with_a_captured_graph() -> None:
    with pytest.raises(ValueError, match="waits for the device"):
        make(Celo2, make_model(), capturable=True)


def test_complex_and_empty_gradients_are_looked_at_too() -> None:
    params = [nn.Parameter(torch.ones(3, dtype=torch.cfloat)), nn.Parameter(torch.ones(0, 3))]
    for param in params:
        param.grad = torch.ones_like(param)
    grad_of(params[0])[1] = torch.tensor(complex(0, float("nan")))
    optimizer = Celo2(params, skip_nonfinite_gradients=True)
    with pytest.warns(UserWarning, match="the gradients of 0.0 are not finite"):
        optimizer.step()
    assert torch.equal(params[0], torch.ones(3, dtype=torch.cfloat))
