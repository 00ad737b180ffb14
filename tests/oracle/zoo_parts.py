"""What Celo, VeLO and their relatives share, in float64 NumPy, as their specification states it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
STD = ((0.9, 0.99, 0.999), (0.999,), (0.9, 0.99, 0.999))
TIMES = (1, 3, 10, 30, 100, 300, 1000, 3000, 10000, 30000, 100000)


def f64(tree: Any) -> Any:
    return {k: f64(v) for k, v in tree.items()} if isinstance(tree, dict) else np.asarray(tree, np.float64)


def linear(params: Any, x: Array) -> Array:
    return x @ params["w"] + params["b"]


def relu(x: Array) -> Array:
    return np.maximum(x, 0.0)


def sigmoid(x: Array) -> Array:
    return 1.0 / (1.0 + np.exp(-x))


def lstm(params: Any, x: Array, state: tuple[Array, Array]) -> tuple[Array, tuple[Array, Array]]:
    h, c = state
    i, a, f, o = np.split(linear(params, np.concatenate([x, h], axis=-1)), 4, axis=-1)
    c = sigmoid(f + 1.0) * c + sigmoid(i) * np.tanh(a)
    h = sigmoid(o) * np.tanh(c)
    return h, (h, c)


def mixing(params: Any, x: Array, state: Any) -> tuple[Array, Any]:
    v = relu(linear(params["linear_1"], x)).max(axis=0, keepdims=True)
    return lstm(params["rnn/linear"], linear(params["linear_2"], x) + v, state)


def initial_rows(theta: Any, count: int) -> tuple[Array, Array]:
    start = theta["lstm_init_state"]
    return np.repeat(start["hidden"], count, axis=0), np.repeat(start["cell"], count, axis=0)


def dims(shape: Sequence[int]) -> tuple[int, int]:
    d1, d0 = sorted(range(len(shape)), key=lambda axis: shape[axis])[-2:]
    return d1, d0


class Accumulators:
    """One tensor's; `r` and `c` keep the reduced axis as length 1, and `r` is the diagonal below rank 2."""

    def __init__(self, shape: tuple[int, ...], decays: Any = STD) -> None:
        self.momentum, self.rms, self.adafactor = decays
        self.m = [np.zeros(shape) for _ in self.momentum]
        self.v = [np.zeros(shape) for _ in self.rms]
        self.r: list[Any] = [0.0 for _ in self.adafactor]
        self.c: list[Any] = [0.0 for _ in self.adafactor]

    def update(self, g: Array) -> None:
        square = g * g + 1e-30
        rows = cols = square
        if g.ndim >= 2:
            d1, d0 = dims(g.shape)
            rows, cols = square.mean(axis=d0, keepdims=True), square.mean(axis=d1, keepdims=True)
        bounded = [np.clip(b, 0.0, 1.0) for b in self.adafactor]
        self.m = [b * m + (1 - b) * g for b, m in zip(self.momentum, self.m, strict=True)]
        self.v = [
            np.clip(b, 0, 1) * v + (1 - np.clip(b, 0, 1)) * g * g
            for b, v in zip(self.rms, self.v, strict=True)
        ]
        self.r = [b * r + (1 - b) * rows for b, r in zip(bounded, self.r, strict=True)]
        self.c = [b * c + (1 - b) * cols for b, c in zip(bounded, self.c, strict=True)]

    def factors(self, shape: tuple[int, ...]) -> list[Array]:
        if len(shape) < 2:
            return [1 / np.sqrt(np.maximum(d + 1e-9, 1e-9)) for d in self.r]
        d1, _ = dims(shape)
        row = [1 / np.sqrt(np.maximum(r / (r.mean(axis=d1, keepdims=True) + 1e-9), 1e-9)) for r in self.r]
        col = [1 / np.sqrt(np.maximum(c, 1e-9)) for c in self.c]
        return [a * b for a, b in zip(row, col, strict=True)]


def norm(x: Array) -> Array:
    return x / np.sqrt(1e-5 + np.mean(x * x))


def features(g: Array, p: Array, acc: Accumulators, diagonal_eps: float) -> list[list[Array]]:
    """The 14 groups of MLP14, normalised; AdaFac-MLP's are these without groups 1 and 8."""
    v = acc.v[0]
    fac = acc.factors(g.shape)
    if g.ndim >= 2:
        r, c = acc.r, acc.c
        last = [m * f for m, f in zip(acc.m, fac, strict=True)]
    else:
        r = c = acc.r
        last = [m * (d + diagonal_eps) ** -0.5 for m, d in zip(acc.m, acc.r, strict=True)]
    groups = [
        [g],
        [np.clip(g, -0.1, 0.1)],
        [p],
        acc.m,
        [v],
        [m / np.sqrt(v + 1e-6) for m in acc.m],
        [1 / np.sqrt(v + 1e-6)],
        [g * f for f in fac],
        [g / np.sqrt(v + 1e-6)],
        r,
        c,
        [1 / np.sqrt(x + 1e-8) for x in r],
        [1 / np.sqrt(x + 1e-8) for x in c],
        last,
    ]
    return [[norm(np.broadcast_to(x, g.shape)) for x in group] for group in groups]


def mlp14(weights: Any, g: Array, p: Array, acc: Accumulators) -> Array:
    """`S`, the step before its multiplier, given gradient, old parameter and new accumulators."""
    z = weights["b0"]
    for index, group in enumerate(features(g, p, acc, 0.0)):
        z = z + np.stack(group, axis=-1) @ weights[f"w0__{index}"]
    out = relu(relu(z) @ weights["w1"] + weights["b1"]) @ weights["w2"] + weights["b2"]
    scale = np.sqrt(np.mean(p * p) + 1e-9)
    return 0.001 * out[..., 0] * scale * np.exp(0.001 * out[..., 1])


def mixed(stack: Any, controls: Array) -> Any:
    """Weighted mean (not a convex combination) of the members' weights."""
    return {name: np.tensordot(controls, w, axes=(0, 0)) / len(w) for name, w in stack.items()}


class LossBuffer:
    def __init__(self, horizon: float) -> None:
        tau = np.array([10 ** (1 + (np.log10(horizon) - 1) * j / 9) for j in range(10)])
        self.delta = np.exp(-1 / tau)
        self.mu, self.n, self.low = np.zeros(10), 0, np.full(10, 999999999999.0)

    def update(self, x: float) -> Array:
        top = np.max(self.mu / (1 - self.delta ** (self.n + 1))) if self.n else x
        x = min(2 * abs(top), x)
        self.mu = self.delta * self.mu + (1 - self.delta) * x
        self.n += 1
        mean = self.mu / (1 - self.delta**self.n)
        self.low = np.minimum(self.low, mean)
        if self.n <= 2:
            return np.zeros(9)
        ratio = (mean[:9] - self.low[:9]) / np.maximum(1e-8, mean[1:] - self.low[:9])
        return np.clip(ratio - 1, -1, 1)


def fraction(t: int, steps: int) -> Array:
    return np.tanh(10 * (t / steps - np.array([0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1])))


def clipped(grads: Sequence[Array]) -> list[Array]:
    return [np.clip(np.asarray(g, np.float64), -1000, 1000) for g in grads]


class Optimizer:
    """What all have in common: theta in float64, the step's number, accumulators for each tensor."""

    decays: Any = STD

    def __init__(self, theta: Any, shapes: Sequence[tuple[int, ...]], steps: int, **switches: Any) -> None:
        self.theta, self.steps, self.t = f64(theta), steps, 0
        self.acc = [Accumulators(shape, self.decays) for shape in shapes]
        if "lstm_init_state" in theta:
            self.rows = initial_rows(self.theta, len(shapes))
        self.prepare(**switches)

    def prepare(self) -> None:
        pass

    def update(
        self, grads: Sequence[NDArray[np.floating]], params: Sequence[NDArray[np.floating]], loss: float
    ) -> list[Array]:
        self.loss = float(loss)
        changes = self.step(grads, [np.asarray(p, np.float64) for p in params])
        self.t += 1
        return changes

    def step(self, grads: Any, params: list[Array]) -> list[Array]:
        raise NotImplementedError


def clog(y: Any) -> Array:
    return np.clip(np.log(1e-8 + np.abs(y)), -5, 5)
