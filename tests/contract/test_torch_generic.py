"""PyTorch's own descriptions of what every optimizer does: its error inputs, and its schedulers."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import Parameter

from celo2.torch import Celo2, Celo2Base
from helpers.torch_contract_table import make_model, train

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of PyTorch's test code
    from torch.testing._internal.common_optimizers import (
        ErrorOptimizerInput,
        get_error_inputs_for_all_optims,
        optim_db,
    )

pytestmark = pytest.mark.filterwarnings(
    "ignore::celo2.routing.routes.RoutingWarning"
)  # no module, on purpose

every_optimizer = pytest.mark.parametrize("factory", [Celo2, Celo2Base])
ERRORS = get_error_inputs_for_all_optims("cpu", torch.float32)
ADAMW = next(info for info in optim_db if info.optim_cls is torch.optim.AdamW)


@every_optimizer
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.optimizer_error_input.desc)
def test_pytorchs_error_inputs_give_pytorchs_errors(factory: type[Celo2], error: ErrorOptimizerInput) -> None:
    given = error.optimizer_error_input
    params = given.params if given.params is not None else [Parameter(torch.randn(1, 1))]
    context: Any = pytest.warns if issubclass(error.error_type, Warning) else pytest.raises
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


@every_optimizer
def test_named_parameters_keep_their_names(factory: type[Celo2]) -> None:
    model = make_model()
    optimizer = factory(model.named_parameters())
    names = [name for name, _ in model.named_parameters()]
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == names
    assert "attention.in_proj_weight" in repr(optimizer)


class Pair:
    """A matrix and a bias, as most of PyTorch's tests of optimizers train them."""

    def __init__(self, *, strided: bool = False, dtype: torch.dtype = torch.float32, names: bool = False):
        generator = torch.Generator().manual_seed(0)
        extra = (2,) if strided else ()
        drawn = [torch.randn(*shape, *extra, generator=generator).to(dtype) for shape in ((10, 5), (10,))]
        self.weight, self.bias = (Parameter(t[..., 0] if strided else t) for t in drawn)
        self.input = torch.randn(5, generator=generator).to(dtype)
        self.params: list[Any] = [self.weight, self.bias]
        if names:
            self.params = [("weight", self.weight), ("bias", self.bias)]

    def backward(self, optimizer: torch.optim.Optimizer) -> torch.Tensor:
        optimizer.zero_grad()
        loss = (self.weight.mv(self.input) + self.bias).pow(2).sum()
        loss.backward()
        return loss


def steps(pair: Pair, optimizer: torch.optim.Optimizer, count: int) -> float:
    for _ in range(count):
        pair.backward(optimizer)
        optimizer.step()
    return pair.backward(optimizer).item()


KWARGS = {
    "default": {},
    "weight_decay": {"weight_decay": 0.1},
    "maximize": {"maximize": True},
    "capturable": {"capturable": True},
    "tensor lr": {"lr": torch.tensor(0.001)},
    "foreach": {"foreach": True},
    "for": {"foreach": False},
    "fused": {"fused": True},
}
every_kwarg = pytest.mark.parametrize("kwargs", KWARGS.values(), ids=KWARGS)


@every_optimizer
@every_kwarg
def test_pytorch_state_dict_deterministic(factory: type[Celo2], kwargs: dict[str, Any]) -> None:
    pair = Pair()
    optimizer = factory(pair.params, **kwargs)
    steps(pair, optimizer, 5)
    twin = copy.deepcopy(pair)
    twin.params = [twin.weight, twin.bias]
    restored = factory(twin.params, **kwargs)
    saved, given = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(optimizer.state_dict())
    restored.load_state_dict(given)
    for _ in range(5):
        steps(pair, optimizer, 1)
        steps(twin, restored, 1)
        assert torch.equal(pair.weight, twin.weight)
        assert torch.equal(pair.bias, twin.bias)
    torch.testing.assert_close(saved, given, rtol=0, atol=0)
    torch.testing.assert_close(optimizer.state_dict(), restored.state_dict(), rtol=0, atol=0)
    restored.param_groups.extend(restored.param_groups)
    assert optimizer.state_dict()["param_groups"][-1] == restored.state_dict()["param_groups"][-1]


@every_optimizer
@every_kwarg
@pytest.mark.parametrize("strided", [False, True], ids=["contiguous", "strided"])
def test_pytorch_steps_go_in_the_right_direction(
    factory: type[Celo2], kwargs: dict[str, Any], strided: bool
) -> None:
    pair = Pair(strided=strided)
    optimizer = factory(pair.params, **kwargs)
    before = pair.backward(optimizer).item()
    after = steps(pair, optimizer, 20)
    assert (after > before) == kwargs.get("maximize", False)


@every_optimizer
def test_pytorch_foreach_for_and_fused_agree(factory: type[Celo2]) -> None:
    """To the rounding of sums in another order, and of Newton–Schulz behind it."""
    results = []
    choices: list[dict[str, Any]] = [{"foreach": False}, {"foreach": True}, {"fused": True}]
    for kwargs in choices:
        pair = Pair(dtype=torch.float32)
        optimizer = factory(pair.params, lr=1e-3, **kwargs)
        steps(pair, optimizer, 7)
        results.append(pair)
    for other in results[1:]:
        torch.testing.assert_close(other.weight, results[0].weight, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(other.bias, results[0].bias, rtol=1e-4, atol=1e-5)


@every_optimizer
@pytest.mark.parametrize("default", [torch.float64, torch.float16], ids=str)
def test_pytorch_set_default_dtype_works_with_foreach(factory: type[Celo2], default: torch.dtype) -> None:
    results = []
    try:
        torch.set_default_dtype(default)
        for foreach in (False, True):
            pair = Pair(dtype=torch.float64)
            optimizer = factory(pair.params, lr=1e-3, foreach=foreach)
            steps(pair, optimizer, 7)
            results.append((pair, optimizer.state_dict()))
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(results[1][1]["state"], results[0][1]["state"], rtol=1e-12, atol=1e-12)
    counted = {state["step"].dtype for state in results[1][1]["state"].values()}
    assert counted == {torch.float64 if default == torch.float64 else torch.float32}
    torch.testing.assert_close(results[1][0].weight, results[0][0].weight, rtol=1e-12, atol=1e-12)


@every_optimizer
@every_kwarg
def test_pytorch_step_is_a_noop_without_gradients(factory: type[Celo2], kwargs: dict[str, Any]) -> None:
    pair = Pair()
    before = [pair.weight.detach().clone(), pair.bias.detach().clone()]
    optimizer = factory(pair.params, **kwargs)
    optimizer.step()
    assert torch.equal(pair.weight, before[0])
    for param in (pair.weight, pair.bias):
        param.grad = torch.zeros_like(param)
    optimizer.step()
    decay = 1 - 1e-3 * kwargs.get("weight_decay", 0.0)
    torch.testing.assert_close(pair.weight.detach(), before[0] * decay, rtol=1e-7, atol=0)


@every_optimizer
def test_pytorch_step_is_a_noop_for_empty_gradients(factory: type[Celo2]) -> None:
    param = Parameter(torch.empty(0, 3))
    param.grad = torch.empty_like(param)
    optimizer = factory([param])
    optimizer.step()
    assert param.shape == (0, 3)


@every_optimizer
@every_kwarg
def test_pytorch_load_nontensor_step(factory: type[Celo2], kwargs: dict[str, Any]) -> None:
    pair = Pair()
    optimizer = factory(pair.params, **kwargs)
    steps(pair, optimizer, 3)
    saved = copy.deepcopy(optimizer.state_dict())
    for state in saved["state"].values():
        state["step"] = state["step"].item()
    optimizer.load_state_dict(saved)
    steps(pair, optimizer, 1)
    assert {state["step"].item() for state in optimizer.state.values()} == {4.0}


@every_optimizer
@pytest.mark.parametrize(("saved_names", "own_names"), [(True, False), (False, True), (True, True)])
def test_pytorch_can_load_from_to_named_state_dict(
    factory: type[Celo2], saved_names: bool, own_names: bool
) -> None:
    pair, twin = Pair(names=saved_names), Pair(names=own_names)
    optimizer, restored = factory(pair.params), factory(twin.params, lr=7.0)
    steps(pair, optimizer, 3)
    restored.load_state_dict(optimizer.state_dict())
    assert restored.param_groups[0]["param_names"] == ["weight", "bias"]
    assert restored.param_groups[0]["lr"] == 1e-3
    torch.testing.assert_close(
        restored.state_dict()["state"], optimizer.state_dict()["state"], rtol=0, atol=0
    )


@every_optimizer
def test_pytorch_deepcopy_copies_all_public_attributes(factory: type[Celo2]) -> None:
    optimizer = factory(Pair().params)
    public = {name for name in vars(optimizer) if not name.startswith("_")}
    assert public == {name for name in vars(copy.deepcopy(optimizer)) if not name.startswith("_")}


@every_optimizer
def test_pytorch_groups_with_a_decay_and_a_rate_of_their_own(factory: type[Celo2]) -> None:
    pair = Pair()
    groups = [{"params": [pair.weight], "weight_decay": 0.5}, {"params": [pair.bias], "lr": 0.0}]
    optimizer = factory(groups, lr=1e-2)
    before, bias = pair.backward(optimizer).item(), pair.bias.detach().clone()
    assert steps(pair, optimizer, 20) < before
    assert torch.equal(pair.bias, bias)


@every_optimizer
def test_pytorch_parameters_of_several_dtypes_in_one_group(factory: type[Celo2]) -> None:
    dtypes = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
    params = [Parameter(torch.linspace(-1, 1, 50).view(10, 5).to(dtype)) for dtype in dtypes]
    results = []
    for foreach in (True, False):
        own = copy.deepcopy(params)
        optimizer = factory(own, lr=1e-2, foreach=foreach)
        for param in own:
            param.grad = param.detach().clone()
        optimizer.step()
        assert all(state["step"].item() == 1 for state in optimizer.state.values())
        results.append(own)
    for one, other, old in zip(*results, params, strict=True):
        torch.testing.assert_close(one, other)
        assert not torch.equal(one, old)
        assert one.dtype == old.dtype


@pytest.mark.parametrize("options", [{}, {"fused": True}, {"foreach": True}], ids=str)
def test_adamws_share_may_lie_in_memory_as_it_likes(options: dict[str, Any]) -> None:
    """PyTorch's fused kernel for CPUs would take such memory for contiguous."""
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(6, 5, 4, 2, generator=generator)
    for view in (whole[..., 0], whole.to(memory_format=torch.channels_last), whole[0, 0].T):
        param, twin = Parameter(view.clone(memory_format=torch.preserve_format)), Parameter(view.contiguous())
        if view.stride()[-1] == 2:
            param = Parameter(view)
        assert not param.is_contiguous()
        optimizers = [Celo2([p], algorithm="adamw", **options) for p in (param, twin)]
        for seed in range(2):
            grad = torch.randn(view.shape, generator=torch.Generator().manual_seed(seed))
            for p, optimizer in zip((param, twin), optimizers, strict=True):
                p.grad = grad.clone()
                optimizer.step()
        torch.testing.assert_close(param, twin, rtol=1e-6, atol=1e-6)
