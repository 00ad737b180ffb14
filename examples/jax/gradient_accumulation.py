"""Trains with Celo2 on the mean gradient of several small batches, using `optax.MultiSteps`.

pip install 'celo2[jax]'
python examples/jax/gradient_accumulation.py
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

import celo2
from celo2.tasks.vision.datasets import load_digits_8x8

Params = dict[str, Array]


def loss_fn(params: Params, images: Array, labels: Array) -> Array:
    logits = jax.nn.relu(images @ params["hidden"]) @ params["head"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def main(steps: int = 60, accumulate: int = 4) -> list[float]:
    data = load_digits_8x8().train
    images, labels = data["image"].reshape(-1, 64) / np.float32(255), data["label"].astype(np.int32)

    keys = jax.random.split(jax.random.key(0))
    params = {
        "hidden": jax.random.normal(keys[0], (64, 64)) / 8,
        "head": jax.random.normal(keys[1], (64, 10)) / 8,
    }
    # The schedule counts Celo2 steps, not batches.
    schedule = optax.cosine_decay_schedule(2e-3, decay_steps=steps)
    # Between steps the updates are zero, and neither weights nor momenta decay. Averaging Celo2's updates
    # instead of the gradients would be a different algorithm, since each update is normalised.
    optimizer = optax.MultiSteps(celo2.celo2(schedule, weight_decay=0.1), every_k_schedule=accumulate)
    state = optimizer.init(params)

    @jax.jit
    def train_step(params: Params, state: optax.MultiStepsState, images: Array, labels: Array) -> tuple:
        loss, grads = jax.value_and_grad(loss_fn)(params, images, labels)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    rng, losses = np.random.default_rng(0), []
    for _ in range(steps):
        batches = []
        for _ in range(accumulate):
            rows = rng.integers(len(images), size=32)
            batch = jnp.asarray(images[rows]), jnp.asarray(labels[rows])
            params, state, loss = train_step(params, state, *batch)
            batches.append(float(loss))
        losses.append(sum(batches) / accumulate)
    print(f"{state.gradient_step} steps of {accumulate} batches: loss {losses[0]:.3f} → {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    main()
