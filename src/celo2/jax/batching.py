"""Updates many arrays by the rule, batching those of equal shape.

Small arrays are stacked: each one would launch about thirty kernels, and the vectors of a deep network would
cost more than its matrices. Large arrays are never copied; they are batched only inside `three_pass.py` and,
on accelerators, in Newton–Schulz. Arrays that may be sharded are not stacked, since a stack would be sharded
as one array.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from celo2.config import RuleConfig
from celo2.jax import step as step_lib
from celo2.jax.accumulators import Accumulators, Leaf
from celo2.jax.dimensions import Layout
from celo2.jax.quantization import Quantized, decode, encode
from celo2.jax.rounding import make_noise, round_to_bfloat16
from celo2.jax.runtime import on_one_device
from celo2.jax.stacking import stack, unstack
from celo2.jax.step import Result

# Elements of the largest array that is worth a copy. The number, with its measurement, is that of
# `celo2.torch.batching`. It has not been measured for XLA: run `celo2 bench` (`benchmarks/performance.py`)
# with another number.
STACK_LIMIT = 1 << 15


def update_leaves(
    weights: Mapping[str, Any],
    leaves: Sequence[Leaf],
    layouts: Sequence[Layout],
    count: Array,
    config: RuleConfig,
    *,
    skip_zero: bool = False,
) -> list[Result]:
    """Computes the un-negated step and the new accumulators of each leaf, in order.

    Args:
        weights: The network's arrays by name.
        leaves: The arrays to update.
        layouts: The layout of each leaf.
        count: The step count including this update, from 1.
        config: The rule's options.
        skip_zero: As in `step.update_all`.
    """
    results: dict[int, Result] = {}
    options: dict[str, Any] = {"weights": weights, "count": count, "config": config, "skip_zero": skip_zero}
    for indices in _group(leaves, layouts):
        same = [leaves[index] for index in indices]
        update = partial(_update_equal, layout=layouts[indices[0]], **options)
        if len(indices) == 1 or same[0].grad.size > STACK_LIMIT or not on_one_device():
            results |= zip(indices, update(same, indices), strict=True)
            continue
        (together,) = jax.vmap(lambda leaf, index, update=update: update([leaf], [index]))(
            stack(same), jnp.asarray(indices)
        )
        results |= zip(indices, unstack(together, len(indices), count), strict=True)
    return [results[index] for index in range(len(leaves))]


def _group(leaves: Sequence[Leaf], layouts: Sequence[Layout]) -> list[list[int]]:
    """Groups the indices of leaves with equal shape, dtypes and layout, which are updated together."""
    groups: dict[Hashable, list[int]] = {}
    for index, (leaf, layout) in enumerate(zip(leaves, layouts, strict=True)):
        groups.setdefault((leaf.grad.shape, leaf.grad.dtype, leaf.param.dtype, layout), []).append(index)
    return list(groups.values())


def _update_equal(
    leaves: Sequence[Leaf],
    indices: Sequence[int | Array],
    *,
    weights: Mapping[str, Any],
    count: Array,
    layout: Layout,
    config: RuleConfig,
    skip_zero: bool,
) -> list[Result]:
    """Runs `step.update_all` in the layout's shape and the row accumulators' dtype."""
    dtype = leaves[0].accumulators.row[0].dtype
    results = step_lib.update_all(
        {name: array.astype(dtype) for name, array in weights.items()},
        [
            Leaf(layout.enter(grad), layout.enter(param), _view(_decode(accumulators, dtype), layout.enter))
            for grad, param, accumulators in leaves
        ],
        count,
        axes=layout.axes,
        config=config,
        skip_zero=skip_zero,
    )
    finished = []
    for leaf, index, (step, new) in zip(leaves, indices, results, strict=True):
        new = _view(new, layout.leave)
        new = _encode(new, leaf.accumulators, count, index)
        finished.append((layout.leave(step).astype(leaf.grad.dtype), new))
    return finished


def _view(accumulators: Accumulators, change: Callable[[Array], Array]) -> Accumulators:
    """Reshapes momentum and rms; the row and column accumulators already have the layout's shape."""
    momentum, rms = (tuple(map(change, fulls)) for fulls in accumulators[:2])
    return accumulators._replace(momentum=momentum, rms=rms)


def _decode(accumulators: Accumulators, dtype: Any) -> Accumulators:
    """Decodes one-byte momenta; bfloat16 values are converted where they are read."""
    decoded = (decode(own, dtype) if isinstance(own, Quantized) else own for own in accumulators.momentum)
    return accumulators._replace(momentum=tuple(decoded))


def _encode(new: Accumulators, old: Accumulators, count: Array, index: int | Array) -> Accumulators:
    """Rounds momentum and rms to their stored dtypes, with noise from the step count and the leaf's index."""
    fulls, stored = (*new.momentum, *new.rms), (*old.momentum, *old.rms)
    if all(
        not isinstance(own, Quantized) and own.dtype == full.dtype
        for own, full in zip(stored, fulls, strict=True)
    ):
        return new
    noises = make_noise(fulls[0].shape, len(fulls), count, index)
    rounded = [
        encode(full, noise) if isinstance(own, Quantized) else round_to_bfloat16(full, noise)
        for full, own, noise in zip(fulls, stored, noises, strict=True)
    ]
    return new._replace(momentum=tuple(rounded[: len(new.momentum)]), rms=tuple(rounded[len(new.momentum) :]))
