"""The GPU kernels: interpreted on the CPU, against the plain program; what they leave to it; lowered."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import celo2
from celo2.config import RuleConfig
from celo2.jax import accumulators, batching, dispatch, step
from celo2.jax.accumulators import Leaf
from celo2.jax.dimensions import DimensionNumbers, make_axes
from celo2.jax.pallas import kernels as pallas
from helpers.tolerances import relative_error

KERNEL = "__gpu$xla.gpu.triton"  # what a lowered kernel is called
NUM_KERNELS = 3  # for each array
TOLERANCE = 3e-6  # sums in another order, in float32 (1.0e-6)
ALL = RuleConfig(
    ff_hidden_size=2,
    ff_hidden_layers=1,
    initial_momentum_decays=(0.9,),
    initial_adafactor_decays=(0.9,),
    orthogonalize=False,
)
FEATURES = ("with_g", "with_m", "with_fac_rms", "with_fac_mom_mult")  # a full one, a vector, a product
SMALL = ALL.replace(
    **{name: name in FEATURES for name in RuleConfig.option_names() if name.startswith("with_")}
)  # compiles in half the time


def make_weights(config: RuleConfig) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        name: (0.3 * rng.standard_normal(shape)).astype(np.float32)
        for name, shape in config.weight_shapes().items()
    }


def make_inputs(shape: tuple[int, ...], dtype: str, config: RuleConfig) -> tuple[Any, ...]:
    """Gradient, parameter, accumulators of earlier steps, count."""
    rng = np.random.default_rng(1)
    grad, param = (jnp.asarray(scale * rng.standard_normal(shape), dtype) for scale in (0.1, 1.0))
    zeros = accumulators.init(shape, make_axes(shape), config, jnp.dtype("float32"))
    state = jax.tree.map(lambda x: jnp.asarray(1e-2 * rng.random(x.shape), jnp.float32), zeros)
    return grad, param, state, jnp.int32(3)


def jit(function: Any) -> Any:
    """Compiles without optimising, which takes half the time."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def update(
    name: Any, inputs: tuple[Any, ...], config: RuleConfig = SMALL, weights: Any = None
) -> tuple[Any, Any]:
    """`step.update` by one implementation."""
    axes = make_axes(inputs[0].shape)
    with dispatch.use(name):
        weights = make_weights(config) if weights is None else weights
        return jit(partial(step.update, weights, axes=axes, config=config))(*inputs)


def options(config: RuleConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in RuleConfig.option_names()}


def lowered(function: Any, *arguments: Any) -> str:
    """The program for CUDA; no CUDA library is needed."""
    return jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


def assert_close(actual: Any, expected: Any) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for left, right in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert (left.shape, left.dtype) == (right.shape, right.dtype)
        assert relative_error(left, right) <= TOLERANCE


CASES = {
    "every channel": ((32, 64), "float32", ALL),
    "masked, wide, batched": ((2, 37, 70), "float32", SMALL),
    "masked, tall, two batch axes, bfloat16": ((2, 1, 80, 33), "bfloat16", SMALL),
    "other options": (
        (64, 64),
        "float32",
        SMALL.replace(
            with_fac_rms=False, mlp_activation="tanh", param_scale_mult=True, precondition_output=True
        ),
    ),
}


@pytest.mark.parametrize(("shape", "dtype", "config"), CASES.values(), ids=CASES.keys())
def test_kernels_equal_the_plain_program(shape: tuple[int, ...], dtype: str, config: RuleConfig) -> None:
    inputs = make_inputs(shape, dtype, config)
    assert choice("pallas", shape, config) == "pallas"
    assert_close(update("pallas_interpret", inputs, config), update("plain", inputs, config))


def test_one_nan_makes_its_whole_step_nan_under_vmap() -> None:
    """As in the plain program; Triton's maximum would drop it. The other array's step is not touched."""
    config = SMALL.replace(with_p=True)
    grad, param, state, count = make_inputs((32, 40), "float32", config)
    bad = jnp.zeros((32, 40)).at[3, 5].set(jnp.nan)
    momentum = state._replace(momentum=(state.momentum[0] + bad,))
    cases = [(grad, param, state), (grad + bad, param, state), (grad, param + bad, state)]
    inputs = jax.tree.map(lambda *x: jnp.stack(x), *cases, (grad, param, momentum))
    found = {}
    for name in ("plain", "pallas_interpret"):
        with dispatch.use(name):
            one = partial(step.update, make_weights(config), axes=make_axes(grad.shape), config=config)
            found[name], _ = jit(jax.vmap(one, in_axes=(0, 0, 0, None)))(*inputs, count)
        assert np.isnan(found[name][1:]).all(), name
    assert_close(found["pallas_interpret"][0], found["plain"][0])


def test_matrices_of_dimension_numbers_get_kernels() -> None:
    """Heads stored in the middle axis become a batch of matrices; the vector stays plain."""
    params = {"heads": jnp.ones((33, 2, 32)), "bias": jnp.ones(40)}
    numbers: dict[str, Any] = {"heads": DimensionNumbers(0, 2), "bias": None}
    rule = celo2.scale_by_celo2(make_weights(SMALL), dimension_numbers=numbers, **options(SMALL))
    with dispatch.use("pallas"):
        text = lowered(rule.update, params, rule.init(params), params)
    assert text.count(KERNEL) == NUM_KERNELS


def test_derivatives_are_those_of_the_passes_without_kernels() -> None:
    inputs = make_inputs((32, 32), "float32", SMALL)

    def derivative(name: Any) -> Any:
        with dispatch.use(name):
            one = partial(step.update, make_weights(SMALL), axes=make_axes((32, 32)), config=SMALL)
            return jit(jax.grad(lambda *arguments: jnp.sum(one(*arguments)[0][:, 0])))(*inputs)

    assert np.abs(derivative("xla")).max() > 0
    assert_close(derivative("pallas_interpret"), derivative("xla"))


NOT_COVERED = {
    "bias correction": ((32, 32), SMALL.replace(bias_correction=True), "plain"),
    "magnitudes": ((32, 32), SMALL.replace(exp_mult=0.1), "plain"),
    "raw inputs": ((32, 32), SMALL.replace(normalize_input=False), "plain"),
    "vector": ((1024,), SMALL, "plain"),
    "convolution stored output first": ((64, 64, 32, 33), SMALL, "plain"),
    "wide network": ((32, 32), SMALL.replace(ff_hidden_size=17), "xla"),
    "narrow matrix": ((1024, 31), SMALL, "xla"),
}


@pytest.mark.parametrize(("shape", "config", "instead"), NOT_COVERED.values(), ids=NOT_COVERED.keys())
def test_what_the_kernels_do_not_cover(shape: tuple[int, ...], config: RuleConfig, instead: str) -> None:
    assert choice("pallas", shape, config) == instead


def choice(name: Any, shape: tuple[int, ...], config: RuleConfig = SMALL, weights: Any = None) -> str:
    """What `implementation.choose` says about an array of this shape."""
    axes = make_axes(shape)
    state = jax.eval_shape(lambda: accumulators.init(shape, axes, config, jnp.dtype("float32")))
    grad: Any = jax.ShapeDtypeStruct(shape, jnp.float32)
    with dispatch.use(name):
        return dispatch.choose(weights or make_weights(config), grad, state, axes, config)


def test_learned_weights_get_no_kernels() -> None:
    assert choice("pallas", (64, 64)) == "pallas"
    assert choice("pallas", (64, 64), weights=jax.tree.map(jnp.asarray, make_weights(SMALL))) == "xla"


def test_bfloat16_state_gets_no_kernels() -> None:
    rule = celo2.scale_by_celo2(orthogonalize=False, state_dtype="bfloat16")
    params = {"w": jnp.ones((32, 32))}
    with dispatch.use("pallas"):
        assert KERNEL not in lowered(rule.update, params, rule.init(params), params)


def test_automatic_choice_needs_a_gpu_one_device_and_a_large_array(monkeypatch: pytest.MonkeyPatch) -> None:
    large = (256, 256)
    assert choice("auto", large) == "xla"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    assert choice("auto", large) == "xla"
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert choice("auto", large) == "auto"
    monkeypatch.setattr(dispatch, "inside_shard_map", lambda: True)
    assert choice("auto", large) == "xla"
    monkeypatch.setattr(dispatch, "inside_shard_map", lambda: False)
    assert choice("auto", (64, 64)) == "xla"
    assert choice("auto", large, SMALL.replace(bias_correction=True)) == "plain"


def test_kernels_that_cannot_be_lowered_are_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise NotImplementedError("no such primitive")

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(pallas, "make_passes", refuse)
    config = SMALL.replace(ff_hidden_size=3)  # another than is remembered
    with pytest.warns(UserWarning, match="no such primitive"):
        assert choice("auto", (256, 256), config) == "xla"


def test_automatic_choice_is_the_platforms(monkeypatch: pytest.MonkeyPatch) -> None:
    """One traced program: kernels when lowered for CUDA, XLA's passes on the CPU."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    inputs = make_inputs((256, 256), "float32", SMALL)
    one = partial(step.update, make_weights(SMALL), axes=make_axes((256, 256)), config=SMALL)
    assert lowered(one, *inputs).count(KERNEL) == NUM_KERNELS
    assert_close(update("auto", inputs), update("xla", inputs))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shipped", [True, False])
def test_kernels_of_the_default_network_lower_to_cuda(shipped: bool, dtype: str) -> None:
    """The shipped weights, which are fewer units and features, and a network that uses all."""
    params = {"w": jnp.ones((2, 100, 70), dtype), "bias": jnp.ones(70, dtype)}
    weights = None if shipped else make_weights(RuleConfig(orthogonalize=False))
    rule = celo2.scale_by_celo2(weights, orthogonalize=False)
    with dispatch.use("pallas"):
        text = lowered(rule.update, params, rule.init(params), params)
    assert text.count(KERNEL) == NUM_KERNELS


def test_kernels_lower_to_cuda_under_vmap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal matrices of a deep network, stacked: still three kernels."""
    monkeypatch.setattr(batching, "STACK_LIMIT", 1 << 20)
    monkeypatch.setattr(batching, "on_one_device", lambda: True)
    params = {name: jnp.ones((40, 70)) for name in "abc"}
    rule = celo2.scale_by_celo2(make_weights(SMALL), **options(SMALL))
    with dispatch.use("pallas"):
        text = lowered(rule.update, params, rule.init(params), params)
    assert text.count(KERNEL) == NUM_KERNELS


def test_equal_matrices_share_what_lies_between_the_kernels() -> None:
    """A deep network has three kernels for each matrix, and one set of operations on vectors."""

    def count(depth: int) -> tuple[int, int]:
        leaves = [Leaf(*make_inputs((32, 64), "float32", SMALL)[:3])] * depth
        with dispatch.use("pallas"):
            options: dict[str, Any] = {"axes": make_axes((32, 64)), "config": SMALL}
            text = lowered(partial(step.update_all, make_weights(SMALL), count=3, **options), leaves)
        return text.count(KERNEL), text.count("stablehlo.dot_general")

    (kernels, products), (more_kernels, same_products) = count(1), count(4)
    assert (kernels, more_kernels) == (NUM_KERNELS, 4 * NUM_KERNELS)
    assert products == same_products > 0


def test_equal_matrices_get_what_each_gets_alone() -> None:
    inputs = [Leaf(*make_inputs((32, 64), "float32", SMALL)[:3]) for _ in range(2)]
    inputs[1] = inputs[1]._replace(grad=inputs[1].grad[::-1] * 2)
    with dispatch.use("pallas_interpret"):
        options: dict[str, Any] = {"count": 3, "axes": make_axes((32, 64)), "config": SMALL}
        together = jit(partial(step.update_all, make_weights(SMALL), **options))(inputs)
    assert_close(together, [update("plain", (*leaf, 3)) for leaf in inputs])


def test_state_is_updated_in_place() -> None:
    """The second kernel takes the memory of three momenta and one second moment: no copies of the state."""
    params = {"w": jnp.ones((64, 64))}
    rule = celo2.scale_by_celo2(orthogonalize=False)
    with dispatch.use("pallas"):
        text = lowered(rule.update, params, rule.init(params), params)
    assert text.count("output_operand_alias<") == 4


def test_unknown_implementation_is_refused() -> None:
    with pytest.raises(ValueError, match="pallas_interpret"), dispatch.use("triton"):  # type: ignore[arg-type]
        pass
