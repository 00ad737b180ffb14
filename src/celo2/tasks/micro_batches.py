"""Computes a batch's loss and gradient in micro-batches, if its activations do not fit into memory.

The loss of a batch is the mean of the losses of its examples, so the gradient is the mean of the gradients of
equal parts (micro-batches). They are computed one after the other and summed, in float32 if the parameters
have a shorter type. Memory holds the activations of one part and two trees of gradients at a time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from celo2.tasks.base import Batch, Params, Task

Loss = Callable[[Params, Batch], Array]


def in_micro_batches(function: Loss, rows: int) -> Loss:
    """Returns a function that computes a mean over examples, and its gradient, part by part.

    Only reverse mode is supported, and only with respect to the parameters; JAX treats the gradient with
    respect to the batch as zero. Batches of at most `rows` examples are computed as a whole.

    Args:
        function: `(params, batch) → ()`, the mean over the examples of a batch.
        rows: Number of examples computed together, ≥ 1.

    Raises:
        ValueError: When called: `rows` does not divide the number of examples.
    """
    averaged = _average(function)

    def compute(params: Params, batch: Batch) -> Array:
        count = len(jax.tree.leaves(batch)[0])
        if count <= rows:
            return function(params, batch)
        check_rows(count, rows)
        parts = jax.tree.map(lambda array: array.reshape(-1, rows, *array.shape[1:]), batch)
        return averaged(params, parts)

    return compute


def split_batches(task: Task, rows: int) -> Task:
    """Returns the task with loss and accuracy computed for `rows` examples at once.

    If the task is already computed in parts, the new number replaces the old one.

    Raises:
        ValueError: The batch cannot be divided into equal parts, or the task does not declare
            (`mean_over_examples`) that its loss is a mean over examples. Batch norm makes examples depend on
            each other, and a mean over non-padding tokens weighs parts differently.
    """
    if not task.mean_over_examples:
        raise ValueError(
            f"{task.name} cannot be trained in micro-batches: its loss is not declared to be a mean over "
            "independent examples (Task.mean_over_examples). Leave the number of rows at once out."
        )
    check_rows(task.batch_size, rows)
    loss, accuracy = task.undivided or (task.loss, task.accuracy)
    return dataclasses.replace(
        task,
        loss=in_micro_batches(loss, rows),
        accuracy=None if accuracy is None else in_micro_batches(accuracy, rows),
        rows_at_once=rows,
        undivided=(loss, accuracy),
    )


def check_rows(batch_size: int, rows: int) -> None:
    """Raises a ValueError unless a batch can be divided into parts of `rows` examples or fits into one."""
    if rows < 1 or (batch_size > rows and batch_size % rows):
        raise ValueError(f"batch_size must be a multiple of {rows} rows, got {batch_size}.")


def _average(function: Loss) -> Loss:
    """Makes `(params, parts) → ()`, the mean over the parts on the leading axis, with its gradient."""

    @jax.custom_vjp
    def averaged(params: Params, parts: Batch) -> Array:
        return jax.lax.map(partial(function, params), parts).mean()

    def forward(params: Params, parts: Batch) -> tuple[Array, Params]:
        def add(total: Params, part: Batch) -> tuple[Params, Array]:
            value, grads = jax.value_and_grad(function)(params, part)
            return jax.tree.map(lambda sum_, leaf: sum_ + leaf.astype(sum_.dtype), total, grads), value

        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, np.promote_types(x.dtype, np.float32)), params)
        total, values = jax.lax.scan(add, zeros, parts)
        mean = jax.tree.map(lambda sum_, x: (sum_ / len(values)).astype(x.dtype), total, params)
        return values.mean(), mean

    def backward(mean: Params, cotangent: Array) -> tuple[Params, Any]:
        return jax.tree.map(lambda leaf: leaf * cotangent.astype(leaf.dtype), mean), None

    averaged.defvjp(forward, backward)
    return averaged
