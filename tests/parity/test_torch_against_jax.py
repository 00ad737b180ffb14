"""The same network trained in JAX and in PyTorch, each with its own layers' storage."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from torch import Tensor, nn

import celo2
from celo2.torch import Celo2, Celo2Base
from helpers.tolerances import relative_error, tolerance

STEPS = 50
WIDTH, CLASSES, LENGTH = 12, 7, 8

QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}  # to compile

pytestmark = pytest.mark.usefixtures("standard_promotion")
torch.set_num_threads(1)  # of a process that is one of several: two threads would wait for each other


class Network(nn.Module):
    """Tokens → a table, a convolution, a square and a wide hidden layer, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(CLASSES, WIDTH)
        self.convolution = nn.Conv1d(WIDTH, WIDTH, 3, padding=1)
        self.square = nn.Linear(WIDTH, WIDTH)
        self.wide = nn.Linear(WIDTH, 2 * WIDTH, bias=False)
        self.head = nn.Linear(2 * WIDTH, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        x = x + torch.tanh(self.convolution(x.mT).mT)
        x = torch.tanh(self.wide(torch.tanh(self.square(x))))
        return self.head(x)


def apply_jax(params: Any, tokens: jax.Array) -> jax.Array:
    x = params["table"]["embedding"][tokens]
    layer = params["convolution"]
    numbers = ("NWC", "WIO", "NWC")
    y = jax.lax.conv_general_dilated(x, layer["kernel"], (1,), "SAME", dimension_numbers=numbers)
    x = x + jnp.tanh(y + layer["bias"][None, None])
    x = jnp.tanh(x @ params["square"]["kernel"] + params["square"]["bias"][None, None])
    x = jnp.tanh(x @ params["wide"]["kernel"])
    return x @ params["head"]["kernel"] + params["head"]["bias"][None, None]


def to_jax(model: Network) -> dict[str, dict[str, np.ndarray]]:
    """The network's parameters as JAX's layers store them: kernels with the output last."""
    tree: dict[str, dict[str, np.ndarray]] = {}
    for name, param in model.named_parameters():
        layer, own = name.split(".")
        array = param.detach().numpy()
        if layer == "table":
            tree[layer] = {"embedding": array}
        elif own == "bias":
            tree.setdefault(layer, {})["bias"] = array
        else:
            tree.setdefault(layer, {})["kernel"] = np.transpose(array)  # (o, i, w) → (w, i, o)
    return jax.tree.map(np.copy, tree)


def make_numbers(params: Any) -> Any:
    """The convolution's matrix; everything else is stored as the rule takes it."""
    numbers = jax.tree.map(lambda _: None, params)
    numbers["convolution"]["kernel"] = celo2.DimensionNumbers((0, 1), 2)
    return numbers


def train_jax(tx: optax.GradientTransformationExtraArgs, start: Any, batches: np.ndarray) -> Any:
    def loss(params: Any, tokens: jax.Array) -> jax.Array:
        logits = apply_jax(params, tokens)
        return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.roll(tokens, 1, 1)).mean()

    @partial(jax.jit, compiler_options=QUICK)
    def step(params: Any, state: Any, tokens: jax.Array) -> tuple[Any, Any]:
        updates, state = tx.update(jax.grad(loss)(params, tokens), state, params)
        return optax.apply_updates(params, updates), state

    params = jax.tree.map(jnp.asarray, start)
    state = tx.init(params)
    for tokens in batches:
        params, state = step(params, state, jnp.asarray(tokens))
    return params


def train_torch(optimizer: torch.optim.Optimizer, model: Network, batches: np.ndarray) -> float:
    loss = torch.tensor(torch.nan)
    for tokens in torch.tensor(batches):
        optimizer.zero_grad()
        logits = model(tokens).flatten(0, 1)
        loss = nn.functional.cross_entropy(logits, tokens.roll(1, 1).flatten())
        loss.backward()
        optimizer.step()
    return loss.item()


@pytest.mark.parametrize("variant", ["celo2", "celo2-base"])
def test_fifty_steps_of_training_agree(variant: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Network()
    start = to_jax(model)
    batches = np.random.default_rng(0).integers(0, CLASSES, (STEPS, 16, LENGTH))
    make, make_torch = {
        "celo2": (celo2.celo2, Celo2),
        "celo2-base": (celo2.celo2_base, Celo2Base),
    }[variant]
    options = {"overrides": {"head": "adamw"}} if variant == "celo2" else {}
    tx = make(1e-3, weight_decay=0.1, dimension_numbers=make_numbers, **options)
    expected = train_jax(tx, start, batches)
    optimizer = make_torch(model, 1e-3, weight_decay=0.1)
    last_loss = train_torch(optimizer, model, batches)
    assert last_loss < 1.85  # learned something: it starts near log 7
    moved = to_jax(model)
    for path, value in jax.tree_util.tree_leaves_with_path(moved):
        theirs, before = expected, start
        for key in path:
            theirs, before = theirs[key.key], before[key.key]
        error = relative_error(value - before, np.asarray(theirs) - before)
        assert error <= tolerance("torch, jax after 50 steps"), path
