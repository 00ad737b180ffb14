"""Word lists and predicates that infer a parameter's role from the names on its path.

Names are compared word by word (`multi_head` has the word "head", `overhead` does not). In frameworks with
classes, the class of a module counts as another name besides the module's own.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import NamedTuple

KERNEL_NAMES = frozenset({"kernel", "weight", "w", "weights"})  # a layer's matrix, in every framework
GATE_WORDS = frozenset({"gate", "gating"})
EXPERT_WORDS = frozenset({"expert", "experts", "moe"})
CONVOLUTION_WORDS = frozenset({"conv", "convs", "convolution", "stem"})
MLP_WORDS = frozenset({"mlp", "ffn", "ff", "feed", "feedforward"})

VECTORS = {"bias", "biases", "scale", "scales", "gamma", "beta", "offset"}
NORMS = {"ln", "bn", "gn"}  # and every word that ends in "norm"
LOOKUPS = {"embedding", "embeddings", "embed", "embeds", "embedder", "emb", "wte", "vocab", "vocabulary"}
LOOKUPS |= {"codebook", "codebooks"}
TOKENS = {"token", "tokens", "tok", "cls", "table", "query", "queries", "prompt", "prompts"}
TOKENS |= {"latent", "latents", "register", "registers", "slots", "memory", "prototypes"}
POSITIONS = {"pos", "position", "positions", "positional", "posemb", "posembed", "wpe", "rel", "relative"}
PROJECTIONS = {"linear", "dense", "proj", "projection", "projector", "fc", "mlp", "wise", "conv", "mixing"}
CONTINUOUS = {"patch", "patches", "image", "pixel", "time", "timestep", "audio", "frame", "patchify"}
ROUTERS = {"router", "routers"}
HEADS = {"head", "heads", "lmhead", "logit", "logits", "classifier", "classifiers", "unembed", "unembedding"}
HEADS |= {"readout", "final", "predictor", "predictors", "bbox"}
HEAD_PAIRS = ({"class", "embed"}, {"cls", "score"}, {"lm", "head"})
OUTPUTS = {"out", "output", "outputs", "last", "prediction", "predictions", "pred", "score", "scores"}
DECODERS = {"decoder", "decode", "generator", "gen"}
ATTENTION = {"attention", "attn", "mha", "mhsa", "multihead"}
BODY = ATTENTION | {"block", "blocks", "mixer", "encoderblock", "decoderblock", "resblock", "bottleneck"}
LAYER_LISTS = {"layers", "layer", "blocks", "block", "h", "stages", "stage", "cells", "scan", "stack"}
DECAYS = {"a_log", "a_logs", "dt_bias", "time_decay", "time_maa"}  # of state-space layers
QUERIES = {"q", "k", "v", "query", "key", "value", "qkv", "kv", "wq", "wk", "wv", "wqkv"}


class Name(NamedTuple):
    """One name on a path.

    Attributes:
        text: The name as written.
        words: Its words, in lower case.
        last_word: The last word, or empty.
        is_class: Whether it is the name of a module's class rather than the module's own.
    """

    text: str
    words: frozenset[str]
    last_word: str
    is_class: bool = False

    def __str__(self) -> str:
        """Returns the name as quoted in reasons: `name 'lm_head'` or `class TopKRouter`."""
        return f"class {self.text}" if self.is_class else f"name {self.text!r}"


def split_words(text: str) -> list[str]:
    """Splits a name at underscores, digits and changes of case, in lower case.

    Example:
        >>> split_words("MultiHeadAttention_0"), split_words("pos_embedding2"), split_words("overhead")
        (['multi', 'head', 'attention'], ['pos', 'embedding'], ['overhead'])
    """
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", text)]


@functools.lru_cache(maxsize=4096)  # a network repeats its names
def make_name(text: str, *, is_class: bool = False) -> Name:
    """Splits one name into its words.

    Example:
        >>> str(make_name("MixtralTopKRouter", is_class=True))
        'class MixtralTopKRouter'
    """
    words = split_words(text)
    return Name(text, frozenset(words), words[-1] if words else "", is_class)


def is_vector(own: Name) -> bool:
    """Returns whether a parameter's own name denotes a vector, or a stack of vectors: `bias`, `b1`."""
    return bool(VECTORS & own.words) or re.fullmatch(r"b\d*(_.*)?", own.text) is not None


def is_norm(name: Name) -> bool:
    """Returns whether a name denotes a normalising layer."""
    return any(word in NORMS or word.endswith("norm") for word in name.words)


def is_decay(own: Name) -> bool:
    """Returns whether a parameter's own name denotes a state-space layer's decays, a vector per channel."""
    return own.text.lower() in DECAYS


def is_lookup(name: Name) -> bool:
    """Returns whether a name denotes a lookup table of vectors, not a projection of dense inputs."""
    return bool(LOOKUPS & name.words) and not (CONTINUOUS & name.words or is_projection(name))


def is_token(name: Name) -> bool:
    """Returns whether a name denotes learned vectors: `cls_token`, `latents`; not `token_mixing`."""
    return name.last_word in TOKENS


def is_position(name: Name) -> bool:
    """Returns whether a name denotes a positional table, not a projection of one."""
    return bool(POSITIONS & name.words) and not is_projection(name)


def is_projection(name: Name) -> bool:
    """Returns whether a name denotes a layer that multiplies by a matrix."""
    return bool(PROJECTIONS & name.words)


def is_router(name: Name) -> bool:
    """Returns whether a name denotes a router of experts."""
    return bool(ROUTERS & name.words)


def is_head(name: Name) -> bool:
    """Returns whether a name denotes an output head or a module that ends in one; not `pre_logits`."""
    if "pre" in name.words or is_attention(name) or (name.is_class and "model" in name.words):
        return False
    return bool(HEADS & name.words) or any(pair <= name.words for pair in HEAD_PAIRS)


def is_output(name: Name) -> bool:
    """Returns whether a name may denote an output head, but also a layer inside a block (`out`)."""
    return bool(OUTPUTS & name.words) and not (
        is_norm(name) or {"layer", "block", "enc", "encoder"} & name.words
    )


def is_decoder(name: Name) -> bool:
    """Returns whether a name denotes a decoder, whose last layer is an output head."""
    return bool(DECODERS & name.words) and not {"layer", "block"} & name.words


def is_attention(name: Name) -> bool:
    """Returns whether a name denotes attention, including `multi_head_attention` and `multi_head`."""
    if name.is_class:  # not `AttentionDecoderLayer`, which holds an MLP too
        return name.last_word in ATTENTION
    return bool(ATTENTION & name.words) or {"multi", "head"} <= name.words


def is_query(name: Name) -> bool:
    """Returns whether a name denotes an attention layer's query, key or value."""
    words = name.words - {"proj", "projection", "w", "to", "linear", "einsum"}
    return bool(words) and words <= QUERIES


def is_body(name: Name) -> bool:
    """Returns whether a name denotes a part of the network's body: attention, or a block."""
    if (
        name.is_class
    ):  # `MambaMixer` and `TransformerEncoderLayer` are; `AttentionClassifier`, `MlpMixer` are not
        told = name.last_word in BODY or {"transformer", "layer"} <= name.words
        return told and not {"mlp", "mixer"} <= name.words
    return bool(name.words & BODY) or is_attention(name)


def is_list(names: Sequence[Name], index: int) -> bool:
    """Returns whether the name at an index is a numbered layer of a list: `layers/0`, `block_3`, `h0`."""
    text = names[index].text
    if text.isdecimal():
        return index > 0 and bool(LAYER_LISTS & names[index - 1].words)
    return text[-1:].isdecimal() and bool(LAYER_LISTS & names[index].words)
