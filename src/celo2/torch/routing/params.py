"""Describes the parameters of a module for routing: the layer of each, and the matrix in it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from celo2.routing import Kind, Matrix, Param, make_names
from celo2.routing.axes import count_parts, find_matrix, make_matrix, with_parts
from celo2.routing.dimension_numbers import DimensionNumbers
from celo2.routing.names import KERNEL_NAMES, Name, is_attention, make_name, split_words

EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
RECURRENT = (nn.RNNBase, nn.RNNCellBase)
NORMS = (
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
)
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
GATES = {"LSTM": 4, "GRU": 3}  # matrices side by side in a recurrent layer's weights; 1 for the rest
WRAPPERS = {  # class → attribute of the module that it wraps
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "OptimizedModule": "_orig_mod",
    "CheckpointWrapper": "_checkpoint_wrapped_module",
}
OUTPUT_NAMES = {"out", "o", "wo", "proj", "dense", "output"}  # layers that read the heads of attention


class ParamInfo(NamedTuple):
    """The place of a parameter in its module: its layer, and the names on its path without wrappers.

    Attributes:
        layer: The module that contains it, or that owns its parametrization or adapter.
        own: The parameter's name in that layer; `weight` for a parametrized weight.
        names: The names of the modules from the root down, and the parameter's own.
        classes: The classes of these modules; empty for containers.
        owner: The name of the parameter that this one adapts, or empty.
        parent: The module that contains the layer; the root is its own parent.
    """

    layer: nn.Module
    own: str
    names: list[str]
    classes: list[str]
    owner: str
    parent: nn.Module


def describe_parameters(module: nn.Module, *, split_heads: bool) -> list[Param]:
    """Describes every parameter of a module, shared ones once per place.

    Args:
        module: The module to train.
        split_heads: Whether each head of `nn.MultiheadAttention` gets matrices of its own.
    """
    found = []
    widths = _widths(module)
    for path, param in module.named_parameters(remove_duplicate=False):
        place = _find_place(module, path)
        root = [make_name(_class_of(module), is_class=True)] if _class_of(module) else []
        names = (*root, *make_names(place.names, place.classes))
        kind, matrix = _find_matrix(place, names, param, widths, split_heads=split_heads)
        found.append(
            Param(
                path,
                names,
                tuple(param.shape),
                kind,
                _class_of(place.layer),
                matrix,
                id(param),
                place.owner,
                param.is_complex(),
                param.requires_grad,
            )
        )
    return found


def describe_named(named: Iterable[tuple[str, Tensor]]) -> list[Param]:
    """Describes parameters without a module by their names and shapes."""
    found = []
    for path, param in named:
        names, kind, matrix = make_names(path.split(".")), "matrix", None
        if sum(size > 1 for size in param.shape) > 1:
            kind, matrix = _from_names(names, names[-1].text, param, set(), None)
        shape, flags = tuple(param.shape), (param.is_complex(), param.requires_grad)
        found.append(Param(path, names, shape, kind, "", matrix, id(param), "", *flags))
    return found


def clean_name(module: nn.Module, path: str) -> str:
    """Returns a parameter's name without the parts that wrappers (`DataParallel`, `torch.compile`) add."""
    names, holder = [], module
    for name in path.split("."):
        if WRAPPERS.get(type(holder).__name__) != name:
            names.append(name)
        holder = getattr(holder, name)
    return ".".join(names)


def _find_place(module: nn.Module, path: str) -> ParamInfo:
    """Finds the place of a parameter; parametrizations and adapters belong to their layer."""
    names: list[str] = []
    classes: list[str] = []
    holder, parent, walked, adapted = module, module, "", ""
    parts = path.split(".")
    for index, name in enumerate(parts[:-1]):
        if name == "parametrizations" and hasattr(holder, "parametrizations"):
            own, rest = parts[index + 1], parts[index + 2 :]
            owner = "" if len(rest) == 1 else f"{walked}parametrizations.{own}.original"
            return ParamInfo(holder, own, [*names, own], classes, owner, parent)
        base = getattr(holder, "base_layer", None)
        if isinstance(base, nn.Module) and name != "base_layer":
            adapted = f"{walked}base_layer.weight"
        wrapper, walked = type(holder).__name__, f"{walked}{name}."
        parent, holder = holder, getattr(holder, name)
        if WRAPPERS.get(wrapper) != name and name != "base_layer":
            names.append(name)
            classes.append("" if isinstance(holder, CONTAINERS) else _class_of(holder))
        elif classes:
            classes[-1] = classes[-1] if isinstance(holder, CONTAINERS) else _class_of(holder)
    own = parts[-1]
    if isinstance(getattr(holder, "base_layer", None), nn.Module):
        adapted = f"{walked}base_layer.weight"
    if "lora" in split_words(own) and isinstance(getattr(holder, "weight", None), Tensor):
        adapted = f"{walked}weight"
    return ParamInfo(holder, own, [*names, own], classes, adapted, parent)


def _class_of(layer: nn.Module) -> str:
    """Returns a layer's class name, without the prefixes of parametrizations and sharding."""
    name = type(layer).__name__
    return re.sub(r"^(Parametrized|FSDP)(?=[A-Z])", "", name)


def _find_matrix(
    place: ParamInfo, names: Sequence[Name], param: Tensor, widths: set[int], *, split_heads: bool
) -> tuple[Kind, Matrix | None]:
    """Returns the kind of a layer and the matrix in one of its parameters."""
    layer, own, shape = place.layer, place.own, tuple(param.shape)
    if isinstance(layer, NORMS) or type(layer).__name__.endswith("Norm"):
        return "norm", None
    if isinstance(layer, EMBEDDINGS) and own == "weight":
        return "embedding", None
    if sum(size > 1 for size in shape) < 2:
        return "bare", None
    if isinstance(layer, CONVOLUTIONS) and param.ndim > 2:
        return _convolution(layer, shape)
    if isinstance(layer, TRANSPOSED) and param.ndim > 2:
        kind = "depthwise" if 1 < layer.groups == layer.in_channels else "convolution"
        numbers = DimensionNumbers((0, *range(2, param.ndim)), 1)
        note = "hidden, transposed convolution"
        return kind, Matrix(numbers, layer.in_channels, layer.out_channels, note)
    if isinstance(layer, nn.MultiheadAttention) and param.ndim == 2:
        return "attention", _attention(layer, own, shape, split_heads=split_heads)
    if isinstance(layer, nn.Bilinear):
        numbers = DimensionNumbers((1, 2), 0)
        return "linear", Matrix(numbers, shape[1], shape[0], "hidden, bilinear", shape[2])
    if isinstance(layer, RECURRENT):
        gates = next((count for kind, count in GATES.items() if kind in type(layer).__name__), 1)
        whole = make_matrix(shape, (1,), (0,), note="hidden, recurrent")
        return "recurrent", with_parts(whole, shape, 1 if "hr" in split_words(own) else gates, whole.note)
    if param.ndim == 2 and (isinstance(layer, nn.Linear) or _is_conv1d(layer)):
        stored_first = _is_conv1d(layer)  # Hugging Face's (in, out) projection
        return "linear", _linear(place, names, shape, reduction=0 if stored_first else 1)
    return _from_names(names, own, param, widths, layer)


def _convolution(layer: nn.modules.conv._ConvNd, shape: tuple[int, ...]) -> tuple[Kind, Matrix]:
    splits = layer.groups if layer.out_channels > layer.groups else 1
    numbers = DimensionNumbers(tuple(range(1, len(shape))), 0, splits)
    kind = "depthwise" if 1 < layer.groups == layer.in_channels else "convolution"
    return kind, Matrix(numbers, layer.in_channels, layer.out_channels, "hidden, convolution")


def _attention(
    layer: nn.MultiheadAttention, own: str, shape: tuple[int, ...], *, split_heads: bool
) -> Matrix:
    parts = 3 if own == "in_proj_weight" else 1
    whole = make_matrix(shape, (1,), (0,))
    if split_heads:
        return with_parts(whole, shape, parts * layer.num_heads, "hidden, split into heads")
    return with_parts(whole, shape, parts, "hidden, split into q, k, v")


def _linear(place: ParamInfo, names: Sequence[Name], shape: tuple[int, ...], *, reduction: int) -> Matrix:
    """Returns the matrix of a linear layer, split if its name and sizes indicate that it is fused."""
    whole = make_matrix(shape, (reduction,), (1 - reduction,))
    if whole.numbers is None:
        whole = Matrix(DimensionNumbers(0, 1), whole.inputs, whole.outputs, whole.note)
    if place.owner:
        return whole
    parts, what = count_parts(names, whole, _inputs_of_outputs(place))
    return with_parts(whole, shape, parts, f"hidden, split into {what}")


def _inputs_of_outputs(place: ParamInfo) -> list[int]:
    """Returns the input sizes of the output projections beside a layer, all attention heads together."""
    return [
        layer.in_features
        for name, layer in place.parent.named_children()
        if isinstance(layer, nn.Linear) and OUTPUT_NAMES & set(split_words(name))
    ]


def _from_names(
    names: Sequence[Name], own: str, param: Tensor, widths: set[int], layer: nn.Module | None
) -> tuple[Kind, Matrix]:
    """Returns the kind and matrix of a parameter of an unknown class by its names and shape."""
    shape = tuple(param.shape)
    transposed = own == "weight" or own.startswith("weight_")
    if param.ndim == 2:
        if own == "weight" and layer is not None:
            transposed = not _bias_says_inputs_first(layer, shape)
        reduction = 1 if transposed or own.endswith("_weight") else 0
        matrix = make_matrix(shape, (reduction,), (1 - reduction,))
        parts, what = count_parts(names, matrix)
        matrix = with_parts(matrix, shape, parts, f"hidden, split into {what}")
        told = own in KERNEL_NAMES or own.endswith("_weight")
        is_linear = layer is not None and {"linear", "dense"} & make_name(_class_of(layer)).words
        return ("linear" if told and is_linear else "matrix" if told else "bare"), matrix
    if param.ndim == 3 and own not in KERNEL_NAMES:
        if shape[0] == 1:
            return "bare", make_matrix(shape, (1,), (2,))
        if any(map(is_attention, names)):
            return find_matrix(names, shape)
        transposed = transposed or _outputs_first(own, shape, layer, widths)
        kind, matrix = find_matrix(names, shape, batch=(0,), transposed=transposed)
        parts, what = count_parts(names, matrix)
        return kind, with_parts(matrix, shape, parts, f"{matrix.note}, split into {what}")
    return find_matrix(names, shape, transposed=transposed)


def _bias_says_inputs_first(layer: nn.Module, shape: tuple[int, ...]) -> bool:
    bias = getattr(layer, "bias", None)
    return isinstance(bias, Tensor) and bias.shape == shape[1:] != shape[:1]


def _outputs_first(own: str, shape: tuple[int, ...], layer: nn.Module | None, widths: set[int]) -> bool:
    """Returns whether a stack of experts is stored as (experts, out, in), by its siblings and the width."""
    neighbours = [] if layer is None else [tuple(p.shape) for _, p in layer.named_parameters(recurse=False)]
    _, first, second = shape
    for other in neighbours:
        if len(other) != 3 or other[0] != shape[0] or other == shape:
            continue
        if (2 * other[2], other[1]) == (first, second) or (2 * second, first) == other[1:]:
            return True  # (2 f, d) beside (d, f)
        if (other[2], 2 * other[1]) == (first, second) or (second, 2 * first) == other[1:]:
            return False  # (d, 2 f) beside (f, d)
    is_down = bool({"down", "output", "out"} & set(split_words(own))) or own in ("w2", "fc2")
    return (
        (first in widths and second not in widths) if is_down else (second in widths and first not in widths)
    )


def _widths(module: nn.Module) -> set[int]:
    """Returns the sizes of the residual stream, from embeddings and norm vectors."""
    sizes = {layer.embedding_dim for layer in module.modules() if isinstance(layer, EMBEDDINGS)}
    for layer in module.modules():
        if isinstance(layer, NORMS) or type(layer).__name__.endswith("Norm"):
            sizes |= {param.shape[-1] for param in layer.parameters(recurse=False) if param.ndim}
        if "router" in split_words(type(layer).__name__):
            sizes |= {param.shape[-1] for param in layer.parameters(recurse=False) if param.ndim == 2}
    return sizes


def _is_conv1d(layer: nn.Module) -> bool:
    return _class_of(layer) == "Conv1D" and hasattr(layer, "nf")
