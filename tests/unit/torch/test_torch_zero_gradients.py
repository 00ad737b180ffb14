"""A matrix whose gradient is exactly zero is left alone, by every program of the PyTorch rule."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from celo2.torch import Celo2, Celo2Base
from celo2.torch.kernels import cpu_blocked, dispatch
from helpers.tolerances import relative_error
from helpers.torch_contract_table import grad_of
from helpers.torch_examples import make_leaf, make_network, update_leaves
from oracle import rule

pytestmark = pytest.mark.filterwarnings(
    "ignore::celo2.routing.routes.RoutingWarning"
)  # no module, on purpose

RECIPES = Path(__file__).resolve().parents[3] / "recipes"
needs_numba = pytest.mark.skipif(find_spec("numba") is None, reason="Numba is not installed: celo2[cpu]")
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
WAYS = ["plain", "passes", "blocks", pytest.param("numba", marks=needs_numba)]
TRITON = pytest.param("triton", marks=needs_triton)  # its interpreter's time is the number of blocks
EXACT = 8e-15  # in float64 (2.6e-15)
TOLERANCE = 3e-6  # in float32 (9.3e-7)
SHAPES: dict[str, tuple[tuple[int, ...], Any]] = {  # and which entries of the gradient are zero
    "matrix": ((40, 24), ...),
    "stack": ((3, 9, 20), 1),
    "stack of stacks": ((2, 2, 20, 9), (1, 0)),
    "factored in front": ((9, 8, 3, 2), (slice(None), 2)),
    "a whole row in front": ((9, 8, 3, 2), 4),
    "vector": ((31,), ...),
    "scalar": ((), ...),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "base": {},
    "orthogonalized": {"orthogonalize": True, "ns_iters": 2},
    "output as it is": {"normalize_output": False, "param_scale_mult": True},
    "bias correction": {"bias_correction": True, "precondition_output": True},
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_blocked, "BLOCK_SIZE", 150)
    if find_spec("numba"):
        monkeypatch.setattr("celo2.torch.kernels.cpu_numba.PIECE_SIZE", 150)


def assert_left_alone(
    name: Any, shape: tuple[int, ...], idle: Any, dtype: torch.dtype, **options: Any
) -> None:
    """Two equal leaves for three steps; one of them is idle, in part, in the second. Held to the oracle."""
    network = make_network(skip_zero_gradients=True, **options)
    state_dtype = options.pop("state_dtype", None)
    leaves = [make_leaf(shape, network, dtype, seed=seed, state_dtype=state_dtype) for seed in (1, 2)]
    parsed = rule.make_options(dataclasses.asdict(network.config))
    states = [rule.init(shape, parsed) for _ in leaves]
    for step in range(3):
        grads = [leaf.grad * 0.01**step for leaf in leaves]
        if step == 1:
            grads[1][idle] = 0.0
        before = [tensor.clone() for family in leaves[1].accumulators for tensor in family]
        with dispatch.use(name):
            pairs = zip(leaves, grads, strict=True)
            steps = update_leaves(network, [leaf._replace(grad=grad) for leaf, grad in pairs])
        if step == 1:
            assert not steps[1][idle].any()
            for old, new in zip(before, leaves[1].accumulators[0] + leaves[1].accumulators[1], strict=False):
                assert torch.equal(old[idle], new[idle])
        limit = EXACT if dtype == torch.float64 else TOLERANCE
        for number, (leaf, grad, found) in enumerate(zip(leaves, grads, steps, strict=True)):
            g, p = (tensor.double().numpy() for tensor in (grad, leaf.param))
            theta = network.weights.arrays
            expected, states[number] = rule.update(theta, states[number], g, p, parsed, skip_zero=True)
            assert relative_error(found.numpy(), expected) <= limit, (step, number)
            own = dataclasses.asdict(states[number])
            for family in ("momentum", "rms", "row", "col")[: 3 + (len(shape) > 1)]:
                for ours, theirs in zip(getattr(leaf.accumulators, family), own[family], strict=True):
                    assert relative_error(ours.numpy().reshape(theirs.shape), theirs) <= limit, family
            assert leaf.count == own["count"]
            leaf.count.add_(1)  # for the next step


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize(("shape", "idle"), SHAPES.values(), ids=SHAPES)
def test_idle_matrices_have_no_step_and_keep_their_state(
    name: str, shape: tuple[int, ...], idle: Any
) -> None:
    if name != "numba":
        assert_left_alone(name, shape, idle, torch.float64)
    assert_left_alone(name, shape, idle, torch.float32)


@pytest.mark.parametrize(("shape", "idle"), [((9, 20), ...), ((2, 9, 20), 1)], ids=str)
@pytest.mark.parametrize("name", [TRITON])
def test_idle_matrices_in_the_gpus_kernels(name: str, shape: tuple[int, ...], idle: Any) -> None:
    assert_left_alone(name, shape, idle, torch.float32)


@pytest.mark.parametrize("name", ["plain", "passes", "blocks"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_idle_matrices_under_other_options(name: str, options: dict[str, Any]) -> None:
    assert_left_alone(name, (3, 9, 20), 1, torch.float64, **options)
    assert_left_alone(name, (20, 9), ..., torch.float64, **options)


@pytest.mark.parametrize("name", [*WAYS, TRITON])
def test_the_network_alone_decides(name: Any) -> None:
    """Without the option a zero gradient moves a matrix by a full step, as in the reference."""
    network = make_network()
    leaf = make_leaf((20, 12), network, torch.float32)
    with dispatch.use(name):
        (step,) = update_leaves(network, [leaf._replace(grad=torch.zeros(20, 12))])
    assert step.square().mean().sqrt().item() == pytest.approx(1.0, abs=1e-3)
    assert leaf.accumulators.row[0].min() > 0


@pytest.mark.parametrize("name", [*WAYS, TRITON])
def test_nan_is_no_zero(name: Any) -> None:
    network = make_network(skip_zero_gradients=True)
    leaf = make_leaf((2, 20, 12), network, torch.float32)
    leaf.grad.zero_()
    leaf.grad[0, 3, 4] = float("nan")
    with dispatch.use(name):
        (step,) = update_leaves(network, [leaf])
    assert step[0].isnan().all()
    assert not step[1].any()


class Experts(nn.Module):
    """A stack of expert matrices, a matrix, a table and a vector."""

    experts: nn.Parameter
    inner: nn.Parameter
    scale: nn.Parameter

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for name, shape in {"experts": (4, 8, 8), "inner": (6, 8), "scale": (8,)}.items():
            self.register_parameter(name, nn.Parameter(0.1 * torch.randn(shape, generator=generator)))


def give(params: Sequence[Tensor], seed: int, idle: list[tuple[int, Any]]) -> None:
    generator = torch.Generator().manual_seed(seed)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)
    for number, entries in idle:
        grad_of(params[number])[entries] = 0


@pytest.mark.parametrize("factory", [Celo2, Celo2Base])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"state_dtype": torch.bfloat16},
        {"state_dtype": torch.int8},
        {"foreach": False, "capturable": True},
    ],
)
def test_an_idle_expert_only_decays(factory: Any, options: dict[str, Any]) -> None:
    model = Experts()
    params = list(model.parameters())
    optimizer = factory(params, lr=1e-2, weight_decay=0.5, **options)
    give(params, 1, [])
    optimizer.step()
    before, state = copy.deepcopy(params), copy.deepcopy(optimizer.state[params[0]])
    give(params, 2, [(0, 2), (1, ...)])
    matrix = copy.deepcopy(optimizer.state[params[1]])
    optimizer.step()
    torch.testing.assert_close(params[0][2], before[0][2] * (1 - 1e-2 * 0.5), rtol=0, atol=1e-8)
    torch.testing.assert_close(params[1], before[1] * (1 - 1e-2 * 0.5), rtol=0, atol=1e-8)
    assert all(not torch.equal(params[0][i], before[0][i] * (1 - 1e-2 * 0.5)) for i in (0, 1, 3))
    for key, value in optimizer.state[params[0]].items():
        assert key == "step" or torch.equal(value[2], state[key][2]), key
    for key, value in optimizer.state[params[1]].items():
        assert torch.equal(value, matrix[key]), key


def test_an_idle_matrix_continues_as_if_the_steps_had_not_been() -> None:
    """As PyTorch does where a gradient is None."""
    zero, none = Experts(), Experts()
    optimizers = [Celo2Base(model, lr=1e-2, state_dtype=torch.bfloat16) for model in (zero, none)]
    for seed in range(4):
        for model, optimizer in zip((zero, none), optimizers, strict=True):
            give(list(model.parameters()), seed, [])
            if seed in (1, 2):
                model.inner.grad = torch.zeros_like(model.inner) if model is zero else None
                model.scale.grad = torch.zeros_like(model.scale) if model is zero else None
            optimizer.step()
    for ours, theirs in zip(zero.parameters(), none.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_an_adapters_first_matrix_rests_at_the_first_step() -> None:
    first, second = nn.Linear(8, 4, bias=False), nn.Linear(4, 8, bias=False)
    nn.init.zeros_(second.weight)
    start = first.weight.detach().clone()
    optimizer = Celo2([first.weight, second.weight], lr=1e-3)
    inputs = torch.linspace(-1, 1, 40).view(5, 8)
    for moved in (False, True):
        optimizer.zero_grad()
        (second(first(inputs)) - 1).square().mean().backward()
        optimizer.step()
        assert torch.equal(first.weight, start) != moved
    assert second.weight.square().mean().sqrt().item() == pytest.approx(2e-3, rel=0.1)


@pytest.mark.parametrize(("factory", "name"), [(Celo2, "celo2-pes"), (Celo2Base, "celo2-base-pes")])
def test_the_references_behaviour_is_an_option(factory: Any, name: str) -> None:
    param = nn.Parameter(0.1 * torch.eye(8))
    start = param.detach().clone()
    weights = str(RECIPES / "tried" / f"{name}.safetensors")  # whose direction is not odd in the gradient
    optimizer = factory([param], lr=1e-3, weights=weights, skip_zero_gradients=False)
    for each in (optimizer, copy.deepcopy(optimizer)):  # which keeps the option
        own = each.param_groups[0]["params"][0]
        own.grad = torch.zeros(8, 8)
        each.step()
        assert (own - start).square().mean().sqrt().item() == pytest.approx(1e-3, rel=1e-3)


def test_amounts() -> None:
    """The smallest gradients still count; the rule sees their squares, which vanish below 1e-22."""
    for scale, moves in ((1e-15, True), (1e-30, False)):
        param = nn.Parameter(0.1 * torch.eye(8))
        before = param.detach().clone()
        param.grad = scale * torch.ones(8, 8)
        Celo2([param], lr=1e-3).step()
        assert torch.equal(param, before) != moves
