"""From layers to the part that each plays in the network: routers of experts, and output heads."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from torch import nn

from celo2.torch._layers import CONVOLUTIONS, EMBEDDINGS, PROJECTIONS, TRANSPOSED, Place, words_of

__all__ = ["find_heads", "find_routers"]

ATTENTION_WORDS = {"attention", "attn", "mha", "mhsa", "multihead"}
HEAD_WORDS = {"head", "heads", "lmhead", "logit", "logits", "classifier", "unembed", "unembedding", "readout"}
ROUTER_WORDS = {"router", "routers"}
PARTS = (2, 3, 4)  # of an output that is cut: gated MLP, query-key-value, recurrent gates


def find_routers(module: nn.Module, places: Sequence[Place]) -> dict[str, str]:
    """Name → reason for the projections that choose experts.

    A router reads what the experts beside it read, and has one output for each: for each module of a
    list, or for each slice of a stacked parameter.
    """
    found = {}
    for place in places:
        if ROUTER_WORDS & set(words_of(" ".join(place.name.split(".")[-2:]))):
            found[place.name] = "router, by its name"
        elif isinstance(place.layer, nn.Linear) and place.layer_name:
            holder = module.get_submodule(place.layer_name.rpartition(".")[0])
            if tuple(place.param.shape) in set(_router_shapes(holder)):
                found[place.name] = f"router of the {place.param.shape[0]} experts beside it"
    return found


def _router_shapes(holder: nn.Module) -> Iterator[tuple[int, int]]:
    """`(experts, input size)` of the experts that a module holds."""
    for child in holder.children():
        if isinstance(child, nn.ModuleList) and len({type(expert) for expert in child}) == 1:
            sizes = {layer.in_features for layer in child[0].modules() if isinstance(layer, nn.Linear)}
            yield from ((len(child), size) for size in sizes)
    for part in (holder, *holder.children()):
        if isinstance(part, PROJECTIONS):
            continue  # the kernel of a convolution has rank 3 too
        for param in part.parameters(recurse=False):
            if param.ndim == 3 and param.shape[0] > 1:
                yield from ((param.shape[0], size) for size in param.shape[1:])


def find_heads(module: nn.Module, places: Sequence[Place], candidates: Sequence[Place]) -> dict[str, str]:
    """Name → reason for the projections onto the vocabulary or the classes.

    Args:
        module: The root.
        places: All parameters.
        candidates: Those that are still open.
    """
    alike = Counter(_pattern(place) for place in places)
    projections = [place for place in places if isinstance(place.layer, PROJECTIONS) and place.param.ndim > 1]
    last = projections[-1].name if projections else ""
    vocabularies = {layer.num_embeddings for layer in module.modules() if isinstance(layer, EMBEDDINGS)}
    found = {}
    for place in candidates:
        if (
            not isinstance(place.layer, PROJECTIONS)
            or alike[_pattern(place)] > 1
            or _is_inside(module, place)
        ):
            continue
        others = [other for other in projections if other is not place]
        size, near = _output_size(place), place.layer_name.split(".")[-2:]
        if size in vocabularies and not any(_reads(other, size) for other in others):
            found[place.name] = f"output head, {size} is the vocabulary"
        elif HEAD_WORDS & set(words_of(" ".join(near))):
            found[place.name] = f"output head, name {place.layer_name!r}"
        elif others and not any(_takes(other, place) for other in others) and not _is_read(module, size):
            found[place.name] = f"output head, no layer reads its {size} outputs"
        elif others and place.name == last and "." not in place.layer_name:
            found[place.name] = "output head, the last projection"
    return found


def _pattern(place: Place) -> tuple[str, tuple[int, ...]]:
    return re.sub(r"\d+", "#", place.name), tuple(place.param.shape)


def _is_inside(module: nn.Module, place: Place) -> bool:
    """Whether attention, or one of PyTorch's transformer layers, holds it."""
    names = place.layer_name.split(".")
    holders = [module.get_submodule(".".join(names[:depth])) for depth in range(len(names))]
    kinds = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
    return any(isinstance(holder, kinds) for holder in holders) or any(
        ATTENTION_WORDS & set(words_of(name)) for name in names
    )


def _output_size(place: Place) -> int:
    return place.param.shape[1] if isinstance(place.layer, TRANSPOSED) else place.param.shape[0]


def _input_sizes(place: Place) -> tuple[int, ...]:
    if isinstance(place.layer, nn.Bilinear):
        return tuple(place.param.shape[1:])
    return (place.param.shape[0 if isinstance(place.layer, TRANSPOSED) else 1],)


def _reads(place: Place, size: int) -> bool:
    return size in _input_sizes(place)


def _takes(other: Place, place: Place) -> bool:
    """Whether another layer could read this one's output: as it is, in parts, flattened or unflattened."""
    size = _output_size(place)
    spatial = (*CONVOLUTIONS, *TRANSPOSED)
    for inputs in _input_sizes(other):
        if size == inputs or size in [inputs * parts for parts in PARTS]:
            return True
        flattened = isinstance(place.layer, spatial) and isinstance(other.layer, nn.Linear)
        unflattened = isinstance(place.layer, nn.Linear) and isinstance(other.layer, spatial)
        if size > 1 and flattened and inputs % size == 0:
            return True
        if inputs > 1 and unflattened and size % inputs == 0:
            return True
    return False


def _is_read(module: nn.Module, size: int) -> bool:
    """Whether attention, a recurrent layer or a norm has this input size."""
    for layer in module.modules():
        if isinstance(layer, nn.MultiheadAttention) and size == layer.embed_dim:
            return True
        if isinstance(layer, nn.RNNBase | nn.RNNCellBase) and size == layer.input_size:
            return True
        if isinstance(layer, nn.LayerNorm) and size == layer.normalized_shape[-1]:
            return True
    return False
