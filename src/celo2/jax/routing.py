"""Which parameter is a hidden matrix, trained by the rule, and which one AdamW trains.

Source: the published recipe (arXiv 2602.19142): the rule with Newton–Schulz is for hidden matrices;
embeddings, the output head and everything of rank ≤ 1 get AdamW. Positional tables and routers are
tables and heads of their own and go the same way.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import jax

from celo2.jax._evidence import find_roles
from celo2.jax._leaves import Leaf, make_leaf, named_leaves, path_name
from celo2.jax._names import Finding
from celo2.jax._overrides import LABELS, check_label, choose_labels

__all__ = ["Label", "Overrides", "RoutingWarning", "label_table", "named_leaves", "param_labels", "path_name"]

Undecided = Literal["warn", "raise", "allow"]
Overrides = Callable[[str, Any], str | None] | Mapping[str | re.Pattern[str], str] | Any


class RoutingWarning(UserWarning):
    """Some parameters could be hidden matrices or not; they are listed, and get the rule."""


class Label(str):
    """`"celo2"` or `"adamw"`, and why.

    A string in every respect, so that a tree of labels goes straight into `optax.partition`.

    Attributes:
        reason: One short phrase: what the label rests on.
        decided: False where the evidence was not enough and `"celo2"` is only the default.
    """

    reason: str
    decided: bool

    def __new__(cls, value: str, reason: str = "", *, decided: bool = True) -> Label:
        """Makes a string that carries its reason."""
        label = super().__new__(cls, value)
        label.reason = reason
        label.decided = decided
        return label


def param_labels(params: Any, *, overrides: Overrides = None, undecided: Undecided = "warn") -> Any:
    """Labels each parameter `"celo2"` (a hidden matrix) or `"adamw"` (everything else).

    Only paths, shapes, dtypes and the identity of arrays are looked at, so `params` may hold arrays,
    tracers or `jax.ShapeDtypeStruct`s, in any tree: plain dicts, Flax Linen and NNX, Equinox, Haiku.
    In this order, `"adamw"` goes to

    1. rank ≤ 1, and what is a vector in effect: no two axes longer than 1, such as (1, 1, d);
    2. what is named as a bias or norm (stacked over layers, say), an embedding, a positional table,
       a learned token, a router or an output head. Names count by whole words, and not across
       attention or a block. The projection of patches under a name such as `embedding` or
       `patch_embed` is an input embedding, whatever its rank; a whole stack of matrices under a
       name such as `head` is one head;
    3. a `gate` beside experts, unless a matrix of its shape stands beside it, as in a gated MLP;
    4. the very array of an embedding in a second place (a tied head). Tracers do not show this;
    5. the one matrix besides an embedding that has the vocabulary as an axis;
    6. a matrix near the root named `out`, `decoder` or the like whose output size no other matrix has.

    The rest is hidden and gets `"celo2"`. Three cases are *undecided*: they get `"celo2"` with
    `decided=False`, and `undecided` says what happens.

    * There is no output head by the evidence above, and a nameless matrix outside of attention,
      blocks and repeated layers has an output size that no other matrix has and that none reads
      (unless it is the last in natural order): the last matrix of an MLP. The published recipe sends
      an output head to AdamW, yet in its meta-training both matrices of the MLP got the rule. A lone
      matrix is hidden.
    * A matrix outside of the body and of a layer's MLP has the vocabulary as an axis, but so have others.
    * A leaf of rank 2 without a telling name lies in a module in which everything has the same, small
      leading size and something has rank 3 or more: perhaps one vector for each layer.

    Args:
        params: The trainable leaves. `None` and `optax.MaskedNode` stay as they are.
        overrides: What to do instead, for some or all leaves:
            a callable `(path, leaf) → "celo2" | "adamw" | None`, None keeping the default;
            a mapping from regular expressions to labels, tried with `re.search` on the path
            (`block_0/attention/query/kernel`), the first match wins;
            or a tree of labels like `params`, from which parts may be missing or None, and in which
            a label in the place of a module is meant for all of it. A mapping is read as a tree if
            each of its keys is the path of a leaf or a module.
        undecided: `"warn"`: one `RoutingWarning` lists the undecided leaves. `"raise"`: a ValueError
            does. `"allow"`: silence; `label_table` still marks them.

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
    named = named_leaves(params)
    leaves = [make_leaf(path, value) for path, value in named]
    labels = [_make_label(finding) for finding in find_roles(leaves)]
    for index, choice in enumerate(choose_labels(overrides, named)):
        if choice is not None:
            labels[index] = Label(choice, "override")
    _show_undecided(leaves, labels, undecided)
    return jax.tree.unflatten(jax.tree.structure(params), labels)


def label_table(params: Any, labels: Any = None) -> str:
    """A table of the parameters: path, shape, label, reason, and the totals of each label.

    A `?` follows the label of an undecided leaf.

    Args:
        params: As in `param_labels`.
        labels: A tree of the same structure; None: the default `param_labels` of `params`.

    Raises:
        ValueError: If `labels` has another number of leaves, or an unknown label.

    Example:
        >>> import jax.numpy as jnp
        >>> print(label_table({"w": jnp.ones((8, 8)), "b": jnp.ones(8)}))
        path  shape   label  reason
        b     (8,)    adamw  rank 1
        w     (8, 8)  celo2  hidden matrix
        celo2: 1 tensor, 64 parameters
        adamw: 1 tensor, 8 parameters
    """
    leaves = [make_leaf(path, value) for path, value in named_leaves(params)]
    if labels is None:
        labels = param_labels(params, undecided="allow")
    flat = [label for _, label in named_leaves(labels)]
    if len(flat) != len(leaves):
        raise ValueError(
            f"labels must have the structure of params: expected {len(leaves)} leaves, got {len(flat)}; "
            "pass what param_labels(params) returns."
        )
    rows = [("path", "shape", "label", "reason")]
    sizes: dict[str, list[int]] = {label: [] for label in LABELS}
    for leaf, label in zip(leaves, flat, strict=True):
        sizes[check_label(label, leaf.path)].append(math.prod(leaf.shape))
        mark = "" if getattr(label, "decided", True) else " ?"
        rows.append((leaf.path, str(leaf.shape), f"{label}{mark}", getattr(label, "reason", "")))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = ["  ".join([*map(str.ljust, row[:3], widths), row[3]]).rstrip() for row in rows]
    for label, counts in sizes.items():
        tensors = "1 tensor" if len(counts) == 1 else f"{len(counts)} tensors"
        lines.append(f"{label}: {tensors}, {sum(counts):,} parameters")
    return "\n".join(lines)


def _make_label(finding: Finding) -> Label:
    by_rule = finding.role == "hidden" or not finding.decided
    return Label("celo2" if by_rule else "adamw", finding.reason, decided=finding.decided)


def _show_undecided(leaves: Sequence[Leaf], labels: Sequence[Label], undecided: Undecided) -> None:
    cases = [(leaf, label.reason) for leaf, label in zip(leaves, labels, strict=True) if not label.decided]
    if not cases or undecided == "allow":
        return
    lines = "".join(f"\n  {leaf.path}  {leaf.shape}  {reason}" for leaf, reason in cases)
    message = (
        f"{len(cases)} of {len(leaves)} parameters could be hidden matrices or not, and get 'celo2':{lines}\n"
        f"Say it with overrides={{{cases[0][0].path!r}: 'adamw'}} (or 'celo2')."
    )
    if undecided == "raise":
        raise ValueError(message)
    warnings.warn(message, RoutingWarning, stacklevel=3)
