"""The rule on matrices in three passes over memory, with only operations on vectors in between.

Source: arXiv 2602.19142, section 3, as in `step.py`; the formulas are those of `accumulators`,
`features` and `mlp`. The twin of `celo2.jax.three_pass`, where `Passes` are specified.

    pass 1   g            → means of g² over rows and over columns
    pass 2   g, p, m, v   → m, v in place; the mean square of every channel of the matrix's shape
    pass 3   g, p, m, v   → direction; its mean square

The passes are pluggable: this module has the version on whole tensors, `kernels/cpu_blocked.py` the one on
blocks that stay in a CPU's cache, `kernels/cpu_numba.py` and `kernels/gpu_triton.py` the compiled kernels.
Between the passes, the factored moments, their factors and the contributions of row and column channels to
the first layer are computed, stacked over equal matrices, so that a deep network needs one handful of small
operations instead of one per matrix. A parameter of rank < 2 is a matrix with one row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from celo2.config import RuleConfig
from celo2.constants import FACTORED_EPS, GRAD_CLIP
from celo2.torch import accumulators as accumulators_lib
from celo2.torch import features, mlp
from celo2.torch.accumulators import Accumulators
from celo2.torch.dimensions import Axes
from celo2.torch.features import Inputs
from celo2.torch.weights import Network


class Matrix(NamedTuple):
    """One matrix, or several in one tensor, before the update; the twin of `celo2.jax.accumulators.Leaf`.

    `batching.Leaf` has more here: each parameter has its own step count.

    Attributes:
        grad: The gradient, `(..., rows, cols)`, not clipped.
        param: The parameter, in the same shape.
        accumulators: The accumulators before this update, in the working dtype; updated in place.
    """

    grad: Tensor
    param: Tensor
    accumulators: Accumulators


class Direction(NamedTuple):
    """The network's output for one matrix.

    Attributes:
        values: The output, in the matrix's shape, not normalised.
        mean_square: The mean square of the values over the last two axes, which are kept with length 1.
        busy: 0 where the gradient is exactly zero and skipped, else 1, in the same shape; None: 1.
    """

    values: Tensor
    mean_square: Tensor
    busy: Tensor | None


Units = tuple[Tensor, Tensor]  # added to the first layer: (units, ..., rows, 1), (units, ..., 1, cols)


class Passes(NamedTuple):
    """The three passes over matrices, as specified in `celo2.jax.three_pass.Passes`, with two differences.

    `accumulate` updates the inputs' accumulators in place and returns only the channels' mean squares.
    Factors and contributions along the rows come first, those along the columns second.
    """

    square_means: Callable[[Tensor], tuple[Tensor, Tensor]]
    accumulate: Callable[[Inputs, Tensor | None], Tensor]
    direct: Callable[[Inputs, Tensor, Units], tuple[Tensor, Tensor]]


def covers(axes: Axes | None, config: RuleConfig) -> bool:
    """Returns whether the passes support such a tensor: a vector, or factored over the last two axes."""
    return (
        (axes is None or set(axes) == {-2, -1})
        and config.normalize_input
        and not config.bias_correction
        and config.exp_mult == 0
    )


def compute(
    network: Network, matrices: Sequence[Matrix], passes: Passes, *, axes: Axes | None
) -> list[Direction]:
    """Computes the directions of matrices of one shape and dtype, and updates their accumulators.

    Args:
        network: Weights and options that satisfy `covers`.
        matrices: Matrices of rank ≥ 2.
        passes: The implementation of the passes.
        axes: The factored axes, the last two; None for vectors, `(..., n, 1)`.
    """
    if axes is None:  # a vector is a matrix with one row, whose column moments are its own second moments
        matrices = [_turn(matrix) for matrix in matrices]
    means = [passes.square_means(matrix.grad) for matrix in matrices]
    over_cols, over_rows = (torch.stack(side) for side in zip(*means, strict=True))
    together = accumulators_lib.find_busy(over_cols) if network.skip_zero_gradients else None
    vectors = _update_factored(matrices, over_cols, over_rows, axes, network.config, together)
    factors = sort_factors(vectors, axes)
    units = vector_units(vectors, network, axes)
    busy = [None] * len(matrices) if together is None else together.unbind()
    directions = []  # one matrix at a time, so that the third pass finds it in a cache
    for index, (matrix, own) in enumerate(zip(matrices, busy, strict=True)):
        inputs = _make_inputs(matrix, factors, index)
        scales = mlp.normalizer(passes.accumulate(inputs, own))  # (channels, ..., 1, 1)
        values, mean_square = passes.direct(inputs, scales, (units[0][:, index], units[1][:, index]))
        directions.append(Direction(values, mean_square, own))
    return directions if axes else [own._replace(values=own.values.mT) for own in directions]


def make_passes(network: Network, *, factored: bool) -> Passes:
    """Makes the passes on whole tensors by the plain formulas, the reference for the faster versions.

    Args:
        network: Weights and options.
        factored: Whether the passes are for matrices; False: for vectors, as matrices with one row.
    """
    config = network.config
    names = features.full_names(config, factored=factored)

    def clip(inputs: Inputs) -> Inputs:
        return inputs._replace(grad=inputs.grad.clamp(-GRAD_CLIP, GRAD_CLIP))

    def square_means(grad: Tensor) -> tuple[Tensor, Tensor]:
        square = grad.clamp(-GRAD_CLIP, GRAD_CLIP).square()
        return square.mean(-1, keepdim=True), square.mean(-2, keepdim=True)

    def accumulate(inputs: Inputs, busy: Tensor | None) -> Tensor:
        inputs = clip(inputs)
        accumulators_lib.update_full(inputs.accumulators, inputs.grad, config, busy)
        groups = features.compute(inputs, names, config)
        return torch.stack([mlp.mean_square(channel) for group in groups.values() for channel in group])

    def direct(inputs: Inputs, scales: Tensor, units: Units) -> tuple[Tensor, Tensor]:
        groups = features.compute(clip(inputs), names, config)
        own = iter(scales)
        input_scales = {name: tuple(next(own) for _ in group) for name, group in groups.items()}
        direction, _ = mlp.compute(groups, input_scales, network.numbers, config, vectors=units)
        return direction, mlp.mean_square(direction)

    return Passes(square_means, accumulate, direct)


def _turn(matrix: Matrix) -> Matrix:
    accumulators = Accumulators(*(tuple(x.mT for x in family) for family in matrix.accumulators))
    return Matrix(matrix.grad.mT, matrix.param.mT, accumulators)


def _update_factored(
    matrices: Sequence[Matrix],
    over_cols: Tensor,
    over_rows: Tensor,
    axes: Axes | None,
    config: RuleConfig,
    busy: Tensor | None,
) -> Accumulators:
    """Updates the row and column accumulators of all matrices in place, and returns them stacked."""
    row_mean, col_mean = (over_cols, over_rows) if axes and axes.large == -1 else (over_rows, over_cols)
    decays, olds = config.initial_adafactor_decays, [matrix.accumulators for matrix in matrices]
    row = _decay([old.row for old in olds], row_mean, decays, busy)
    col = _decay([old.col for old in olds], col_mean, decays, busy) if axes else ()
    return Accumulators((), (), row, col)


def sort_factors(vectors: Accumulators, axes: Axes | None) -> features.Factors:
    """Returns, for each decay, the factors along the rows, `(..., rows, 1)`, and along the columns."""
    row, *col = (torch.stack(own) for own in (vectors.row, vectors.col) if own)  # all decays in one operation
    [sides] = features.compute_factors((row,), tuple(col), axes)
    if axes is None:
        sides = (torch.ones_like(row[..., :1]), *sides)
    elif axes.large != -1:
        sides = sides[::-1]
    return tuple(zip(*(side.unbind() for side in sides), strict=True))


def _make_inputs(matrix: Matrix, factors: features.Factors, index: int) -> Inputs:
    own = tuple(tuple(factor[index] for factor in pair) for pair in factors)
    accumulators = matrix.accumulators._replace(row=(), col=())
    return Inputs(matrix.grad, matrix.param, accumulators, own)


def _decay(
    olds: Sequence[tuple[Tensor, ...]], mean: Tensor, decays: Sequence[float], busy: Tensor | None
) -> tuple[Tensor, ...]:
    """Updates factored moments of several matrices in place, and returns one stack per decay."""
    mean = mean + FACTORED_EPS
    stacked = []
    for values, decay in zip(zip(*olds, strict=True), decays, strict=True):
        new = torch.stack(values).lerp_(mean, (1.0 - decay) if busy is None else (1.0 - decay) * busy)
        for value, own in zip(values, new, strict=True):
            value.copy_(own)
        stacked.append(new)
    return tuple(stacked)


def vector_units(vectors: Accumulators, network: Network, axes: Axes | None) -> Units:
    """Computes the contributions of row and column channels and of the bias to each first-layer unit."""
    config, like = network.config, vectors.row[0]
    if axes is None:
        bias = network.tensor("b0", like=like).view(-1, *[1] * like.ndim)
        return bias.expand(-1, *like.shape[:-1], 1), torch.zeros_like(like).expand(len(bias), *like.shape)
    names = features.vector_names(config, factored=True)
    groups = features.compute(Inputs(like, like, vectors, ()), names, config)
    kinds = {name: feature.name for name, feature in config.feature_groups(2)}
    bias = network.tensor("b0", like=like)
    units = []
    for side, like in (("row", vectors.row[0]), ("col", vectors.col[0])):
        total = bias.view(-1, *[1] * like.ndim).expand(-1, *like.shape)
        own = [name for name in names if kinds[name].endswith(side)]
        if own:
            values = torch.stack([channel for name in own for channel in groups[name]])[:, None]
            values = values * mlp.normalizer(mlp.mean_square(values))
            rows = network.tensor(*own, like=like)
            # A product of matrices might be rounded to TF32.
            total = total + (values * rows.view(*rows.shape, *[1] * like.ndim)).sum(0)
        units.append(total)
        bias = torch.zeros_like(bias)
    return (units[0], units[1]) if axes.large == -1 else (units[1], units[0])
