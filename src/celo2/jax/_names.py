"""What the names on a leaf's path say about its part in the network.

Names are compared word by word (`multi_head` has the word "head", `overhead` has not), from the
leaf upward. A module's name stops counting where the body of the network begins: in
`embedder/block_3/attention/query` the leaf is an attention matrix, not an embedding.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from celo2.jax._leaves import Leaf, Part

__all__ = [
    "Finding",
    "Role",
    "find_by_name",
    "gate_index",
    "has_experts",
    "is_body",
    "is_mlp",
    "is_query",
    "weak_head",
]

Role = Literal["vector", "embedding", "position", "router", "head", "hidden"]

VECTORS = {"bias", "biases", "scale", "scales", "gamma", "beta", "offset"}
NORMS = {"ln", "bn", "gn"}  # and every word that ends in "norm"
KERNELS = {"kernel", "w"}  # what no norm calls its scale
EMBEDDINGS = {"embedding", "embeddings", "embed", "embeds", "embedder", "emb", "wte", "vocab", "vocabulary"}
TOKENS = {"token", "tokens", "tok", "cls", "table"}  # where they end a name: `cls_token`, not `token_mixing`
POSITIONS = {"pos", "position", "positions", "positional", "posemb", "posembed", "wpe"}
PROJECTIONS = {"linear", "dense", "proj", "projection", "fc", "mlp", "conv", "wise"}  # `position_wise_ffn`
ROUTERS = {"router", "routers"}
GATES = {"gate", "gating"}
EXPERTS = {"expert", "experts"}
HEADS = {"head", "heads", "lmhead", "logit", "logits", "classifier", "unembed", "unembedding", "readout"}
HEADS |= {"final"}
WEAK_HEADS = {"out", "output", "outputs", "last", "decoder", "prediction", "predictions"}
ATTENTION = {"attention", "attn", "mha", "mhsa", "multihead"}
BODY = ATTENTION | {"block", "blocks", "transformer"}
MLPS = {"mlp", "ffn", "ff", "feed", "feedforward"}
QUERIES = {"q", "k", "v", "query", "key", "value", "qkv", "kv", "wq", "wk", "wv", "wqkv"}


class Finding(NamedTuple):
    """What a leaf is, and why; an undecided finding is shown, not acted upon."""

    role: Role
    reason: str
    decided: bool = True


def find_by_name(leaf: Leaf) -> Finding | None:
    """What a leaf's names say beyond doubt, or None."""
    if part := _vector_part(leaf):
        return Finding("vector", f"stacked vectors, name {part.text!r}")
    if part := _position_part(leaf):
        return Finding("position", f"positional table, name {part.text!r}")
    if part := _nearest(leaf, EMBEDDINGS) or _token_part(leaf):
        return Finding("embedding", f"embedding, name {part.text!r}")
    if part := _nearest(leaf, ROUTERS):
        return Finding("router", f"router, name {part.text!r}")
    if not any(ATTENTION & part.words for part in leaf.parts) and (part := _nearest(leaf, HEADS)):
        return Finding("head", f"output head, name {part.text!r}")
    return None


def weak_head(leaf: Leaf) -> Part | None:
    """The name that an output head may have, but a layer inside a block too (`out`)."""
    return next((part for part in leaf.nearest if WEAK_HEADS & part.words), None)


def gate_index(leaf: Leaf) -> int | None:
    """Place on the path of a name that speaks of a gate, outside of any expert, or None."""
    for index, part in enumerate(leaf.parts):
        if GATES & part.words:
            return index
        if EXPERTS & part.words:
            return None
    return None


def has_experts(leaf: Leaf) -> bool:
    """Whether a name on the path speaks of a mixture of experts."""
    return any((EXPERTS | {"moe"}) & part.words for part in leaf.parts)


def is_mlp(leaf: Leaf) -> bool:
    """Whether the MLP of a layer holds it."""
    return any(MLPS & part.words for part in leaf.parts)


def is_query(part: Part) -> bool:
    """Whether this is the name of an attention layer's query, key or value."""
    words = part.words - {"proj", "projection", "w"}
    return bool(words) and words <= QUERIES


def is_body(part: Part) -> bool:
    """Whether this names something inside the network: attention, or a block."""
    return bool(part.words & BODY) or {"multi", "head"} <= part.words or is_query(part)


def _nearest(leaf: Leaf, names: set[str]) -> Part | None:
    for part in reversed(leaf.parts):
        if is_body(part):
            return None
        if names & part.words:
            return part
    return None


def _vector_part(leaf: Leaf) -> Part | None:
    own = leaf.parts[-1]
    if VECTORS & own.words or re.fullmatch(r"b\d*(_.*)?", own.text):
        return own
    near = leaf.nearest[:1] if KERNELS & own.words else leaf.nearest
    return next((part for part in near if any(w in NORMS or w.endswith("norm") for w in part.words)), None)


def _position_part(leaf: Leaf) -> Part | None:
    return next(
        (part for part in leaf.nearest if POSITIONS & part.words and not PROJECTIONS & part.words), None
    )


def _token_part(leaf: Leaf) -> Part | None:
    return next((part for part in leaf.nearest if part.last_word in TOKENS), None)
