"""Parameter trees of well-known networks, as shapes only, for benchmarking optimizer steps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Tree = dict[str, Any]  # of jax.ShapeDtypeStruct, float32


class TreeSpec(NamedTuple):
    """Parameter tree to benchmark.

    Attributes:
        summary: One line for the command's help.
        make: Function that makes the tree of shapes.
        timed: Whether the step fits into an ordinary machine's memory; otherwise it is only compiled.
    """

    summary: str
    make: Callable[[], Tree]
    timed: bool = True


def count_parameters(tree: Tree) -> int:
    """Returns the number of elements in a tree of arrays or shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _leaf(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _linear(num_in: int, num_out: int) -> Tree:
    return {"kernel": _leaf(num_in, num_out), "bias": _leaf(num_out)}


def _norm(width: int) -> Tree:
    return {"scale": _leaf(width), "bias": _leaf(width)}


def _block(width: int) -> Tree:
    """Returns a pre-layer-norm transformer block with a fused query-key-value projection."""
    return {
        "attention_norm": _norm(width),
        "attention": {"qkv": _linear(width, 3 * width), "output": _linear(width, width)},
        "mlp_norm": _norm(width),
        "mlp": {"up": _linear(width, 4 * width), "down": _linear(4 * width, width)},
    }


def _gpt(width: int, depth: int, vocabulary: int, context: int) -> Tree:
    """Returns a GPT-2 (Radford et al., 2019): learned positions, tied head."""
    return {
        "embedding": {"table": _leaf(vocabulary, width)},
        "positions": {"table": _leaf(context, width)},
        **{f"block_{index}": _block(width) for index in range(depth)},
        "final_norm": _norm(width),
    }


def _vit(width: int, depth: int, patch: int, tokens: int, classes: int) -> Tree:
    """Returns a ViT (Dosovitskiy et al., arXiv 2010.11929, table 1, at DeiT's size, arXiv 2012.12877)."""
    return {
        "patches": {"kernel": _leaf(patch, patch, 3, width), "bias": _leaf(width)},
        "class_token": _leaf(1, 1, width),
        "positions": {"table": _leaf(tokens, width)},
        **{f"block_{index}": _block(width) for index in range(depth)},
        "final_norm": _norm(width),
        "head": _linear(width, classes),
    }


def _mlp(*widths: int) -> Tree:
    return {f"layer_{index}": _linear(*pair) for index, pair in enumerate(itertools.pairwise(widths))}


TREES: dict[str, TreeSpec] = {
    "mlp": TreeSpec("784-128-128-10, the default task's", lambda: _mlp(784, 128, 128, 10)),
    "vit-s": TreeSpec("ViT-S/16 for 1,000 classes, 22 M", lambda: _vit(384, 12, 16, 197, 1000)),
    "gpt2-15m": TreeSpec("6 layers of width 384, 9,984 tokens", lambda: _gpt(384, 6, 9984, 1024)),
    "gpt2-124m": TreeSpec("GPT-2 small", lambda: _gpt(768, 12, 50257, 1024)),
    "gpt3-xl": TreeSpec("1.3 B, compiled only", lambda: _gpt(2048, 24, 50257, 2048), timed=False),
}
"""The named trees."""
