"""All of Celo2 in one file of plain PyTorch, written to be read: no kernels, no batching, no options.

    python examples/celo2_minimal_torch.py

Source: arXiv 2602.19142, section 3. The twin of `celo2_minimal.py`, with the same names in the same order:
gradient `g`, parameter `p`, momenta `m`, second moment `v`, row and column means of the squared gradient `r`
and `c`, decays β. It computes what `celo2.torch.Celo2` does, with two simplifications: matrices are used as
stored, and a gradient that is exactly zero is not treated specially.
"""

from __future__ import annotations

import json
from importlib import resources
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

ADAMW_SCALE = 20.0  # learning rate of AdamW's share over the rule's
ADAMW_BETAS = (0.9, 0.95)


class Rule(NamedTuple):
    """The learned numbers: the network's 347 weights and seven decays."""

    weights: dict[str, Tensor]
    momentum: list[float]  # three decays
    rms: float
    factored: list[float]  # three decays

    def to(self, *where: Any) -> Rule:
        """The rule on another device or in another dtype, those of the parameters."""
        return self._replace(weights={key: array.to(*where) for key, array in self.weights.items()})


def read_rule(name: str = "celo2") -> Rule:
    """Reads the weights that ship with the package: "celo2" or "celo2-base"."""
    path = resources.files("celo2") / "pretrained" / f"{name}.safetensors"
    with safe_open(str(path), "pt") as file:
        weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        config = json.loads(file.metadata()["config"])
    names = ("initial_momentum_decays", "initial_rms_decays", "initial_adafactor_decays")
    momentum, (rms,), factored = (config[name] for name in names)
    return Rule(weights, momentum, rms, factored)


# 1. Accumulators: exponential moving averages that start at zero and are not bias-corrected.


def largest_axes(shape: torch.Size) -> tuple[int, int]:
    """The second largest and the largest axis; of equal ones, the later counts as larger."""
    second, first = sorted(range(len(shape)), key=lambda axis: shape[axis])[-2:]
    return second, first


def init_leaf(p: Tensor) -> dict[str, Any]:
    r = c = torch.zeros_like(p)  # below rank 2 there are no rows and columns: r is the full second moment
    if p.ndim >= 2:
        second, first = largest_axes(p.shape)
        r, c = r.mean(first, keepdim=True), c.mean(second, keepdim=True)
    return {"m": [torch.zeros_like(p)] * 3, "v": torch.zeros_like(p), "r": [r] * 3, "c": [c] * 3}


def accumulate(rule: Rule, state: dict[str, Any], g: Tensor) -> dict[str, Any]:
    square = g * g + 1e-30
    r = c = square
    if g.ndim >= 2:
        second, first = largest_axes(g.shape)
        r, c = square.mean(first, keepdim=True), square.mean(second, keepdim=True)
    return {
        "m": [beta * m + (1 - beta) * g for m, beta in zip(state["m"], rule.momentum, strict=True)],
        "v": rule.rms * state["v"] + (1 - rule.rms) * g * g,
        "r": [beta * old + (1 - beta) * r for old, beta in zip(state["r"], rule.factored, strict=True)],
        "c": [beta * old + (1 - beta) * c for old, beta in zip(state["c"], rule.factored, strict=True)],
    }


# 2. Features: 30 numbers for each element of a matrix, 15 below rank 2, in the order of the network's inputs.


def compute_features(g: Tensor, p: Tensor, state: dict[str, Any]) -> list[Tensor]:
    m, v, r, c = state["m"], state["v"], state["r"], state["c"]
    rsqrt_v = torch.rsqrt(v + 1e-8)
    if g.ndim < 2:
        factors = [torch.rsqrt(d + 1e-9) for d in r]
    else:  # Adafactor's estimate of 1 / √E[g²] from its row and column means
        second, _ = largest_axes(g.shape)
        rows = [x / (x.mean(second, keepdim=True) + 1e-9) for x in r]
        factors = [torch.rsqrt(x.clamp(min=1e-9)) for x in rows]
        factors = [f * torch.rsqrt(x.clamp(min=1e-9)) for f, x in zip(factors, c, strict=True)]

    features = [g, g.clamp(-0.1, 0.1), p, *m, v]
    features += [x * rsqrt_v for x in m]
    features += [rsqrt_v]
    features += [g * f for f in factors]
    features += [g * rsqrt_v]
    if g.ndim >= 2:
        features += [*r, *c]
        features += [torch.rsqrt(x + 1e-8) for x in (*r, *c)]
        features += [x * f for x, f in zip(m, factors, strict=True)]
    return [x.expand_as(g) for x in features]


def normalize(x: Tensor) -> Tensor:
    """x / rms(x), over the last two axes: each matrix of a stack by itself."""
    return x * torch.rsqrt((x * x).mean(tuple(range(x.ndim))[-2:], keepdim=True) + 1e-9)


# 3. The network, applied to each element by itself: features → 8 → 8 → 3. Output 0 is the direction.


def apply_network(weights: dict[str, Tensor], features: list[Tensor]) -> Tensor:
    x = torch.stack([normalize(feature) for feature in features], dim=-1)
    groups = 14 if x.shape[-1] == 30 else 9  # of rows of the first layer
    w0 = torch.cat([weights[f"w0__{i}"] for i in range(groups)])
    x = torch.relu(x @ w0 + weights["b0"])
    x = torch.relu(x @ weights["w1"] + weights["b1"])
    return (x @ weights["w2"] + weights["b2"])[..., 0]


# 4. Newton–Schulz, as in Muon: moves all singular values of a matrix towards 1.


def orthogonalize(x: Tensor) -> Tensor:
    x = x / (torch.sqrt((x * x).sum((-2, -1), keepdim=True)) + 1e-8)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x  # the product x xᵀ is then the smaller one
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.mT if tall else x


# 5. The step of one tensor: root mean square 1, so that the learning rate alone sets its size.


def rule_step(rule: Rule, g: Tensor, p: Tensor, state: Any, *, base: bool = False) -> tuple[Tensor, Any]:
    """Celo2's un-negated step; without Newton–Schulz for Celo2-base."""
    g = g.clamp(-1000, 1000)
    state = accumulate(rule, state, g)
    direction = apply_network(rule.weights, compute_features(g, p, state))
    if p.ndim >= 2 and not base:
        direction = orthogonalize(direction)
    return normalize(direction), state


def adamw_step(g: Tensor, state: dict[str, Tensor], count: int) -> tuple[Tensor, dict[str, Tensor]]:
    (b1, b2), m, v = ADAMW_BETAS, state["m"], state["v"]
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
    corrected_m, corrected_v = m / (1 - b1**count), v / (1 - b2**count)
    return corrected_m / (torch.sqrt(corrected_v) + 1e-8), {"m": m, "v": v}


# 6. The optimizer: the rule for hidden matrices, AdamW for embeddings, heads, biases and norms.


def init(params: dict[str, Tensor], hidden: set[str]) -> dict[str, Any]:
    """The state; `hidden` are the names of the hidden matrices."""
    adamw = {k: {"m": torch.zeros_like(p), "v": torch.zeros_like(p)} for k, p in params.items()}
    return {"count": 0, **adamw, **{k: init_leaf(params[k]) for k in hidden}}


@torch.no_grad()
def update(
    rule: Rule,
    grads: Any,
    state: Any,
    params: Any,
    hidden: set[str],
    lr: float,
    decay: float = 0.0,
    *,
    base: bool = False,
) -> dict[str, Any]:
    """Changes the parameters in place; returns the new state."""
    new_state = {"count": state["count"] + 1}
    for k, p in params.items():
        if k in hidden:
            (step, new_state[k]), rate = rule_step(rule, grads[k], p, state[k], base=base), lr
        else:
            step, new_state[k] = adamw_step(grads[k], state[k], new_state["count"])
            rate = ADAMW_SCALE * lr
        p -= rate * (step + decay * p)  # decoupled weight decay
    return new_state


def main(steps: int = 100) -> list[float]:
    """Trains an MLP on 8 × 8 images of digits."""
    from celo2.tasks.vision.datasets import load_digits_8x8

    data, hidden = load_digits_8x8().train, {"hidden"}
    images = torch.from_numpy(data["image"].reshape(-1, 64) / np.float32(255))
    labels = torch.from_numpy(data["label"].astype(np.int64))
    rng = np.random.default_rng(0)
    shapes = {"hidden": (64, 64), "hidden_bias": (64,), "head": (64, 10), "head_bias": (10,)}
    scales = {name: shape[0] ** -0.5 if len(shape) == 2 else 0.0 for name, shape in shapes.items()}
    drawn = {k: torch.as_tensor(scales[k] * rng.standard_normal(s)).float() for k, s in shapes.items()}
    params = {k: x.requires_grad_() for k, x in drawn.items()}

    rule, state, losses = read_rule(), init(params, hidden), []
    for _ in range(steps):
        x = torch.relu(images @ params["hidden"] + params["hidden_bias"])
        loss = torch.nn.functional.cross_entropy(x @ params["head"] + params["head_bias"], labels)
        grads = dict(zip(params, torch.autograd.grad(loss, list(params.values())), strict=True))
        state = update(rule, grads, state, params, hidden, lr=2e-3)
        losses.append(loss.item())
    print(f"loss {losses[0]:.3f} → {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    main()
