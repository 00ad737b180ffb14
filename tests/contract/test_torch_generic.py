"""PyTorch's own descriptions of what every optimizer does: its error inputs, and its schedulers."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import Parameter
from torch_contract_table import make_model, train

from celo2.torch import Celo2, Celo2Base

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of PyTorch's test code
    from torch.testing._internal.common_optimizers import (
        ErrorOptimizerInput,
        get_error_inputs_for_all_optims,
        optim_db,
    )

every_optimizer = pytest.mark.parametrize("factory", [Celo2, Celo2Base])
ERRORS = get_error_inputs_for_all_optims("cpu", torch.float32)
ADAMW = next(info for info in optim_db if info.optim_cls is torch.optim.AdamW)


@every_optimizer
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.optimizer_error_input.desc)
def test_pytorchs_error_inputs_give_pytorchs_errors(factory: type[Celo2], error: ErrorOptimizerInput) -> None:
    given = error.optimizer_error_input
    params = given.params if given.params is not None else [Parameter(torch.randn(1, 1))]
    context = pytest.warns if issubclass(error.error_type, Warning) else pytest.raises
    with context(error.error_type, match=error.error_regex):
        factory(params, **given.kwargs)


@every_optimizer
@pytest.mark.parametrize("make", ADAMW.scheduler_inputs, ids=range(len(ADAMW.scheduler_inputs)))
def test_pytorchs_schedulers_go_the_right_way(factory: type[Celo2], make: list[Callable[..., Any]]) -> None:
    model = make_model()
    optimizer = factory(model, lr=0.02)
    schedulers = [constructor(optimizer) for constructor in make]
    losses = []
    for _ in range(6):
        losses += train(model, optimizer, 1)
        for scheduler in schedulers:
            plateau = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
            scheduler.step(*(losses[-1:] if plateau else ()))
    assert losses[-1] < losses[0]


@every_optimizer
def test_a_state_dict_from_before_an_option_was_there_still_loads(factory: type[Celo2]) -> None:
    model = make_model()
    optimizer = factory(model)
    train(model, optimizer, 1)
    old = copy.deepcopy(optimizer.state_dict())
    for group in old["param_groups"]:
        for option in ("maximize", "capturable", "algorithm"):
            del group[option]
    optimizer.load_state_dict(old)
    train(model, optimizer, 1)
    assert optimizer.param_groups[0]["algorithm"] is None


@pytest.mark.filterwarnings("ignore::celo2.torch.routing.RoutingWarning")  # no module, on purpose
@every_optimizer
def test_named_parameters_keep_their_names(factory: type[Celo2]) -> None:
    model = make_model()
    optimizer = factory(model.named_parameters())
    names = [name for name, _ in model.named_parameters()]
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == names
    assert "attention.in_proj_weight" in repr(optimizer)
