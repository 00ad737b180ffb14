"""The network's weights for the torch backend, as Python numbers and as small tensors by device."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from celo2.config import RuleConfig
from celo2.weights.checkpoint import Weights, load_checkpoint, weights_from_tree, without_newton_schulz
from celo2.weights.simplify import simplify


class Network:
    """Weights and options of the rule, read-only, and the smaller network that computes the same steps.

    Attributes:
        weights: The weights it was made from.
        options: The options in force, which go with these weights.
        skip_zero_gradients: Whether matrices whose gradient is exactly zero are skipped; the reference
            moves them by the full learning rate.
        config: The options of the smaller network: `options` with the size and features of `simplify`. The
            accumulators are the same.
        arrays: The weights of the smaller network, by name.
        numbers: These weights as nested lists.
    """

    def __init__(self, weights: Weights, config: RuleConfig, *, skip_zero_gradients: bool = False):
        self.weights = weights
        self.options = config
        self.skip_zero_gradients = skip_zero_gradients
        self.arrays, self.config = simplify(weights.arrays, config)
        self.numbers: Mapping[str, Any] = {name: a.tolist() for name, a in self.arrays.items()}
        self._tensors: dict[Any, Tensor] = {}

    def tensor(self, *names: str, like: Tensor) -> Tensor:
        """Returns the named arrays, concatenated along the first axis, with dtype and device of `like`."""
        return self._cached(names, like, lambda: np.concatenate([self.arrays[n] for n in names]))

    def layer(self, number: int, *, like: Tensor) -> Tensor:
        """Returns a later layer as one matrix, `(outputs, units + 1)`, its bias in the last column."""
        weight, bias = (self.arrays[f"{kind}{number}"] for kind in "wb")
        return self._cached(("layer", str(number)), like, lambda: np.vstack([weight, bias]).T.copy())

    def _cached(self, names: tuple[str, ...], like: Tensor, make: Callable[[], np.ndarray]) -> Tensor:
        key = (*names, like.dtype, like.device)
        if key not in self._tensors:
            array = make()
            self._tensors[key] = torch.tensor(array, dtype=like.dtype, device=like.device)
        return self._tensors[key]

    def __reduce__(self) -> tuple[Any, ...]:
        """Reduces copies and pickles to the weights and the options."""
        make = functools.partial(type(self), skip_zero_gradients=self.skip_zero_gradients)
        return make, (self.weights, self.options)


def make_network(
    theta: Any,
    *,
    orthogonalize: bool,
    newton_schulz: bool = True,
    skip_zero_gradients: bool = False,
    **options: Any,
) -> Network:
    """Makes the network from weights given by name, path or arrays; see `Celo2`.

    Args:
        theta: The weights.
        orthogonalize: Whether it is the network of Celo2 rather than Celo2-base.
        newton_schulz: Whether Celo2's network runs with its Newton–Schulz.
        skip_zero_gradients: As in `Network`.
        **options: Options of `RuleConfig` that weights leave to the user, such as `ns_coeffs`.

    Raises:
        ValueError: The weights are of another variant.
        TypeError: The argument is neither weights nor a tree of arrays.
    """
    if isinstance(theta, str | os.PathLike):
        weights = load_checkpoint(theta, orthogonalize=orthogonalize)
    elif isinstance(theta, Mapping):
        weights = weights_from_tree(theta, orthogonalize=orthogonalize)
    elif isinstance(theta, Weights):
        weights = theta
    else:
        raise TypeError(
            f"weights must be a name, a path, Weights or a tree of arrays, got {type(theta).__name__}."
        )
    config = weights.resolve(orthogonalize=orthogonalize, **options)
    if not newton_schulz:
        weights = without_newton_schulz(weights)
        config = weights.resolve(orthogonalize=False, **options)
    return Network(weights, config, skip_zero_gradients=skip_zero_gradients)
