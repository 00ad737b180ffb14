"""Trains an MLP whose parameters and optimizer state are placed on eight devices.

Here the devices are parts of one CPU. Without the two `jax.config` lines, they are those of the machine.

pip install 'celo2[jax]'
python examples/jax/sharded.py
"""

from __future__ import annotations

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import celo2
from celo2.tasks.vision.datasets import load_digits_8x8

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)  # before the first use of a device

SPECS = {
    "up": P("data", "model"),  # sharded along both axes, as with FSDP and tensor parallelism together
    "up_bias": P("model"),
    "down": P("model", "data"),
    "head": P(),  # on every device
}
Params = dict[str, Array]


def loss_fn(params: Params, images: Array, labels: Array) -> Array:
    x = jax.nn.relu(images @ params["up"] + params["up_bias"])
    logits = jax.nn.relu(x @ params["down"]) @ params["head"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def main(steps: int = 60) -> list[float]:
    data = load_digits_8x8().train
    images, labels = data["image"].reshape(-1, 64) / np.float32(255), data["label"].astype(np.int32)

    # With automatic axes, the compiler chooses how intermediate results are sharded. With explicit ones,
    # which Celo2 also supports, the network's own products must specify it.
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "up": jax.random.normal(keys[0], (64, 128)) / 8,
        "up_bias": jnp.zeros(128),
        "down": jax.random.normal(keys[1], (128, 64)) / 12,
        "head": jax.random.normal(keys[2], (64, 10)) / 8,
    }
    params = {name: jax.device_put(param, NamedSharding(mesh, SPECS[name])) for name, param in params.items()}
    optimizer = celo2.celo2(2e-3, weight_decay=0.1)
    state = optimizer.init(params)  # outside jit, so that each array is placed like its parameter

    @jax.jit
    def train_step(params: Params, state: optax.OptState, images: Array, labels: Array) -> tuple:
        loss, grads = jax.value_and_grad(loss_fn)(params, images, labels)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    rng, losses = np.random.default_rng(0), []
    for _ in range(steps):
        rows = rng.integers(len(images), size=128)
        batch = jax.device_put((images[rows], labels[rows]), NamedSharding(mesh, P("data")))
        params, state, loss = train_step(params, state, *batch)
        losses.append(float(loss))

    momentum = optax.tree.get(state, "momentum")  # of the parameters the rule updates: one tree per decay
    for name in ("up", "down"):
        print(f"{name} {params[name].shape}: {params[name].sharding.spec}")
        print(f"its momentum: {momentum[0][name].sharding.spec}")
    print(f"loss {losses[0]:.3f} → {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=60)
    main(parser.parse_args().steps)
