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
from celo2.tasks.language.tiny_lm import (
    TransformerConfig,
    compute_logits,
    init_transformer,
    make_tiny_lm,
)
from celo2.tasks.nn import layer_norm, linear
from celo2.tasks.quadratic import make_quadratic
from celo2.tasks.registry import make_task
from celo2.tasks.vision.convolution import make_fashion_conv
from celo2.tasks.vision.mlp import init_mlp, make_fashion_mlp

OPTIONS: dict[str, dict] = {  # what keeps a task small here; the networks are the default ones
    "fashion-mlp": {"prefer": "sample"},
    "fashion-conv": {"prefer": "sample"},
    "digits-mlp": {},
    "tiny-lm": {"max_bytes": 300_000, "batch_size": 4},
    "quadratic": {},
    "mlp": {"images": "digits", "activation": "tanh"},
    "autoencoder": {"images": "digits"},
    "conv": {"images": "digits"},
    "byte-lm": {
        "text": "pydoc",
        "width": 16,
        "num_heads": 2,
        "num_layers": 1,
        "context": 16,
        "batch_size": 8,
    },
}
NUM_PARAMETERS = {
    "fashion-mlp": 118_282,
    "fashion-conv": 6_218,
    "digits-mlp": 3_466,
    "tiny-lm": 137_216,
    "quadratic": 2_048,
    "mlp": 2_410,
    "autoencoder": 4_744,
    "conv": 1_418,
    "byte-lm": 12_016,
}


@functools.cache
def task_of(name: str) -> Task:
    return make_task(name, **OPTIONS[name])


@functools.cache
def arrays_of(name: str) -> dict[str, jax.Array]:
    return {key: jnp.asarray(array[:2_000]) for key, array in task_of(name).dataset.train.items()}


@functools.cache
def train_of(name: str, steps: int):
    """`(key, arrays) → loss before each step`, under AdamW; not compiled."""
    task = task_of(name)
    optimizer = optax.adamw(3e-3)

    def train(key: jax.Array, arrays: dict[str, jax.Array]) -> jax.Array:
        init_key, loop_key = jax.random.split(key)

        def step(carry, index):
            params, state = carry
            batch = task.sample_batch(jax.random.fold_in(loop_key, index), arrays)
            loss, grads = jax.value_and_grad(task.loss)(params, batch)
            with jax.numpy_dtype_promotion("standard"):  # optax.adamw raises a float to the integer count
                updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), loss

        params = task.init(init_key)
        return jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(steps))[1]

    return train


def shapes(params) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {"/".join(str(entry.key) for entry in path): leaf.shape for path, leaf in leaves}


every_task = pytest.mark.parametrize("name", OPTIONS)


@every_task
def test_task_has_its_number_of_parameters_in_float32(name: str) -> None:
    params = jax.eval_shape(task_of(name).init, jax.random.key(0))
    leaves = jax.tree.leaves(params)
    assert sum(math.prod(leaf.shape) for leaf in leaves) == NUM_PARAMETERS[name]
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.float32)}


@every_task
def test_initial_loss_and_accuracy_are_those_of_chance(name: str) -> None:
    task = task_of(name)

    def score(key, arrays):
        init_key, batch_key = jax.random.split(key)
        params, batch = task.init(init_key), task.sample_batch(batch_key, arrays)
        return task.loss(params, batch), task.accuracy(params, batch) if task.accuracy else jnp.zeros(())

    keys = jax.random.split(jax.random.key(0), 10)
    losses, accuracies = jax.jit(jax.vmap(score, in_axes=(0, None)))(keys, arrays_of(name))
    assert losses.dtype == accuracies.dtype == jnp.float32
    assert losses.shape == accuracies.shape == (10,)  # a scalar for each key, parameters and batch
    assert_allclose(losses.mean(), task.initial_loss, rtol=0.05)
    assert 0.0 <= accuracies.min() <= accuracies.max() < 0.5


@pytest.mark.usefixtures("full_optimization")  # it trains for longer than it compiles
@every_task
def test_training_lowers_the_loss_and_a_key_gives_one_run(name: str) -> None:
    run = jax.jit(train_of(name, 50))
    losses = run(jax.random.key(0), arrays_of(name))
    # The convolutional network starts slowly; every other task is far below this by then.
    assert losses[-10:].mean() < 0.9 * task_of(name).initial_loss
    assert_array_equal(losses, run(jax.random.key(0), arrays_of(name)))
    assert not np.array_equal(losses, run(jax.random.key(1), arrays_of(name)))


@every_task
def test_batch_is_rows_of_the_data_in_their_types(name: str) -> None:
    arrays = arrays_of(name)
    batch = jax.eval_shape(task_of(name).sample_batch, jax.random.key(0), arrays)
    expected = {
        key: ((task_of(name).batch_size, *array.shape[1:]), array.dtype) for key, array in arrays.items()
    }
    assert {key: (array.shape, array.dtype) for key, array in batch.items()} == expected


def test_byte_lm_may_be_tied_small_in_symbols_and_begin_at_one_scale() -> None:
    sizes = {"width": 16, "num_heads": 2, "num_layers": 1, "context": 16}
    task = make_task("byte-lm", symbols=20, tied=True, init_scale=0.02, **sizes)
    params = task.init(jax.random.key(0))
    assert "head" not in params
    assert params["embedding"]["table"].shape == (20, 16)
    spread = float(params["block_0"]["mlp"]["up"]["kernel"].std())
    assert spread == pytest.approx(0.02, rel=0.1)
    texts = [split["text"] for split in (task.dataset.train, task.dataset.valid)]
    assert {int(text.max()) for text in texts} == {19}
    counts = np.bincount(texts[0].ravel(), minlength=20)
    assert (np.diff(counts[:19]) <= 0).all()  # the most frequent bytes, in this order; 19 is all others
    assert task.initial_loss == pytest.approx(math.log(20))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mlp", {"images": "minst"}, "did you mean 'mnist'"),
        ("mlp", {"activation": "rel"}, "did you mean 'relu'"),
        ("byte-lm", {"text": "bible"}, "unknown text 'bible'"),
        ("byte-lm", {"symbols": 300}, "symbols must be from 2 to 256"),
        ("byte-lm", {"init_scale": -1.0}, "init_scale must be finite"),
    ],
    ids=["images", "activation", "text", "symbols", "scale"],
)
def test_unusable_options_are_refused(name: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_task(name, **options)


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
    assert shapes(jax.eval_shape(deep.init, jax.random.key(0)))["layer_2/kernel"] == (16, 16)
    narrow = make_fashion_conv(prefer="sample", channels=(4, 6))
    assert shapes(jax.eval_shape(narrow.init, jax.random.key(0)))["conv_1/kernel"] == (3, 3, 4, 6)


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
    config = TransformerConfig(width=16, num_heads=2, num_layers=1, context=8)
    params = jax.jit(init_transformer, static_argnums=1)(jax.random.key(0), config)
    compute = jax.jit(compute_logits, static_argnums=2)
    tokens = np.arange(8).reshape(1, 8)
    logits = np.asarray(compute(params, tokens, config))
    changed = np.asarray(compute(params, np.where(tokens == 4, 99, tokens), config))
    assert_array_equal(logits[0, :4], changed[0, :4])
    assert all(np.abs(logits[0, position] - changed[0, position]).max() > 1e-4 for position in (4, 5, 7))


def test_transformer_attention_equals_softmax_written_out() -> None:
    config = TransformerConfig(width=8, num_heads=1, num_layers=1, context=3)
    params = jax.jit(init_transformer, static_argnums=1)(jax.random.key(0), config)
    # An MLP and a head that pass the stream through, up to the final norm, leave attention alone.
    params["block_0"]["mlp"]["down"]["kernel"] = jnp.zeros((32, 8))
    tokens = np.array([[5, 9, 200]])
    stream = np.asarray(params["embedding"]["table"])[tokens[0]] + np.asarray(params["positions"]["table"])
    attention = jax.tree.map(np.asarray, params["block_0"]["attention"])
    norm = {"scale": jnp.ones(8), "bias": jnp.zeros(8)}
    normed = np.asarray(layer_norm(norm, jnp.asarray(stream)))
    query, key, value = (normed @ attention[part]["kernel"] for part in ("query", "key", "value"))
    weights = np.tril(np.exp(query @ key.T / math.sqrt(8)))
    weights /= weights.sum(axis=1, keepdims=True)
    stream = stream + weights @ value @ attention["output"]["kernel"]
    expected = linear(params["head"], layer_norm(norm, jnp.asarray(stream, jnp.float32)))
    found = jax.jit(compute_logits, static_argnums=2)(params, tokens, config)
    assert_allclose(found[0], expected, atol=1e-5)  # float32


def test_tiny_lm_loss_predicts_the_next_byte() -> None:
    task = make_tiny_lm(max_bytes=300_000, config=TransformerConfig(width=8, num_heads=2, num_layers=1))
    assert task.dataset.train["text"].shape[1] == 65
    params = jax.jit(task.init)(jax.random.key(0))
    params["head"]["bias"] = jnp.zeros(256).at[ord("b")].set(100.0)  # always answers "b"
    row = np.full((2, 65), ord("b"), np.uint8)
    row[:, 0] = ord("a")  # read, never predicted
    assert jax.jit(task.loss)(params, {"text": row}) < 1e-6
    assert task.accuracy is not None
    row[0, 1] = ord("c")
    assert_allclose(jax.jit(task.accuracy)(params, {"text": row}), 127 / 128)


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
    assert [task_of(name).name for name in OPTIONS] == list(OPTIONS)
