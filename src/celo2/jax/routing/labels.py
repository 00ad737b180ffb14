"""Labels the leaves of a parameter tree for the rule (hidden matrices) or AdamW.

The evidence and its precedence are those of `celo2.routing`, as for PyTorch; `params.py` reads the tree.
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

    It is a plain `str` otherwise, so that a tree of labels goes straight into `optax.partition`.

    Attributes:
        reason: The evidence for the label, as a short phrase.
        decided: False where the evidence was not enough and `"celo2"` is only the default.
        numbers: The matrix axes of the leaf; None takes it as stored.
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

    Only paths, shapes, dtypes, the identity of arrays and the classes of Equinox's modules are read, so
    `params` may hold arrays, tracers or `jax.ShapeDtypeStruct`s, in any tree: plain dicts, Flax Linen
    and NNX, Equinox, Haiku. In this order, `"adamw"` goes to

    1. rank ≤ 1, and what is a vector in effect: no two axes longer than 1, such as (1, 1, d);
    2. what is an embedding, a norm or a depthwise convolution by its module or its parameter's own name;
    3. what is named as a bias or norm (possibly stacked over layers), an embedding, a positional table, a
       learned token or latent, a router. Names count by whole words, and not across attention or a block.
       A projection of patches or of time is a matrix, whatever it is called;
    4. routers: a gate beside experts, or what has one output for each of them;
    5. the last matrices of a module named `head`, `classifier` or the like;
    6. the very array of an embedding in a second place (a tied head). Tracers do not show this;
    7. the one matrix outside of the body that makes an output for each entry of an embedding;
    8. matrices outside of attention, blocks and repeated layers whose output nothing reads; or which end
       a part called `out` or `decoder`; or a chain of numbered layers.

    The rest is hidden and gets `"celo2"`. These are *undecided*: they get `"celo2"` with `decided=False`, and
    `undecided` says what happens.

    * A matrix outside of the body and of a layer's MLP has the vocabulary as an output, but that is a
      hidden size too.
    * A leaf of rank 2 without a telling name lies in a module in which everything has the same, small
      leading size and something has rank 3 or more: perhaps one vector for each layer.

    In a tree from which `optax.masked` took leaves, nothing is said about who reads what.

    Args:
        params: The trainable leaves. `None` and `optax.MaskedNode` stay as they are.
        overrides: Labels of some or all leaves:
            a callable `(path, leaf) → "celo2" | "adamw" | None`, None keeping the default;
            a mapping from regular expressions to labels, tried with `re.search` on the path
            (`block_0/attention/query/kernel`), the first match wins;
            or a tree of labels like `params`, from which parts may be missing or None, and in which
            a label in the place of a module is meant for all of it. A mapping is read as a tree if
            each of its keys is the path of a leaf or a module.
        dimension_numbers: As in `celo2`; None among Optax's `MuonDimensionNumbers` is `"adamw"`.
        undecided: Handling of undecided leaves. `"warn"`: one `RoutingWarning` lists them. `"raise"`: a
            ValueError does. `"allow"`: silence; `label_table` still marks them.

    Returns:
        A tree of exactly the structure of `params` with a `Label` for each leaf. Compute it once, and
        give it to `optax.partition` rather than this function, which Optax would call on the gradients
        too; where the tree is a module that can be called itself (an `eqx.nn.MLP`), as `lambda _: labels`.

    Raises:
        TypeError: For a leaf that is not an array of floating-point numbers.
        ValueError: For an unknown label, for an override that matches no path, and for undecided
            leaves under `undecided="raise"`.

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
        A tree like `params` of `DimensionNumbers`; None takes a leaf as stored.

    Example:
        >>> import jax.numpy as jnp
        >>> find_dimension_numbers({"Conv_0": {"kernel": jnp.ones((3, 3, 8, 16))}})["Conv_0"]["kernel"]
        DimensionNumbers(reduction_axis=(0, 1, 2), output_axis=3, output_splits=1)
    """
    _, routes = _route(params, None, dimension_numbers, base=base)
    return jax.tree.unflatten(jax.tree.structure(params), [route.numbers for route in routes])


def label_table(params: Any, labels: Any = None, **options: Any) -> str:
    """Formats a table of the parameters: path, shape, label, matrix, reason, and the totals per label.

    Equal leaves of numbered layers share a line. The matrix is given as outputs × inputs, with its axes. A
    `?` follows the label of an undecided leaf.

    Args:
        params: As in `param_labels`.
        labels: A tree of the same structure; None: the labels of `param_labels`.
        **options: Options of `param_labels`, for `labels=None`.

    Raises:
        ValueError: If `labels` has another number of leaves, or a label is unknown.

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
