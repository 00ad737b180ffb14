"""Networks written once and built in both frameworks: PyTorch's layers, and a tree as Flax stores it.

Expected routes as in `transformers_models`, without axes, which differ with the storage.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from helpers.routing_proof.building import net
from helpers.routing_proof.tree_building import dense, norm, shape


class Layer(NamedTuple):
    """One layer in both frameworks."""

    torch: Callable[[], Any]
    jax: Any


Spec = dict[str, Any]


def linear(inputs: int, outputs: int, *, bias: bool = True) -> Layer:
    return Layer(lambda: nn.Linear(inputs, outputs, bias=bias), dense(inputs, outputs, bias=bias))


def conv(inputs: int, outputs: int, window: int = 3) -> Layer:
    return Layer(lambda: nn.Conv2d(inputs, outputs, window), dense(window, window, inputs, outputs))


def depthwise(channels: int, window: int = 7) -> Layer:
    tree = dense(window, window, 1, channels)
    return Layer(lambda: nn.Conv2d(channels, channels, window, groups=channels), tree)


def embedding(entries: int, width: int) -> Layer:
    return Layer(lambda: nn.Embedding(entries, width), {"embedding": shape(entries, width)})


def layer_norm(width: int) -> Layer:
    return Layer(lambda: nn.LayerNorm(width), norm(width) | {"bias": shape(width)})


def bare(*sizes: int) -> Layer:
    return Layer(lambda: sizes, shape(*sizes))


def experts(count: int, width: int, inner: int) -> Layer:
    """Stacks of the experts' kernels: (experts, out, in) in PyTorch, (experts, in, out) in JAX."""
    stored = {"gate_up_proj": (count, 2 * inner, width), "down_proj": (count, width, inner)}
    tree = {name: shape(first, last, middle) for name, (first, middle, last) in stored.items()}
    return Layer(lambda: net("Experts", **stored), tree)


def build_torch(spec: Any) -> Any:
    if isinstance(spec, Layer):
        return spec.torch()
    if isinstance(spec, list):
        return [build_torch(entry) for entry in spec]
    return net(**{name: build_torch(entry) for name, entry in spec.items()})


def build_jax(spec: Any) -> Any:
    if isinstance(spec, Layer):
        return spec.jax
    if isinstance(spec, list):
        return [build_jax(entry) for entry in spec]
    return {name: build_jax(entry) for name, entry in spec.items()}


def gpt_block() -> Spec:
    attention = {"qkv": linear(64, 192), "proj": linear(64, 64)}
    return {
        "ln_1": layer_norm(64),
        "attn": attention,
        "mlp": {"fc1": linear(64, 160), "fc2": linear(160, 64)},
    }


def llama_block() -> Spec:
    attention = {
        name: linear(64, size, bias=False) for name, size in (("q_proj", 48), ("k_proj", 24), ("v_proj", 24))
    }
    attention["o_proj"] = linear(48, 64, bias=False)
    mlp = {"gate_proj": linear(64, 160), "up_proj": linear(64, 160), "down_proj": linear(160, 64)}
    return {"input_layernorm": layer_norm(64), "self_attn": attention, "mlp": mlp}


def mixture_block() -> Spec:
    moe = {"gate": linear(64, 4, bias=False), "experts": experts(4, 64, 32)}
    return {"input_layernorm": layer_norm(64), "moe": moe}


def mamba_block() -> Spec:
    mixer = {
        "A_log": bare(128, 8),
        "in_proj": linear(64, 256, bias=False),
        "x_proj": linear(128, 20, bias=False),
        "dt_proj": linear(4, 128),
        "out_proj": linear(128, 64, bias=False),
    }
    return {"norm": layer_norm(64), "mixer": mixer}


def convnext_block() -> Spec:
    return {
        "dwconv": depthwise(16),
        "norm": layer_norm(16),
        "pwconv1": linear(16, 64),
        "pwconv2": linear(64, 16),
    }


NETWORKS: dict[str, tuple[Spec, dict[str, str]]] = {
    "perceptron": (
        {"layer_0": linear(20, 64), "layer_1": linear(64, 48), "layer_2": linear(48, 10)},
        {"layer_0": "64 × 20", "layer_1": "48 × 64", "layer_2": "adamw"},
    ),
    "autoencoder": (
        {"encoder": [linear(30, 16), linear(16, 4)], "decoder": [linear(4, 16), linear(16, 30)]},
        {"encoder.0": "16 × 30", "encoder.1": "4 × 16", "decoder.0": "16 × 4", "decoder.1": "adamw"},
    ),
    "convolutions": (
        {"conv1": conv(3, 8), "conv2": conv(8, 16), "fc1": linear(16 * 9, 48), "fc2": linear(48, 10)},
        {"conv1": "8 × 27", "conv2": "16 × 72", "fc1": "48 × 144", "fc2": "adamw"},
    ),
    "classifier of several layers": (
        {
            "features": [conv(3, 8), conv(8, 16)],
            "classifier": [linear(16 * 9, 48), linear(48, 40), linear(40, 10)],
        },
        {
            "features.0": "8 × 27",
            "features.1": "16 × 72",
            "classifier.0": "48 × 144",
            "classifier.1": "40 × 48",
            "classifier.2": "adamw",
        },
    ),
    "ConvNeXt": (
        {
            "stem": conv(3, 16, 4),
            "stages": [convnext_block(), convnext_block()],
            "norm": layer_norm(16),
            "head": linear(16, 10),
        },
        {
            "stem": "16 × 48",
            "*.dwconv": "adamw",
            "*.pwconv1": "64 × 16",
            "*.pwconv2": "16 × 64",
            "head": "adamw",
        },
    ),
    "ViT": (
        {
            "cls_token": bare(1, 1, 64),
            "pos_embed": bare(1, 17, 64),
            "patch_embed": {"proj": conv(3, 64, 8)},
            "blocks": [gpt_block(), gpt_block()],
            "head": linear(64, 10),
        },
        {
            "pos_embed": "adamw",
            "patch_embed.proj": "64 × 192",
            "*.qkv": "3 of 64 × 64",
            "*.proj": "64 × 64",
            "*.fc1": "160 × 64",
            "*.fc2": "64 × 160",
            "head": "adamw",
        },
    ),
    "ViT of other names": (
        {
            "conv_proj": conv(3, 64, 8),
            "blocks": [gpt_block(), gpt_block()],
            "pre_logits": linear(64, 48),
            "fc": linear(48, 10),
        },
        {
            "conv_proj": "64 × 192",
            "*.qkv": "3 of 64 × 64",
            "*.proj": "64 × 64",
            "*.fc1": "160 × 64",
            "*.fc2": "64 × 160",
            "pre_logits": "48 × 64",
            "fc": "adamw",
        },
    ),
    "GPT": (
        {
            "wte": embedding(300, 64),
            "wpe": embedding(32, 64),
            "h": [gpt_block(), gpt_block()],
            "lm_head": linear(64, 300, bias=False),
        },
        {
            "w[tp]e": "adamw",
            "*.qkv": "3 of 64 × 64",
            "*.proj": "64 × 64",
            "*.fc1": "160 × 64",
            "*.fc2": "64 × 160",
            "lm_head": "adamw",
        },
    ),
    "language model whose head says nothing": (
        {"a": embedding(300, 64), "layers": [llama_block(), llama_block()], "b": linear(64, 300, bias=False)},
        {
            "a": "adamw",
            "*.q_proj": "48 × 64",
            "*.[kv]_proj": "24 × 64",
            "*.o_proj": "64 × 48",
            "*.gate_proj": "160 × 64",
            "*.up_proj": "160 × 64",
            "*.down_proj": "64 × 160",
            "b": "adamw",
        },
    ),
    "mixture of experts": (
        {
            "embed_tokens": embedding(300, 64),
            "layers": [mixture_block(), mixture_block()],
            "lm_head": linear(64, 300, bias=False),
        },
        {
            "embed_tokens": "adamw",
            "*.gate": "adamw",
            "*.gate_up_proj": "8 of 32 × 64",
            "*.down_proj": "4 of 64 × 32",
            "lm_head": "adamw",
        },
    ),
    "Mamba": (
        {"embeddings": embedding(300, 64), "layers": [mamba_block()], "norm_f": layer_norm(64)},
        {
            "embeddings": "adamw",
            "*.A_log": "adamw",
            "*.in_proj": "256 × 64",
            "*.x_proj": "20 × 128",
            "*.dt_proj": "128 × 4",
            "*.out_proj": "64 × 128",
        },
    ),
    "a Mamba layer alone": (
        mamba_block()["mixer"],
        {
            "A_log": "adamw",
            "in_proj": "256 × 64",
            "x_proj": "20 × 128",
            "dt_proj": "128 × 4",
            "out_proj": "64 × 128",
        },
    ),
    "actor and critic": (
        {"torso": [linear(8, 64), linear(64, 48)], "policy": linear(48, 6), "value": linear(48, 1)},
        {"torso.0": "64 × 8", "torso.1": "48 × 64", "policy": "adamw"},
    ),
    "detector": (
        {
            "query_embed": embedding(10, 64),
            "encoder": [llama_block(), llama_block()],
            "class_predictor": linear(64, 8),
            "bbox_predictor": {"layers": [linear(64, 48), linear(48, 40), linear(40, 4)]},
        },
        {
            "query_embed": "adamw",
            "*.q_proj": "48 × 64",
            "*.[kv]_proj": "24 × 64",
            "*.o_proj": "64 × 48",
            "*.gate_proj": "160 × 64",
            "*.up_proj": "160 × 64",
            "*.down_proj": "64 × 160",
            "class_predictor": "adamw",
            "bbox_predictor.layers.0": "48 × 64",
            "bbox_predictor.layers.1": "40 × 48",
            "bbox_predictor.layers.2": "adamw",
        },
    ),
    "Perceiver": (
        {
            "latents": bare(8, 64),
            "registers": bare(4, 64),
            "blocks": [gpt_block(), gpt_block()],
            "final_layer": {"linear": linear(64, 12)},
        },
        {
            "latents": "adamw",
            "registers": "adamw",
            "*.qkv": "3 of 64 × 64",
            "*.proj": "64 × 64",
            "*.fc1": "160 × 64",
            "*.fc2": "64 × 160",
            "final_layer.linear": "adamw",
        },
    ),
}
