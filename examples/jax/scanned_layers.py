"""Trains a residual network whose equal layers are stacked in one array and run by `lax.scan`.

A network with many layers then compiles as fast as one with a single layer. The text is the source code of
Python's standard library; the network predicts the byte that follows a few bytes.

pip install 'celo2[jax]'
python examples/jax/scanned_layers.py
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

import celo2
from celo2.tasks.language.stdlib_text import load_stdlib_text

CONTEXT, WIDTH, LAYERS = 8, 64, 6
Params = dict[str, Any]


def init_params(key: Array) -> Params:
    keys = jax.random.split(key, 5)
    return {
        "embedding": jax.random.normal(keys[0], (256, 16)),
        "project_in": jax.random.normal(keys[1], (CONTEXT * 16, WIDTH)) / 11,
        "layers": {  # the leading axis is the layer: lax.scan runs one after the other
            "up": jax.random.normal(keys[2], (LAYERS, WIDTH, 2 * WIDTH)) / 8,
            "bias": jnp.zeros((LAYERS, 2 * WIDTH)),
            "down": jax.random.normal(keys[3], (LAYERS, 2 * WIDTH, WIDTH)) / 32,
        },
        "head": jax.random.normal(keys[4], (WIDTH, 256)) / 32,
    }


def loss_fn(params: Params, text: Array) -> Array:
    def apply_layer(x: Array, layer: dict[str, Array]) -> tuple[Array, None]:
        return x + jax.nn.relu(x @ layer["up"] + layer["bias"]) @ layer["down"], None

    x = params["embedding"][text[:, :CONTEXT]].reshape(len(text), -1) @ params["project_in"]
    x, _ = lax.scan(apply_layer, x, params["layers"])
    return optax.softmax_cross_entropy_with_integer_labels(x @ params["head"], text[:, CONTEXT]).mean()


def main(steps: int = 200) -> list[float]:
    text = load_stdlib_text(CONTEXT + 1, max_bytes=1_000_000).train["text"].astype(np.int32)

    params = init_params(jax.random.key(0))
    # In the column "matrix", 1 → 2 means that a stack (layers, in, out) contains matrices with inputs on axis
    # 1 and outputs on axis 2. Each gets its own Newton–Schulz and its own step of root mean square 1. The
    # biases are vectors, although their array has two axes, so AdamW updates them. If names are not enough:
    # dimension_numbers={"regular expression of the path": celo2.DimensionNumbers(1, 2)}
    print(celo2.label_table(params))
    optimizer = celo2.celo2(1e-3)
    state = optimizer.init(params)

    @jax.jit
    def train_step(params: Params, state: optax.OptState, text: Array) -> tuple:
        loss, grads = jax.value_and_grad(loss_fn)(params, text)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    rng, losses = np.random.default_rng(0), []
    for _ in range(steps):
        rows = rng.integers(len(text), size=256)
        params, state, loss = train_step(params, state, jnp.asarray(text[rows]))
        losses.append(float(loss))
    print(f"loss {losses[0]:.3f} → {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    main()
