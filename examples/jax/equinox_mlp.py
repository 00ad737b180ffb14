"""Trains an Equinox MLP with Celo2 on 8 × 8 images of digits.

pip install 'celo2[jax]' equinox
python examples/jax/equinox_mlp.py
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

import celo2
from celo2.tasks.vision.datasets import load_digits_8x8


@eqx.filter_jit
def train_step(
    model: eqx.nn.MLP,
    optimizer: optax.GradientTransformation,
    state: optax.OptState,
    images: Array,
    labels: Array,
) -> tuple[eqx.nn.MLP, optax.OptState, Array]:
    def loss_fn(model: eqx.nn.MLP) -> Array:
        logits = jax.vmap(model)(images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    loss, grads = eqx.filter_value_and_grad(loss_fn)(model)
    updates, state = optimizer.update(grads, state, eqx.filter(model, eqx.is_inexact_array))
    return eqx.apply_updates(model, updates), state, loss


def main(steps: int = 100) -> list[float]:
    data = load_digits_8x8().train
    images, labels = data["image"].reshape(-1, 64) / np.float32(255), data["label"].astype(np.int32)

    model = eqx.nn.MLP(64, 10, width_size=64, depth=2, key=jax.random.key(0))
    params = eqx.filter(model, eqx.is_inexact_array)  # a model also holds functions, such as the activation
    print(celo2.label_table(params))  # the last in a chain of layers is the head: AdamW
    optimizer = celo2.celo2(1e-3, weight_decay=0.1)
    state = optimizer.init(params)

    rng, losses = np.random.default_rng(0), []
    for _ in range(steps):
        rows = rng.integers(len(images), size=128)
        batch = jnp.asarray(images[rows]), jnp.asarray(labels[rows])
        model, state, loss = train_step(model, optimizer, state, *batch)
        losses.append(float(loss))
    print(f"loss {losses[0]:.3f} → {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    main()
