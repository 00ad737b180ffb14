"""Trains a Flax NNX MLP with Celo2 on 8 × 8 images of digits.

pip install 'celo2[jax]' flax
python examples/jax/flax_nnx.py
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

import celo2
from celo2.tasks.vision.datasets import load_digits_8x8


class Classifier(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.up = nnx.Linear(64, 128, rngs=rngs)
        self.norm = nnx.LayerNorm(128, rngs=rngs)
        self.down = nnx.Linear(128, 64, rngs=rngs)
        self.head = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.head(nnx.relu(self.down(nnx.relu(self.norm(self.up(x))))))


@nnx.jit  # not jax.jit: it also updates `model` and `optimizer` in place
def train_step(model: Classifier, optimizer: nnx.Optimizer, images: Array, labels: Array) -> Array:
    def loss_fn(model: Classifier) -> Array:
        return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()

    loss, grads = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, grads)  # passes the parameters on, which Celo2 needs
    return loss


def main(steps: int = 100) -> list[float]:
    data = load_digits_8x8().train
    images, labels = data["image"].reshape(-1, 64) / np.float32(255), data["label"].astype(np.int32)

    model = Classifier(nnx.Rngs(0))
    print(celo2.label_table(nnx.state(model, nnx.Param)))  # which parameters get the rule, and which AdamW
    optimizer = nnx.Optimizer(model, celo2.celo2(1e-3, weight_decay=0.1), wrt=nnx.Param)

    rng, losses = np.random.default_rng(0), []
    for _ in range(steps):
        rows = rng.integers(len(images), size=128)
        loss = train_step(model, optimizer, jnp.asarray(images[rows]), jnp.asarray(labels[rows]))
        losses.append(float(loss))
    print(f"loss {losses[0]:.3f} → {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    main()
