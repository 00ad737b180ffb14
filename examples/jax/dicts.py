"""Trains a byte-level language model whose parameters are plain nested dicts, as in Haiku.

The text is the source code of Python's standard library.

pip install 'celo2[jax]'
python examples/jax/dicts.py
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

import celo2
from celo2.tasks.language.stdlib_text import load_stdlib_text

CONTEXT, WIDTH, HIDDEN = 8, 32, 128
Params = dict[str, dict[str, Array]]


def init_params(key: Array) -> Params:
    def linear(key: Array, inputs: int, outputs: int) -> dict[str, Array]:
        return {"w": jax.random.normal(key, (inputs, outputs)) * inputs**-0.5, "b": jnp.zeros(outputs)}

    keys = jax.random.split(key, 4)
    # Celo2 reads names and shapes: "embed" is an embedding; the last matrix, with 256 outputs, is the head.
    return {
        "model/embed": {"embeddings": jax.random.normal(keys[0], (256, WIDTH))},
        "model/mlp/linear_0": linear(keys[1], CONTEXT * WIDTH, HIDDEN),
        "model/mlp/linear_1": linear(keys[2], HIDDEN, HIDDEN),
        "model/head": linear(keys[3], HIDDEN, 256),
    }


def loss_fn(params: Params, text: Array) -> Array:
    """Returns the mean cross-entropy of the byte that follows `CONTEXT` bytes."""
    x = params["model/embed"]["embeddings"][text[:, :CONTEXT]].reshape(len(text), -1)
    for name in ("model/mlp/linear_0", "model/mlp/linear_1"):
        x = jax.nn.relu(x @ params[name]["w"] + params[name]["b"])
    logits = x @ params["model/head"]["w"] + params["model/head"]["b"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, text[:, CONTEXT]).mean()


def main(steps: int = 200) -> list[float]:
    text = load_stdlib_text(CONTEXT + 1, max_bytes=1_000_000).train["text"].astype(np.int32)

    params = init_params(jax.random.key(0))
    # If names mislead, correct the routing: overrides={"regular expression of the path": "adamw"}.
    print(celo2.label_table(params))
    optimizer = celo2.celo2(1e-3)
    state = optimizer.init(params)

    @jax.jit
    def train_step(params: Params, state: optax.OptState, text: Array) -> tuple:
        loss, grads = jax.value_and_grad(loss_fn)(params, text)
        updates, state = optimizer.update(grads, state, params)  # the parameters are needed
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
