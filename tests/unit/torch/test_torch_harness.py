"""Every part of the harness in PyTorch: equal to JAX, its state, its errors, and beside PyTorch's options."""

from __future__ import annotations

import copy
import pickle
import textwrap
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import celo2
from celo2.torch import Celo2, Celo2Base, Harness
from helpers.tolerances import tolerance
from helpers.torch_contract_table import PARTS, assert_same, make_model, train
from helpers.torch_twins import HIDDEN, MATRICES, Twins, draw_gradients, make_network

ALL = {
    "harness": Harness(row_decay=0.9, min_update_ratio=8.0, cautious_decay=True, preserve_norms=True),
    "match": "adamw",
}
pytestmark = pytest.mark.usefixtures("standard_promotion")

CASES: dict[str, dict[str, Any]] = {
    "match": {"match": "adamw"},
    "match, AdamW's own share": {"match": "adamw", "adamw_lr_scale": 3.0},
    "polar express": {"harness": Harness(orthogonalizer="polar-express")},
    "no orthogonaliser": {"harness": Harness(orthogonalizer="none")},
    "rows": {"harness": Harness(row_decay=0.9)},
    "floor": {"harness": Harness(min_update_ratio=8.0)},
    "cautious decay": {"harness": Harness(cautious_decay=True)},
    "norms": {"harness": Harness(preserve_norms=True)},
    "all": ALL,
    "the reference's zero gradients": {**ALL, "skip_zero_gradients": False},
}


def turn_in_torch(matrices: Tensor) -> Tensor:
    """The polar factor, of which later outputs count more: columns are outputs in both backends."""
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    return left @ right * torch.arange(1, matrices.shape[-1] + 1)


def turn_in_jax(matrices: jax.Array) -> jax.Array:
    left, _, right = jnp.linalg.svd(matrices, full_matrices=False)
    weights = jnp.arange(1, matrices.shape[-1] + 1, dtype=matrices.dtype)
    return left @ right * jnp.broadcast_to(weights, matrices.shape)


def train_network(
    options: dict[str, Any], steps: int = 3, *, idle: tuple[str, ...] = ()
) -> tuple[Any, Celo2]:
    """On drawn gradients, of which some are zero after the first step."""
    model = make_network()
    optimizer = Celo2(model, **{"lr": 0.01, "weight_decay": 0.1, "overrides": HIDDEN, **options})
    start = {name: param.detach().numpy() for name, param in model.named_parameters()}
    for step, grads in enumerate(draw_gradients(start, steps)):
        for name, param in model.named_parameters():
            param.grad = torch.tensor(grads[name]) * float(not (step and name in idle))
        optimizer.step()
    return model, optimizer


def matrix_norms(model: nn.Module) -> Tensor:
    return torch.stack([model.get_parameter(name).detach().norm() for name in MATRICES])


@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
def test_twelve_steps_equal_those_of_jax(options: dict[str, Any]) -> None:
    with jax.enable_x64(True):
        twins = Twins(options)
        for grads in draw_gradients(twins.start):
            twins.step(grads)
            assert twins.error() <= tolerance("torch harness, jax")


def test_an_orthogonaliser_of_the_users_equals_that_of_jax() -> None:
    with jax.enable_x64(True):
        options = {"harness": Harness(orthogonalizer=turn_in_jax, row_decay=0.9)}
        twins = Twins(
            options, torch_options={"harness": Harness(orthogonalizer=turn_in_torch, row_decay=0.9)}
        )
        for grads in draw_gradients(twins.start):
            twins.step(grads)
        assert twins.error() <= tolerance("torch harness, jax")


def test_an_orthogonaliser_gets_input_times_output_and_is_not_asked_for_scale() -> None:
    shapes: set[tuple[int, ...]] = set()

    def scaled(matrices: Tensor) -> Tensor:
        shapes.add(tuple(matrices.shape[-2:]))
        return 7.0 * matrices

    model, _ = train_network({"harness": Harness(orthogonalizer=scaled)}, idle=("wide.weight",))
    expected, _ = train_network({"harness": Harness(orthogonalizer="none")}, idle=("wide.weight",))
    assert shapes == {(18, 5), (6, 6), (6, 11)}  # as JAX's do
    for ours, theirs in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_an_orthogonaliser_that_changes_the_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must\s+keep it"):
        train_network({"harness": Harness(orthogonalizer=lambda matrices: matrices.mT)})


def test_a_preset_sets_adamws_share_unless_the_argument_does() -> None:
    cases: list[tuple[float, dict[str, Any]]] = [
        (20.0, {}),
        (5.0, {"harness": "plus"}),
        (3.0, {"harness": "plus", "adamw_lr_scale": 3.0}),
        (1.0, {"harness": "plus", "match": "adamw"}),
    ]
    for share, options in cases:
        assert Celo2(make_network(), overrides=HIDDEN, **options).defaults["adamw_lr_scale"] == share


def test_the_default_harness_is_no_harness() -> None:
    model, optimizer = train_network({"harness": Harness(), "match": None})
    twin, expected = train_network({})
    assert_same(model, twin)
    for ours, theirs in zip(optimizer.state.values(), expected.state.values(), strict=True):
        assert ours.keys() == theirs.keys()
        assert not any(key.startswith(("row_mean", "radius", "left", "right")) for key in ours)


def test_state_has_a_mean_for_each_neuron_and_a_norm_for_each_matrix() -> None:
    model, optimizer = train_network(ALL)
    initial = matrix_norms(make_network())
    for name, neurons, norm in zip(MATRICES, (5, 6, 11), initial, strict=True):
        state = optimizer.state[model.get_parameter(name)]
        assert state["row_mean_square"].shape[-2:] == (neurons, 1)
        assert state["radius"].item() == pytest.approx(norm.item(), rel=1e-14)
    assert "radius" not in optimizer.state[model.table.weight]
    torch.testing.assert_close(matrix_norms(model), initial, rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", ["row_mean_square", "radius"])
def test_a_state_without_the_parts_is_refused(name: str) -> None:
    model, optimizer = train_network(ALL)
    saved = copy.deepcopy(optimizer.state_dict())
    for state in saved["state"].values():
        state.pop(name, None)
    with pytest.raises(ValueError, match=f"it lacks {name}"):
        Celo2(model, overrides=HIDDEN, **ALL).load_state_dict(saved)


def test_a_loaded_radius_is_that_of_the_first_step() -> None:
    model, optimizer = train_network(ALL)
    expected = optimizer.state[model.square.weight]["radius"].clone()
    with torch.no_grad():
        model.square.weight.mul_(3.0)
    restored = Celo2(model, overrides=HIDDEN, **ALL)
    restored.load_state_dict(optimizer.state_dict())
    assert torch.equal(restored.state[model.square.weight]["radius"], expected)


def test_a_pickle_of_an_older_release_has_no_harness() -> None:
    _, optimizer = train_network({})
    state = optimizer.__getstate__()
    del state["_parts"]
    other = pickle.loads(pickle.dumps(optimizer))
    del other._parts
    other.__setstate__(state)
    other.step()
    assert not other._parts.change_matrices


@pytest.mark.parametrize(
    "harness",
    [Harness(row_decay=0.9), Harness(min_update_ratio=0.9), Harness(preserve_norms=True)],
    ids=["rows", "floor", "norms"],
)
def test_idle_matrices_move_only_by_decay_and_keep_their_state(harness: Harness) -> None:
    model, optimizer = train_network({"harness": harness}, 1)
    before, state = model.wide.weight.detach().clone(), dict(optimizer.state[model.wide.weight])
    state = {key: value.clone() for key, value in state.items()}
    model.wide.weight.grad = torch.zeros_like(model.wide.weight)
    optimizer.step()
    decay = 1.0 if harness.preserve_norms else 1.0 - 0.01 * 0.1
    torch.testing.assert_close(model.wide.weight.detach(), before * decay, rtol=1e-12, atol=0)
    for key, value in optimizer.state[model.wide.weight].items():
        assert torch.equal(value, state[key]), key


@pytest.mark.parametrize("lr", [0.0, torch.tensor(0.0)], ids=["number", "tensor"])
def test_at_a_learning_rate_of_zero_nothing_moves(lr: Any) -> None:
    model, _ = train_network({**ALL, "lr": lr})
    assert_same(model, make_network())


@pytest.mark.parametrize(
    "options",
    [{"foreach": False}, {"foreach": True}, {"lr": torch.tensor(0.01)}, {"lr": torch.tensor([0.01])}],
    ids=["one by one", "foreach", "tensor lr", "tensor lr of one element"],
)
def test_ways_to_step_agree(options: dict[str, Any]) -> None:
    model, _ = train_network({**ALL, **options})
    twin, _ = train_network(ALL)
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)  # the tensors are float32


def test_maximizing_is_minimizing_with_the_opposite_gradient() -> None:
    model, twin = make_model(), make_model()
    optimizer = Celo2(model, 0.01, weight_decay=0.1, maximize=True, harness=PARTS)
    expected = Celo2(twin, 0.01, weight_decay=0.1, harness=PARTS)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
            theirs.grad = torch.randn(ours.shape, generator=generator)
            ours.grad = -theirs.grad
        optimizer.step()
        expected.step()
    assert_same(model, twin)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.complex64], ids=str)
def test_adamw_decays_where_its_step_agrees(dtype: torch.dtype) -> None:
    start = torch.tensor([1.0, -1.0, 2.0, -2.0]).to(dtype)
    param = nn.Parameter(start.clone())
    optimizer = Celo2(
        [param], 0.1, weight_decay=0.5, match="adamw", algorithm="adamw", harness=Harness(cautious_decay=True)
    )
    param.grad = torch.tensor([1.0, 1.0, -1.0, -1.0]).to(dtype)
    optimizer.step()
    expected = torch.tensor([1.0 - 0.1 - 0.05, -1.0 - 0.1, 2.0 + 0.1, -2.0 + 0.1 + 0.1]).to(dtype)
    torch.testing.assert_close(param.detach(), expected)


@pytest.mark.parametrize("options", [{"harness": Harness(row_decay=0.9)}, {"match": "adamw"}], ids=str)
def test_the_base_rule_refuses_harness_and_match(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="harness and match: Celo2Base"):
        Celo2Base(make_model(), **options)
    Celo2Base(make_model(), harness=Harness(), match=None)


def test_bad_combinations_are_refused() -> None:
    with pytest.raises(ValueError, match="leave one of them out"):
        Celo2(make_model(), harness=Harness(orthogonalizer="none"), ns_coeffs=celo2.polar_express(4))
    with pytest.raises(ValueError, match="match must be None or 'adamw'"):
        Celo2(make_model(), match="adam")
    with pytest.raises(ValueError, match="wrong variant"):
        Celo2(make_model(), weights="celo2-base", harness=Harness(orthogonalizer="none"))


def test_adamws_share_is_twenty_or_that_of_the_match() -> None:
    shares = [Celo2(make_model(), match=match).defaults["adamw_lr_scale"] for match in (None, "adamw")]
    assert shares == [20.0, 1.0]


def test_an_averaged_model_is_the_mean_of_the_parameters() -> None:
    """PyTorch's own average needs nothing of the optimizer."""
    model = make_model()
    optimizer = Celo2(model, 0.01, **ALL)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    expected = [torch.zeros_like(param) for param in model.parameters()]
    for step in range(3):
        train(model, optimizer, 1)
        averaged.update_parameters(model)
        for mean, param in zip(expected, model.parameters(), strict=True):
            mean.lerp_(param.detach(), 0.5 if step else 1.0)
    for ours, theirs in zip(averaged.module.parameters(), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_documented_average_in_pytorch_is_that_of_jax():
    """The function that docs/harness.md gives to `AveragedModel`."""
    page = (Path(__file__).resolve().parents[3] / "docs" / "harness.md").read_text(encoding="utf-8")
    code = page[page.index("    def average(old") :].partition("\n\n")[0]
    names: dict[str, Any] = {}
    exec(textwrap.dedent(code), names)
    model = nn.Linear(1, 1, bias=False)
    averaged = AveragedModel(model, avg_fn=names["average"])
    tx = celo2.average_params(0.99)
    params: Any = {"w": jnp.zeros(1)}
    state = tx.init(params)
    for _ in range(150):
        updates, state = tx.update({"w": jnp.ones(1)}, state, params)
        params = optax.apply_updates(params, updates)
        with torch.no_grad():
            model.weight.fill_(float(params["w"][0]))
        averaged.update_parameters(model)
    theirs = next(averaged.module.parameters()).item()
    assert theirs == pytest.approx(float(celo2.averaged_params(state)["w"][0]), rel=1e-5)
