"""Celo, Celo-Adam, AdaFac-MLP, RNN-MLP, NN-Adam and VeLO in float64 NumPy, as their specification has them.

Slow, complete and literal, tensor by tensor; it shares no code with `celo2`. Each class is one optimizer:
`Name(theta, shapes, T, **switches)`, whose `update(grads, params, loss)` returns the change of each tensor
and keeps its own state. `theta` is the nested tree of an upstream file; tensors are lists in pytree order.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from oracle.zoo_parts import (
    STD,
    TIMES,
    Accumulators,
    Array,
    LossBuffer,
    Optimizer,
    clipped,
    clog,
    features,
    fraction,
    linear,
    lstm,
    mixed,
    mixing,
    mlp14,
    norm,
    relu,
)


class Celo(Optimizer):
    def prepare(self, phase: int = 2) -> None:
        self.phase, self.buffer = phase, LossBuffer(self.steps)

    def schedule(self) -> tuple[Array, Array]:
        x = np.concatenate([fraction(self.t, self.steps), self.buffer.update(self.loss)])
        params = self.theta["rnn_params"]
        out, self.rows = mixing(params, np.tile(x, (len(self.acc), 1)), self.rows)
        return out, 0.1 * np.exp(linear(params["step_size"], out)[:, 0])

    def step(self, grads: Any, params: list[Array]) -> list[Array]:
        out, rate = self.schedule()
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

    def step(self, grads: Any, params: list[Array]) -> list[Array]:
        del params
        _, rate = self.schedule()
        changes, n = [], self.t + 1
        for index, (g, acc) in enumerate(zip(clipped(grads), self.acc, strict=True)):
            acc.update(g)
            m, v = acc.m[0] / (1 - 0.9**n), acc.v[0] / (1 - 0.999**n)
            changes.append(-0.001 * rate[index] * m / (1e-8 + np.sqrt(v + 1e-10)))
        return changes


class AdafacMlp(Optimizer):
    def prepare(self) -> None:
        names = ("momentum_decays", "rms_decays", "adafactor_decays")
        decays = [1 - (1 - np.array(b)) * np.exp(10 * self.theta[n]) for b, n in zip(STD, names, strict=True)]
        for acc in self.acc:
            acc.momentum, acc.rms, acc.adafactor = decays

    def step(self, grads: Any, params: list[Array]) -> list[Array]:
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


class RnnMlp(Optimizer):
    decays = ((0.5, 0.9, 0.99, 0.999, 0.9999),) * 2 + ((),)

    def prepare(self) -> None:
        self.from_mlp = np.tile(self.theta["initial_from_mlp"], (len(self.acc), 1))
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

    def step(self, grads: Any, params: list[Array]) -> list[Array]:
        f, theta = self.loss_features(self.loss), self.theta
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

    def prepare(self, decay_strength: float = 0.0) -> None:
        self.start = np.array([self.theta[f"per_layer_{name}"] for name in self.names])
        self.scalars, self.rho = np.tile(self.start, (len(self.acc), 1)), decay_strength

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

    def step(self, grads: Any, params: list[Array]) -> list[Array]:
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
    def prepare(self, ff_mult: float = 1.0, bugged_loss: bool = False, bugged_lstm: bool = False) -> None:
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

    def step(self, grads: Any, params: list[Array]) -> list[Array]:
        shared = np.concatenate([fraction(self.t, self.steps), self.buffer.update(self.loss)])
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
