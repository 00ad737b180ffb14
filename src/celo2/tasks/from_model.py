"""Makes a task from a Flax, Equinox or plain-function model, a loss, and arrays."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from celo2.tasks.base import Batch, Dataset, Params, Task
from celo2.tasks.registry import check_task

Model = Any  # what a loss calls: a function of inputs
ModelLoss = Callable[[Model, Batch], Array]
Functions = tuple[Callable[[Array], Params], Callable[[Params], Model]]  # key → params; params → model


def task_from_model(
    name: str,
    model: Any,
    loss: ModelLoss,
    train: Mapping[str, Any],
    valid: Mapping[str, Any],
    *,
    inputs: str | tuple[str, ...] = (),
    batch_size: int = 64,
    accuracy: ModelLoss | None = None,
    initial_loss: float | None = None,
    origin: str = "",
) -> Task:
    """Makes a task that `celo2 compare`, `evaluate` and `probe` can train like the built-in ones.

    Args:
        name: The name for reports.
        model: One of

            - a Flax Linen module, initialized with the arrays named by `inputs`;
            - a function `key → model` that makes a Flax NNX or Equinox module (NNX: `lambda key:
              Net(nnx.Rngs(key))`), whose floating-point arrays are all trained;
            - a pair `(init, apply)`: `key → parameters`, and `(parameters, *inputs) → outputs`.
        loss: `(model, batch) → ()`, the mean over the batch, float32. The model is called like the module;
            the batch is a dict of arrays with the names in `train`.
        train: Arrays by name, with examples on the leading axis.
        valid: Held-out arrays with the same names.
        inputs: Names of the arrays that a Linen module is called with.
        batch_size: Examples in a training batch, drawn with replacement.
        accuracy: `(model, batch) → ()`, in [0, 1]; None: not reported.
        initial_loss: The approximate loss of an untrained network, above which a run counts as diverged;
            None: measured on the first validation examples.
        origin: One sentence on the source and licence of the arrays.

    Raises:
        ValueError: The model has state besides its parameters (such as batch statistics), which tasks
            do not support, or `celo2.tasks.registry.check_task` rejects the task.

    Example:
        >>> import jax.numpy as jnp, numpy as np
        >>> rows = {"x": np.ones((8, 3), np.float32), "y": np.zeros(8, np.float32)}
        >>> model = (lambda key: {"w": jax.random.normal(key, (3,))}, lambda params, x: x @ params["w"])
        >>> def loss(model, batch):
        ...     return jnp.square(model(batch["x"]) - batch["y"]).mean()
        >>> task_from_model("line", model, loss, rows, rows, batch_size=4).batch_size
        4
    """
    init, bind = _find_functions(model, (inputs,) if isinstance(inputs, str) else inputs, train)

    def bound(function: ModelLoss) -> Callable[[Params, Batch], Array]:
        return lambda params, batch: function(bind(params), batch)

    task = Task(
        name=name,
        dataset=Dataset(name=f"arrays of {name}", train=dict(train), valid=dict(valid), origin=origin),
        init=init,
        loss=bound(loss),
        batch_size=batch_size,
        initial_loss=np.inf if initial_loss is None else initial_loss,
        accuracy=None if accuracy is None else bound(accuracy),
    )
    check_task(name, task)
    if initial_loss is None:
        measured = _measure_initial_loss(task)
        if not np.isfinite(measured):
            raise ValueError(
                f"task {name!r}: the loss of an untrained network is {measured}; give initial_loss."
            )
        task = dataclasses.replace(task, initial_loss=measured)
    return task


def _measure_initial_loss(task: Task) -> float:
    """Returns the loss of an untrained network on the first validation examples."""
    batch = {key: jnp.asarray(array[: task.batch_size]) for key, array in task.dataset.valid.items()}
    return float(jax.jit(lambda key, batch: task.loss(task.init(key), batch))(jax.random.key(0), batch))


def _find_functions(model: Any, inputs: tuple[str, ...], arrays: Mapping[str, Any]) -> Functions:
    """Returns functions that make the parameters, and that make a callable model from them."""
    linen, nnx = sys.modules.get("flax.linen"), sys.modules.get("flax.nnx")
    if linen is not None and isinstance(model, linen.Module):
        return _of_linen(model, inputs, arrays)
    if isinstance(model, tuple) and len(model) == 2 and all(map(callable, model)):
        init, apply = model
        return init, lambda params: lambda *inputs: apply(params, *inputs)
    if not callable(model):
        raise ValueError(
            f"the model is {type(model).__name__}, expected a Flax Linen module, a function of a key that "
            "makes an NNX or Equinox module, or a pair (init, apply)."
        )
    made = model(jax.random.key(0))
    if nnx is not None and isinstance(made, nnx.Module):
        return _of_nnx(model, made, nnx)
    return _of_tree(model, made)


def _of_linen(module: Any, inputs: tuple[str, ...], arrays: Mapping[str, Any]) -> Functions:
    if not inputs or not set(inputs) <= set(arrays):
        raise ValueError(
            f"a Linen module needs inputs=, the names of the arrays that it is called with, among "
            f"{sorted(arrays)}; got {list(inputs)}."
        )
    examples = [jnp.asarray(arrays[name][:1]) for name in inputs]
    _refuse_state(set(jax.eval_shape(module.init, jax.random.key(0), *examples)) - {"params"})
    return (
        lambda key: module.init(key, *examples)["params"],
        lambda params: lambda *inputs, **options: module.apply({"params": params}, *inputs, **options),
    )


def _of_nnx(make: Callable[[Array], Any], made: Any, nnx: Any) -> Functions:
    graph, template, rest = nnx.split(made, nnx.Param, ...)
    is_variable = lambda leaf: isinstance(leaf, nnx.Variable)  # noqa: E731
    _refuse_state({type(leaf).__name__ for leaf in jax.tree.leaves(rest, is_leaf=is_variable)})

    def bind(params: Params) -> Model:
        state = jax.tree.map(lambda leaf: leaf, template)  # a copy, since it is changed in place
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graph, state)

    return lambda key: nnx.to_pure_dict(nnx.state(make(key), nnx.Param)), bind


def _of_tree(make: Callable[[Array], Any], made: Any) -> Functions:
    """Trains the floating-point arrays of a callable tree, such as an Equinox module."""

    def is_trained(leaf: Any) -> bool:
        return isinstance(leaf, jax.Array | np.ndarray) and jnp.issubdtype(leaf.dtype, jnp.inexact)

    if not callable(made):
        raise ValueError(f"the function of a key makes {type(made).__name__}, which cannot be called.")
    fixed = jax.tree.map(lambda leaf: None if is_trained(leaf) else leaf, made)

    def init(key: Array) -> Params:
        return jax.tree.map(lambda leaf: leaf if is_trained(leaf) else None, make(key))

    def bind(params: Params) -> Model:
        choose = lambda trained, other: other if trained is None else trained  # noqa: E731
        return jax.tree.map(choose, params, fixed, is_leaf=lambda leaf: leaf is None)

    return init, bind


def _refuse_state(kinds: set[str]) -> None:
    if kinds:
        raise ValueError(
            f"the model has state besides its parameters ({', '.join(sorted(kinds))}), which a task does not "
            "keep; use norms without running statistics, and no dropout."
        )
