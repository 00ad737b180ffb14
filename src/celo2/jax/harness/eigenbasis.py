"""Runs any optimizer in the eigenbasis of Shampoo's Kronecker factors, as SOAP runs Adam.

    G' = Q_Lᵀ G Q_R,    W' = Q_Lᵀ W Q_R
    step = Q_L inner(G', W') Q_Rᵀ
    L ← β L + (1 - β) G Gᵀ,    R ← β R + (1 - β) Gᵀ G
    every few steps: Q_L ← QR(L Q_L),    Q_R ← QR(R Q_R)

Source: SOAP, arXiv 2409.11321, algorithms 3 and 4. The inner optimizer's momenta follow the bases exactly;
its second moments follow the order of the columns, which are sorted by decreasing eigenvalue, as in the
authors' code. As in that code, the first gradient only initialises the bases, by an eigendecomposition, and
the first step is zero.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from celo2.constants import BASIS_DECAY, MAX_BASIS_SIDE
from celo2.jax.harness.matrices import MatrixTree, factorize_each, init_on_any_mesh, on_any_mesh
from celo2.jax.orthogonalize import multiply

ROTATED = frozenset({"mu", "momentum", "trace"})  # state that is linear in the gradients, by its field's name
PERMUTED = frozenset({"nu", "rms", "row", "col"})  # state of squares

Basis = tuple[Array | None, Array | None]  # (batch, m, m) and (batch, n, n); None for a long side
Order = tuple[Array | None, Array | None]  # the old index of each new column, (batch, m) and (batch, n)


class EigenbasisState(NamedTuple):
    """State of `in_eigenbasis`; factors and bases are trees of arrays `(batch, side, side)` or None.

    Attributes:
        count: The number of updates, int32.
        left: The factors L of the rows.
        right: The factors R of the columns.
        left_basis: The bases Q_L.
        right_basis: The bases Q_R.
        inner_state: The inner optimizer's state, for matrices `(batch, m, n)` in the basis.
    """

    count: Array  # type: ignore[assignment]  # Optax's own name, tuple.count is not meant
    left: optax.Params
    right: optax.Params
    left_basis: optax.Params
    right_basis: optax.Params
    inner_state: optax.OptState


def in_eigenbasis(
    inner: optax.GradientTransformation,
    *,
    every: int = 10,
    decay: float = BASIS_DECAY,
    max_side: int = MAX_BASIS_SIDE,
    dimension_numbers: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Runs an optimizer of directions on matrices in the eigenbasis of their gradients' factors.

    The inner optimizer sees every array of rank ≥ 2 as matrices `(batch, m, n)` of at least float32, so its
    `dimension_numbers`, if any, are `DimensionNumbers(1, 2)`. Its state is transformed when the bases
    change: trees in fields named `mu`, `momentum` or `trace` are rotated, those in `nu`, `rms`, `row` and
    `col` are reordered. Arrays of rank < 2 are passed to it unchanged. A matrix whose gradient is exactly
    zero keeps its factors.

    `update` accepts the optional extra argument `step`, the number of previous updates: it must equal the
    state's own count, which it replaces. Under `jax.vmap` the state's count is batched, so work that is due
    every n steps is computed, and discarded, at each step; an unbatched `step` avoids this.

    Args:
        inner: A transform such as `optax.scale_by_adam` or `celo2.scale_by_celo2`, without a learning rate.
        every: The number of steps between power iterations for the bases, ≥ 1.
        decay: The decay β of the factors, in [0, 1).
        max_side: The longest side that gets a factor; longer sides keep the array's own basis.
        dimension_numbers: The matrix axes, as in `celo2.scale_by_celo2`.

    Returns:
        A transform whose state has, in addition to the inner state, two square matrices of 4 bytes per
        element for each side that gets a factor.

    Raises:
        ValueError: An argument is out of its range, the inner optimizer needs parameters and `update` got
            none, or a tree in one of these fields of its state does not match the parameters.

    Example:
        SOAP is Adam in this basis:

        >>> import jax.numpy as jnp, optax
        >>> tx = in_eigenbasis(optax.scale_by_adam(0.95, 0.95))
        >>> params = {"kernel": jnp.ones((4, 3))}
        >>> updates, state = tx.update(params, tx.init(params), params)
        >>> float(jnp.abs(updates["kernel"]).max())
        0.0

    References:
        SOAP: arXiv 2409.11321. Shampoo: arXiv 1802.09568.
    """
    if every < 1 or max_side < 1 or not 0 <= decay < 1:
        raise ValueError(
            f"every and max_side must be at least 1 and decay in [0, 1), got {every}, {max_side} and {decay}."
        )
    inner = optax.with_extra_args_support(inner)

    def init(params: optax.Params) -> EigenbasisState:
        tree = MatrixTree.of(params, dimension_numbers)
        matrices = _stack(tree.enter(params))
        zeros = [_zero_factors(matrix, max_side) for matrix in matrices]
        factors = _split(zeros, tree.treedef)
        left, right = jax.tree.map(jnp.copy, factors)  # so that no array is donated twice
        inner_state = inner.init(tree.treedef.unflatten(matrices))
        return EigenbasisState(jnp.zeros((), jnp.int32), *factors, left, right, inner_state)

    def update(
        updates: optax.Updates,
        state: EigenbasisState,
        params: optax.Params | None = None,
        *,
        step: ArrayLike | None = None,
        **extra: Any,
    ) -> tuple[optax.Updates, EigenbasisState]:
        count = jnp.asarray(state.count if step is None else step)
        tree = MatrixTree.of(updates, dimension_numbers)
        entered = tree.enter(updates)
        grads, treedef = _stack(entered), tree.treedef
        bases, factors = (
            list(zip(*map(treedef.flatten_up_to, pair), strict=True))
            for pair in ((state.left_basis, state.right_basis), (state.left, state.right))
        )

        def rotate_all(arrays: Sequence[Array]) -> Any:
            return treedef.unflatten([_rotate(*pair) for pair in zip(arrays, bases, strict=True)])

        weights = None if params is None else rotate_all(_stack(tree.enter(params)))
        steps, inner_state = inner.update(rotate_all(grads), state.inner_state, weights, **extra)
        ready = count > 0  # the first gradient only initialises the bases
        inner_state = _choose(ready, inner_state, state.inner_state)
        back = [
            jnp.where(ready, _rotate_back(*pair), 0)
            for pair in zip(treedef.flatten_up_to(steps), bases, strict=True)
        ]
        factors = [_accumulate(*pair, decay) for pair in zip(factors, grads, strict=True)]
        due = jnp.where(count == 0, 0, jnp.where(count % every == 0, 1, 2))
        bases, inner_state = jax.lax.switch(
            due, [_first_bases, _next_of(treedef), _keep_bases], factors, bases, inner_state
        )
        unstacked = [x.reshape(matrix.shape) for x, matrix in zip(back, entered, strict=True)]
        next_count = jnp.asarray(optax.safe_increment(state.count))
        left, right = _split(factors, treedef)
        left_basis, right_basis = _split(bases, treedef)
        new = EigenbasisState(next_count, left, right, left_basis, right_basis, inner_state)
        return tree.leave(unstacked), new

    return optax.GradientTransformationExtraArgs(init_on_any_mesh(init), on_any_mesh(update))  # type: ignore[arg-type]


def _split(pairs: Sequence[Basis], treedef: Any) -> tuple[Any, Any]:
    """Returns one tree for the left sides and one for the right sides."""
    return treedef.unflatten([left for left, _ in pairs]), treedef.unflatten([right for _, right in pairs])


def _stack(arrays: Sequence[Array]) -> list[Array]:
    """Gives every array of rank ≥ 2 exactly one batch axis."""
    return [a.reshape(math.prod(a.shape[:-2]), *a.shape[-2:]) if a.ndim >= 2 else a for a in arrays]


def _zero_factors(matrices: Array, max_side: int) -> Basis:
    def zeros(size: int) -> Array | None:
        return jnp.zeros((len(matrices), size, size), matrices.dtype) if size <= max_side else None

    if matrices.ndim < 2:
        return None, None
    return zeros(matrices.shape[-2]), zeros(matrices.shape[-1])


def _accumulate(factors: Basis, grad: Array, decay: float) -> Basis:
    left, right = factors
    if grad.ndim < 2:
        return factors
    transposed = jnp.matrix_transpose(grad)
    busy = jnp.any(grad != 0, axis=(-2, -1), keepdims=True)  # an array without a gradient keeps its factors

    def update(old: Array | None, product: Callable[[], Array]) -> Array | None:
        return None if old is None else jnp.where(busy, decay * old + (1 - decay) * product(), old)

    return update(left, lambda: multiply(grad, transposed)), update(right, lambda: multiply(transposed, grad))


def _rotate(matrices: Array, basis: Basis) -> Array:
    """Returns `Q_Lᵀ · matrices · Q_R`."""
    left, right = basis
    matrices = matrices if left is None else multiply(jnp.matrix_transpose(left), matrices)
    return matrices if right is None else multiply(matrices, right)


def _rotate_back(matrices: Array, basis: Basis) -> Array:
    left, right = basis
    matrices = matrices if left is None else multiply(left, matrices)
    return matrices if right is None else multiply(matrices, jnp.matrix_transpose(right))


def _choose(condition: Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda new, old: jnp.where(condition, new, old), new, old)


def _first_bases(factors: list[Basis], bases: list[Basis], inner_state: Any) -> tuple[list[Basis], Any]:
    """Returns eigenvectors as bases, those of the largest eigenvalue first."""
    del bases
    return jax.tree.map(functools.partial(factorize_each, _eigenvectors), factors), inner_state


def _eigenvectors(factor: Array) -> Array:
    return jnp.linalg.eigh(factor)[1][..., ::-1]


@functools.cache  # `switch` recompiles for a new function object
def _next_of(treedef: Any) -> Callable[..., tuple[list[Basis], Any]]:
    return functools.partial(_next_bases, treedef)


def _next_bases(
    treedef: Any, factors: list[Basis], bases: list[Basis], inner_state: Any
) -> tuple[list[Basis], Any]:
    """Runs one power iteration for each basis, and transforms the inner state accordingly."""
    news, orders = [], []
    for own, old in zip(factors, bases, strict=True):
        pairs = [(None, None) if q is None else _power_iteration(f, q) for f, q in zip(own, old, strict=True)]
        news.append((pairs[0][0], pairs[1][0]))
        orders.append((pairs[0][1], pairs[1][1]))
    return news, _follow(inner_state, treedef, bases, news, orders)


def _keep_bases(factors: list[Basis], bases: list[Basis], inner_state: Any) -> tuple[list[Basis], Any]:
    del factors
    return bases, inner_state


def _power_iteration(factor: Any, basis: Array) -> tuple[Array, Array]:
    """Returns the new basis `(batch, m, m)`, and the old index of each of its columns, `(batch, m)`."""
    product = multiply(factor, basis)
    order = jnp.argsort(-jnp.sum(basis * product, axis=-2), axis=-1)
    sorted_product = jnp.take_along_axis(product, order[:, None, :], axis=-1)
    return factorize_each(_orthonormal_columns, sorted_product), order


def _orthonormal_columns(matrix: Array) -> Array:
    return jnp.linalg.qr(matrix)[0]


def _follow(state: Any, treedef: Any, olds: list[Basis], news: list[Basis], orders: list[Order]) -> Any:
    """Returns an optimizer's state in new bases; see `in_eigenbasis` for what is rotated or reordered."""

    def rotate(array: Array, index: int) -> Array:
        return _rotate(_rotate_back(array, olds[index]), news[index]).astype(array.dtype)

    def reorder(array: Array, index: int) -> Array:
        return _reorder(array, orders[index])

    changes = dict.fromkeys(ROTATED, rotate) | dict.fromkeys(PERMUTED, reorder)

    def change(name: str, field: Any) -> Any:
        """Changes a tree like the parameters, or a tuple of such trees, one per decay."""
        leaves, structure = jax.tree.flatten(field)
        trees = field if isinstance(field, tuple) and structure != treedef else (field,)
        if any(jax.tree.structure(tree) != treedef for tree in trees):
            raise ValueError(
                f"in_eigenbasis cannot take the inner optimizer's state {name!r} along: it is not like the "
                f"parameters, but {structure}; put masks and partitions around in_eigenbasis."
            )
        return structure.unflatten([changes[name](leaf, at % len(olds)) for at, leaf in enumerate(leaves)])

    def is_known(node: Any) -> bool:
        return not changes.keys().isdisjoint(getattr(node, "_fields", ()))

    def follow(node: Any) -> Any:
        if not is_known(node):
            return node
        named = zip(node._fields, node, strict=True)
        return type(node)(*(change(name, x) if name in changes else follow_all(x) for name, x in named))

    def follow_all(tree: Any) -> Any:
        return jax.tree.map(follow, tree, is_leaf=is_known)

    return follow_all(state)


def _reorder(array: Array, order: Order) -> Array:
    """Reorders the rows and columns of `(batch, m, n)`, or of an array with one of them reduced to 1."""
    if array.ndim < 2:
        return array
    left, right = order
    if left is not None and array.shape[-2] == left.shape[-1]:
        array = jnp.take_along_axis(array, left[:, :, None], axis=-2)
    if right is not None and array.shape[-1] == right.shape[-1]:
        array = jnp.take_along_axis(array, right[:, None, :], axis=-1)
    return array
