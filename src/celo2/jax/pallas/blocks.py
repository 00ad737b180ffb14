"""Runs GPU kernels over the blocks of batched matrices, and reads and writes masked blocks.

A batch of matrices `(batch, rows, cols)` is divided into blocks, one per program of the kernel; vectors
along one side of the matrices, with length 1 along the other, are divided likewise. Blocks that extend
past the edge are masked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

Ref = Any  # Pallas's reference to a block in memory


class Block(NamedTuple):
    """The block of one program: rows, columns and warps, powers of two as Triton requires."""

    rows: int
    cols: int
    num_warps: int


class Edges(NamedTuple):
    """Masks of a block's rows `(rows, 1)` and columns `(1, cols)` that lie in the matrix; None: all do."""

    rows: Array | None
    cols: Array | None

    def mask(self, shape: tuple[int, ...]) -> Array | None:
        """Returns the mask of a block, or of a vector along one of its sides."""
        masks = [m for m, size in zip(self, shape, strict=True) if m is not None and size > 1]
        if not masks:
            return None
        return jnp.broadcast_to(masks[0] if len(masks) == 1 else masks[0] & masks[1], shape)


def find_edges(rows: int, cols: int, block: Block) -> Edges:
    """Returns the masks of this program's block. A dimension divisible by the block size needs no mask."""

    def inside(size: int, step: int, axis: int) -> Array | None:
        if size % step == 0:
            return None
        shape = (step, 1) if axis == 0 else (1, step)
        return pl.program_id(axis + 1) * step + jax.lax.broadcasted_iota(jnp.int32, shape, axis) < size

    return Edges(inside(rows, block.rows, 0), inside(cols, block.cols, 1))


def read(ref: Ref, edges: Edges) -> Array:
    """Reads a block in float32, 0 outside the matrix."""
    mask = edges.mask(ref.shape)
    return plgpu.load(ref, mask=mask, other=None if mask is None else 0.0).astype(jnp.float32)


def write(ref: Ref, value: Array, edges: Edges) -> None:
    """Stores the part of a block that lies inside the matrix."""
    plgpu.store(ref, value, mask=edges.mask(ref.shape))


def sum_of_squares(block: Array, edges: Edges) -> Array:
    """Sums the squares of the part of a block that lies inside the matrix."""
    mask = edges.mask(block.shape)
    square = block * block
    return jnp.sum(square if mask is None else jnp.where(mask, square, 0.0))


def fused_multiply_add(values: Array, weight: Any, total: Any) -> Array:
    """Computes `total + values · weight` in one CUDA instruction, rounded once.

    XLA compiles a product and a sum to two instructions, and the network's pass is compute-bound.
    Interpreted kernels cannot use it.
    """
    shape = values.shape
    operands = [jnp.broadcast_to(jnp.asarray(x, values.dtype), shape) for x in (values, weight, total)]
    return plgpu.elementwise_inline_asm(
        "fma.rn.f32 $0, $1, $2, $3;",
        args=operands,
        constraints="=f,f,f,f",
        pack=1,
        result_shape_dtypes=[jax.ShapeDtypeStruct(shape, values.dtype)],
    )[0]


def call(
    kernel: Callable[..., None],
    inputs: tuple[Any, ...],
    outputs: tuple[Any, ...],
    *,
    shape: tuple[int, int, int],
    block: Block,
    interpret: bool,
    aliases: Mapping[int, int] | None = None,
) -> Any:
    """Runs a kernel over the blocks of a batch of matrices.

    Args:
        kernel: The kernel; its arguments are references to the inputs, then to the outputs.
        inputs: Trees of arrays.
        outputs: Trees of `(shape, block spec)` pairs.
        shape: The shape of the matrices, `(batch, rows, cols)`.
        block: The block of one program.
        interpret: As in `kernels.make_passes`.
        aliases: Maps the index of an input to the index of the output that reuses its memory.
    """
    batch, rows, cols = shape

    def is_pair(node: Any) -> bool:
        return isinstance(node, tuple) and isinstance(node[0], jax.ShapeDtypeStruct)

    return pl.pallas_call(
        kernel,
        grid=(batch, pl.cdiv(rows, block.rows), pl.cdiv(cols, block.cols)),
        in_specs=jax.tree.map(lambda array: make_spec(array.shape, block), inputs),
        out_shape=jax.tree.map(lambda pair: pair[0], outputs, is_leaf=is_pair),
        out_specs=jax.tree.map(lambda pair: pair[1], outputs, is_leaf=is_pair),
        input_output_aliases=dict(aliases or {}),
        compiler_params=plgpu.CompilerParams(num_warps=block.num_warps),
        interpret=interpret,
    )(*inputs)


def make_spec(shape: tuple[int, ...], block: Block) -> pl.BlockSpec:
    """Makes an input's block spec: `(batch, rows, cols)`, sides of 1 whole, `(units, …)`, `(batch, n)`."""
    if len(shape) == 2:
        return pl.BlockSpec((None, shape[1]), lambda b, i, j: (b, 0))  # noqa: ARG005
    row_side, col_side = shape[-2] > 1, shape[-1] > 1
    sides = (block.rows if row_side else 1, block.cols if col_side else 1)
    if len(shape) == 4:
        return pl.BlockSpec(
            (shape[0], None, *sides), lambda b, i, j: (0, b, i if row_side else 0, j if col_side else 0)
        )
    return pl.BlockSpec((None, *sides), lambda b, i, j: (b, i if row_side else 0, j if col_side else 0))


def make_partial_sums(shape: tuple[int, ...], num_sums: int, block: Block) -> tuple[Any, pl.BlockSpec]:
    """Makes an output of several sums per block: `(batch, row blocks, column blocks, sums)`."""
    batch, rows, cols = shape
    grid = (batch, pl.cdiv(rows, block.rows), pl.cdiv(cols, block.cols))
    out = jax.ShapeDtypeStruct((*grid, num_sums), jnp.float32)
    return out, pl.BlockSpec((None, None, None, num_sums), lambda b, i, j: (b, i, j, 0))
