"""All of Celo2 in one file, written to be read: no kernels, no batching, no options.

    python examples/celo2_minimal.py

Source: arXiv 2602.19142, section 3. Names follow the paper: gradient `g`, parameter `p`, momenta `m`, second
moment `v`, row and column means of the squared gradient `r` and `c`, decays β. It computes what `celo2.celo2`
does, with two simplifications: matrices are used as stored, and a gradient that is exactly zero is not
treated specially.
"""

from __future__ import annotations

import json
from functools import partial
from importlib import resources
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from safetensors import safe_open

ADAMW_SCALE = 20.0  # learning rate of AdamW's share over the rule's
ADAMW_BETAS = (0.9, 0.95)


class Rule(NamedTuple):
    """The learned numbers: the network's 347 weights and seven decays."""

    weights: dict[str, np.ndarray]
    momentum: list[float]  # three decays
    rms: float
    factored: list[float]  # three decays


def read_rule(name: str = "celo2") -> Rule:
    """Reads the weights that ship with the package: "celo2" or "celo2-base"."""
    path = resources.files("celo2") / "pretrained" / f"{name}.safetensors"
    with safe_open(str(path), "np") as file:
        weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        config = json.loads(file.metadata()["config"])
    names = ("initial_momentum_decays", "initial_rms_decays", "initial_adafactor_decays")
    momentum, (rms,), factored = (config[name] for name in names)
    return Rule(weights, momentum, rms, factored)


# 1. Accumulators: exponential moving averages that start at zero and are not bias-corrected.


def largest_axes(shape: tuple[int, ...]) -> tuple[int, int]:
    """The second largest and the largest axis; of equal ones, the later counts as larger."""
    second, first = np.argsort(shape, kind="stable")[-2:]
    return int(second), int(first)


def init_leaf(p: Array) -> dict[str, Any]:
    r = c = jnp.zeros_like(p)  # below rank 2 there are no rows and columns: r is the full second moment
    if p.ndim >= 2:
        second, first = largest_axes(p.shape)
        r, c = jnp.mean(r, first, keepdims=True), jnp.mean(c, second, keepdims=True)
    return {"m": [jnp.zeros_like(p)] * 3, "v": jnp.zeros_like(p), "r": [r] * 3, "c": [c] * 3}


def accumulate(rule: Rule, state: dict[str, Any], g: Array) -> dict[str, Any]:
    square = g * g + 1e-30
    r = c = square
    if g.ndim >= 2:
        second, first = largest_axes(g.shape)
        r, c = jnp.mean(square, first, keepdims=True), jnp.mean(square, second, keepdims=True)
    return {
        "m": [beta * m + (1 - beta) * g for m, beta in zip(state["m"], rule.momentum, strict=True)],
        "v": rule.rms * state["v"] + (1 - rule.rms) * g * g,
        "r": [beta * old + (1 - beta) * r for old, beta in zip(state["r"], rule.factored, strict=True)],
        "c": [beta * old + (1 - beta) * c for old, beta in zip(state["c"], rule.factored, strict=True)],
    }


# 2. Features: 30 numbers for each element of a matrix, 15 below rank 2, in the order of the network's inputs.


def compute_features(g: Array, p: Array, state: dict[str, Any]) -> list[Array]:
    m, v, r, c = state["m"], state["v"], state["r"], state["c"]
    rsqrt_v = lax.rsqrt(v + 1e-8)
    if g.ndim < 2:
        factors = [lax.rsqrt(d + 1e-9) for d in r]
    else:  # Adafactor's estimate of 1 / √E[g²] from its row and column means
        second, _ = largest_axes(g.shape)
        rows = [x / (jnp.mean(x, second, keepdims=True) + 1e-9) for x in r]
        factors = [lax.rsqrt(jnp.maximum(x, 1e-9)) for x in rows]
        factors = [f * lax.rsqrt(jnp.maximum(x, 1e-9)) for f, x in zip(factors, c, strict=True)]

    features = [g, jnp.clip(g, -0.1, 0.1), p, *m, v]
    features += [x * rsqrt_v for x in m]
    features += [rsqrt_v]
    features += [g * f for f in factors]
    features += [g * rsqrt_v]
    if g.ndim >= 2:
        features += [*r, *c]
        features += [lax.rsqrt(x + 1e-8) for x in (*r, *c)]
        features += [x * f for x, f in zip(m, factors, strict=True)]
    return [jnp.broadcast_to(x, g.shape) for x in features]


def normalize(x: Array) -> Array:
    """x / rms(x), over the last two axes: each matrix of a stack by itself."""
    return x * lax.rsqrt(jnp.mean(x * x, tuple(range(x.ndim))[-2:], keepdims=True) + 1e-9)


# 3. The network, applied to each element by itself: features → 8 → 8 → 3. Output 0 is the direction.


def apply_network(weights: dict[str, np.ndarray], features: list[Array]) -> Array:
    x = jnp.stack([normalize(feature) for feature in features], axis=-1)
    groups = 14 if x.shape[-1] == 30 else 9  # of rows of the first layer
    w0 = np.concatenate([weights[f"w0__{i}"] for i in range(groups)])
    x = jax.nn.relu(x @ w0 + weights["b0"])
    x = jax.nn.relu(x @ weights["w1"] + weights["b1"])
    return (x @ weights["w2"] + weights["b2"])[..., 0]


# 4. Newton–Schulz, as in Muon: moves all singular values of a matrix towards 1.


def orthogonalize(x: Array) -> Array:
    x = x / (jnp.sqrt(jnp.sum(x * x, (-2, -1), keepdims=True)) + 1e-8)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x  # the product x xᵀ is then the smaller one
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.mT if tall else x


# 5. The step of one array: root mean square 1, so that the learning rate alone sets its size.


def rule_step(rule: Rule, g: Array, p: Array, state: Any, *, base: bool = False) -> tuple[Array, Any]:
    """Celo2's un-negated step; without Newton–Schulz for Celo2-base."""
    g = jnp.clip(g, -1000, 1000)
    state = accumulate(rule, state, g)
    direction = apply_network(rule.weights, compute_features(g, p, state))
    if p.ndim >= 2 and not base:
        direction = orthogonalize(direction)
    return normalize(direction), state


def adamw_step(g: Array, state: dict[str, Array], count: Array) -> tuple[Array, dict[str, Array]]:
    (b1, b2), m, v = ADAMW_BETAS, state["m"], state["v"]
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
    corrected_m, corrected_v = m / (1 - b1**count), v / (1 - b2**count)
    return corrected_m / (jnp.sqrt(corrected_v) + 1e-8), {"m": m, "v": v}


# 6. The optimizer: the rule for hidden matrices, AdamW for embeddings, heads, biases and norms.


def init(params: dict[str, Array], hidden: set[str]) -> dict[str, Any]:
    """The state; `hidden` are the names of the hidden matrices."""
    adamw = {k: {"m": jnp.zeros_like(p), "v": jnp.zeros_like(p)} for k, p in params.items()}
    return {"count": jnp.zeros(()), **adamw, **{k: init_leaf(params[k]) for k in hidden}}


def update(
    rule: Rule, grads: Any, state: Any, params: Any, hidden: set[str], lr: float, decay: float = 0.0
) -> tuple[dict[str, Array], dict[str, Any]]:
    """The new parameters and the new state."""
    new_params, new_state = {}, {"count": state["count"] + 1}
    for k, p in params.items():
        if k in hidden:
            (step, new_state[k]), rate = rule_step(rule, grads[k], p, state[k]), lr
        else:
            step, new_state[k] = adamw_step(grads[k], state[k], new_state["count"])
            rate = ADAMW_SCALE * lr
        new_params[k] = p - rate * (step + decay * p)  # decoupled weight decay
    return new_params, new_state


def main(steps: int = 100) -> list[float]:
    """Trains an MLP on 8 × 8 images of digits."""
    from celo2.tasks.vision.datasets import load_digits_8x8

    data, hidden = load_digits_8x8().train, {"hidden"}
    images, labels = data["image"].reshape(-1, 64) / np.float32(255), data["label"].astype(np.int32)
    rng = np.random.default_rng(0)
    shapes = {"hidden": (64, 64), "hidden_bias": (64,), "head": (64, 10), "head_bias": (10,)}
    scales = {name: shape[0] ** -0.5 if len(shape) == 2 else 0.0 for name, shape in shapes.items()}
    params = {k: jnp.asarray(scales[k] * rng.standard_normal(s), jnp.float32) for k, s in shapes.items()}

    def loss_fn(params: dict[str, Array]) -> Array:
        x = jax.nn.relu(images @ params["hidden"] + params["hidden_bias"])
        logits = x @ params["head"] + params["head_bias"]
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels])

    loss_and_grads = jax.jit(jax.value_and_grad(loss_fn))
    step = jax.jit(partial(update, read_rule(), hidden=hidden, lr=2e-3))
    state, losses = init(params, hidden), []
    for _ in range(steps):
        loss, grads = loss_and_grads(params)
        params, state = step(grads, state, params)
        losses.append(float(loss))
    print(f"loss {losses[0]:.3f} → {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    main()
