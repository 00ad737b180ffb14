"""What PyTorch and its users expect of an optimizer, of every PyTorch optimizer of the package."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from celo2.torch import Celo2
from helpers.torch_contract_table import (
    ROWS,
    Row,
    assert_same,
    assert_states_same,
    grad_of,
    loss_of,
    make_model,
    train,
)

every_optimizer = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def sign(row: Row) -> float:
    return -1.0 if row.options.get("maximize") else 1.0


@every_optimizer
def test_training_lowers_the_loss_and_changes_every_parameter(row: Row) -> None:
    model = make_model()
    before = copy.deepcopy(model)
    losses = train(model, row.make(model), 6)
    assert sign(row) * (losses[0] - losses[-1]) > 0.1
    for (name, new), old in zip(model.named_parameters(), before.parameters(), strict=True):
        assert not torch.equal(new, old), name
        assert torch.isfinite(new).all(), name


@every_optimizer
def test_a_repeated_run_is_the_same_and_leaves_the_global_generator_alone(row: Row) -> None:
    models = [make_model(), make_model()]
    for model in models:
        state = torch.get_rng_state()
        train(model, row.make(model))
        assert torch.equal(state, torch.get_rng_state())
    assert_same(*models)


@every_optimizer
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_of_parameters_are_kept(row: Row, dtype: torch.dtype) -> None:
    model = make_model(dtype=dtype)
    optimizer = row.make(model)
    train(model, optimizer, 2)
    assert {param.dtype for param in model.parameters()} == {dtype}
    assert all(torch.isfinite(param).all() for param in model.parameters())
    working = torch.float64 if dtype == torch.float64 else torch.float32
    allowed = {working, torch.float32} | row.stored(working)
    kinds = {value.dtype for state in optimizer.state.values() for value in state.values()}
    assert kinds <= allowed


@every_optimizer
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_state_dict_continues_bit_for_bit_through_a_file(row: Row, dtype: torch.dtype) -> None:
    model = make_model(dtype=dtype)
    optimizer = row.make(model)
    train(model, optimizer)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    restored_model = copy.deepcopy(model)
    restored = row.make(restored_model, lr=7.0)
    restored.load_state_dict(torch.load(file, weights_only=True))
    assert restored.param_groups[0]["lr"] == 0.01
    assert_states_same(restored, optimizer)
    assert train(restored_model, restored) == train(model, optimizer)
    assert_same(restored_model, model)


@every_optimizer
def test_copies_and_pickles_continue_bit_for_bit(row: Row) -> None:
    model = make_model()
    optimizer = row.make(model)
    train(model, optimizer)
    others = [copy.deepcopy((model, optimizer)), pickle.loads(pickle.dumps((model, optimizer)))]
    train(model, optimizer)
    for other_model, other in others:
        assert repr(other).split("name ")[1] == repr(optimizer).split("name ")[1]
        train(other_model, other)
        assert_same(other_model, model)


@every_optimizer
def test_gradients_are_not_changed_and_the_network_is_not_differentiated(row: Row) -> None:
    model = make_model()
    optimizer = row.make(model)
    loss_of(model).backward()
    grads = [grad_of(param).clone() for param in model.parameters()]
    optimizer.step()
    for param, grad in zip(model.parameters(), grads, strict=True):
        assert torch.equal(grad_of(param), grad)
        assert param.is_leaf
        assert param.requires_grad


@every_optimizer
def test_closure_is_called_once_with_gradients_on_and_its_loss_returned(row: Row) -> None:
    model, twin = make_model(), make_model()
    optimizer, calls = row.make(model), []

    def closure() -> torch.Tensor:
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(2)]
    assert calls == [True, True]
    assert losses == train(twin, row.make(twin), 2)
    assert_same(model, twin)


@every_optimizer
def test_parameters_without_a_gradient_stay_and_have_no_state(row: Row) -> None:
    model = make_model()
    optimizer = row.make(model)
    before = copy.deepcopy(model)
    loss_of(model).backward()
    left_out = [model.up.weight, model.norm.bias]
    for param in left_out:
        param.grad = None
    optimizer.step()
    assert torch.equal(model.up.weight, before.up.weight)
    assert not any(param in optimizer.state for param in left_out)
    assert not torch.equal(model.down.weight, before.down.weight)
    optimizer.zero_grad()
    optimizer.step()  # nothing to do


@pytest.mark.filterwarnings("ignore::celo2.routing.routes.RoutingWarning")  # no module, on purpose
@every_optimizer
def test_groups_have_their_own_options_and_can_be_added(row: Row) -> None:
    model, twin = make_model(), make_model()
    optimizer = row.make([{"params": [model.up.weight], "lr": 0.0}, {"params": [model.down.weight]}])
    optimizer.add_param_group({"params": [model.head.weight], "lr": 0.02, "algorithm": "adamw"})
    train(model, optimizer, 2)
    assert torch.equal(model.up.weight, twin.up.weight)
    assert not torch.equal(model.down.weight, twin.down.weight)
    assert set(optimizer.state[model.head.weight]) == {"step", "exp_avg", "exp_avg_sq"}
    assert "momentum_0" in optimizer.state[model.down.weight]


@every_optimizer
def test_schedulers_move_the_learning_rate(row: Row) -> None:
    model, twin = make_model(), make_model()
    optimizer = row.make(model, lr=0.02)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 0.5)
    train(model, optimizer, 1)
    scheduler.step()
    train(twin, row.make(twin, lr=0.01), 1)
    assert_same(model, twin)
    torch.optim.lr_scheduler.OneCycleLR(row.make(make_model()), 0.1, total_steps=4, cycle_momentum=False)


@every_optimizer
def test_a_tensor_learning_rate_equals_a_number(row: Row) -> None:
    model, twin = make_model(), make_model()
    train(model, row.make(model, lr=torch.tensor(0.01)), 1)  # later, rounding is all that some gradients are
    train(twin, row.make(twin, lr=0.01), 1)
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@every_optimizer
def test_hooks_run_around_step_and_loading(row: Row) -> None:
    model = make_model()
    optimizer, seen = row.make(model), []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    optimizer.register_load_state_dict_pre_hook(lambda *_: seen.append("load"))
    optimizer.register_state_dict_post_hook(lambda *_: seen.append("saved"))
    train(model, optimizer, 1)
    optimizer.load_state_dict(optimizer.state_dict())
    assert seen == ["before", "after", "saved", "load"]


def test_a_load_hook_may_replace_the_state_dict() -> None:
    model = make_model()
    optimizer = Celo2(model)
    train(model, optimizer, 1)
    saved = copy.deepcopy(optimizer.state_dict())
    for state in saved["state"].values():
        state["step"] += 41
    optimizer.register_load_state_dict_pre_hook(lambda *_: saved)
    optimizer.load_state_dict(optimizer.state_dict())
    assert {state["step"].item() for state in optimizer.state.values()} == {42.0}


@every_optimizer
@pytest.mark.parametrize("broken", [False, True], ids=["finite", "infinite"])
def test_works_with_a_gradient_scaler_and_clipping(row: Row, broken: bool) -> None:
    model, before = make_model(), make_model()
    optimizer, scaler = row.make(model), torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(loss_of(model)).backward()
    if broken:
        grad_of(model.up.weight)[0, 0] = float("inf")
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(model.parameters(), 1e9)
    scaler.step(optimizer)
    scaler.update()
    if broken:
        assert scaler.get_scale() == 2.0
        assert_same(model, before)
    else:
        train(before, row.make(before), 1)
        assert_same(model, before)


@every_optimizer
def test_zero_and_enormous_gradients_give_finite_parameters(row: Row) -> None:
    for scale in (0.0, 1e-30, 1e30):
        model = make_model()
        optimizer = row.make(model)
        for _ in range(2):
            for param in model.parameters():
                param.grad = scale * param.detach().sign()
            optimizer.step()
        assert all(torch.isfinite(param).all() for param in model.parameters()), scale


@pytest.mark.filterwarnings("ignore::celo2.routing.routes.RoutingWarning")  # no module, on purpose
@every_optimizer
def test_ranks_zero_to_five_and_empty_tensors(row: Row) -> None:
    shapes = [(), (4,), (3, 4), (2, 3, 4), (3, 2, 1, 4), (2, 1, 3, 2, 2), (0, 3), (0,)]
    params = [nn.Parameter(torch.full(shape, 0.5)) for shape in shapes]
    optimizer = row.make(params)
    for _ in range(2):
        for param in params:
            param.grad = torch.linspace(-1, 1, param.numel()).view(param.shape)
        optimizer.step()
    assert all(torch.isfinite(param).all() for param in params)
    assert all(param.numel() == 0 or bool((param != 0.5).any()) for param in params)


@pytest.mark.filterwarnings("ignore::celo2.routing.routes.RoutingWarning")  # no module, on purpose
@every_optimizer
def test_storage_order_of_the_memory_does_not_matter(row: Row) -> None:
    param = nn.Parameter(torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0)))
    other = nn.Parameter(param.detach().clone(memory_format=torch.channels_last))
    for p in (param, other):
        optimizer = row.make([p])
        for seed in range(2):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed)).contiguous()
            optimizer.step()
    assert other.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(param, other, rtol=1e-5, atol=1e-6)


@every_optimizer
def test_a_compiled_step_equals_a_plain_one(row: Row) -> None:
    model, twin = make_model(), make_model()
    compiled, plain = row.make(model), row.make(twin)
    step = torch.compile(compiled.step, backend="eager")
    for _ in range(2):
        for net, one_step in ((model, step), (twin, plain.step)):
            net.zero_grad()
            loss_of(net).backward()
            one_step()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
