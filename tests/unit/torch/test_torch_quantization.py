"""Momenta in one byte: exact on average, close, kept when nothing changes, as in JAX, and small."""

from __future__ import annotations

import copy
import pickle
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import celo2
from celo2.constants import CODE_LEVELS
from celo2.jax import quantization as jax_quantization
from celo2.torch import Celo2, Celo2Base, Harness
from celo2.torch.kernels import dispatch
from celo2.torch.quantization import Quantized, decode, encode, row_shape
from celo2.torch.rounding import make_noise

pytestmark = pytest.mark.filterwarnings(
    "ignore::celo2.routing.routes.RoutingWarning"
)  # no module, on purpose
needs_numba = pytest.mark.skipif(find_spec("numba") is None, reason="Numba is not installed: celo2[cpu]")
NUM_DRAWS = 4096
STEPS = 8
SHAPES = ((16, 24), (3, 6, 5), (7,), ())  # JAX's noise counts the rule's arrays alone
FLIPS = 1e-3  # of all codes, where the momenta of two programs differ in the last place (0)

torch.set_num_threads(1)  # of a process that is one of several: two threads would wait for each other


def draw(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def round_trip(tensor: Tensor, count: int = 1) -> Tensor:
    (noise,) = make_noise(tensor, 1, torch.tensor(float(count)), 0)
    return decode(encode(tensor, noise), torch.float32)


def gap(share: np.ndarray) -> np.ndarray:
    """The distance of the two values of codes around a share of the row's largest magnitude."""
    low = np.floor(CODE_LEVELS * np.sqrt(share))
    return (2 * low + 1) / CODE_LEVELS**2


def cosine(actual: Tensor, expected: Tensor) -> float:
    ours, theirs = actual.double().flatten(), expected.double().flatten()
    return (ours @ theirs / (ours.norm() * theirs.norm())).item()


def make_params() -> list[nn.Parameter]:
    return [nn.Parameter(draw(shape, seed)) for seed, shape in enumerate(SHAPES)]


def give(params: list[nn.Parameter], step: int) -> None:
    for number, param in enumerate(params):
        param.grad = draw(tuple(param.shape), 100 * step + number + 10)


def train(params: list[nn.Parameter], optimizer: Celo2, steps: range = range(STEPS)) -> None:
    for step in steps:
        give(params, step)
        optimizer.step()


def momenta(state: dict[str, Tensor]) -> list[Quantized]:
    return [Quantized(state[f"momentum_{i}"], state[f"momentum_scale_{i}"]) for i in range(3)]


def assert_same(left: Celo2, right: Celo2) -> None:
    """The parameters and their state, bit for bit."""
    for ours, theirs in zip(left.param_groups[0]["params"], right.param_groups[0]["params"], strict=True):
        assert torch.equal(ours, theirs)
        assert left.state[ours].keys() == right.state[theirs].keys()
        for key, value in left.state[ours].items():
            assert value.dtype == right.state[theirs][key].dtype
            assert torch.equal(value, right.state[theirs][key]), key


def test_rounding_is_unbiased_and_between_neighbours() -> None:
    rng = np.random.default_rng(0)
    exact = (rng.standard_normal((8, 16)) * 10.0 ** rng.integers(-6, 6, (8, 1))).astype(np.float32)
    values = torch.tensor(exact)
    drawn = torch.stack([round_trip(values, count) for count in range(NUM_DRAWS)]).double().numpy()
    exact = exact.astype(np.float64)
    scale = np.abs(exact).max(-1, keepdims=True)
    width = gap(np.abs(exact) / scale) * scale
    assert (np.abs(drawn - exact) <= width * (1 + 1e-3) + 1e-6 * scale).all()
    assert (np.abs(drawn.mean(0) - exact) < 5 * width / 2 / np.sqrt(NUM_DRAWS) + 1e-6 * scale).all()
    assert (drawn.std(0) > 0).mean() > 0.8  # the largest of each row is kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("noise", [0, 1, 1 << 15, (1 << 16) - 2, (1 << 16) - 1])
def test_values_of_codes_are_kept_whatever_the_noise(noise: int, dtype: torch.dtype) -> None:
    codes = torch.arange(-CODE_LEVELS, CODE_LEVELS + 1).to(torch.int8).expand(512, -1)
    exponents = torch.linspace(-60, 60, 512)[:, None]
    stored = Quantized(codes, (1.0 + draw((512, 1)).abs()) * 2.0**exponents)
    again = encode(decode(stored, dtype), torch.full(codes.shape, noise, dtype=torch.int32))
    assert torch.equal(again.codes, codes)
    assert torch.equal(again.scale, stored.scale)


def test_zeros_stay_zero_and_what_is_not_finite_spoils_its_row_alone() -> None:
    values = torch.tensor([[0.0, -0.0], [1.0, np.nan], [-np.inf, 2.0], [1.0, -0.5]])
    result = round_trip(values)
    assert torch.equal(result[0], torch.zeros(2))
    assert torch.isnan(result[1:3]).all()
    torch.testing.assert_close(result[3], values[3], atol=float(gap(np.asarray(0.5))), rtol=0)
    for shape in ((), (0,), (3, 0), (0, 3), (2, 3)):
        (noise,) = make_noise(torch.zeros(shape), 1, torch.tensor(1.0), 0)
        stored = encode(torch.zeros(shape), noise)
        assert stored.scale.shape == row_shape(shape)
        assert torch.equal(decode(stored, torch.float32), torch.zeros(shape))


@pytest.mark.parametrize("shape", [(64, 129), (501,), (3, 4, 5), ()], ids=str)
def test_codes_are_those_of_jax(shape: tuple[int, ...]) -> None:
    """Of a million, one or so is the neighbour: square roots differ in the last place."""
    values = draw(shape) * 3.0
    (noise,) = make_noise(values, 1, torch.tensor(5.0), 2)
    ours = encode(values, noise)
    theirs = jax_quantization.encode(jnp.asarray(values.numpy()), jnp.asarray(noise.numpy(), jnp.uint32))
    for actual, expected in zip(ours, theirs, strict=True):
        assert actual.shape == expected.shape
        np.testing.assert_array_equal(actual.numpy(), np.asarray(expected))
    expected = jax_quantization.decode(theirs, jnp.float32)
    np.testing.assert_array_equal(decode(ours, torch.float32).numpy(), np.asarray(expected))


@pytest.mark.parametrize("variant", ["celo2", "celo2-base"])
def test_eight_steps_are_those_of_jax(variant: str, standard_promotion: None) -> None:
    base = variant == "celo2-base"
    params = make_params()
    make, make_torch = (celo2.celo2_base, Celo2Base) if base else (celo2.celo2, Celo2)
    tx = make(0.01, weight_decay=0.1, state_dtype="int8")
    theirs: Any = [jnp.asarray(param.detach().numpy()) for param in params]
    state: Any = tx.init(theirs)
    update = jax.jit(tx.update)
    optimizer = make_torch(params, 0.01, weight_decay=0.1, state_dtype=torch.int8)
    for step in range(STEPS):
        before = [param.detach().clone() for param in params]
        train(params, optimizer, range(step, step + 1))
        grads = [jnp.asarray(param.grad.numpy()) for param in params if param.grad is not None]
        updates, state = update(grads, state, theirs)
        for place, (param, old, change) in enumerate(zip(params, before, updates, strict=True)):
            assert cosine(param.detach() - old, torch.tensor(np.asarray(change))) > 0.9999, (step, place)
        # From the same parameters, so that a code that differs does not add up.
        theirs = [jnp.asarray(param.detach().numpy()) for param in params]
    stored = [leaf for leaf in jax.tree.leaves(state) if leaf.dtype == jnp.int8]
    ruled = [param for param in params if "momentum_0" in optimizer.state[param]]
    ours = [optimizer.state[param][f"momentum_{i}"] for i in range(3) for param in ruled]
    assert len(stored) == len(ours) == 3 * (4 if base else 2)
    left, right = (np.concatenate([np.ravel(x).astype(int) for x in side]) for side in (ours, stored))
    assert np.abs(left - right).max() <= 1
    assert (left != right).mean() <= FLIPS


@pytest.mark.parametrize("factory", [Celo2, Celo2Base])
def test_an_optimizer_keeps_its_direction_in_a_third_of_the_state(factory: Any) -> None:
    steps, sizes, shape = {}, {}, (64, 96)
    for dtype in (None, torch.bfloat16, torch.int8):
        param = nn.Parameter(draw(shape))
        optimizer = factory([param], 1.0, state_dtype=dtype)
        for step in range(STEPS):
            with torch.no_grad():
                param.copy_(draw(shape))  # the same in all runs, so that steps compare
            train([param], optimizer, range(step, step + 1))
        steps[dtype] = param.detach() - draw(shape)
        state = optimizer.state[param]
        sizes[dtype] = sum(v.nbytes for k, v in state.items() if k.startswith(("momentum", "rms")))
    assert cosine(steps[torch.int8], steps[None]) > 0.999
    count = 64 * 96
    assert sizes == {None: 16 * count, torch.bfloat16: 8 * count, torch.int8: 5 * count + 3 * 4 * 64}


def test_idle_matrices_keep_their_codes() -> None:
    stack, vector = nn.Parameter(draw((3, 8, 5))), nn.Parameter(draw((9,)))
    optimizer = Celo2Base([stack, vector], 0.01, state_dtype=torch.int8)
    train([stack, vector], optimizer, range(3))
    before = copy.deepcopy([optimizer.state[param] for param in (stack, vector)])
    give([stack, vector], 3)
    assert stack.grad is not None
    assert vector.grad is not None
    stack.grad[1] = 0.0
    vector.grad.zero_()
    optimizer.step()
    for key, value in optimizer.state[stack].items():
        assert key == "step" or torch.equal(value[1], before[0][key][1]), key
    assert not torch.equal(optimizer.state[stack]["momentum_0"][0], before[0]["momentum_0"][0])
    for key, value in optimizer.state[vector].items():
        assert torch.equal(value, before[1][key]), key


def test_one_nan_spoils_the_momenta_of_its_row_alone() -> None:
    param = nn.Parameter(draw((4, 6)))
    optimizer = Celo2Base([param], 0.01, state_dtype=torch.int8)
    train([param], optimizer, range(2))
    give([param], 2)
    assert param.grad is not None
    param.grad[1, 3] = float("nan")
    optimizer.step()
    for stored in momenta(optimizer.state[param]):
        spoiled = torch.isnan(decode(stored, torch.float32))
        assert spoiled[1].all()
        assert not spoiled[[0, 2, 3]].any()


@pytest.mark.parametrize("name", ["passes", "blocks", pytest.param("numba", marks=needs_numba)])
def test_kernels_agree_with_the_plain_program(name: Any) -> None:
    runs = []
    for chosen in ("plain", name):
        params = [nn.Parameter(draw((40, 24))), nn.Parameter(draw((2, 200, 150)))]
        optimizer = Celo2(params, 0.01, state_dtype=torch.int8)
        with dispatch.use(chosen):
            train(params, optimizer, range(3))
        runs.append((params, optimizer))
    (plain, expected), (params, optimizer) = runs
    for ours, theirs in zip(params, plain, strict=True):
        start = draw(tuple(ours.shape))
        assert cosine(ours.detach() - start, theirs.detach() - start) > 0.9999
        both = zip(momenta(optimizer.state[ours]), momenta(expected.state[theirs]), strict=True)
        for actual, other in both:
            torch.testing.assert_close(actual.scale, other.scale, rtol=1e-6, atol=0)
            different = (actual.codes.int() - other.codes.int()).abs()
            assert different.max() <= 1
            assert different.double().mean() <= FLIPS


@pytest.mark.parametrize("way", ["state dict", "deepcopy", "pickle"])
def test_a_copy_continues_bit_for_bit(way: str) -> None:
    params = make_params()
    optimizer = Celo2Base(params, 0.01, state_dtype=torch.int8)
    train(params, optimizer, range(3))
    if way == "state dict":
        others = copy.deepcopy(params)
        restored = Celo2Base(others, 0.01, state_dtype=torch.int8)
        restored.load_state_dict(optimizer.state_dict())
    else:
        restored = copy.deepcopy(optimizer) if way == "deepcopy" else pickle.loads(pickle.dumps(optimizer))
        others = restored.param_groups[0]["params"]
    assert_same(restored, optimizer)
    train(params, optimizer, range(3, 6))
    train(others, restored, range(3, 6))
    assert_same(restored, optimizer)


@pytest.mark.parametrize("saved", [None, torch.bfloat16], ids=str)
def test_a_state_without_codes_is_refused_and_codes_where_numbers_are_expected(saved: Any) -> None:
    params = make_params()
    exact, coded = Celo2Base(params, state_dtype=saved), Celo2Base(params, state_dtype=torch.int8)
    for optimizer in (exact, coded):
        train(params, optimizer, range(1))
    with pytest.raises(ValueError, match=r"lacks momentum_scale_0, .*momentum_0 is .*, expected torch.int8"):
        Celo2Base(params, state_dtype=torch.int8).load_state_dict(exact.state_dict())
    with pytest.raises(ValueError, match=r"momentum_0 is torch.int8, expected torch\..*float"):
        Celo2Base(params, state_dtype=saved).load_state_dict(coded.state_dict())


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(ValueError, match=r"None \(float32\), torch.bfloat16 or torch.int8, got torch.uint8"):
        Celo2(make_params(), state_dtype=torch.uint8)
    with pytest.raises(ValueError, match="does not go with eigenbasis_every"):
        Celo2(make_params(), state_dtype=torch.int8, harness=Harness(eigenbasis_every=2))
