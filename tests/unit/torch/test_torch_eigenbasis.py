"""The rule in an eigenbasis in PyTorch: equal to JAX, its bases, its state and its errors."""

from __future__ import annotations

import copy
from typing import Any

import jax
import numpy as np
import pytest
import torch
from torch import nn

from celo2.jax.harness.eigenbasis import EigenbasisState
from celo2.torch import Celo2, Harness, eigenbasis
from celo2.torch.dimensions import DimensionNumbers, make_layout
from helpers.tolerances import tolerance
from helpers.torch_contract_table import grad_of, make_model, train
from helpers.torch_twins import HIDDEN, MATRICES, Twins, draw_gradients, make_network

pytestmark = [
    pytest.mark.usefixtures("standard_promotion"),
    pytest.mark.filterwarnings("ignore::celo2.routing.routes.RoutingWarning"),  # no module, on purpose
]

EVERY = 3  # no less: before, a factor has a null space, in which bases are rounding
CASES: dict[str, dict[str, Any]] = {
    "alone": {"harness": Harness(eigenbasis_every=EVERY)},
    "with all other parts": {
        "harness": Harness(
            eigenbasis_every=EVERY,
            row_decay=0.9,
            min_update_ratio=8.0,
            cautious_decay=True,
            preserve_norms=True,
        ),
        "match": "adamw",
    },
    "without Newton–Schulz": {"harness": Harness(eigenbasis_every=4, orthogonalizer="none")},
}


def find_bases(twins: Twins) -> Any:
    """Returns JAX's state of the basis."""
    direction = twins.state.inner_states["celo2"].inner_state[0]
    return next(node for node in direction if isinstance(node, EigenbasisState))


def take_over_bases(twins: Twins) -> None:
    """Gives PyTorch the first bases of JAX: signs and null spaces are an eigensolver's own.

    A linear layer's rows are JAX's columns.
    """
    state = find_bases(twins)
    for name in MATRICES:
        layer = name.split(".")[0]
        own = twins.optimizer.state[twins.model.get_parameter(name)]
        for kind, tree in (("left_basis", state.right_basis), ("right_basis", state.left_basis)):
            own[kind].copy_(torch.tensor(np.asarray(tree[layer]["kernel"])).view_as(own[kind]))


@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
def test_twelve_steps_equal_those_of_jax(options: dict[str, Any]) -> None:
    with jax.enable_x64(True):
        twins = Twins(options)
        for step, grads in enumerate(draw_gradients(twins.start)):
            twins.step(grads)
            if not step:
                take_over_bases(twins)
            assert twins.error() <= tolerance("torch harness, jax")


def test_the_first_bases_are_jaxs_but_for_signs_and_null_spaces() -> None:
    with jax.enable_x64(True):
        twins = Twins(CASES["alone"])
        twins.step(next(draw_gradients(twins.start)))
    own = twins.optimizer.state[twins.model.square.weight]
    theirs = find_bases(twins)
    for basis, tree in ((own["left_basis"], theirs.right_basis), (own["right_basis"], theirs.left_basis)):
        cosines = basis[0].numpy().T @ np.asarray(tree["square"]["kernel"])[0]
        np.testing.assert_allclose(np.abs(cosines), np.eye(6), atol=1e-9)


def make_optimizer(
    shape: tuple[int, ...], dtype: torch.dtype = torch.float64, every: int = 1, **options: Any
) -> Celo2:
    generator = torch.Generator().manual_seed(0)
    param = nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype))
    return Celo2([param], 0.01, algorithm="celo2", harness=Harness(eigenbasis_every=every, **options))


def step(optimizer: Celo2, seed: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    param = optimizer.param_groups[0]["params"][0]
    generator = torch.Generator().manual_seed(seed)
    param.grad = torch.randn(param.shape, generator=generator, dtype=param.dtype)
    optimizer.step()
    return param, optimizer.state[param]


@pytest.mark.parametrize("shape", [(5, 7), (2, 4, 3), (9,), ()], ids=str)
def test_the_first_step_is_zero_and_changes_no_accumulator(shape: tuple[int, ...]) -> None:
    optimizer = make_optimizer(shape)
    before = optimizer.param_groups[0]["params"][0].detach().clone()
    param, state = step(optimizer, 1)
    assert torch.equal(param, before)
    assert state["step"].item() == 1
    for name, value in state.items():
        if name.startswith(("momentum", "rms", "row", "col")):
            assert not value.any(), name
    param, state = step(optimizer, 2)
    assert state["momentum_0"].any()
    assert bool((param != before).any())


@pytest.mark.parametrize("shape", [(5, 7), (2, 4, 3)], ids=str)
def test_momenta_are_those_outside_of_the_basis_however_often_it_changes(shape: tuple[int, ...]) -> None:
    """A momentum is linear in the gradients, so its basis can be undone; the first gradient is left out."""
    optimizer, expected = make_optimizer(shape), torch.zeros(shape, dtype=torch.float64)
    [decay, *_] = optimizer._network.config.initial_momentum_decays
    _, state = step(optimizer, 0)
    for seed in range(1, 6):
        param, state = step(optimizer, seed)
        expected = decay * expected + (1 - decay) * grad_of(param)
    layout = make_layout(shape, eigenbasis.matrix_numbers(shape, None))
    basis = eigenbasis.Basis(state["left_basis"], state["right_basis"])
    found = layout.leave(basis.rotate_back(layout.enter(state["momentum_0"])), shape)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert basis.left is not None
    identity = torch.eye(shape[-2], dtype=torch.float64).expand_as(basis.left)
    torch.testing.assert_close(basis.left.mT @ basis.left, identity, rtol=0, atol=1e-12)


def test_second_moments_follow_the_order_of_columns() -> None:
    orders = {"left": torch.tensor([[1, 0]]), "right": torch.tensor([[2, 0, 1]])}
    matrices = torch.arange(6.0).view(1, 2, 3)
    assert eigenbasis._reorder(matrices, orders).tolist() == [[[5.0, 3.0, 4.0], [2.0, 0.0, 1.0]]]
    assert eigenbasis._reorder(matrices[:, :, :1], orders).tolist() == [[[3.0], [0.0]]]
    assert eigenbasis._reorder(matrices[:, :1], orders).tolist() == [[[2.0, 0.0, 1.0]]]


def test_bases_change_only_at_every_nth_step() -> None:
    optimizer, changes = make_optimizer((5, 7), every=3), []
    last: torch.Tensor | None = None
    for seed in range(8):
        _, state = step(optimizer, seed)
        changes.append(last is None or not torch.equal(state["left_basis"], last))
        last = state["left_basis"].clone()
    assert changes == [True, False, False, True, False, False, True, False]


def test_a_matrix_without_a_gradient_keeps_its_factors() -> None:
    optimizer = make_optimizer((2, 4, 3))
    param, state = step(optimizer, 1)
    before = {side: state[f"{side}_factor"].clone() for side in ("left", "right")}
    param.grad = torch.stack([torch.zeros(4, 3), torch.ones(4, 3)]).double()
    optimizer.step()
    for side, old in before.items():
        assert torch.equal(state[f"{side}_factor"][0], old[0])
        assert not torch.equal(state[f"{side}_factor"][1], old[1])


def test_a_long_side_keeps_its_own_basis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eigenbasis, "MAX_BASIS_SIDE", 6)
    optimizer = make_optimizer((5, 7))
    for seed in range(2):
        step(optimizer, seed)
    param, state = step(optimizer, 2)
    assert {name for name in state if "basis" in name or "factor" in name} == {"left_basis", "left_factor"}
    assert torch.isfinite(param).all()


def test_enormous_gradients_have_finite_bases() -> None:
    optimizer = make_optimizer((5, 7), torch.float32)
    param = optimizer.param_groups[0]["params"][0]
    for _ in range(3):
        param.grad = torch.full_like(param, 1e30)
        optimizer.step()
    assert all(torch.isfinite(value).all() for value in (param, *optimizer.state[param].values()))


def test_state_of_bfloat16_stays_so() -> None:
    model = make_network(torch.float32)
    optimizer = Celo2(
        model, state_dtype=torch.bfloat16, overrides=HIDDEN, harness=Harness(eigenbasis_every=1)
    )
    start = {name: param.detach().numpy() for name, param in model.named_parameters()}
    for grads in draw_gradients(start, 4):
        for name, param in model.named_parameters():
            param.grad = torch.tensor(grads[name], dtype=torch.float32)
        optimizer.step()
    state = optimizer.state[model.wide.weight]
    assert state["momentum_0"].dtype == torch.bfloat16
    assert state["left_basis"].dtype == torch.float32
    assert all(torch.isfinite(param).all() for param in model.parameters())


def test_a_state_without_bases_is_refused() -> None:
    model = make_model()
    optimizer = Celo2(model)
    train(model, optimizer, 1)
    with pytest.raises(ValueError, match="it lacks left_factor, right_factor, left_basis, right_basis"):
        Celo2(model, harness=Harness(eigenbasis_every=2)).load_state_dict(optimizer.state_dict())


def test_a_copy_goes_on_between_refreshes() -> None:
    optimizer = make_optimizer((5, 7), every=3)
    for seed in range(2):
        step(optimizer, seed)
    other = copy.deepcopy(optimizer)
    for seed in range(2, 6):
        ours, theirs = step(optimizer, seed)[0], step(other, seed)[0]
        assert torch.equal(ours, theirs)


def test_graph_capture_is_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"eigenbasis_every .* capturable=True; leave one of them out"):
        Celo2(make_model(), capturable=True, harness=Harness(eigenbasis_every=2))


def test_a_parameter_as_stored_has_the_matrices_of_its_last_axes() -> None:
    assert eigenbasis.matrix_numbers((4, 3, 2), None) == DimensionNumbers(2, 1)
    assert eigenbasis.matrix_numbers((4,), None) is None
    own = DimensionNumbers(0, 1)
    assert eigenbasis.matrix_numbers((3, 2), own) is own
