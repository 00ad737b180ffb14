"""The published language models in float64, one row of tokens at a time, loops where the text has indices."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Params = dict


def gelu(x: Vector) -> Vector:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def softmax(x: Vector) -> Vector:
    powers = np.exp(x - x.max())
    return powers / powers.sum()


def sigmoid(x: Vector) -> Vector:
    return 1 / (1 + np.exp(-x))


def linear(params: Params, x: Vector) -> Vector:
    return x @ params["kernel"] + params["bias"]


def layer_norm(params: Params, x: Vector) -> Vector:
    return np.stack(
        [params["scale"] * (row - row.mean()) / np.sqrt(row.var() + 1e-5) + params["bias"] for row in x]
    )


def rms(x: Vector) -> Vector:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)


def attend(query: Vector, key: Vector, value: Vector, readable: NDArray[np.bool_]) -> Vector:
    """One head: `(T, S)` each; `readable[t]` says whether a later query may read position t."""
    mixed = np.zeros_like(value)
    for t in range(len(query)):
        logits = key[: t + 1] @ query[t] / math.sqrt(query.shape[1])
        mixed[t] = softmax(np.where(readable[: t + 1], logits, -1e30)) @ value[: t + 1]
    return mixed


def transformer_lm(params: Params, tokens: NDArray[np.integer], num_heads: int, num_layers: int) -> Vector:
    """Logits `(T, vocabulary)` of a row, without dropout."""
    x = params["embedding"]["embedding"][tokens]
    for index in range(num_layers):
        block = params[f"block_{index}"]
        normed = layer_norm(block["attention_norm"], x)
        parts = [linear(block["attention"][name], normed) for name in ("query", "key", "value")]
        heads = [np.split(part, num_heads, axis=1) for part in parts]
        mixed = [attend(*head, readable=tokens != 0) for head in zip(*heads, strict=True)]
        x = x + linear(block["attention"]["output"], np.concatenate(mixed, axis=1))
        hidden = gelu(linear(block["mlp"]["up"], layer_norm(block["mlp_norm"], x)))
        x = x + linear(block["mlp"]["down"], hidden)
    return linear(params["head"], layer_norm(params["final_norm"], x))


def lstm_lm(params: Params, tokens: NDArray[np.integer]) -> Vector:
    """Logits `(T, vocabulary)` of a row."""
    lstm = params["lstm"]
    hidden, cell = lstm["initial_hidden"][0], lstm["initial_cell"][0]
    outputs = []
    for token in tokens:
        joined = np.concatenate([params["embedding"]["embedding"][token], hidden])
        i, g, f, o = np.split(linear(lstm, joined), 4)
        cell = sigmoid(f + 1) * cell + sigmoid(i) * np.tanh(g)
        hidden = sigmoid(o) * np.tanh(cell)
        outputs.append(hidden)
    return linear(params["head"], np.stack(outputs))


def rotate(x: Vector) -> Vector:
    """One head `(T, S)`: channels i and i + S/2 as a complex number, turned by t · 10000^(-2i/S)."""
    half = x.shape[1] // 2
    turned = np.empty_like(x)
    for t, row in enumerate(x):
        for i in range(half):
            z = complex(row[i], row[i + half]) * np.exp(1j * t * 10000.0 ** (-2 * i / (2 * half)))
            turned[t, i], turned[t, i + half] = z.real, z.imag
    return turned


def gpt(params: Params, tokens: NDArray[np.integer], num_layers: int) -> Vector:
    """Logits `(T, vocabulary)` of a row."""
    x = params["embedding"]["embedding"][tokens]
    for index in range(num_layers):
        block = params[f"block_{index}"]
        normed, attended = rms(x), np.zeros_like(x)
        for head, output in enumerate(block["attention"]["output"]):
            query, key, value = (normed @ block["attention"]["qkv"][part, head] for part in range(3))
            query, key = rotate(rms(query)), rotate(rms(key))
            attended += attend(query, key, value, np.ones(len(tokens), bool)) @ output
        x = x + attended
        x = x + gelu(rms(x) @ block["mlp"]["up"]["kernel"]) @ block["mlp"]["down"]["kernel"]
    return rms(x) @ params["output_embedding"].T
