"""One small network on the same gradients, drawn at random, for `celo2.celo2` and `celo2.torch.Celo2`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from torch import nn

import celo2
from celo2.torch import Celo2
from helpers.tolerances import relative_error

STEPS = 12
LR, WEIGHT_DECAY = 0.01, 0.1
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}  # to compile
MATRICES = ("convolution.weight", "square.weight", "wide.weight")
HIDDEN = {  # routing takes layers that nothing reads for heads
    r"(convolution|square|wide).(weight|kernel)": "celo2",
    r"square.bias": "celo2",  # a vector under the rule
}
IDLE = {"square.weight": (4, 5)}  # steps at which the gradient is zero

Arrays = dict[str, np.ndarray]


class Network(nn.Module):
    """A table for AdamW; a convolution, a square and a wide layer for the rule; a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 6)
        self.convolution = nn.Conv1d(6, 5, 3)
        self.square = nn.Linear(6, 6)
        self.wide = nn.Linear(6, 11, bias=False)


def make_network(dtype: torch.dtype = torch.float64) -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Network().to(dtype)


def arrays_of(model: nn.Module) -> Arrays:
    return {name: param.detach().numpy().copy() for name, param in model.named_parameters()}


def to_jax(arrays: Arrays) -> Any:
    """A tree of JAX's layers, whose kernels have the output last: (o, i, w) → (w, i, o)."""
    tree: dict[str, dict[str, Any]] = {}
    for name, array in arrays.items():
        layer, own = name.split(".")
        own = "embedding" if layer == "table" else {"weight": "kernel", "bias": "bias"}[own]
        tree.setdefault(layer, {})[own] = jnp.asarray(array.T if own == "kernel" else array)
    return tree


def from_jax(tree: Any, name: str) -> np.ndarray:
    """One parameter of such a tree, as PyTorch stores it."""
    layer, own = name.split(".")
    own = "embedding" if layer == "table" else {"weight": "kernel", "bias": "bias"}[own]
    array = np.asarray(tree[layer][own])
    return array.T if own == "kernel" else array


def make_numbers(params: Any) -> Any:
    """Of every matrix, with a convolution's inputs in PyTorch's order."""
    numbers = jax.tree.map(lambda _: None, params)
    numbers["convolution"]["kernel"] = celo2.DimensionNumbers((1, 0), 2)
    return numbers


def draw_gradients(start: Arrays, steps: int = STEPS) -> Iterator[Arrays]:
    """Gradients with a mean, of which some matrices have none now and then."""
    rng = np.random.default_rng(0)
    means = {name: rng.standard_normal(array.shape) for name, array in start.items()}
    for step in range(steps):
        grads = {name: 0.01 * (mean + rng.standard_normal(mean.shape)) for name, mean in means.items()}
        yield {name: grad * (step not in IDLE.get(name, ())) for name, grad in grads.items()}


class Twins:
    """Both optimizers, a step at a time, in float64.

    Attributes:
        model: The PyTorch network, trained.
        optimizer: Its optimizer.
        params: The parameters in JAX.
        state: The state in JAX.
    """

    def __init__(self, options: dict[str, Any], *, torch_options: dict[str, Any] | None = None):
        self.model = make_network()
        self.start = arrays_of(self.model)
        both = {"weight_decay": WEIGHT_DECAY, "overrides": HIDDEN}
        self.optimizer = Celo2(
            self.model, LR, **both, **(options if torch_options is None else torch_options)
        )
        tx = celo2.celo2(LR, **both, **options, dimension_numbers=make_numbers)
        self.params: Any = to_jax(self.start)
        self.state: Any = tx.init(self.params)

        @partial(jax.jit, compiler_options=QUICK)
        def update(grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        self._update: Callable[..., Any] = update

    def step(self, grads: Arrays) -> None:
        for name, param in self.model.named_parameters():
            param.grad = torch.tensor(grads[name])
        self.optimizer.step()
        self.params, self.state = self._update(to_jax(grads), self.state, self.params)

    def error(self) -> float:
        """The largest of the parameters' changes."""
        errors = []
        for name, array in arrays_of(self.model).items():
            before = self.start[name]
            errors.append(relative_error(array - before, from_jax(self.params, name) - before))
        return max(errors)
