"""The Celo2 rule for one array, in float64 NumPy, as the specification states it.

Slow, complete and literal: one expression for each line of the specification, no backend, no tree. It shares
no code with `celo2`, so that agreement between the two means something.

Symbols: gradient `g`, parameter `p`, momentum `m`, second moment `v`, row and column means `r` and `c`
(diagonal `d` for rank < 2), weights `theta` named `w0__0 … w0__13`, `b0`, `w1`, `b1`, `w2`, `b2`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

GRADIENT_LIMIT = 1000.0
CLIP_FEATURE_LIMIT = 0.1
FEATURE_EPS = 1e-8  # against v, r and c in the features
FACTOR_EPS = 1e-9  # in the factored scale
NORMALIZE_EPS = 1e-9  # both normalisers and the parameter's RMS
SQUARE_EPS = 1e-30  # added to g² in the factored means
PRECONDITION_EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class Options:
    """The reference's keywords, with its defaults."""

    ff_hidden_size: int = 8
    ff_hidden_layers: int = 2
    initial_momentum_decays: tuple[float, ...] = (0.9, 0.99, 0.999)
    initial_rms_decays: tuple[float, ...] = (0.95,)
    initial_adafactor_decays: tuple[float, ...] = (0.9, 0.99, 0.999)
    exp_mult: float = 0.0
    rmsmult: float = 1.0
    with_g: bool = True
    with_m: bool = True
    with_rms: bool = True
    with_rms_norm_g: bool = True
    with_rsqrt_rms: bool = True
    with_p: bool = True
    with_fac_norm_g: bool = True
    with_fac_rms: bool = True
    with_fac_rsqrt: bool = True
    with_grad_clip_feat: bool = True
    with_fac_mom_mult: bool = True
    with_rms_only_norm_g: bool = True
    param_scale_mult: bool = False
    precondition_output: bool = False
    normalize_input: bool = True
    normalize_output: bool = True
    aggregate_mag: bool = False
    bias_correction: bool = False
    mlp_activation: str = "relu"
    orthogonalize: bool = True
    ns_coeffs: tuple[Any, ...] = (3.4445, -4.7750, 2.0315)  # or three for each iteration
    ns_iters: int = 5
    ns_eps: float = 1e-8


def make_options(keywords: Mapping[str, Any]) -> Options:
    """From JSON's types, which have no tuples."""
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in keywords.items()}
    return Options(**values)


@dataclass
class Accumulators:
    """One tensor's state: one array for each decay; `row` is the diagonal when the rank is below 2."""

    count: int = 0
    momentum: list[Array] = field(default_factory=list)
    rms: list[Array] = field(default_factory=list)
    row: list[Array] = field(default_factory=list)
    col: list[Array] = field(default_factory=list)


def rsqrt(x: Array) -> Array:
    return 1.0 / np.sqrt(x)


def mean_square(x: Array) -> Array:
    """Mean of x² over the last two axes (the one axis of a vector), kept for broadcasting."""
    return np.mean(x * x, axis=tuple(range(x.ndim))[-2:], keepdims=True)


def normalize(x: Array) -> Array:
    return x * rsqrt(mean_square(x) + NORMALIZE_EPS)


def factored_dims(shape: tuple[int, ...]) -> tuple[int, int]:
    """`(d1, d0)`: the second largest and the largest dimension, ties in index order."""
    d1, d0 = sorted(range(len(shape)), key=lambda axis: shape[axis])[-2:]  # Python's sort is stable
    return d1, d0


def init(shape: tuple[int, ...], options: Options) -> Accumulators:
    shape = shape or (1,)
    row_shape = col_shape = shape
    if len(shape) >= 2:
        d1, d0 = factored_dims(shape)
        row_shape = tuple(1 if axis == d0 else size for axis, size in enumerate(shape))
        col_shape = tuple(1 if axis == d1 else size for axis, size in enumerate(shape))
    return Accumulators(
        momentum=[np.zeros(shape) for _ in options.initial_momentum_decays],
        rms=[np.zeros(shape) for _ in options.initial_rms_decays],
        row=[np.zeros(row_shape) for _ in options.initial_adafactor_decays],
        col=[np.zeros(col_shape) for _ in options.initial_adafactor_decays],
    )


def accumulate(acc: Accumulators, g: Array, options: Options) -> Accumulators:
    """Move every average one step; row and column means keep their reduced axis as size 1."""
    squared = g * g + SQUARE_EPS
    row_term = col_term = squared
    if g.ndim >= 2:
        d1, d0 = factored_dims(g.shape)
        row_term = squared.mean(axis=d0, keepdims=True)
        col_term = squared.mean(axis=d1, keepdims=True)

    def moved(old: list[Array], decays: tuple[float, ...], new: Array) -> list[Array]:
        return [decay * a + (1.0 - decay) * new for a, decay in zip(old, decays, strict=True)]

    return Accumulators(
        count=acc.count + 1,
        momentum=moved(acc.momentum, options.initial_momentum_decays, g),
        rms=moved(acc.rms, options.initial_rms_decays, g * g),
        row=moved(acc.row, options.initial_adafactor_decays, row_term),
        col=moved(acc.col, options.initial_adafactor_decays, col_term),
    )


def bias_corrected(acc: Accumulators, options: Options) -> Accumulators:
    """Each average divided by `1 - βᵗ`."""

    def corrected(values: list[Array], decays: tuple[float, ...]) -> list[Array]:
        return [a / (1.0 - decay**acc.count) for a, decay in zip(values, decays, strict=True)]

    return Accumulators(
        count=acc.count,
        momentum=corrected(acc.momentum, options.initial_momentum_decays),
        rms=corrected(acc.rms, options.initial_rms_decays),
        row=corrected(acc.row, options.initial_adafactor_decays),
        col=corrected(acc.col, options.initial_adafactor_decays),
    )


def factors(acc: Accumulators, shape: tuple[int, ...]) -> list[Array]:
    """What multiplies the gradient for each Adafactor decay: `row_factor · col_factor`, or the diagonal's."""
    if len(shape) < 2:
        return [rsqrt(np.maximum(d + FACTOR_EPS, FACTOR_EPS)) for d in acc.row]
    d1, _ = factored_dims(shape)
    row = [rsqrt(np.maximum(r / (r.mean(axis=d1, keepdims=True) + FACTOR_EPS), FACTOR_EPS)) for r in acc.row]
    col = [rsqrt(np.maximum(c, FACTOR_EPS)) for c in acc.col]
    return [r * c for r, c in zip(row, col, strict=True)]


def features(raw: Accumulators, g: Array, p: Array, options: Options) -> list[list[Array]]:
    """Feature groups in the order of `w0__i`; each group is a list of channels of the tensor's shape.

    Bias correction reaches every feature but `fac_g`, which the reference computes from the raw averages.
    """
    acc = bias_corrected(raw, options) if options.bias_correction else raw
    scale, raw_scale = factors(acc, g.shape), factors(raw, g.shape)
    inverse_rms = [rsqrt(v + FEATURE_EPS) for v in acc.rms]
    paired_rms = inverse_rms * len(acc.momentum) if len(inverse_rms) == 1 else inverse_rms
    matrix = g.ndim >= 2
    factored_momentum = []
    if options.with_fac_mom_mult:  # the pairs exist only where both families have as many decays
        factored_momentum = [m * f for m, f in zip(acc.momentum, scale, strict=True)]
    table: list[tuple[bool, list[Array]]] = [
        (options.with_g, [g]),
        (options.with_grad_clip_feat, [np.clip(g, -CLIP_FEATURE_LIMIT, CLIP_FEATURE_LIMIT)]),
        (options.with_p, [p]),
        (options.with_m, acc.momentum),
        (options.with_rms, acc.rms),
        (options.with_rms_norm_g, [m * i for m, i in zip(acc.momentum, paired_rms, strict=True)]),
        (options.with_rsqrt_rms, inverse_rms),
        (options.with_fac_norm_g, [g * f for f in raw_scale]),
        (options.with_rms_only_norm_g, [g * i for i in inverse_rms]),
        (options.with_fac_rms and matrix, acc.row),
        (options.with_fac_rms and matrix, acc.col),
        (options.with_fac_rsqrt and matrix, [rsqrt(r + FEATURE_EPS) for r in acc.row]),
        (options.with_fac_rsqrt and matrix, [rsqrt(c + FEATURE_EPS) for c in acc.col]),
        (options.with_fac_mom_mult and matrix, factored_momentum),
    ]
    groups = [[np.broadcast_to(x, g.shape) for x in channels] for enabled, channels in table if enabled]
    if options.normalize_input:
        groups = [[normalize(x) for x in channels] for channels in groups]
    return groups


def mlp(theta: Mapping[str, NDArray[np.floating]], groups: list[list[Array]], options: Options) -> Array:
    """Direction, magnitude and an unused third output, on a trailing axis of 3."""
    activation = {"relu": lambda x: np.maximum(x, 0.0), "tanh": np.tanh}[options.mlp_activation]
    hidden = theta["b0"].astype(np.float64)
    for index, channels in enumerate(groups):
        hidden = hidden + np.stack(channels, axis=-1) @ theta[f"w0__{index}"].astype(np.float64)
    for layer in range(1, options.ff_hidden_layers + 1):
        weight, bias = (theta[f"{kind}{layer}"].astype(np.float64) for kind in "wb")
        hidden = activation(hidden) @ weight + bias
    return hidden


def orthogonalize(x: Array, options: Options) -> Array:
    """Newton–Schulz on the last two axes."""
    triples = np.broadcast_to(np.asarray(options.ns_coeffs, np.float64), (options.ns_iters, 3))
    x = x / (np.sqrt(np.sum(x * x, axis=(-2, -1), keepdims=True)) + options.ns_eps)
    tall = x.shape[-2] > x.shape[-1]
    x = np.swapaxes(x, -2, -1) if tall else x
    for c0, c1, c2 in triples:
        a = x @ np.swapaxes(x, -2, -1)
        x = c0 * x + (c1 * a + c2 * a @ a) @ x
    return np.swapaxes(x, -2, -1) if tall else x


def keep_idle(old: Accumulators, new: Accumulators, has_gradient: NDArray[np.bool_]) -> Accumulators:
    """The new averages, but the old ones where they are made of matrices without a gradient alone.

    `has_gradient` has one entry for each matrix, with the last two axes (the one of a vector) of size 1.
    """
    d1, d0 = factored_dims(new.momentum[0].shape) if new.momentum[0].ndim >= 2 else (0, 0)

    def chosen(olds: list[Array], news: list[Array], changes: NDArray[np.bool_]) -> list[Array]:
        return [np.where(changes, after, before) for before, after in zip(olds, news, strict=True)]

    return Accumulators(
        count=new.count if has_gradient.any() else old.count,
        momentum=chosen(old.momentum, new.momentum, has_gradient),
        rms=chosen(old.rms, new.rms, has_gradient),
        row=chosen(old.row, new.row, np.any(has_gradient, axis=d0, keepdims=True)),
        col=chosen(old.col, new.col, np.any(has_gradient, axis=d1, keepdims=True)),
    )


def update(
    theta: Mapping[str, NDArray[np.floating]],
    acc: Accumulators,
    gradient: NDArray[np.floating],
    parameter: NDArray[np.floating],
    options: Options,
    *,
    skip_zero: bool = False,
) -> tuple[Array, Accumulators]:
    """The un-negated step of one tensor, and its next accumulators. Nothing is changed in place.

    `skip_zero`: a matrix whose gradient is zero everywhere has no step and keeps its averages.
    """
    shape, before = np.shape(gradient), acc
    g = np.clip(np.asarray(gradient, np.float64).reshape(shape or (1,)), -GRADIENT_LIMIT, GRADIENT_LIMIT)
    p = np.asarray(parameter, np.float64).reshape(shape or (1,))
    acc = accumulate(acc, g, options)
    has_gradient = np.any(g != 0, axis=tuple(range(g.ndim))[-2:], keepdims=True)
    if skip_zero:
        acc = keep_idle(before, acc, has_gradient)
    out = mlp(theta, features(acc, g, p, options), options)
    step = out[..., 0]
    if options.exp_mult:
        magnitude = out[..., 1].mean() if options.aggregate_mag else out[..., 1]  # the whole tensor
        step = step * np.exp(options.exp_mult * magnitude)
    if options.param_scale_mult:
        step = step * np.sqrt(np.mean(p * p) + NORMALIZE_EPS)  # over the whole tensor
    if options.orthogonalize and g.ndim >= 2:
        step = orthogonalize(step, options)
    if options.normalize_output:
        step = normalize(step)
    step = step * options.rmsmult
    if options.precondition_output:
        last = bias_corrected(acc, options) if options.bias_correction else acc
        step = step * rsqrt(last.rms[-1] + PRECONDITION_EPS)
    if skip_zero:
        step = np.where(has_gradient, step, 0.0)
    return step.reshape(shape), acc


def weight_shapes(options: Options) -> dict[str, tuple[int, ...]]:
    """Name and shape of every array of the network."""
    matrix = np.ones((2, 2))
    groups = features(accumulate(init(matrix.shape, options), matrix, options), matrix, matrix, options)
    hidden, layers = options.ff_hidden_size, options.ff_hidden_layers
    shapes: dict[str, tuple[int, ...]] = {f"w0__{i}": (len(group), hidden) for i, group in enumerate(groups)}
    for layer in range(1, layers + 1):
        width = 3 if layer == layers else hidden
        shapes |= {f"w{layer}": (hidden, width), f"b{layer}": (width,)}
    return shapes | {"b0": (hidden,)}
