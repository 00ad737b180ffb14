"""The hand-designed optimizers of matrices that Optax lacks, in float64 NumPy, as their papers state them.

Each function takes the gradients of one matrix, step by step, and returns its un-negated steps. One
expression for each line of the paper's algorithm box, and no code shared with `celo2`.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def newton_schulz(g: Array) -> Array:
    """Jordan et al., 2024: five iterations of the quintic polynomial."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g / (np.sqrt((g**2).sum()) + 1e-8)
    if g.shape[0] > g.shape[1]:
        x = x.T
    for _ in range(5):
        gram = x @ x.T
        x = a * x + b * gram @ x + c * gram @ gram @ x
    return x.T if g.shape[0] > g.shape[1] else x


def adamuon(grads: Iterable[Array], beta: float = 0.95, eps: float = 1e-8) -> list[Array]:
    """arXiv 2507.11005v3, algorithm 1."""
    m = v = 0.0
    steps = []
    for g in grads:
        m = beta * m + g
        o = newton_schulz(np.sign(m))
        v = beta * v + (1 - beta) * o * o
        o_hat = o / (np.sqrt(v) + eps)
        gamma = 0.2 * np.sqrt(g.size) / np.linalg.norm(o_hat)
        steps.append(gamma * o_hat)
    return steps


def normuon(grads: Iterable[Array], beta: float = 0.95, *, nesterov: bool) -> list[Array]:
    """arXiv 2510.05491, algorithm 1, for matrices (output, input), both decays equal."""
    m = v = 0.0
    steps = []
    for g in grads:
        m = beta * m + (1 - beta) * g
        o = newton_schulz(beta * m + (1 - beta) * g if nesterov else m)
        v = beta * v + (1 - beta) * np.mean(o * o, axis=1)  # one number for each row
        o_hat = o / (np.sqrt(v)[:, None] + 1e-10)
        steps.append(0.2 * np.sqrt(g.size) / np.linalg.norm(o_hat) * o_hat)
    return steps


def shampoo(
    grads: Iterable[Array], *, every: int, sides: str, b1: float = 0.9, b2: float = 0.999
) -> list[Array]:
    """arXiv 2309.06497, algorithm 2, grafted from Adam; `sides` holds which of "L" and "R" there are."""
    m = a = left = right = 0.0
    left_root = right_root = np.eye(0)  # made at the first step
    power = -1 / (2 * len(sides))
    steps = []
    for t, g in enumerate(grads, start=1):
        m = b1 * m + (1 - b1) * g
        a = b2 * a + (1 - b2) * g**2
        left = b2 * left + (1 - b2) * g @ g.T
        right = b2 * right + (1 - b2) * g.T @ g
        if t % every == 1 or every == 1:
            left_root = _power(left / (1 - b2**t), power) if "L" in sides else np.eye(g.shape[0])
            right_root = _power(right / (1 - b2**t), power) if "R" in sides else np.eye(g.shape[1])
        m_hat = m / (1 - b1**t)
        graft = m_hat / (np.sqrt(a / (1 - b2**t)) + 1e-8)
        p = left_root @ m_hat @ right_root
        steps.append(np.linalg.norm(graft) / np.linalg.norm(p) * p)
    return steps


def soap(grads: Iterable[Array], *, every: int, sides: str, beta: float = 0.95) -> list[Array]:
    """arXiv 2409.11321, algorithms 3 and 4; `sides` holds which of "L" and "R" there are.

    The first gradient only makes the first bases. Columns sorted by the eigenvalue they estimate.
    """
    grads = list(grads)
    first = grads[0]
    left, right = (1 - beta) * first @ first.T, (1 - beta) * first.T @ first
    q_left = np.linalg.eigh(left)[1][:, ::-1] if "L" in sides else np.eye(first.shape[0])
    q_right = np.linalg.eigh(right)[1][:, ::-1] if "R" in sides else np.eye(first.shape[1])
    m = v = np.zeros_like(first)
    steps = [np.zeros_like(first)]
    for t, g in enumerate(grads[1:], start=1):
        g_rotated = q_left.T @ g @ q_right
        m = beta * m + (1 - beta) * g
        v = beta * v + (1 - beta) * g_rotated**2
        m_rotated = q_left.T @ (m / (1 - beta**t)) @ q_right
        n_rotated = m_rotated / (np.sqrt(v / (1 - beta**t)) + 1e-8)
        steps.append(q_left @ n_rotated @ q_right.T)
        left = beta * left + (1 - beta) * g @ g.T
        right = beta * right + (1 - beta) * g.T @ g
        if t % every == 0 and "L" in sides:
            order = np.argsort(-np.diag(q_left.T @ left @ q_left))
            q_left, v = np.linalg.qr(left @ q_left[:, order])[0], v[order]
        if t % every == 0 and "R" in sides:
            order = np.argsort(-np.diag(q_right.T @ right @ q_right))
            q_right, v = np.linalg.qr(right @ q_right[:, order])[0], v[:, order]
    return steps


def _power(matrix: Array, power: float) -> Array:
    """A power of a symmetric matrix, over a ridge of 1e-6 of its largest eigenvalue."""
    values, vectors = np.linalg.eigh(matrix)
    return vectors @ np.diag((values.clip(0) + 1e-6 * values.max()) ** power) @ vectors.T
