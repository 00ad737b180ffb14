"""Labels the leaves of a parameter tree for the rule (hidden matrices) or AdamW.

As for PyTorch, `celo2.routing` defines the evidence and its precedence; `params.py` reads the tree.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, get_args

import jax

from celo2.jax.routing.overrides import choose_labels, choose_numbers
from celo2.jax.routing.params import (
    describe_leaves,
    has_holes,
    named_leaves,
    read_tree,
)
from celo2.routing import (
    Param,
    Route,
    Row,
    Undecided,
    check_algorithm,
    format_table,
    make_routes,
    tell,
)
from celo2.routing.dimension_numbers import DimensionNumbers

Overrides = Callable[[str, Any], str | None] | Mapping[str | re.Pattern[str], str] | Any


class Label(str):
    """A string, `"celo2"` or `"adamw"`, with the reason for it.

    It is otherwise a plain `str`, so a tree of labels can be passed directly to `optax.partition`.

    Attributes:
        reason: The evidence for the label, as a short phrase.
        decided: False if the evidence was insufficient and `"celo2"` is only the default.
        numbers: The matrix axes of the leaf; None: as stored.
    """

    reason: str
    decided: bool
    numbers: DimensionNumbers | None

    def __new__(
        cls, value: str, reason: str = "", *, decided: bool = True, numbers: DimensionNumbers | None = None
    ) -> Label:
        """Makes a string that carries its reason."""
        label = super().__new__(cls, value)
        label.reason = reason
        label.decided = decided
        label.numbers = numbers
        return label


def param_labels(
    params: Any,
    *,
    overrides: Overrides = None,
    dimension_numbers: Any = None,
    undecided: Undecided = "warn",
) -> Any:
    """Labels each parameter `"celo2"` (a hidden matrix) or `"adamw"` (everything else).

    Only paths, shapes, dtypes, the identity of arrays and the classes of Equinox modules are read, so
    `params` may hold arrays, tracers or `jax.ShapeDtypeStruct`s, in any tree: plain dicts, Flax Linen
    and NNX, Equinox, Haiku. The label is `"adamw"` for, in this order:

    1. parameters of rank ≤ 1, and effective vectors: no two axes longer than 1, such as (1, 1, d);
    2. embeddings, norms and depthwise convolutions, by their module or the parameter's own name;
    3. parameters named as a bias or norm (possibly stacked over layers), an embedding, a positional table, a
       learned token or latent, or a router. Names match by whole words, and not across attention or a block.
       A projection of patches or of time is a matrix, whatever its name;
    4. routers: a gate beside experts, or a matrix with one output per expert;
    5. the last matrices of a module named `head`, `classifier` or the like;
    6. the same array as an embedding in a second place (a tied head), which tracers do not show;
    7. the one matrix outside the body that has an output for each entry of an embedding;
    8. matrices outside attention, blocks and repeated layers whose output nothing reads, or that end
       a part called `out` or `decoder` or a chain of numbered layers.

    All other parameters are hidden and labelled `"celo2"`. The following are *undecided*: they are labelled
    `"celo2"` with `decided=False` and handled according to `undecided`.

    * A matrix outside the body and outside a layer's MLP whose number of outputs is the vocabulary size,
      where that is also a hidden size.
    * A leaf of rank 2 with an uninformative name, in a module in which everything has the same small
      leading size and something has rank 3 or more: perhaps one vector per layer.

    If `optax.masked` removed leaves from the tree, nothing is inferred from which layer reads which output.

    Args:
        params: The trainable leaves. `None` and `optax.MaskedNode` stay as they are.
        overrides: Labels of some or all leaves:
            a callable `(path, leaf) → "celo2" | "adamw" | None`, where None keeps the default;
            a mapping from regular expressions to labels, tried with `re.search` on the path
            (`block_0/attention/query/kernel`), where the first match wins;
            or a tree of labels like `params`, parts of which may be missing or None, and in which a label
            in place of a module applies to all of it. A mapping is read as a tree if each of its keys is
            the path of a leaf or a module.
        dimension_numbers: As in `celo2`; None among Optax's `MuonDimensionNumbers` means `"adamw"`.
        undecided: Handling of undecided leaves, and of a single long vector, which may be a flattened
            network. `"warn"`: one `RoutingWarning`. `"raise"`: a ValueError. `"allow"`: silence;
            `label_table` still marks undecided leaves.

    Returns:
        A tree with exactly the structure of `params` and a `Label` for each leaf. Compute it once, and
        pass it to `optax.partition` instead of this function, which Optax would also call on the
        gradients. If the tree is itself a callable module (an `eqx.nn.MLP`), pass `lambda _: labels`.

    Raises:
        TypeError: A leaf is not an array of floating-point numbers.
        ValueError: A label is unknown, an override matches no path, or `undecided="raise"` and leaves
            are undecided, or all is one long vector.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"wte": jnp.ones((100, 8)), "h0": {"w": jnp.ones((8, 8)), "b": jnp.ones(8)}}
        >>> param_labels(params)
        {'h0': {'b': 'adamw', 'w': 'celo2'}, 'wte': 'adamw'}
        >>> param_labels(params, overrides={"h./w": "adamw"})["h0"]["w"].reason
        'override'
    """
    if undecided not in get_args(Undecided):
        raise ValueError(f"undecided must be one of {get_args(Undecided)}, got {undecided!r}.")
    described, routes = _route(params, overrides, dimension_numbers)
    tell(described, routes, undecided)
    labels = [_make_label(route) for route in routes]
    return jax.tree.unflatten(jax.tree.structure(params), labels)


def find_dimension_numbers(params: Any, dimension_numbers: Any = None, *, base: bool = False) -> Any:
    """Finds the matrix axes of each leaf: the user's, else those inferred from names and shapes.

    Args:
        params: As in `param_labels`.
        dimension_numbers: As in `celo2`.
        base: Whether every leaf gets the rule.

    Returns:
        A tree like `params` of `DimensionNumbers`; None: the leaf as stored.

    Example:
        >>> import jax.numpy as jnp
        >>> find_dimension_numbers({"Conv_0": {"kernel": jnp.ones((3, 3, 8, 16))}})["Conv_0"]["kernel"]
        DimensionNumbers(reduction_axis=(0, 1, 2), output_axis=3, output_splits=1)
    """
    _, routes = _route(params, None, dimension_numbers, base=base)
    return jax.tree.unflatten(jax.tree.structure(params), [route.numbers for route in routes])


def label_table(params: Any, labels: Any = None, **options: Any) -> str:
    """Formats a table of the parameters: path, shape, label, matrix, reason, and the totals per label.

    Equal leaves of numbered layers share a line. Matrices are shown as outputs × inputs, with their axes. A
    `?` follows the label of an undecided leaf.

    Args:
        params: As in `param_labels`.
        labels: A tree of the same structure; None: the labels of `param_labels`.
        **options: Options of `param_labels`, for `labels=None`.

    Raises:
        ValueError: `labels` has a different number of leaves, or a label is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> print(label_table({"w": jnp.ones((8, 8)), "b": jnp.ones(8)}))
        name  shape   algorithm  matrix        reason
        b     (8,)    adamw                    rank 1
        w     (8, 8)  celo2      8 × 8  0 → 1  hidden matrix
        celo2: 1 tensor, 64 parameters
        adamw: 1 tensor, 8 parameters
    """
    leaves = describe_leaves(read_tree(params))
    if labels is None:
        labels = param_labels(params, **{"undecided": "allow", **options})
    flat = [label for _, label in named_leaves(labels)]
    if len(flat) != len(leaves):
        raise ValueError(
            f"labels must have the structure of params: expected {len(leaves)} leaves, got {len(flat)}; "
            "pass what param_labels(params) returns."
        )
    return format_table(
        [
            Row(leaf.path, leaf.shape, _make_route(label, leaf))
            for leaf, label in zip(leaves, flat, strict=True)
        ]
    )


def _route(
    params: Any, overrides: Any, dimension_numbers: Any, *, base: bool = False
) -> tuple[list[Param], list[Route]]:
    leaves = read_tree(params)
    named = [(leaf.path, leaf.value) for leaf in leaves]
    described = describe_leaves(leaves)
    numbers, by_adamw = choose_numbers(dimension_numbers, params, named)
    if base:  # without AdamW: as stored
        numbers, by_adamw = numbers | dict.fromkeys(by_adamw), set()
    algorithms = dict.fromkeys(by_adamw, "adamw") | choose_labels(overrides, named)
    is_part = has_holes(params)
    routes = make_routes(described, algorithms=algorithms, numbers=numbers, base=base, is_part=is_part)
    return described, routes


def _make_label(route: Route) -> Label:
    return Label(route.algorithm, route.reason, decided=route.decided, numbers=route.numbers)


def _make_route(label: Any, leaf: Param) -> Route:
    algorithm: Any = check_algorithm(label, leaf.path, "label")
    reason, decided = getattr(label, "reason", ""), getattr(label, "decided", True)
    return Route(algorithm, reason, getattr(label, "numbers", None), decided)
