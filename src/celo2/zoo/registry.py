"""Builds the optimizers of the zoo by name, with trained weights or initial meta-parameters."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike

from celo2.weights.checkpoint import ZooWeights
from celo2.weights.schema import check_fit, flatten, read_shapes
from celo2.zoo.transform import make_transform
from celo2.zoo.weights import (
    check_stated,
    find_preset,
    load_weights,
    sized_preset,
)

ZooTheta = ZooWeights | Mapping[str, Any] | str | os.PathLike[str] | None

MAX_NUMBERS = 256  # arrays with up to this many elements become constants of a compiled program


def make(
    name: str, *, weights: ZooTheta = None, num_steps: ArrayLike | None = None, **options: Any
) -> optax.GradientTransformationExtraArgs:
    """Builds a learned optimizer of the zoo as an Optax transform.

    Its updates are final: they need no learning rate. `update` needs the parameters and, for all but
    AdaFac-MLP, NN-Adam and Celo's phase 1, the loss: `tx.update(grads, state, params, value=loss)`.

    Args:
        name: A key of `PRESETS`: "celo", "celo_phase1", "celo_adam", "adafac_mlp", "rnn_mlp", "nn_adam",
            "velo", "velo_s" or "velo_4000". The last two have fixed sizes; the others get theirs from the
            weights.
        weights: The result of `load_weights`; a source that it accepts (a path or a hub repository); or
            arrays by name or nested as upstream, possibly traced. No weights ship with the package.
        num_steps: The length of the run, required by Celo, Celo-Adam and VeLO; more steps may be taken.
        **options: Options of the optimizer that override the preset's; see `celo2.zoo.specs`.

    Raises:
        TypeError: The optimizer has no such option, or the weights have the wrong type.
        ValueError: The name is unknown, weights or `num_steps` are missing, or the weights belong to another
            optimizer.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> theta = init_theta("celo_adam", jax.random.key(0))
        >>> tx = make("celo_adam", weights=theta, num_steps=100)
        >>> params = {"kernel": jnp.ones((4, 3))}
        >>> updates, state = tx.update(params, tx.init(params), params, value=1.0)
        >>> updates["kernel"].shape
        (4, 3)
    """
    find_preset(name).check_option_names(options)
    if weights is None:
        raise ValueError(
            f"{name} has no weights in this package; give weights=PATH of a theta.state or *.safetensors, "
            f"weights='owner/name' of a hub repository (amoudgl/celo, say), what `celo2 weights fetch` has "
            f"written, or untrained ones: celo2.zoo.init_theta({name!r}, key)."
        )
    if isinstance(weights, str | os.PathLike):
        weights = load_weights(weights)
    arrays = flatten(weights.arrays if isinstance(weights, ZooWeights) else _as_mapping(weights))
    config = sized_preset(name, arrays, **options)
    if isinstance(weights, ZooWeights):
        check_stated(name, config, weights)
    check_fit(read_shapes(arrays), config)
    return make_transform({name: _place(array) for name, array in arrays.items()}, config, num_steps)


def init_theta(name: str, key: Array, **options: Any) -> dict[str, Array]:
    """Returns initial meta-parameters for meta-training: float32 arrays by name.

    Weights are truncated normals with scale 1/√fan_in, biases are zero, and decays and NN-Adam's four numbers
    start at their published values.

    Args:
        name: A key of `PRESETS`.
        key: The PRNG key.
        **options: Options that override the preset's, such as `lstm_size=8`.

    Raises:
        TypeError: The optimizer has no such option.
        ValueError: The name is unknown, or an option is out of its range.
    """
    specs = find_preset(name).replace(**options).array_specs()
    keys = jax.random.split(key, len(specs))
    theta = {}
    for array_key, (array, spec) in zip(keys, sorted(specs.items()), strict=True):
        constant = jnp.full(spec.shape, spec.value, jnp.float32)
        drawn = spec.scale * jax.random.truncated_normal(array_key, -2.0, 2.0, spec.shape, jnp.float32)
        theta[array] = drawn if spec.scale else constant
    return theta


def _as_mapping(weights: Any) -> Mapping[str, Any]:
    if isinstance(weights, Mapping):
        return weights
    raise TypeError(
        f"weights must be ZooWeights, a path, a repository or arrays by name, got {type(weights).__name__}."
    )


def _place(array: Any) -> Any:
    """Places trained weights: small arrays stay constants, large ones move to the device once."""
    if isinstance(array, np.ndarray) and array.size > MAX_NUMBERS:
        return jnp.asarray(array)
    return array
