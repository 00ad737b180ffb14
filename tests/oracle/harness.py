"""What stands around a direction, in float64 NumPy, as the papers state it.

Each function takes what happens to one matrix, or to a vector, step by step. One expression for each line of
the paper's equations, and no code shared with `celo2`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from oracle import rule

Array = NDArray[np.float64]


def normalize_rows(steps: Iterable[Array], beta: float) -> list[Array]:
    """arXiv 2510.05491, algorithm 1, lines 7 to 10, for matrices (output, input); each step keeps its norm.

    A step that is zero everywhere stays zero and leaves v as it is.
    """
    v = 0.0
    made = []
    for o in steps:
        if not o.any():
            made.append(o)
            continue
        v = beta * v + (1 - beta) * np.mean(o * o, axis=1)  # one number for each row
        o_hat = o / (np.sqrt(v)[:, None] + 1e-10)
        made.append(np.linalg.norm(o) / np.linalg.norm(o_hat) * o_hat)
    return made


def cautious_decay(u: Array, x: Array, decay: float) -> Array:
    """arXiv 2510.12402, equation 1: x ← x - η (u + λ I(u x ≥ 0) x); returns what η multiplies."""
    indicator = np.where(np.sign(u) * np.sign(x) >= 0, 1.0, 0.0)
    return u + decay * indicator * x


def floor_ratio(u: Array, w: Array, ratio: float) -> Array:
    """Skylight's floor: the step's norm is at least `ratio` times that of the weights."""
    length, least = np.linalg.norm(u), ratio * np.linalg.norm(w)
    return u * (least / length) if 0 < length < least else u


def project(w: Array, u: Array, radius: float) -> Array:
    """arXiv 2606.16899: the update that u becomes when the weights stay on the sphere of this radius."""
    moved = w + u
    return radius * moved / np.linalg.norm(moved) - w if radius > 0 and u.any() else u


def polar_factor(u: Array) -> Array:
    """The nearest orthogonal matrix, of the norm of u."""
    left, _, right = np.linalg.svd(u, full_matrices=False)
    return float(np.linalg.norm(u) / np.linalg.norm(left @ right)) * left @ right if u.any() else u


def exponential_means(params: Iterable[Array], beta: float) -> list[Array]:
    """Means with weights βᵏ of the k-th last, all equal until the share 1 / n of the last is below 1 - β."""
    mean, means = np.asarray(0.0), []
    for n, p in enumerate(params, start=1):
        share = max(1 - beta, 1 / n)
        mean = (1 - share) * mean + share * p
        means.append(mean)
    return means


def tail_means(params: Iterable[Array], start: int) -> list[Array]:
    """Plain means of all parameters after the first `start`, and until then the last ones."""
    seen = list(params)
    return [np.mean(seen[start : t + 1], axis=0) if t >= start else p for t, p in enumerate(seen)]


class Inner(Protocol):
    """An optimizer of directions that SOAP runs in its basis."""

    def step(self, g: Array, p: Array, rotate: Callable[[Array], Array]) -> Array:
        """Returns the step in the basis; gradient and parameter are in the original one."""
        ...

    def reorder(self, order: NDArray[np.intp], axis: int) -> None:
        """Follows the columns of a basis."""
        ...


class Adam:
    """arXiv 2409.11321, algorithm 3: the momentum in the original basis, the second moment in SOAP's."""

    def __init__(self, shape: tuple[int, ...], betas: tuple[float, float], eps: float = 1e-8) -> None:
        self.m, self.v, self.t, self.betas, self.eps = np.zeros(shape), np.zeros(shape), 0, betas, eps

    def step(self, g: Array, p: Array, rotate: Callable[[Array], Array]) -> Array:
        del p
        b1, b2 = self.betas
        self.t += 1
        self.m = b1 * self.m + (1 - b1) * g
        self.v = b2 * self.v + (1 - b2) * rotate(g) ** 2
        m_hat, v_hat = rotate(self.m) / (1 - b1**self.t), self.v / (1 - b2**self.t)
        return m_hat / (np.sqrt(v_hat) + self.eps)

    def reorder(self, order: NDArray[np.intp], axis: int) -> None:
        self.v = np.take(self.v, order, axis)


class Rule:
    """The Celo2 rule with its momenta in the original basis, all squares in SOAP's."""

    def __init__(
        self, shape: tuple[int, ...], theta: Mapping[str, NDArray[np.floating]], options: rule.Options
    ) -> None:
        self.theta, self.options, self.squares = theta, options, rule.init(shape, options)
        self.momenta = self.squares.momentum

    def step(self, g: Array, p: Array, rotate: Callable[[Array], Array]) -> Array:
        before = dataclasses.replace(self.squares, momentum=[rotate(m) for m in self.momenta])
        step, self.squares = rule.update(
            self.theta, before, rotate(g), rotate(p), self.options, skip_zero=True
        )
        betas = self.options.initial_momentum_decays
        if not g.any():
            return step
        self.momenta = [b * m + (1 - b) * g for b, m in zip(betas, self.momenta, strict=True)]
        return step

    def reorder(self, order: NDArray[np.intp], axis: int) -> None:
        def follow(arrays: list[Array]) -> list[Array]:  # of rows and columns, one axis is reduced to 1
            return [np.take(a, order, axis) if a.shape[axis] == len(order) else a for a in arrays]

        acc = self.squares
        families = {name: follow(getattr(acc, name)) for name in ("rms", "row", "col")}
        self.squares = dataclasses.replace(acc, **families)


def in_eigenbasis(
    grads: Iterable[Array], params: Iterable[Array], inner: Inner, *, every: int, sides: str, beta: float
) -> list[Array]:
    """arXiv 2409.11321, algorithms 3 and 4; `sides` holds which of "L" and "R" there are.

    As in the authors' code, the first gradient only makes the first bases, and before QR the columns are
    sorted by the eigenvalue that they estimate. Factors leave out steps whose gradient is zero.
    """
    factors: dict[str, Array] = {}
    bases: dict[str, Array] = {}
    steps = []

    def rotate(x: Array) -> Array:
        x = bases["L"].T @ x if "L" in bases else x
        return x @ bases["R"] if "R" in bases else x

    for t, (g, p) in enumerate(zip(grads, params, strict=True)):
        step = np.zeros_like(g)
        if t > 0:
            step = inner.step(g, p, rotate)
            step = bases["L"] @ step if "L" in bases else step
            step = step @ bases["R"].T if "R" in bases else step
        steps.append(step)
        for axis, side in enumerate("LR"):
            if side not in sides:
                continue
            if g.any():
                square = g @ g.T if side == "L" else g.T @ g
                factors[side] = beta * factors.get(side, 0.0) + (1 - beta) * square
            if t == 0:
                bases[side] = np.linalg.eigh(factors[side])[1][:, ::-1]
            elif t % every == 0:
                q = bases[side]
                order = np.argsort(-np.diag(q.T @ factors[side] @ q))
                bases[side] = np.linalg.qr(factors[side] @ q[:, order])[0]
                inner.reorder(order, axis)
    return steps
