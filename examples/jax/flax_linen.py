"""Trains a Flax Linen convolutional network with Celo2, in Flax's `TrainState`.

pip install 'celo2[jax]' flax
python examples/jax/flax_linen.py
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax.training.train_state import TrainState
from jax import Array

import celo2
from celo2.tasks.vision.datasets import load_digits_8x8


class Classifier(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        for channels in (16, 32):
            x = nn.relu(nn.Conv(channels, (3, 3), strides=2)(x))
        x = x.reshape(len(x), -1)
        x = nn.relu(nn.Dense(64)(x))
        return nn.Dense(10, name="head")(x)  # the name helps: heads get AdamW


@jax.jit
def train_step(state: TrainState, images: Array, labels: Array) -> tuple[TrainState, Array]:
    def loss_fn(params: dict) -> Array:
        logits = state.apply_fn({"params": params}, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    loss, grads = jax.value_and_grad(loss_fn)(state.params)
    return state.apply_gradients(grads=grads), loss


def main(steps: int = 100) -> list[float]:
    data = load_digits_8x8().train
    images, labels = data["image"][..., None] / np.float32(255), data["label"].astype(np.int32)

    model = Classifier()
    params = model.init(jax.random.key(0), images[:1])["params"]
    # The table shows the matrix that the rule sees in a kernel (3, 3, in, out): 9·in inputs, out outputs.
    print(celo2.label_table(params))
    state = TrainState.create(apply_fn=model.apply, params=params, tx=celo2.celo2(1e-3, weight_decay=0.1))

    rng, losses = np.random.default_rng(0), []
    for _ in range(steps):
        rows = rng.integers(len(images), size=128)
        state, loss = train_step(state, jnp.asarray(images[rows]), jnp.asarray(labels[rows]))
        losses.append(float(loss))
    print(f"loss {losses[0]:.3f} → {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    main()
