"""The parameters of a module as routing sees them: the layer that holds each, and its matrix."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor, nn

from celo2.torch.dimensions import DimensionNumbers

__all__ = [
    "CONVOLUTIONS",
    "EMBEDDINGS",
    "PROJECTIONS",
    "TRANSPOSED",
    "Place",
    "find_places",
    "find_wrapper",
    "words_of",
]

LINEAR = DimensionNumbers(1, 0)
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
PROJECTIONS = (nn.Linear, *CONVOLUTIONS, *TRANSPOSED, nn.Bilinear)
NORMS = (
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
)
GATES = {"LSTM": 4, "GRU": 3}  # matrices side by side in a recurrent layer's weights; 1 for the rest

POSITION_WORDS = {"pos", "position", "positions", "positional", "posemb", "wpe", "rel", "relative"}
TOKEN_WORDS = {"token", "tokens", "tok", "cls", "table", "query", "queries", "prompt", "prompts"}
EMBEDDING_WORDS = {"embedding", "embeddings", "embed", "embeds", "emb", "wte", "codebook"}


class Place(NamedTuple):
    """One parameter and where it is.

    Attributes:
        name: In `named_parameters`.
        param: The parameter.
        layer: The module that holds it.
        layer_name: Of that module; empty for the root.
        numbers: Which axes are its matrix; None: as stored.
        kind: What it is if it is hidden.
        reason: Why it cannot be a hidden matrix, or empty.
    """

    name: str
    param: Tensor
    layer: nn.Module
    layer_name: str
    numbers: DimensionNumbers | None
    kind: str
    reason: str


def find_places(module: nn.Module, *, split_heads: bool) -> list[Place]:
    """Every parameter once, in the order of `named_parameters`; of shared ones the first place counts.

    A parameter that an embedding holds too is tied, wherever it comes first.
    """
    shared = {
        id(layer.weight): name for name, layer in module.named_modules() if isinstance(layer, EMBEDDINGS)
    }
    places = []
    for name, param in module.named_parameters():
        layer_name, _, own = name.rpartition(".")
        layer = module.get_submodule(layer_name)
        numbers, kind = _matrix(layer, own, param, split_heads=split_heads)
        reason = _vector_reason(param) or _table_reason(layer, own, name, param)
        if id(param) in shared and not isinstance(layer, EMBEDDINGS):
            reason, numbers = f"tied to {shared[id(param)]}", None
        places.append(Place(name, param, layer, layer_name, numbers, kind, reason))
    return places


def find_wrapper(module: nn.Module) -> str:
    """Where `DistributedDataParallel` or `torch.compile` keeps the module that it wraps, or empty."""
    attributes = {"DistributedDataParallel": "module", "OptimizedModule": "_orig_mod"}
    return attributes.get(type(module).__name__, "")


def words_of(name: str) -> list[str]:
    """The words of a name, in lower case.

    Example:
        >>> words_of("posEmbed_2.weight")
        ['pos', 'embed', 'weight']
    """
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]


def _matrix(
    layer: nn.Module, own: str, param: Tensor, *, split_heads: bool
) -> tuple[DimensionNumbers | None, str]:
    """The matrix inside a parameter of a layer, and what to call it."""
    if param.ndim < 2:
        return None, "vector"
    if isinstance(layer, CONVOLUTIONS):
        splits = layer.groups if param.shape[0] > layer.groups else 1
        return DimensionNumbers(tuple(range(1, param.ndim)), 0, splits), "hidden, convolution"
    if isinstance(layer, TRANSPOSED):
        return DimensionNumbers((0, *range(2, param.ndim)), 1), "hidden, transposed convolution"
    if isinstance(layer, nn.MultiheadAttention) and param.ndim == 2:
        parts = 3 if own == "in_proj_weight" else 1
        if split_heads:
            return DimensionNumbers(1, 0, parts * layer.num_heads), "hidden, split into heads"
        return DimensionNumbers(1, 0, parts), "hidden, split into q, k, v" if parts == 3 else "hidden matrix"
    if isinstance(layer, nn.Bilinear):
        return DimensionNumbers((1, 2), 0), "hidden, bilinear"
    if isinstance(layer, nn.RNNBase | nn.RNNCellBase):
        splits = next((count for kind, count in GATES.items() if kind in type(layer).__name__), 1)
        return DimensionNumbers(1, 0, 1 if "hr" in words_of(own) else splits), "hidden, recurrent"
    if type(layer).__name__.removeprefix("FSDP") == "Conv1D" and hasattr(
        layer, "nf"
    ):  # Hugging Face's (in, out) projection
        return DimensionNumbers(0, 1), "hidden matrix"
    bias = getattr(layer, "bias", None)
    outputs_first = isinstance(bias, Tensor) and bias.shape == param.shape[:1] != param.shape[1:]
    if isinstance(layer, nn.Linear) or (param.ndim == 2 and own == "weight" and outputs_first):
        return LINEAR, "hidden matrix"
    return None, "hidden matrix" if param.ndim == 2 else f"hidden, rank {param.ndim}, as stored"


def _vector_reason(param: Tensor) -> str:
    if param.ndim < 2:
        return f"rank {param.ndim}"
    if sum(size > 1 for size in param.shape) < 2:
        return "no two axes longer than 1"
    return ""


def _table_reason(layer: nn.Module, own: str, name: str, param: Tensor) -> str:
    """Why a parameter is a norm, an embedding or a table, or an empty string."""
    if isinstance(layer, NORMS) or type(layer).__name__.endswith("Norm"):
        return f"norm, {type(layer).__name__}"
    if isinstance(layer, EMBEDDINGS):
        return f"embedding, {type(layer).__name__}"
    if isinstance(layer, CONVOLUTIONS) and 1 < layer.groups == layer.in_channels:
        return "depthwise convolution: a vector for each channel"
    if isinstance(layer, PROJECTIONS):
        near = name.split(".")[-3:-1]
        if isinstance(layer, CONVOLUTIONS) and EMBEDDING_WORDS & set(words_of(" ".join(near))):
            return "embedding of patches, " + repr(".".join(near))
        return ""
    if isinstance(layer, nn.MultiheadAttention | nn.RNNBase | nn.RNNCellBase):
        return ""
    return next(_bare_reasons(own, param), "")


def _bare_reasons(own: str, param: Tensor) -> Iterator[str]:
    """What the name and shape of a parameter of no known layer say."""
    words = words_of(own)
    if POSITION_WORDS & set(words):
        yield f"positional table, name {own!r}"
    if EMBEDDING_WORDS & set(words):
        yield f"embedding, name {own!r}"
    if words and words[-1] in TOKEN_WORDS:
        yield f"learned token, name {own!r}"
    if {"bias", "scale", "gamma", "beta"} & set(words):
        yield f"stacked vectors, name {own!r}"
    if param.ndim > 2 and param.shape[0] == 1:
        yield "a table: no layer's, and its first axis is 1"
