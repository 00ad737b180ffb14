"""State dicts: those that fit, that do not, in another order, with entries of others; copies; checkpoints."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from celo2.torch import Celo2, Celo2Base
from helpers.torch_contract_table import (
    ROWS,
    Row,
    assert_same,
    assert_states_same,
    make_model,
    train,
)

every_optimizer = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


def shuffled(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return sorted(module.named_parameters(), key=lambda pair: pair[0][::-1])


def refused_state(kind: str, model: nn.Module) -> dict[str, Any]:
    """State dicts that `Celo2(model)` must refuse."""
    other = make_model()
    if kind == "another optimizer":
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(other.parameters(), lr=0.5, weight_decay=0.3)
    elif kind == "another routing":
        optimizer = Celo2Base(other, lr=0.5)
    else:
        optimizer = Celo2(other, lr=0.5)
    train(other, optimizer, 1)
    saved = copy.deepcopy(optimizer.state_dict())
    last = saved["param_groups"][0]["params"][-2]  # all others are fine
    if kind == "a missing entry":
        del saved["state"][last]["exp_avg"]
    if kind == "another shape":
        saved["state"][last]["exp_avg"] = torch.zeros(3)
    if kind == "fewer parameters":
        saved["param_groups"][0]["params"].pop()
    return saved


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("another optimizer", "lacks momentum_0, .*; it has exp_avg, exp_avg_sq instead"),
        ("another routing", "another routing"),
        ("a missing entry", "head.weight .*lacks exp_avg"),
        ("another shape", r"head.weight .*exp_avg has shape \(3,\), expected \(11, 8\)"),
        ("fewer parameters", "doesn't match the size"),
    ],
)
def test_a_refused_state_dict_changes_nothing(kind: str, message: str) -> None:
    model, twin = make_model(), make_model()
    optimizer, expected = Celo2(model, lr=0.01), Celo2(twin, lr=0.01)
    train(model, optimizer, 2)
    train(twin, expected, 2)
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(refused_state(kind, model))
    assert optimizer.param_groups[0]["lr"] == 0.01
    assert_states_same(optimizer, expected)
    train(model, optimizer, 2)
    train(twin, expected, 2)
    assert_same(model, twin)
    assert not optimizer._optimizer_load_state_dict_pre_hooks


@every_optimizer
def test_names_decide_in_another_order(row: Row) -> None:
    model = make_model()
    optimizer = row.make(shuffled(model), module=model)
    train(model, optimizer)
    other = copy.deepcopy(model)
    restored = row.make(other, lr=7.0)
    restored.load_state_dict(optimizer.state_dict())
    assert restored.param_groups[0]["param_names"] == [name for name, _ in other.named_parameters()]
    assert restored.param_groups[0]["lr"] == 0.01
    if row.options.get("state_dtype"):  # whose rounding depends on the parameters' order
        for name, param in model.named_parameters():
            ours, theirs = restored.state[other.get_parameter(name)], optimizer.state[param]
            assert all(torch.equal(ours[key], value) for key, value in theirs.items())
        return
    train(model, optimizer)
    train(other, restored)
    assert_same(model, other)


def test_names_decide_among_groups_and_their_options() -> None:
    def make(model: nn.Module, kinds: list[str], *decays: float) -> Celo2:
        named = list(model.named_parameters())
        chosen = [[pair for pair in named if (pair[1].ndim > 1) == (kind == "matrices")] for kind in kinds]
        groups = [{"params": own, "weight_decay": d} for own, d in zip(chosen, decays, strict=True)]
        return Celo2(groups, module=model, lr=0.01)

    model = make_model()
    optimizer = make(model, ["matrices", "vectors"], 0.1, 0.0)
    train(model, optimizer)
    other = copy.deepcopy(model)
    restored = make(other, ["vectors", "matrices"], 0.7, 0.8)
    restored.load_state_dict(optimizer.state_dict())
    assert [group["weight_decay"] for group in restored.param_groups] == [0.0, 0.1]
    train(model, optimizer)
    train(other, restored)
    assert_same(model, other)


@pytest.mark.parametrize("wrapped", ["saved", "loaded"])
def test_what_a_wrapper_adds_to_names_does_not_count(wrapped: str) -> None:
    def make(model: nn.Module, side: str) -> Celo2:
        whole = nn.ModuleDict({"module": nn.ModuleDict({"_orig_mod": model})}) if side == wrapped else model
        return Celo2(shuffled(whole) if side == "saved" else whole.named_parameters(), lr=0.01, module=whole)

    model, other = make_model(), make_model()
    saved, loaded = make(model, "saved"), make(other, "loaded")
    train(model, saved)
    other.load_state_dict(model.state_dict())
    loaded.load_state_dict(saved.state_dict())
    train(model, saved)
    train(other, loaded)
    assert_same(model, other)


@pytest.mark.filterwarnings("ignore::celo2.routing.routes.RoutingWarning")  # no module, on purpose
def test_without_names_places_decide_as_in_pytorch() -> None:
    """Names such as `in_proj_weight` would route otherwise; those of a plain chain tell nothing."""

    def train_chain(chain: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for _ in range(3):
            optimizer.zero_grad()
            chain(torch.arange(12.0).reshape(3, 4)).square().mean().backward()
            optimizer.step()

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    optimizer = Celo2(model.parameters(), lr=0.01)
    train_chain(model, optimizer)
    other = copy.deepcopy(model)
    restored = Celo2(other.named_parameters(), lr=7.0)
    restored.load_state_dict(optimizer.state_dict())
    train_chain(model, optimizer)
    train_chain(other, restored)
    assert_same(model, other)


@every_optimizer
def test_entries_of_others_in_the_state_stay_and_do_not_disturb(row: Row) -> None:
    """What averaging and schedule-free wrappers do, before the first step or after."""
    model, twin = make_model(), make_model()
    optimizer, expected = row.make(model), row.make(twin)
    for param in model.parameters():
        optimizer.state[param]["z"] = param.detach().clone()
        optimizer.state[param]["momentum_buffer"] = torch.zeros(2)
    train(model, optimizer)
    train(twin, expected)
    assert_same(model, twin)
    other = copy.deepcopy(model)
    restored = row.make(other)
    restored.load_state_dict(optimizer.state_dict())
    for ours, theirs in zip(other.parameters(), model.parameters(), strict=True):
        assert torch.equal(restored.state[ours]["z"], optimizer.state[theirs]["z"])
        assert restored.state[ours]["z"] is not optimizer.state[theirs]["z"]
    train(other, restored)
    train(twin, expected)
    assert_same(other, twin)


@every_optimizer
def test_loading_and_copying_leave_the_groups_keys_as_they_are(row: Row) -> None:
    model = make_model()
    optimizer = row.make(model)
    train(model, optimizer, 1)
    keys, defaults = set(optimizer.param_groups[0]), set(optimizer.defaults)
    loaded = row.make(model)
    loaded.load_state_dict(optimizer.state_dict())
    for other in (loaded, copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert set(other.param_groups[0]) == keys
        assert set(other.defaults) == defaults
        other.add_param_group({"params": [nn.Parameter(torch.zeros(3))]})
        assert set(other.param_groups[1]) == keys


def test_an_older_name_of_an_option_still_loads() -> None:
    model = make_model()
    saved = Celo2(model).state_dict()
    del saved["param_groups"][0]["betas"]
    saved["param_groups"][0]["adamw_betas"] = (0.9, 0.5)
    optimizer = Celo2(model)
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.5)
    assert "adamw_betas" not in optimizer.param_groups[0]


@pytest.mark.parametrize("flat", [False, True])
def test_states_by_full_names_go_to_their_parameters_in_another_order(flat: bool) -> None:
    model, options = make_model(), StateDictOptions(flatten_optimizer_state_dict=flat)
    optimizer = Celo2(shuffled(model), module=model, lr=0.01)
    train(model, optimizer)
    other = copy.deepcopy(model)
    restored = Celo2(other, lr=0.01)
    saved = get_optimizer_state_dict(model, optimizer, options=options)
    set_optimizer_state_dict(other, restored, saved, options=options)
    assert restored.param_groups[0]["param_names"] == [name for name, _ in other.named_parameters()]
    train(model, optimizer)
    train(other, restored)
    assert_same(model, other)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_flattened_distributed_checkpoint_loads_twice(tmp_path: Path) -> None:
    model = make_model()
    optimizer = Celo2(model, lr=0.01)
    train(model, optimizer, 1)
    flat = StateDictOptions(flatten_optimizer_state_dict=True)
    saved = get_optimizer_state_dict(model, optimizer, options=flat)
    save({"o": saved}, checkpoint_id=tmp_path, no_dist=True)
    before = copy.deepcopy(optimizer)
    for _ in range(2):
        train(copy.deepcopy(model), optimizer, 1)
        target = get_optimizer_state_dict(model, optimizer, options=flat)
        load({"o": target}, checkpoint_id=tmp_path, no_dist=True)
        set_optimizer_state_dict(model, optimizer, target, options=flat)
        assert_states_same(optimizer, before)
