"""The tasks: exact sizes, the loss of an untrained network, and training that works, vmapped too."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from celo2.tasks.base import Task
from celo2.tasks.convolution import make_fashion_conv
from celo2.tasks.layers import (
    TRUNCATED_STD,
    accuracy,
    conv,
    cross_entropy,
    init_conv,
    init_layer_norm,
    init_linear,
    layer_norm,
    linear,
    truncated_normal,
)
from celo2.tasks.mlp import init_mlp, make_fashion_mlp
from celo2.tasks.quadratic import make_quadratic
from celo2.tasks.registry import TASKS, make_task
from celo2.tasks.transformer import TransformerConfig, compute_logits, init_transformer, make_tiny_lm

OPTIONS: dict[str, dict] = {  # what keeps a task small here; the networks are the default ones
    "fashion-mlp": {"prefer": "sample"},
    "fashion-conv": {"prefer": "sample"},
    "digits-mlp": {},
    "tiny-lm": {"max_bytes": 300_000, "batch_size": 4},
    "quadratic": {},
}
NUM_PARAMETERS = {
    "fashion-mlp": 118_282,
    "fashion-conv": 6_218,
    "digits-mlp": 3_466,
    "tiny-lm": 137_216,
    "quadratic": 2_048,
}


@functools.cache
def task_of(name: str) -> Task:
    return make_task(name, **OPTIONS[name])


def arrays_of(task: Task) -> dict[str, jax.Array]:
    return {name: jnp.asarray(array) for name, array in task.dataset.train.items()}


def train(task: Task, key: jax.Array, steps: int, learning_rate: float = 3e-3) -> tuple:
    """Parameters and the loss before each step, under AdamW."""
    optimizer = optax.adamw(learning_rate)
    arrays = arrays_of(task)
    init_key, loop_key = jax.random.split(key)

    def step(carry, index):
        params, state = carry
        batch = task.sample_batch(jax.random.fold_in(loop_key, index), arrays)
        loss, grads = jax.value_and_grad(task.loss)(params, batch)
        with jax.numpy_dtype_promotion("standard"):  # optax.adamw raises a float to the integer count
            updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), loss

    params = task.init(init_key)
    (params, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(steps))
    return params, losses


def shapes(params) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {"/".join(str(entry.key) for entry in path): leaf.shape for path, leaf in leaves}


every_task = pytest.mark.parametrize("name", TASKS)


@every_task
def test_task_has_its_number_of_parameters_in_float32(name: str) -> None:
    params = jax.eval_shape(task_of(name).init, jax.random.key(0))
    leaves = jax.tree.leaves(params)
    assert sum(math.prod(leaf.shape) for leaf in leaves) == NUM_PARAMETERS[name]
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.float32)}


@every_task
def test_initial_loss_is_as_announced(name: str) -> None:
    task = task_of(name)
    arrays = arrays_of(task)

    def first_loss(key):
        init_key, batch_key = jax.random.split(key)
        return task.loss(task.init(init_key), task.sample_batch(batch_key, arrays))

    losses = jax.jit(jax.vmap(first_loss))(jax.random.split(jax.random.key(0), 20))
    assert losses.dtype == jnp.float32
    assert losses.shape == (20,)  # one scalar each, vmapped over keys, parameters and batches
    assert_allclose(losses.mean(), task.initial_loss, rtol=0.05)


@every_task
def test_training_lowers_the_loss_and_a_key_gives_one_run(name: str) -> None:
    task = task_of(name)
    run = jax.jit(lambda key: train(task, key, 50)[1])
    losses = run(jax.random.key(0))
    # The convolutional network starts slowly; every other task is far below this by then.
    assert losses[-10:].mean() < 0.9 * task.initial_loss
    assert_array_equal(losses, run(jax.random.key(0)))
    assert not np.array_equal(losses, run(jax.random.key(1)))


@every_task
def test_accuracy_is_a_share_and_every_batch_keeps_its_types(name: str) -> None:
    task = task_of(name)
    arrays = arrays_of(task)
    batch = task.sample_batch(jax.random.key(0), arrays)
    assert {key: (len(value), value.dtype) for key, value in batch.items()} == {
        key: (task.batch_size, value.dtype) for key, value in arrays.items()
    }
    if task.accuracy is None:
        assert name == "quadratic"
    else:
        share = task.accuracy(task.init(jax.random.key(1)), batch)
        assert share.dtype == jnp.float32
        assert 0.0 <= share <= 1.0


def test_vmapped_runs_equal_single_ones() -> None:
    task = task_of("digits-mlp")
    keys = jax.random.split(jax.random.key(0), 3)
    together = jax.jit(jax.vmap(lambda key: train(task, key, 20)[1]))(keys)
    alone = jax.jit(lambda key: train(task, key, 20)[1])(keys[2])
    assert_allclose(together[2], alone, rtol=1e-4)  # float32, other order of summation, 20 steps


def test_fashion_mlp_has_the_shapes_of_the_published_task() -> None:
    assert shapes(jax.eval_shape(task_of("fashion-mlp").init, jax.random.key(0))) == {
        "layer_0/kernel": (784, 128),
        "layer_0/bias": (128,),
        "layer_1/kernel": (128, 128),
        "layer_1/bias": (128,),
        "head/kernel": (128, 10),
        "head/bias": (10,),
    }
    assert task_of("fashion-mlp").batch_size == 128


def test_mlp_of_meta_training_has_2410_parameters() -> None:
    params = jax.eval_shape(lambda key: init_mlp(key, (64, 32, 10)), jax.random.key(0))
    assert set(params) == {"layer_0", "head"}
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == 2_410


def test_widths_and_channels_are_options() -> None:
    deep = make_fashion_mlp(prefer="sample", widths=(16, 16, 16))
    assert shapes(deep.init(jax.random.key(0)))["layer_2/kernel"] == (16, 16)
    narrow = make_fashion_conv(prefer="sample", channels=(4, 6))
    assert shapes(narrow.init(jax.random.key(0)))["conv_1/kernel"] == (3, 3, 4, 6)


# The transformer.


def test_transformer_names_say_what_each_array_is() -> None:
    found = shapes(jax.eval_shape(task_of("tiny-lm").init, jax.random.key(0)))
    assert found["embedding/table"] == (256, 64)
    assert found["positions/table"] == (64, 64)
    assert found["head/kernel"] == (64, 256)
    assert found["block_1/attention/query/kernel"] == (64, 64)
    assert found["block_1/mlp/down/kernel"] == (256, 64)
    assert found["block_0/attention_norm/scale"] == (64,)


def test_transformer_is_causal_and_uses_the_past() -> None:
    config = TransformerConfig(width=16, num_heads=2, context=8)
    params = init_transformer(jax.random.key(0), config)
    tokens = jax.random.randint(jax.random.key(1), (1, 8), 0, 256)
    logits = compute_logits(params, tokens, config)
    changed = compute_logits(params, tokens.at[0, 4].add(-1), config)
    assert_array_equal(logits[0, :4], changed[0, :4])
    assert all(jnp.abs(logits[0, position] - changed[0, position]).max() > 1e-4 for position in (4, 5, 7))


def test_transformer_attention_equals_softmax_written_out() -> None:
    config = TransformerConfig(width=8, num_heads=1, num_layers=1, context=3)
    params = init_transformer(jax.random.key(0), config)
    # An MLP and a head that pass the stream through, up to the final norm, leave attention alone.
    params["block_0"]["mlp"]["down"]["kernel"] = jnp.zeros((32, 8))
    tokens = np.array([[5, 9, 200]])
    stream = np.asarray(params["embedding"]["table"])[tokens[0]] + np.asarray(params["positions"]["table"])
    attention = jax.tree.map(np.asarray, params["block_0"]["attention"])
    normed = np.asarray(layer_norm(init_layer_norm(8), jnp.asarray(stream)))
    query, key, value = (normed @ attention[part]["kernel"] for part in ("query", "key", "value"))
    weights = np.tril(np.exp(query @ key.T / math.sqrt(8)))
    weights /= weights.sum(axis=1, keepdims=True)
    stream = stream + weights @ value @ attention["output"]["kernel"]
    expected = linear(params["head"], layer_norm(init_layer_norm(8), jnp.asarray(stream, jnp.float32)))
    assert_allclose(compute_logits(params, jnp.asarray(tokens), config)[0], expected, atol=1e-5)  # float32


def test_tiny_lm_loss_predicts_the_next_byte() -> None:
    task = make_tiny_lm(max_bytes=300_000, config=TransformerConfig(width=8, num_heads=2, num_layers=1))
    assert task.dataset.train["text"].shape[1] == 65
    params = task.init(jax.random.key(0))
    params["head"]["bias"] = jnp.zeros(256).at[ord("b")].set(100.0)  # always answers "b"
    row = np.full((2, 65), ord("b"), np.uint8)
    row[:, 0] = ord("a")  # read, never predicted
    assert task.loss(params, {"text": jnp.asarray(row)}) < 1e-6
    assert task.accuracy is not None
    row[0, 1] = ord("c")
    assert_allclose(task.accuracy(params, {"text": jnp.asarray(row)}), 127 / 128)


@pytest.mark.parametrize(
    ("sizes", "message"), [({"num_layers": 0}, "num_layers"), ({"width": 30}, "multiple of num_heads")]
)
def test_transformer_refuses_sizes(sizes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TransformerConfig(**sizes)


# The quadratic.


def test_quadratic_has_minimum_zero_and_its_condition_number() -> None:
    task = make_quadratic(num_in=8, num_out=3, condition=100.0)
    row, target = (np.asarray(task.dataset.train[name], np.float64) for name in ("row", "target"))
    optimum = np.linalg.lstsq(row, target)[0]
    params = {"matrix": {"kernel": jnp.asarray(optimum, jnp.float32)}}
    for split in (task.dataset.train, task.dataset.valid):
        assert task.loss(params, {name: jnp.asarray(array) for name, array in split.items()}) < 1e-10
    eigenvalues = np.linalg.eigvalsh(row.T @ row / len(row))
    assert_allclose(eigenvalues[-1] / eigenvalues[0], 100.0, rtol=0.2)  # 8,192 rows: a few per cent each
    assert_allclose(eigenvalues.mean(), 1.0, rtol=0.05)


@pytest.mark.parametrize("option", ["num_in", "num_out", "condition"])
def test_quadratic_refuses_an_option_below_one(option: str) -> None:
    with pytest.raises(ValueError, match=f"{option} must be at least 1, got 0"):
        make_quadratic(**{option: 0})


# The registry.


def test_unknown_task_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ValueError, match="did you mean 'fashion-mlp'"):
        make_task("fashion-mpl")


def test_unknown_option_of_a_task_is_refused_with_the_valid_ones() -> None:
    with pytest.raises(TypeError, match=r"'digits-mlp'.*widht.*widths"):
        make_task("digits-mlp", widht=(3,))


def test_tasks_carry_the_name_they_are_registered_under() -> None:
    assert [task_of(name).name for name in TASKS] == list(TASKS)


# The layers.


def test_truncated_normal_stays_within_two_scales() -> None:
    values = truncated_normal(jax.random.key(0), (100_000,), 0.5)
    assert jnp.abs(values).max() <= 1.0
    # The standard error of a standard deviation from n values is below std/√n, tails being light.
    assert_allclose(values.std(), 0.5 * TRUNCATED_STD, atol=5 * 0.5 / math.sqrt(100_000))


def test_linear_starts_at_one_over_the_root_of_its_inputs() -> None:
    params = init_linear(jax.random.key(0), 400, 300)
    assert_allclose(params["kernel"].std(), TRUNCATED_STD / 20, rtol=0.02)  # of 120,000 values
    assert not params["bias"].any()
    shifted = {**params, "bias": jnp.arange(300.0)}
    assert_allclose(linear(shifted, jnp.zeros((2, 3, 400))), np.tile(np.arange(300.0), (2, 3, 1)))


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", [5, 7, 14, 28])
def test_conv_equals_the_library_s_convolution(size: int, stride: int) -> None:
    params = init_conv(jax.random.key(0), 4, 5)
    params["bias"] = jnp.arange(5.0)
    inputs = jax.random.normal(jax.random.key(1), (2, size, size + 1, 4))
    expected = jax.lax.conv_general_dilated(
        inputs, params["kernel"], (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    expected += jnp.arange(5.0).reshape(1, 1, 1, 5)
    assert_allclose(conv(params, inputs, stride), expected, atol=1e-5)  # float32 sums of 36 products


def test_layer_norm_has_zero_mean_and_unit_variance() -> None:
    params = init_layer_norm(16)
    outputs = layer_norm(params, 3.0 + 5.0 * jax.random.normal(jax.random.key(0), (4, 16)))
    assert_allclose(outputs.mean(axis=-1), np.zeros(4), atol=1e-6)
    assert_allclose(outputs.std(axis=-1), np.ones(4), atol=1e-4)  # the epsilon


def test_cross_entropy_and_accuracy_by_hand() -> None:
    logits = jnp.log(jnp.array([[0.7, 0.2, 0.1], [0.25, 0.25, 0.5]]))
    labels = jnp.array([0, 1], jnp.uint8)
    assert_allclose(cross_entropy(logits, labels), -(math.log(0.7) + math.log(0.25)) / 2, rtol=1e-6)
    assert_allclose(accuracy(logits, labels), 0.5)
