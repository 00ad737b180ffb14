"""Network primitives for the tasks; parameters are plain dicts of float32 arrays.

Initial values follow Haiku's defaults, which the published tasks use: a normal truncated at two
standard deviations, then multiplied by 1/√fan_in without correcting for the truncation.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from celo2.tasks.base import Params

TRUNCATED_STD = 0.8796  # standard deviation of a standard normal truncated at ±2
LAYER_NORM_EPS = 1e-5  # Haiku's


@dataclasses.dataclass(frozen=True)
class Initial:
    """Initial distribution of an array: `mean + scale · (normal truncated at ±2)`.

    Attributes:
        shape: Shape of the array.
        mean: Mean of the distribution.
        scale: Scale of the normal; the standard deviation is `0.8796 · scale`; 0 gives a constant.
    """

    shape: tuple[int, ...]
    mean: float = 0.0
    scale: float = 0.0


def sample_params(key: Array, template: Any) -> Params:
    """Draws a tree of float32 arrays from a tree of `Initial`.

    All random numbers come from one draw, split into arrays: in a compiled program, every further draw
    repeats the generator's code, and a network of ten matrices takes ten times as long
    to compile.

    Args:
        key: Random key.
        template: A tree with `Initial` leaves.

    Returns:
        The same tree with arrays.
    """
    initials, structure = jax.tree.flatten(template)
    sizes = [math.prod(initial.shape) if initial.scale else 0 for initial in initials]
    normals = jax.random.truncated_normal(key, -2.0, 2.0, (sum(sizes),), jnp.float32)
    parts = jnp.split(normals, list(itertools.accumulate(sizes))[:-1])
    return jax.tree.unflatten(
        structure,
        [
            initial.mean + initial.scale * part.reshape(initial.shape)
            if initial.scale
            else jnp.full(initial.shape, initial.mean, jnp.float32)
            for initial, part in zip(initials, parts, strict=True)
        ],
    )


def linear_template(num_in: int, num_out: int, *, scale: float | None = None) -> dict[str, Initial]:
    """Makes a kernel `(num_in, num_out)`, with scale 1/√num_in by default, and a zero bias."""
    scale = 1 / math.sqrt(num_in) if scale is None else scale
    return {"kernel": Initial((num_in, num_out), scale=scale), "bias": Initial((num_out,))}


def conv_template(num_in: int, num_out: int) -> dict[str, Initial]:
    """Makes a kernel `(3, 3, num_in, num_out)` of scale 1/√(9 num_in), and a zero bias."""
    kernel = Initial((3, 3, num_in, num_out), scale=1 / math.sqrt(9 * num_in))
    return {"kernel": kernel, "bias": Initial((num_out,))}


def layer_norm_template(size: int) -> dict[str, Initial]:
    """Makes a scale of one and a bias of zero, of shape `(size,)`."""
    return {"scale": Initial((size,), mean=1.0), "bias": Initial((size,))}


def linear(params: dict[str, Array], inputs: Array) -> Array:
    """Computes `inputs @ kernel + bias`: `(..., num_in)` → `(..., num_out)`."""
    return inputs @ params["kernel"] + _as_last_axis(params["bias"], inputs.ndim)


def conv(params: dict[str, Array], inputs: Array, stride: int) -> Array:
    """Applies a 3 × 3 convolution, SAME padding: `(N, H, W, C)` → `(N, ⌈H / stride⌉, ⌈W / stride⌉, C')`.

    Computed as one matrix product over the nine shifted inputs: inside `scan`
    and `vmap`, XLA's convolution is several times slower on CPU.
    """
    (rows, row_padding), (cols, col_padding) = (_same_padding(size, stride) for size in inputs.shape[1:3])
    padded = jnp.pad(inputs, ((0, 0), row_padding, col_padding, (0, 0)))
    shifted = [
        padded[:, top : top + stride * rows : stride, left : left + stride * cols : stride]
        for top in range(3)
        for left in range(3)
    ]
    kernel = params["kernel"]
    outputs = jnp.concatenate(shifted, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])
    return outputs + _as_last_axis(params["bias"], inputs.ndim)


def _same_padding(size: int, stride: int) -> tuple[int, tuple[int, int]]:
    """Returns the output length and the zeros before and after; an odd zero is after, as in TensorFlow.

    The unread pixels of the last stride are padded too, so that every slice has the output's length.
    """
    length = -(-size // stride)
    before = max((length - 1) * stride + 3 - size, 0) // 2
    return length, (before, length * stride + 2 - size - before)


def layer_norm(params: dict[str, Array], inputs: Array) -> Array:
    """Normalises the last axis to zero mean and unit variance, then applies scale and bias."""
    centred = inputs - inputs.mean(axis=-1, keepdims=True)
    variance = jnp.square(centred).mean(axis=-1, keepdims=True)
    scale, bias = (_as_last_axis(params[name], inputs.ndim) for name in ("scale", "bias"))
    return centred * jax.lax.rsqrt(variance + LAYER_NORM_EPS) * scale + bias


def cross_entropies(logits: Array, labels: Array) -> Array:
    """Computes `-log softmax(logits)[label]` of each example, in nats.

    Args:
        logits: `(..., classes)` float32.
        labels: `(...)`, integers in `[0, classes)`.

    Returns:
        `(...)` float32.
    """
    right = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return -(right * jax.nn.log_softmax(logits)).sum(axis=-1)


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Computes the mean of `cross_entropies`, `()`."""
    return cross_entropies(logits, labels).mean()


def accuracy(logits: Array, labels: Array) -> Array:
    """Computes the fraction of examples whose label has the largest logit; shapes as in `cross_entropy`."""
    return (logits.argmax(axis=-1) == labels.astype(jnp.int32)).astype(jnp.float32).mean()


def _as_last_axis(vector: Array, rank: int) -> Array:
    return jnp.expand_dims(vector, tuple(range(rank - 1)))
