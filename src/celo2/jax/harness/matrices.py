"""Views arrays of a tree as matrices `(..., reduction, output)`, for transforms of whole matrices."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from celo2.jax.dimensions import Layout
from celo2.jax.runtime import find_explicit_mesh, leave_shardings_to_compiler
from celo2.jax.state import make_layouts, working_dtype


class MatrixTree(NamedTuple):
    """Views the arrays of a tree as matrices, and converts them back.

    Attributes:
        treedef: The tree's structure.
        layouts: The layout of each array.
        dtypes: The dtype of each array.
    """

    treedef: Any
    layouts: tuple[Layout, ...]
    dtypes: tuple[Any, ...]

    @classmethod
    def of(cls, tree: Any, dimension_numbers: Any) -> MatrixTree:
        """Reads the shapes of a tree; `dimension_numbers` are as in `celo2.scale_by_celo2`."""
        leaves, treedef = jax.tree.flatten(tree)
        layouts = treedef.flatten_up_to(make_layouts(tree, dimension_numbers))
        return cls(treedef, tuple(layouts), tuple(leaf.dtype for leaf in leaves))

    def enter(self, tree: Any) -> list[Array]:
        """Returns the arrays in at least float32; rank ≥ 2 as matrices `(..., reduction, output)`."""
        arrays = self.treedef.flatten_up_to(tree)
        return [
            layout.enter(array.astype(working_dtype(array)))
            for array, layout in zip(arrays, self.layouts, strict=True)
        ]

    def leave(self, arrays: Sequence[Array]) -> Any:
        """Inverts `enter`."""
        parts = zip(arrays, self.layouts, self.dtypes, strict=True)
        return self.treedef.unflatten([layout.leave(array).astype(dtype) for array, layout, dtype in parts])

    def map(self, function: Callable[..., Array], *trees: Any) -> Any:
        """Applies a function to the arrays of equally shaped trees, and returns a tree like the first."""
        return self.leave([function(*arrays) for arrays in zip(*map(self.enter, trees), strict=True)])


def norms(matrices: Array) -> Array:
    """Returns the Frobenius norm of each matrix, `(..., 1, 1)`; for rank < 2, that of the whole array."""
    axes = (-2, -1) if matrices.ndim >= 2 else None
    return jnp.sqrt(jnp.sum(jnp.square(matrices), axes, keepdims=True))


def factorize_each(factorize: Callable[[Array], Any], matrices: Array) -> Any:
    """Applies a factorization to each matrix of an array; on CPUs sequentially, also under `vmap`.

    On a CPU, two concurrent large batches can deadlock. The call runs on a thread of XLA's
    pool, gives the parts of its batch to the same pool, and waits (`ParallelBatchMap` in jaxlib's
    `lapack_kernels.cc`); no thread is left when there are as many calls as threads. A single matrix has no
    parts.

    Args:
        factorize: A function of arrays `(..., m, n)`, such as `jnp.linalg.qr`.
        matrices: `(batch, m, n)`.

    Returns:
        `factorize(matrices)`.
    """
    one = jax.custom_batching.sequential_vmap(lambda matrix: factorize(matrix))  # without options to trace
    return jax.lax.platform_dependent(matrices, cpu=functools.partial(jax.lax.map, one), default=factorize)


def on_any_mesh(update: Callable[..., tuple[Any, Any]]) -> Callable[..., tuple[Any, Any]]:
    """Lets an `update` reshape arrays on explicit mesh axes; results are sharded like its arguments."""

    @functools.wraps(update)
    def update_anywhere(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        def run(updates: Any, state: Any, params: Any, extra: Any) -> tuple[Any, Any]:
            return update(updates, state, params, **extra)

        return leave_shardings_to_compiler(run, (updates, state), updates, state, params, extra)

    return update_anywhere


def init_on_any_mesh(init: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Lets an `init` reshape parameters on explicit mesh axes, where its state is replicated."""

    @functools.wraps(init)
    def init_anywhere(params: Any) -> Any:
        if find_explicit_mesh(params) is None:
            return init(params)
        shapes = jax.tree.map(lambda param: jax.ShapeDtypeStruct(param.shape, param.dtype), params)
        like = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(init, shapes))
        return leave_shardings_to_compiler(init, like, params)

    return init_anywhere


def stateless(update: Callable[[Any, Any], Any]) -> optax.GradientTransformation:
    """Makes a stateless transform from a function of updates and parameters."""

    def update_any(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return update(updates, params), state

    return optax.GradientTransformation(optax.init_empty_state, on_any_mesh(update_any))
