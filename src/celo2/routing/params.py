"""The description of a parameter for routing: names, shape, layer, and the matrix inside."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import cached_property
from typing import Literal

from celo2.routing.dimension_numbers import DimensionNumbers, find_matrix_axes
from celo2.routing.names import KERNEL_NAMES, Name, make_name

Kind = Literal[
    "linear",  # multiplies by a matrix, according to the framework
    "convolution",
    "depthwise",  # a convolution with one kernel per channel
    "attention",  # a matrix of an attention layer
    "recurrent",  # a matrix of a recurrent cell
    "embedding",  # a table of vectors that are looked up
    "norm",
    "matrix",  # has the shape and name of a linear layer's matrix; the layer is unknown
    "stack",  # several matrices: of experts, or of layers under a scan
    "bare",  # a parameter of an unknown layer
]


@dataclasses.dataclass(frozen=True)
class Matrix:
    """The matrix, or the equal matrices, inside a parameter.

    Attributes:
        numbers: The axes; None: as stored, `(in, out)` in JAX.
        inputs: The number of input channels; for a convolution, without its window.
        outputs: The number of output channels, of all parts of a fused matrix together.
        note: The reason for the route of a hidden matrix: `hidden matrix`, `hidden, convolution`.
        second_input: The number of channels of a second input (bilinear layers), or 0.
    """

    numbers: DimensionNumbers | None
    inputs: int
    outputs: int
    note: str = "hidden matrix"
    second_input: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Param:
    """Everything that routing knows about a parameter.

    Attributes:
        path: Its name as its framework writes it: `block_0/attention/query/kernel`, `layers.0.fc.weight`.
        names: The names of its modules and its own, root first, without wrappers; each module's class follows
            its name.
        shape: Its shape.
        kind: The kind of the layer that contains it.
        layer: The class of that layer, or empty.
        matrix: The matrix in it, if it has two axes longer than 1.
        identity: Equal for parameters that are the same array in memory.
        owner: The path of the parameter that this one adapts (LoRA), or empty.
        is_complex: Whether it is complex, which the rule does not support.
        trainable: Whether it is trained.
    """

    path: str
    names: tuple[Name, ...]
    shape: tuple[int, ...]
    kind: Kind = "matrix"
    layer: str = ""
    matrix: Matrix | None = None
    identity: int = 0
    owner: str = ""
    is_complex: bool = False
    trainable: bool = True

    @property
    def rank(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def is_vector(self) -> bool:
        """Whether it has fewer than two axes longer than 1; a kernel (64, 1) is effectively a vector."""
        return sum(size > 1 for size in self.shape) < 2

    @property
    def inputs(self) -> int:
        """The number of input channels; 0 without a matrix."""
        return self.matrix.inputs if self.matrix is not None else 0

    @property
    def outputs(self) -> int:
        """The number of output channels; 0 without a matrix."""
        return self.matrix.outputs if self.matrix is not None else 0

    @property
    def own(self) -> Name:
        """The parameter's own name."""
        return self.names[-1]

    @property
    def is_kernel(self) -> bool:
        """Whether its own name is one that layers use for their matrix."""
        return self.own.text in KERNEL_NAMES

    @property
    def nearest(self) -> tuple[Name, ...]:
        """Its own name, its module's name and that module's class."""
        holders = [name for name in self.names[:-1] if not name.is_class]
        if not holders:
            return self.names[::-1]
        place = max(index for index, name in enumerate(self.names[:-1]) if name is holders[-1])
        return (self.own, *self.names[place:-1])

    @cached_property
    def places(self) -> tuple[str, ...]:
        """The plain names on its path, without classes, its own last."""
        return tuple(name.text for name in self.names if not name.is_class)

    @cached_property
    def unit(self) -> tuple[str, ...]:
        """The path of the layer that contains it; its own path if it is not a kernel."""
        return self.places[:-1] if self.is_kernel and len(self.places) > 1 else self.places

    @cached_property
    def holder(self) -> tuple[str, ...]:
        """The path of the module that contains its layer."""
        return self.unit[:-1]

    @property
    def batch(self) -> tuple[int, ...]:
        """The sizes of its batch axes."""
        if self.matrix is None or self.matrix.numbers is None:
            return self.shape[:-2]
        return tuple(self.shape[axis] for axis in find_matrix_axes(self.shape, self.matrix.numbers).batch)


def make_names(names: Sequence[str], classes: Sequence[str] = ()) -> tuple[Name, ...]:
    """Makes the names on a path, each followed by the class of its module where known.

    Args:
        names: The names on the path, root first, the parameter's own last.
        classes: The class of the module behind each name but the last; empty if unknown.

    Example:
        >>> [name.text for name in make_names(["gate", "weight"], ["TopKRouter"])]
        ['gate', 'TopKRouter', 'weight']
    """
    found = []
    for index, text in enumerate(names):
        found.append(make_name(text))
        if index < len(classes) and classes[index]:
            found.append(make_name(classes[index], is_class=True))
    return tuple(found)
