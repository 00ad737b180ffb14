"""Micro-batches: loss, accuracy and gradient are those of the whole batch; images may stay on the host."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from celo2.tasks.base import Dataset, Task
from celo2.tasks.micro_batches import in_micro_batches, split_batches
from celo2.tasks.nn import accuracy, cross_entropy
from celo2.tasks.registry import make_task
from celo2.tasks.vision.host_images import keep_on_host
from celo2.training.runner import run_grid

ROWS = 2


def _classify(params, batch):
    hidden = jnp.tanh(batch["image"].astype(params["first"].dtype).reshape(len(batch["image"]), -1) / 255.0)
    return jnp.tanh(hidden @ params["first"]) @ params["second"]


def make_images() -> Task:
    """Eight classes of images of 4 × 4 × 3, and a perceptron with one hidden layer."""
    rng = np.random.default_rng(0)

    def make_split(count: int) -> dict[str, np.ndarray]:
        image = rng.integers(0, 256, (count, 4, 4, 3)).astype(np.uint8)
        return {"image": image, "label": rng.integers(0, 8, count).astype(np.int32)}

    return Task(
        name="images",
        dataset=Dataset("images", make_split(20), make_split(10)),
        init=lambda key: {
            "first": 0.1 * jax.random.normal(key, (48, 16)),
            "second": 0.1 * jax.random.normal(jax.random.fold_in(key, 1), (16, 8)),
        },
        loss=lambda params, batch: cross_entropy(_classify(params, batch), batch["label"]),
        accuracy=lambda params, batch: accuracy(_classify(params, batch), batch["label"]),
        batch_size=6,
        initial_loss=2.08,
        mean_over_examples=True,
    )


def test_gradient_of_micro_batches_is_that_of_the_batch_to_float64() -> None:
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        batch = {"x": jnp.asarray(rng.standard_normal((12, 5))), "y": jnp.asarray(rng.standard_normal(12))}
        params = {"w": jnp.asarray(rng.standard_normal(5)), "b": jnp.asarray(0.3)}

        def loss(params, batch):
            return jnp.square(jnp.tanh(batch["x"] @ params["w"] + params["b"]) - batch["y"]).mean()

        expected = jax.value_and_grad(loss)(params, batch)
        for rows in (1, 3, 4):
            found = jax.jit(jax.value_and_grad(in_micro_batches(loss, rows)))(params, batch)
            # sums of twelve numbers in another order: a few float64 roundings
            jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-13, atol=1e-15), found, expected)


def test_micro_batches_of_runs_side_by_side_train_the_same() -> None:
    task = make_images()
    grids = [
        run_grid(one, optax.sgd, (0.1, 0.5), seeds=(0, 1), steps=8)
        for one in (task, split_batches(task, ROWS))
    ]
    # float32 sums in another order over eight steps
    assert_allclose(grids[1].train_loss, grids[0].train_loss, rtol=2e-6)
    assert_allclose(grids[1].valid_loss, grids[0].valid_loss, rtol=2e-6)
    assert_array_equal(grids[1].valid_accuracy, grids[0].valid_accuracy)


def test_memory_of_activations_is_that_of_a_micro_batch() -> None:
    task = dataclasses.replace(make_images(), batch_size=512)
    params = jax.eval_shape(task.init, jax.random.key(0))
    batch = {
        "image": jax.ShapeDtypeStruct((512, 4, 4, 3), np.uint8),
        "label": jax.ShapeDtypeStruct((512,), np.int32),
    }

    def temporary_bytes(rows: int) -> int:
        step = jax.jit(jax.value_and_grad(split_batches(task, rows).loss))
        memory = step.lower(params, batch).compile().memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    assert temporary_bytes(16) < temporary_bytes(512) / 4


def scans(function, *arguments) -> int:
    """Loops over parts in a program, nested ones counted."""
    return str(jax.make_jaxpr(function)(*arguments)).count("scan[")


@pytest.mark.parametrize("on_host", [False, True], ids=["on-device", "on-host"])
def test_another_number_of_rows_replaces_the_first(on_host: bool) -> None:
    whole = dataclasses.replace(make_images(), batch_size=12)
    few = split_batches(whole, 2)
    few = keep_on_host(few) if on_host else few
    params = whole.init(jax.random.key(0))
    batch = {name: array[:12] for name, array in few.dataset.train.items()}
    for rows in (1, 3, 4, 6):  # 3 is no multiple of 2
        task = split_batches(few, rows)
        assert task.rows_at_once == rows
        assert f"length={12 // rows}" in str(jax.make_jaxpr(task.loss)(params, batch))
        assert scans(jax.grad(task.loss), params, batch) == 1
    for rows in (12, 100):
        task = split_batches(few, rows)
        assert scans(jax.grad(task.loss), params, batch) == 0
        assert_allclose(task.loss(params, batch), few.loss(params, batch), rtol=1e-6)


def test_gradients_of_bfloat16_parameters_are_added_in_float32() -> None:
    """The sum of 256 equal gradients would stay at that of a few: bfloat16 has eight bits."""
    params = jnp.asarray(1.0, jnp.bfloat16)
    batch = jnp.full(512, 1.01171875, jnp.bfloat16)

    def loss(params, batch):
        return (params * batch).mean().astype(jnp.float32)

    found = jax.grad(in_micro_batches(loss, 1))(params, batch)
    assert found.dtype == jnp.bfloat16
    assert found == batch[0]
    halved = jax.grad(lambda params: 0.5 * in_micro_batches(loss, 1)(params, batch))(params)
    assert halved == 0.5 * batch[0]


@pytest.mark.parametrize(
    "name", ["Conv_Cifar10_32x64x64_batchnorm@tiny", "TransformerLM_LM1B_MultiRuntime_0@tiny"], ids=str
)
def test_tasks_whose_examples_depend_on_each_other_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"not declared to be a mean over\s+independent examples"):
        split_batches(make_task(name), 1)


def test_batches_that_cannot_be_divided_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 4 rows, got 6"):
        split_batches(make_images(), 4)
    with pytest.raises(ValueError, match="multiple of 0 rows"):
        split_batches(make_images(), 0)


def test_images_on_the_host_train_to_the_same_numbers() -> None:
    task = make_images()
    hosted = keep_on_host(task)
    assert hosted.dataset.train["image"].tolist() == list(range(20))
    assert hosted.dataset.valid["image"].tolist() == list(range(20, 30))
    grids = [run_grid(one, optax.sgd, (0.1, 0.5), seeds=(0, 1), steps=8) for one in (task, hosted)]
    assert_allclose(grids[1].train_loss, grids[0].train_loss, rtol=1e-6)  # fused differently
    assert_allclose(grids[1].valid_loss, grids[0].valid_loss, rtol=1e-6)
    assert_array_equal(grids[1].valid_accuracy, grids[0].valid_accuracy)
