"""The published image networks in float64 NumPy, written from their description alone.

Parameters are nested dicts of arrays under the names that the package gives them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy import ndarray as Array


def linear(params: Any, x: Array) -> Array:
    return x @ params["kernel"] + params["bias"]


def standardize(x: Array, axes: tuple[int, ...], eps: float) -> Array:
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + eps)


def norm(params: Any, x: Array, axes: tuple[int, ...], eps: float) -> Array:
    return standardize(x, axes, eps) * params["scale"] + params["bias"]


def gelu(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def perceptron(params: Any, images: Array, activation: Any, layer_norm: bool) -> Array:
    x = images.reshape(len(images), -1)
    for index in range(sum(name.startswith("layer_") for name in params)):
        x = linear(params[f"layer_{index}"], x)
        if layer_norm:
            x = norm(params[f"norm_{index}"], x, (-1,), 1e-5)
        x = activation(x)
    return linear(params["head"], x)


def conv3x3(params: Any, x: Array, stride: int) -> Array:
    """TensorFlow's SAME: of the zeros around, the odd one is below and to the right."""
    count, height, width, _ = x.shape
    rows, columns = -(-height // stride), -(-width // stride)
    above = max((rows - 1) * stride + 3 - height, 0) // 2
    before = max((columns - 1) * stride + 3 - width, 0) // 2
    padded = np.pad(x, ((0, 0), (above, 3), (before, 3), (0, 0)))
    out = np.empty((count, rows, columns, params["kernel"].shape[-1]))
    for i in range(rows):
        for j in range(columns):
            window = padded[:, i * stride : i * stride + 3, j * stride : j * stride + 3]
            out[:, i, j] = np.einsum("nhwc,hwcd->nd", window, params["kernel"])
    return out + params["bias"]


def conv_net(params: Any, images: Array, kind: str) -> Array:
    x = images
    for index in range(3):
        x = np.maximum(conv3x3(params[f"conv_{index}"], x, 2 if index == 0 else 1), 0)
        if kind != "none":
            x = norm(params[f"norm_{index}"], x, (0, 1, 2) if kind == "batch" else (-1,), 1e-5)
    return linear(params["head"], x.mean((1, 2)))


def patches(params: Any, images: Array) -> Array:
    size = len(params["kernel"])
    tokens = []
    for i in range(0, images.shape[1] - size + 1, size):
        for j in range(0, images.shape[2] - size + 1, size):
            window = images[:, i : i + size, j : j + size]
            tokens.append(np.einsum("nhwc,hwcd->nd", window, params["kernel"]))
    return np.stack(tokens, axis=1) + params["bias"]


def attention(params: Any, x: Array) -> Array:
    query, key, value = (
        np.einsum("ntd,dhk->nthk", x, params[name]["kernel"]) + params[name]["bias"]
        for name in ("query", "key", "value")
    )
    logits = np.einsum("nqhk,nthk->nhqt", query, key) / math.sqrt(query.shape[-1])
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    mixed = np.einsum("nhqt,nthk->nqhk", weights, value)
    return np.einsum("nqhk,hkd->nqd", mixed, params["out"]["kernel"]) + params["out"]["bias"]


def wave_positions(rows: int, columns: int, width: int) -> Array:
    quarter = width // 4
    table = np.empty((rows * columns, width))
    for i in range(rows):
        for j in range(columns):
            for k in range(quarter):
                speed = 10_000.0 ** -(k / (quarter - 1))
                angles = math.sin(j * speed), math.cos(j * speed), math.sin(i * speed), math.cos(i * speed)
                table[i * columns + j, k::quarter] = angles
    return table


def vision_transformer(params: Any, images: Array) -> Array:
    x = patches(params["embedding"], images)
    if "cls" in params:
        x = np.concatenate([np.repeat(params["cls"], len(x), axis=0), x], axis=1) + params["pos_embedding"]
    else:
        side = images.shape[1] // len(params["embedding"]["kernel"])
        x = x + wave_positions(side, x.shape[1] // side, x.shape[2])
    for index in range(sum(name.startswith("block_") for name in params)):
        block = params[f"block_{index}"]
        x = x + attention(block["attention"], norm(block["attention_norm"], x, (-1,), 1e-6))
        hidden = gelu(linear(block["mlp"]["up"], norm(block["mlp_norm"], x, (-1,), 1e-6)))
        x = x + linear(block["mlp"]["down"], hidden)
    x = norm(params["final_norm"], x, (-1,), 1e-6)
    features = x[:, 0] if "cls" in params else np.tanh(linear(params["pre_logits"], x.mean(1)))
    return linear(params["head"], features)
