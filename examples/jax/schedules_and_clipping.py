"""Trains with Celo2, a schedule, gradient clipping, and weight decay on matrices only.

pip install 'celo2[jax]'
python examples/jax/schedules_and_clipping.py
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


def make_optimizer(steps: int) -> tuple[optax.GradientTransformation, optax.Schedule]:
    # The learning rate is a matrix's change per step, however small the gradient: decay it to zero, or
    # training ends with steps as large as at the start.
    schedule = optax.warmup_cosine_decay_schedule(0.0, 2e-3, warmup_steps=steps // 20, decay_steps=steps)
    optimizer = optax.chain(
        # Clipping comes first. It does not bound steps, which the rule normalises anyway, but keeps spikes
        # out of the momenta.
        optax.clip_by_global_norm(1.0),
        celo2.celo2(
            schedule,  # both the rule and AdamW (at 20 times the rate) follow it
            weight_decay=0.1,
            mask=lambda params: jax.tree.map(lambda p: p.ndim >= 2, params),
        ),
    )
    return optimizer, schedule


def loss_fn(params: Params, images: Array, labels: Array) -> Array:
    x = jax.nn.relu(images @ params["hidden"] + params["hidden_bias"])
    logits = x @ params["head"] + params["head_bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def main(steps: int = 100) -> list[float]:
    data = load_digits_8x8().train
    images, labels = data["image"].reshape(-1, 64) / np.float32(255), data["label"].astype(np.int32)

    keys = jax.random.split(jax.random.key(0))
    params = {
        "hidden": jax.random.normal(keys[0], (64, 64)) / 8,
        "hidden_bias": jnp.zeros(64),
        "head": jax.random.normal(keys[1], (64, 10)) / 8,
        "head_bias": jnp.zeros(10),
    }
    optimizer, schedule = make_optimizer(steps)
    state = optimizer.init(params)

    @jax.jit
    def train_step(params: Params, state: optax.OptState, images: Array, labels: Array) -> tuple:
        loss, grads = jax.value_and_grad(loss_fn)(params, images, labels)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    rng, losses = np.random.default_rng(0), []
    for step in range(steps):
        rows = rng.integers(len(images), size=128)
        params, state, loss = train_step(params, state, jnp.asarray(images[rows]), jnp.asarray(labels[rows]))
        losses.append(float(loss))
        if step % 20 == 0:
            print(f"step {step}: learning rate {schedule(step):.2g}, loss {losses[-1]:.3f}")
    print(f"loss {losses[0]:.3f} → {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    main()
