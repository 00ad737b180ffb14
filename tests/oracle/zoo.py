"""Celo, Celo-Adam, AdaFac-MLP, RNN-MLP, NN-Adam and VeLO in float64 NumPy, as their specification states them.

Slow, complete and literal, tensor by tensor; it shares no code with `celo2`. Each class is one optimizer:
`Name(theta, shapes, T, **switches)`, whose `update(grads, params, loss)` returns the change of each tensor and
keeps its own state. `theta` is the nested tree of an upstream file; tensors are lists in pytree order.
"""

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
    """One tensor's; `r` and `c` lack the reduced axis's length but keep the axis, `d` is in `r` below rank 2."""

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
        if self.n:
            top = np.max(self.mu / (1 - self.delta ** (self.n + 1)))
        else:
            top = x
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
        self.prepare(len(shapes), **switches)

    def prepare(self, count: int) -> None:
        pass

    def update(self, grads: Sequence[Array], params: Sequence[Array], loss: float) -> list[Array]:
        changes = self.step(grads, [np.asarray(p, np.float64) for p in params], float(loss))
        self.t += 1
        return changes

    def step(self, grads: Any, params: list[Array], loss: float) -> list[Array]:
        raise NotImplementedError


class Celo(Optimizer):
    def prepare(self, count: int, phase: int = 2) -> None:
        self.phase, self.buffer = phase, LossBuffer(self.steps)

    def schedule(self, loss: float) -> tuple[Array, Array]:
        x = np.concatenate([fraction(self.t, self.steps), self.buffer.update(loss)])
        params = self.theta["rnn_params"]
        out, self.rows = mixing(params, np.tile(x, (len(self.acc), 1)), self.rows)
        return out, 0.1 * np.exp(linear(params["step_size"], out)[:, 0])

    def step(self, grads: Any, params: list[Array], loss: float) -> list[Array]:
        out, rate = self.schedule(loss)
        logits = linear(self.theta["rnn_params"]["rnn_to_controls"], out)
        controls = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
        changes = []
        for index, (g, p, acc) in enumerate(zip(clipped(grads), params, self.acc, strict=True)):
            acc.update(g)
            weights = mixed(self.theta["ff_mod_stack"]["~"], controls[index])
            changes.append(-(rate[index] if self.phase == 2 else 1.0) * mlp14(weights, g, p, acc))
        return changes


class CeloAdam(Celo):
    decays = ((0.9,), (0.999,), ())

    def step(self, grads: Any, params: list[Array], loss: float) -> list[Array]:
        _, rate = self.schedule(loss)
        changes, n = [], self.t + 1
        for index, (g, acc) in enumerate(zip(clipped(grads), self.acc, strict=True)):
            acc.update(g)
            m, v = acc.m[0] / (1 - 0.9**n), acc.v[0] / (1 - 0.999**n)
            changes.append(-0.001 * rate[index] * m / (1e-8 + np.sqrt(v + 1e-10)))
        return changes


class AdafacMlp(Optimizer):
    def prepare(self, count: int) -> None:
        names = ("momentum_decays", "rms_decays", "adafactor_decays")
        decays = [1 - (1 - np.array(b)) * np.exp(10 * self.theta[n]) for b, n in zip(STD, names, strict=True)]
        for acc in self.acc:
            acc.momentum, acc.rms, acc.adafactor = decays

    def step(self, grads: Any, params: list[Array], loss: float) -> list[Array]:
        net, changes = self.theta["nn"]["~"], []
        time = np.tanh(self.t / np.array(TIMES, float) - 1)
        for g, p, acc in zip(grads, params, self.acc, strict=True):
            g = np.asarray(g, np.float64)
            acc.update(g)
            groups = features(g, p, acc, 1e-6)
            columns = [x for i, group in enumerate(groups) if i not in (1, 8) for x in group]
            x = np.stack([*columns, *(np.broadcast_to(s, g.shape) for s in time)], axis=-1)
            hidden = relu(relu(x @ net["w0"] + net["b0"]) @ net["w1"] + net["b1"])
            out = hidden @ net["w2"] + net["b2"]
            changes.append(-0.001 * out[..., 0] * np.exp(0.001 * out[..., 1]))
        return changes


def clog(y: Any) -> Array:
    return np.clip(np.log(1e-8 + np.abs(y)), -5, 5)


class RnnMlp(Optimizer):
    decays = ((0.5, 0.9, 0.99, 0.999, 0.9999),) * 2 + ((),)

    def prepare(self, count: int) -> None:
        self.from_mlp = np.tile(self.theta["initial_from_mlp"], (count, 1))
        self.from_lstm = self.theta["initial_from_lstm"]
        self.train, self.valid = np.zeros(3), np.zeros(3)
        self.k, self.s = 1.0, 0.01

    @staticmethod
    def moments(state: Array, x: float, decay: float) -> Array:
        mean = decay * state[0] + (1 - decay) * x
        return np.array([mean, decay * state[1] + (1 - decay) * (mean - x) ** 2, state[2] + 1])

    def give_validation(self, loss: float) -> None:
        """A call with `is_valid=True`."""
        self.valid = self.moments(self.valid, loss, 0.95)
        self.t += 1

    def loss_features(self, loss: float) -> list[float]:
        self.train = a, b, n = self.moments(self.train, loss, 0.9)
        correction = 1 / (1 - 0.9**n + 1e-8)
        y = self.valid[0] / (1 - 0.95 ** self.valid[2] + 1e-7) if self.valid[2] else 0.0
        width = 1 / np.sqrt(b * correction + 1e-8)
        return [np.clip((z - a * correction) * width, -5, 5) for z in (loss, y)]

    def clip(self, grads: Any) -> list[Array]:
        bound = 10 * self.s / (1 - 0.99**self.k)
        grads = [np.clip(np.asarray(g, np.float64), -bound, bound) for g in grads]
        size = np.sqrt(1e-8 + np.mean([np.mean(g * g) for g in grads]))
        self.s, self.k = 0.99 * self.s + 0.01 * size, self.k + 1
        return grads

    def row(self, index: int, g: Array, p: Array, f: list[float]) -> Array:
        m, v = np.stack(self.acc[index].m), np.stack(self.acc[index].v)
        numbers = [clog(np.sqrt(np.sum(g * g))), 1.0 if p.ndim == 0 else -1.0]
        for x in (m, v, p):
            numbers += [clog(x.mean()), np.sign(x.mean())]
        numbers.append(clog(np.sqrt(np.sum(p * p))))
        numbers += [np.log(size) - 1 for size in (*p.shape, 1, 1, 1, 1)[:4]]
        numbers += [*f, clog(m.var()), clog(v.var()), clog(p.var())]
        return np.concatenate([self.from_lstm, self.from_mlp[index], numbers])

    def step(self, grads: Any, params: list[Array], loss: float) -> list[Array]:
        f, theta = self.loss_features(loss), self.theta
        grads = self.clip(grads)
        for g, acc in zip(grads, self.acc, strict=True):
            acc.update(g)
        rows = [self.row(i, g, p, f) for i, (g, p) in enumerate(zip(grads, params, strict=True))]
        out, self.rows = lstm(theta["rnn_params"]["rnn/linear"], np.stack(rows), self.rows)
        self.from_lstm = linear(theta["rnn_to_in_params"]["rnn_to_in"], out).mean(axis=0)
        to_ff = linear(theta["rnn_to_ff_params"]["rnn_to_ff"], out)
        return [self.move(i, *pair, to_ff[i]) for i, pair in enumerate(zip(grads, params, strict=True))]

    def move(self, index: int, g: Array, p: Array, to_ff: Array) -> Array:
        m, v = self.acc[index].m, self.acc[index].v
        inverse = [1 / np.sqrt(x + 1e-6) for x in v]
        columns = [g, p, np.log(np.abs(p) + 1e-8), *m, *v]
        columns += [a * b for a, b in zip(m, inverse, strict=True)] + inverse
        same = [np.sin(self.t / (a * np.pi)) for a in TIMES]
        same += [np.log(len(self.acc)) - 1, np.log(np.sqrt(np.sum(p * p)) + 1e-8), np.log(p.size), *to_ff]
        x = np.stack([norm(c) for c in columns] + [np.full(p.shape, s) for s in same], axis=-1)
        layers = [self.theta["ffmod_params"][f"mlp/~/linear_{i}"] for i in range(3)]
        out = linear(layers[2], relu(linear(layers[1], relu(linear(layers[0], x)))))
        self.from_mlp[index] = out[..., 2:].reshape(-1, 16).mean(axis=0)
        return -0.001 * out[..., 0] * np.exp(0.001 * out[..., 1])


class NnAdam(Optimizer):
    decays = ((0.0,), (0.0,), ())
    names = ("lr", "beta1", "beta2", "epsilon")

    def prepare(self, count: int, decay_strength: float = 0.0) -> None:
        self.start = np.array([self.theta[f"per_layer_{name}"] for name in self.names])
        self.scalars, self.rho = np.tile(self.start, (count, 1)), decay_strength

    @staticmethod
    def decode(x: Array) -> Array:
        b1, b2 = (1 - np.exp(np.clip(10 * x[i], -10, 0)) for i in (1, 2))
        return np.array(
            [np.clip(np.exp(10 * x[0]), 1e-8, 1e3), b1, b2, np.clip(np.exp(10 * x[3]), 1e-11, 1e4)]
        )

    @staticmethod
    def encode(y: Array) -> Array:
        return 0.1 * np.log(np.array([y[0], 1 - y[1], 1 - y[2], y[3]]))

    def row(self, g: Array, p: Array, m: Array, v: Array, x: Array) -> Array:
        def half(y: Any) -> Array:
            return 0.5 * clog(y)

        five = [0.2 * np.clip(s, -5, 5) for s in x]
        numbers = [five[1], five[2], five[3], 1 if p.ndim == 1 else -1, 1 if p.ndim == 0 else -1, five[0]]
        numbers += [half(g.mean()), np.sign(g.mean()), half(np.abs(g).mean())]
        for y in (m, p, v):
            numbers += [half(y.mean()), np.sign(y.mean())]
        return np.array([*numbers, *(half(y.var()) for y in (g, m, p, v))])

    def step(self, grads: Any, params: list[Array], loss: float) -> list[Array]:
        rows, changes = [], []
        for g, p, acc, x in zip(clipped(grads), params, self.acc, self.scalars, strict=True):
            lr, b1, b2, eps = self.decode(x)
            acc.momentum, acc.rms = (b1,), (b2,)
            acc.update(g)
            m, v = acc.m[0], acc.v[0]
            changes.append(-lr * (1 + eps) * m / (eps + np.sqrt(v + 1e-10)))
            rows.append(self.row(g, p, m, v, x))
        out, self.rows = lstm(self.theta["rnn_params"]["rnn/linear"], np.stack(rows), self.rows)
        x = self.scalars + 0.01 * linear(self.theta["rnn_to_controls_params"]["rnn_to_controls"], out)
        x = x - self.rho * (x - self.start)
        self.scalars = np.array([self.encode(self.decode(row)) for row in x])
        return changes


class Velo(Optimizer):
    def prepare(
        self, count: int, ff_mult: float = 1.0, bugged_loss: bool = False, bugged_lstm: bool = False
    ) -> None:
        self.ff_mult, self.bugged_lstm = ff_mult, bugged_lstm
        self.buffer = LossBuffer(10 if bugged_loss else self.steps)

    def row(self, p: Array, acc: Accumulators, shared: Array) -> Array:
        def half(y: Any) -> Array:
            return 0.5 * np.clip(np.log(1e-8 + np.abs(10 * y)), -5, 5)

        rho = 1 / np.sqrt(max(1e-9, np.mean(p * p)))
        m, v = [rho * x for x in acc.m], rho * acc.v[0]
        rank = np.zeros(5)
        big = sum(size > 1 for size in p.shape)
        if big < 5:
            rank[big] = 1.0
        numbers = [half(np.mean((v - x.mean()) ** 2)) for x in m]
        return np.concatenate([shared, [half(v.mean())], rank, [half(x.var()) for x in m], numbers])

    def step(self, grads: Any, params: list[Array], loss: float) -> list[Array]:
        shared = np.concatenate([fraction(self.t, self.steps), self.buffer.update(loss)])
        rows = np.stack([self.row(p, acc, shared) for p, acc in zip(params, self.acc, strict=True)])
        heads = self.theta["rnn_params"]
        out, new = mixing(heads, rows, self.rows)
        self.rows = self.rows if self.bugged_lstm else new
        controls, rate = linear(heads["rnn_to_controls"], out), linear(heads["step_size"], out)[:, 0]
        changes = []
        for index, (g, p, acc) in enumerate(zip(clipped(grads), params, self.acc, strict=True)):
            acc.update(g)
            weights = mixed(self.theta["ff_mod_stack"]["~"], self.ff_mult * controls[index])
            changes.append(-rate[index] * mlp14(weights, g, p, acc))
        return changes


OPTIMIZERS: dict[str, type[Optimizer]] = {
    "celo": Celo,
    "celo_adam": CeloAdam,
    "adafac_mlp": AdafacMlp,
    "rnn_mlp": RnnMlp,
    "nn_adam": NnAdam,
    "velo": Velo,
}
