"""Trains in bfloat16: first compute and optimizer state, then the parameters too.

pip install 'celo2[jax]'
python examples/jax/bfloat16.py
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

import celo2
from celo2.tasks.vision.datasets import load_digits_8x8

Params = dict[str, Array]


def loss_fn(params: Params, images: Array, labels: Array) -> Array:
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    logits = jax.nn.relu(images.astype(jnp.bfloat16) @ params["hidden"]) @ params["head"]
    logits = logits.astype(jnp.float32)  # logarithms and means need more precision than bfloat16 has
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def train(steps: int, param_dtype: Any) -> list[float]:
    data = load_digits_8x8().train
    images, labels = data["image"].reshape(-1, 64) / np.float32(255), data["label"].astype(np.int32)

    keys = jax.random.split(jax.random.key(0))
    params = {
        "hidden": jax.random.normal(keys[0], (64, 64)) / 8,
        "head": jax.random.normal(keys[1], (64, 10)) / 8,
    }
    params = jax.tree.map(lambda p: p.astype(param_dtype), params)
    # Momenta and second moments of the rule in 8 bytes per parameter instead of 16, whatever the parameters'
    # dtype. They are rounded stochastically: with rounding to nearest, an average that moves by less than
    # half a digit would not change.
    optimizer = celo2.celo2(2e-3, state_dtype="bfloat16")
    state = optimizer.init(params)

    @jax.jit
    def train_step(params: Params, state: optax.OptState, images: Array, labels: Array) -> tuple:
        loss, grads = jax.value_and_grad(loss_fn)(params, images, labels)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    rng, losses = np.random.default_rng(0), []
    for _ in range(steps):
        rows = rng.integers(len(images), size=128)
        params, state, loss = train_step(params, state, jnp.asarray(images[rows]), jnp.asarray(labels[rows]))
        losses.append(float(loss))
    return losses


def main(steps: int = 100) -> list[list[float]]:
    runs = []
    # float32 parameters are the safer choice. In bfloat16, numbers between 0.5 and 1 are 0.004 apart, and
    # an update of less than half of that is rounded away.
    for dtype in (jnp.float32, jnp.bfloat16):
        runs.append(train(steps, dtype))
        print(f"{jnp.dtype(dtype)} parameters: loss {runs[-1][0]:.3f} → {runs[-1][-1]:.3f}")
    return runs


if __name__ == "__main__":
    main()
