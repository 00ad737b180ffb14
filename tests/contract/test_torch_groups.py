"""Groups and options: added later, cycled by schedulers; parameters that are complex, quantised, on meta."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CyclicLR, OneCycleLR

from celo2.routing import RoutingWarning
from celo2.torch import Celo2, Celo2Base
from helpers.torch_contract_table import ROWS, Row, assert_same, make_model, train

every_optimizer = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


class Growing(nn.Module):
    """An embedding and a layer; `grow` adds a convolution and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.fc = nn.Embedding(50, 8), nn.Linear(8, 8)

    def grow(self) -> list[Tensor]:
        self.conv, self.lm_head = nn.Conv1d(8, 8, 3), nn.Linear(8, 50)
        return [*self.conv.parameters(), *self.lm_head.parameters()]


def table(optimizer: Celo2) -> list[str]:
    """The lines of the optimizer's text, columns by single spaces."""
    return [" ".join(line.split()) for line in repr(optimizer).splitlines()]


def lines(optimizer: Celo2) -> dict[str, str]:
    """The table's line of each weight."""
    weights = [line for line in table(optimizer) if ".weight " in line]
    return {line.split(" ", 1)[0]: line.split(" ", 1)[1] for line in weights}


def decay_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Bare parameters: matrices with weight decay, vectors without."""
    params = list(model.parameters())
    return [
        {"params": [param for param in params if param.ndim > 1], "weight_decay": 0.1},
        {"params": [param for param in params if param.ndim < 2]},
    ]


def test_groups_of_bare_parameters_have_the_names_of_their_module() -> None:
    model = make_model()
    optimizer = Celo2([*decay_groups(model), {"params": []}], module=model, skip_nonfinite_gradients=True)
    held = [dict(zip(g["param_names"], g["params"], strict=True)) for g in optimizer.param_groups]
    assert {**held[0], **held[1]} == dict(model.named_parameters())
    assert held[2] == {}
    assert lines(optimizer) == lines(Celo2(model))
    model.up.weight.grad = torch.full_like(model.up.weight, float("nan"))
    with pytest.warns(UserWarning, match="the gradients of up.weight are not finite"):
        optimizer.step()
    optimizer.state[model.up.weight] = {"step": torch.zeros(())}
    with pytest.raises(ValueError, match=r"up\.weight"):
        optimizer.load_state_dict(optimizer.state_dict())


def test_a_checkpoint_of_groups_without_names_is_loaded_by_place() -> None:
    """Saved by a release that gave bare parameters no names."""
    model = make_model()
    optimizer = Celo2(decay_groups(model), lr=0.01, module=model)
    train(model, optimizer, 2)
    saved = optimizer.state_dict()
    for group in saved["param_groups"]:
        del group["param_names"]
    other = copy.deepcopy(model)
    restored = Celo2(decay_groups(other), lr=0.5, module=other)
    restored.load_state_dict(saved)
    assert [g["param_names"] for g in restored.param_groups] == [
        g["param_names"] for g in optimizer.param_groups
    ]
    train(model, optimizer, 2)
    train(other, restored, 2)
    assert_same(model, other)


@pytest.mark.parametrize("named", [True, False], ids=["named", "bare"])
def test_a_group_added_later_is_routed_by_the_module(named: bool) -> None:
    module = Growing()
    optimizer = Celo2(module, lr=1e-3)
    new = module.grow()
    names: dict[torch.Tensor, str] = {param: name for name, param in module.named_parameters()}
    optimizer.add_param_group({"params": [(names[p], p) for p in new] if named else new, "lr": 2e-3})
    assert lines(optimizer) == lines(Celo2(module))
    assert "adamw" in lines(optimizer)["lm_head.weight"]
    assert optimizer.param_groups[1]["param_names"] == [names[param] for param in new]
    before = copy.deepcopy(module)
    for param in module.parameters():
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(module.parameters(), before.parameters(), strict=True))


def test_a_group_added_to_groups_of_bare_parameters_is_routed_and_named_by_their_module() -> None:
    module = Growing()
    optimizer = Celo2([{"params": list(module.parameters())}], module=module)
    optimizer.add_param_group({"params": module.grow()})
    whole = Celo2(module)
    for added, param in enumerate(optimizer.param_groups[1]["params"]):
        assert optimizer._routes[param] == whole._routes[param], added
    names = ["conv.weight", "conv.bias", "lm_head.weight", "lm_head.bias"]
    assert optimizer.param_groups[1]["param_names"] == names


def test_a_group_of_strangers_is_taken_as_stored_and_a_bad_one_changes_nothing() -> None:
    module = Growing()
    optimizer = Celo2(module)
    with pytest.warns(RoutingWarning, match=r"does not hold 1 matrix \(group 1.0 \(3, 2\)\)") as record:
        optimizer.add_param_group({"params": nn.Parameter(torch.zeros(3, 2))})
    assert [warning.filename for warning in record] == [__file__]
    assert optimizer.param_groups[1]["param_names"] == ["group 1.0"]
    assert "group 1.0 (3, 2) celo2 2 × 3 0 → 1 no module: a matrix as stored" in table(optimizer)
    for bad, error in (
        ([nn.Parameter(torch.zeros(3), requires_grad=True) * 2], ValueError),
        ([module.fc.weight], ValueError),
        (["no tensor"], TypeError),
        ({nn.Parameter(torch.zeros(3))}, TypeError),
        ([nn.Parameter(torch.zeros(3).to(torch.float8_e4m3fn), requires_grad=False)], TypeError),
    ):
        with pytest.raises(error):
            optimizer.add_param_group({"params": bad})
        assert len(optimizer.param_groups) == len(optimizer._places) == 2


def test_an_optimizer_does_not_keep_its_module_alive() -> None:
    module = Growing()
    optimizer = Celo2(module)
    fc = module.fc.weight
    del module
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(3, 2))]})
    fc.grad = torch.ones_like(fc)
    optimizer.step()
    assert "without" not in repr(optimizer)


@every_optimizer
@pytest.mark.parametrize("cycle", ["one", "many"])
def test_schedulers_that_cycle_momentum_work_with_their_defaults(row: Row, cycle: str) -> None:
    """They cycle the first of the decays of AdamW's share, as of AdamW's own."""
    model, twin = make_model(), make_model()
    ours, theirs = row.make(model), torch.optim.AdamW(twin.parameters(), betas=(0.9, 0.95))
    made = [
        OneCycleLR(optimizer, 0.02, total_steps=4) if cycle == "one" else CyclicLR(optimizer, 1e-3, 0.02, 3)
        for optimizer in (ours, theirs)
    ]
    seen = []
    for _ in range(3):
        train(model, ours, 1)
        train(twin, theirs, 1)
        for scheduler in made:
            scheduler.step()
        assert ours.param_groups[0]["betas"] == theirs.param_groups[0]["betas"]
        seen.append(ours.param_groups[0]["betas"][0])
    assert len(set(seen)) > 1


@pytest.mark.parametrize("name", ["betas", "adamw_betas"])
def test_betas_are_those_of_adamws_share(name: str) -> None:
    model, twin = make_model(), make_model()
    options: dict[str, Any] = {name: (0.5, 0.6)}
    train(model, Celo2(model, lr=1e-3, algorithm="adamw", adamw_lr_scale=1.0, **options))
    train(twin, torch.optim.AdamW(twin.parameters(), lr=1e-3, betas=(0.5, 0.6), weight_decay=0.0, fused=True))
    assert_same(model, twin)
    group = {"params": [nn.Parameter(torch.zeros(2))], name: (0.1, 0.2)}
    assert Celo2([group]).param_groups[0]["betas"] == (0.1, 0.2)


def test_two_names_with_two_values_are_refused() -> None:
    with pytest.raises(ValueError, match="same option"):
        Celo2(make_model(), betas=(0.9, 0.99), adamw_betas=(0.9, 0.95))
    Celo2(make_model(), betas=(0.9, 0.99), adamw_betas=(0.9, 0.99))


@every_optimizer
def test_a_tensor_learning_rate_with_foreach_is_refused_at_once(row: Row) -> None:
    options: dict[str, Any] = {"foreach": True, "capturable": False}
    with pytest.raises(
        ValueError, match="lr as a Tensor is not supported for capturable=False and foreach=True"
    ):
        row.make(make_model(), torch.tensor(1e-3), **options)
    optimizer = row.make(make_model(), 1e-3, **options)
    with pytest.raises(ValueError, match="lr as a Tensor"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))], "lr": torch.tensor(1e-3)})
    if row.name != "celo2_eigenbasis":  # which refuses capturable=True
        row.make(make_model(), torch.tensor(1e-3), foreach=True, capturable=True)


@every_optimizer
@pytest.mark.parametrize("shape", [(), (1,)], ids=str)
def test_a_tensor_learning_rate_may_have_an_axis(row: Row, shape: tuple[int, ...]) -> None:
    model, twin = make_model(), make_model()
    train(model, row.make(model, torch.full(shape, 0.01)), 1)
    train(twin, row.make(twin, torch.tensor(0.01)), 1)
    assert_same(model, twin)


class Spectral(nn.Module):
    """Fourier modes beside a real layer."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.modes = nn.Parameter(torch.randn(4, 4, 3, dtype=torch.cfloat, generator=generator))
        self.lift = nn.Linear(4, 4)


@pytest.mark.parametrize("factory", [Celo2, Celo2Base])
@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"fused": True}, {"foreach": False}], ids=str)
def test_complex_parameters_are_adamws(factory: Any, options: dict[str, Any]) -> None:
    module = Spectral()
    real = nn.Parameter(torch.view_as_real(module.modes.detach()).clone())
    ours = factory(module, lr=1e-3, weight_decay=0.1, **options)
    theirs = torch.optim.AdamW([real], lr=2e-2, betas=(0.9, 0.95), weight_decay=0.1, foreach=False)
    assert "complex numbers" in repr(ours)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        module.modes.grad = torch.randn(4, 4, 3, dtype=torch.cfloat, generator=generator)
        module.lift.weight.grad = torch.ones(4, 4)
        real.grad = torch.view_as_real(module.modes.grad)
        ours.step()
        theirs.step()
    torch.testing.assert_close(torch.view_as_real(module.modes), real, rtol=1e-6, atol=1e-6)
    assert ours.state[module.modes]["exp_avg"].dtype == torch.cfloat
    other = factory(module)
    other.load_state_dict(ours.state_dict())
    assert torch.equal(other.state[module.modes]["exp_avg"], ours.state[module.modes]["exp_avg"])


def test_complex_parameters_without_a_module_are_adamws_too() -> None:
    param = nn.Parameter(torch.ones(4, 4, dtype=torch.cdouble))
    param.grad = torch.full_like(param, 1j)
    optimizer = Celo2([param], lr=1e-3)
    optimizer.step()
    assert optimizer.state[param]["exp_avg"].dtype == torch.cdouble
    torch.testing.assert_close(param.detach(), torch.full((4, 4), 1 - 0.02j, dtype=torch.cdouble))


@pytest.mark.parametrize("options", [{"overrides": {"modes": "celo2"}}, {"algorithm": "celo2"}], ids=str)
def test_complex_parameters_are_refused_for_the_rule(options: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=r"modes is complex .*view_as_real"):
        Celo2(Spectral(), **options)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8], ids=str)
def test_frozen_quantised_parameters_of_a_module_are_left_out(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[0].weight = nn.Parameter(torch.zeros(4, 3).to(dtype), requires_grad=False)
    optimizer = Celo2(model)
    assert len(optimizer.param_groups[0]["params"]) == 3


@every_optimizer
def test_a_model_may_be_built_before_its_device_is_known(row: Row) -> None:
    """On the meta device, where a step gives shapes and dtypes; then it gets memory."""
    with torch.device("meta"):
        model = make_model()
    kernels = {"fused": True} if row.options.get("foreach") is None else {}
    optimizer = row.make(model, **kernels)
    for param in model.parameters():
        param.grad = torch.empty_like(param)
    optimizer.step()
    assert all(own.is_meta for state in optimizer.state.values() for k, own in state.items() if k != "step")
    later = row.make(model.to_empty(device="cpu"), **kernels)
    model.load_state_dict(make_model().state_dict())
    twin = make_model()
    train(model, later)
    train(twin, row.make(twin, **kernels))
    assert_same(model, twin)


@every_optimizer
@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"foreach": False}, {"fused": True}], ids=str)
def test_float64_as_the_default_dtype_changes_the_steps_alone(row: Row, options: dict[str, Any]) -> None:
    """PyTorch's optimizers count in the default dtype if that is float64, but for fused kernels."""
    if options.get("fused") and row.options.get("foreach") is False:
        options = {"fused": True, "foreach": None}
    results = []
    for default in (torch.float32, torch.float64):
        model = make_model()
        try:
            torch.set_default_dtype(default)
            optimizer = row.make(model, **options)
            train(model, optimizer, 2)
            saved = optimizer.state_dict()
            optimizer = row.make(model, **options)
            optimizer.load_state_dict(saved)
            train(model, optimizer, 1)
        finally:
            torch.set_default_dtype(torch.float32)
        results.append(model)
        expected = torch.float32 if options.get("fused") else default
        assert {state["step"].dtype for state in optimizer.state.values()} == {expected}
        kept = {
            own.dtype for state in optimizer.state.values() for key, own in state.items() if key != "step"
        }
        assert kept <= {torch.float32} | row.stored(torch.float32)
    assert_same(*results)
