"""Saves a run with Orbax halfway, restores it, and continues to the same numbers.

pip install 'celo2[jax]' orbax-checkpoint
python examples/jax/checkpoint_orbax.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax import Array

import celo2
from celo2.tasks.vision.datasets import load_digits_8x8

Run = dict[str, Any]  # everything that a resumed run needs


def loss_fn(params: dict[str, Array], images: Array, labels: Array) -> Array:
    logits = jax.nn.relu(images @ params["hidden"]) @ params["head"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def main(steps: int = 60) -> tuple[list[float], list[float]]:
    data = load_digits_8x8().train
    images, labels = data["image"].reshape(-1, 64) / np.float32(255), data["label"].astype(np.int32)
    # A schedule needs no checkpoint: it is a function of the step count, which is part of the state.
    optimizer = celo2.celo2(optax.cosine_decay_schedule(2e-3, steps), weight_decay=0.1)

    def init(key: Array) -> Run:
        keys = jax.random.split(key)
        params = {
            "hidden": jax.random.normal(keys[0], (64, 64)) / 8,
            "head": jax.random.normal(keys[1], (64, 10)) / 8,
        }
        return {"params": params, "optimizer": optimizer.init(params), "step": jnp.zeros((), jnp.int32)}

    @jax.jit
    def train_step(run: Run, images: Array, labels: Array) -> tuple[Run, Array]:
        loss, grads = jax.value_and_grad(loss_fn)(run["params"], images, labels)
        updates, state = optimizer.update(grads, run["optimizer"], run["params"])
        params = optax.apply_updates(run["params"], updates)
        return {"params": params, "optimizer": state, "step": run["step"] + 1}, loss

    def train(run: Run, until: int) -> tuple[Run, list[float]]:
        losses = []
        for step in range(int(run["step"]), until):
            # Batches depend only on the step count, so a resumed run gets the same ones.
            rows = np.random.default_rng(step).integers(len(images), size=128)
            run, loss = train_step(run, jnp.asarray(images[rows]), jnp.asarray(labels[rows]))
            losses.append(float(loss))
        return run, losses

    with tempfile.TemporaryDirectory() as folder, ocp.StandardCheckpointer() as checkpointer:
        path = Path(folder).resolve() / "checkpoint"  # Orbax wants an absolute path
        run, before = train(init(jax.random.key(0)), steps // 2)
        checkpointer.save(path, run)
        checkpointer.wait_until_finished()  # it writes in the background
        _, uninterrupted = train(run, steps)

        # Restoring needs only shapes and dtypes, so a new process needs no arrays.
        like = jax.eval_shape(init, jax.random.key(0))
        _, resumed = train(checkpointer.restore(path, like), steps)

    print(f"loss {before[0]:.3f} → {uninterrupted[-1]:.6f}, resumed {resumed[-1]:.6f}")
    return before + uninterrupted, before + resumed


if __name__ == "__main__":
    main()
