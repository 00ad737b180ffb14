"""Rules whose direction is a weighted sum of the odd channels, with two optional terms: 22 to 28 numbers.

The network of the rule (arXiv 2602.19142, section 3) has 30 input channels, fifteen of which change sign with
the gradient. Two hidden units represent any weighted sum s of these exactly, `relu(s) - relu(-s) = s`, so the
package can run it as a rule; Adam's direction with Nesterov momentum is one example. Together with the decays
of the accumulators, a rule is then a vector of 22 numbers. These are few enough for evolution strategies that
learn a covariance, and the rule's steps cost a fraction of the network's.

Two more numbers, γ and τ, bend s where it is large, by two more units of the second hidden layer:
`s + γ (relu(s - τ) - relu(-s - τ))`, which clips for γ = -1 and favours large elements for γ > 0.

Four more numbers revive dead units:

    s - ρ_row relu(r - λ p - τ) - ρ_col relu(c - λ q - τ),

with p and q the normalised row and column second moments of the fastest decay, and r and c their normalised
inverse roots. Each has root mean square 1. A row whose gradients have vanished, such as the incoming weights
of a ReLU unit that is always off, has p near 0 and r above 1: about √(n/k) if k of n rows are dead. Other
rows have a p whose multiple λ p exceeds r - τ, and are left alone, unless their gradients are a small
fraction of the others'. As steps are subtracted, the weights of a dead unit rise until it is on again. Which
of the two is the unit's depends on the shape: `row` has a value for each index of the smaller axis of a
matrix, `col` for each of the larger. Weights that nothing reads, and those of inputs that are always zero,
have no gradients either, and rise as well.

The term depends on the scale of the gradients. Where their root mean square is below about 1e-3, the epsilon
of the normalisation shrinks p, and living rows are pushed too; below about 1e-5, r is 1 everywhere, and
nothing is pushed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from celo2.config import RuleConfig
from celo2.constants import ADAMW_BETAS, ADAMW_LR_SCALE
from celo2.jax import accumulators, features, mlp, orthogonalize
from celo2.jax.dimensions import Axes
from celo2.jax.routing.labels import find_dimension_numbers, param_labels
from celo2.jax.state import (
    ScaleByCelo2State,
    init_state,
    leaves_to_state,
    make_layouts,
    state_to_leaves,
)
from celo2.jax.transform import rotate_direction
from celo2.meta.inner.optimizer import from_params, on_matrices
from celo2.meta.inner.theta import ADAM_MIXTURE, mixture_theta
from celo2.weights.checkpoint import Weights

_ODD = ("grad", "clipped_grad", "momentum", "normalized_momentum", "factored_grad", "normalized_grad")
_ODD_OF_MATRICES = ("factored_momentum",)
_DEFAULTS = RuleConfig()
CHANNELS: tuple[tuple[str, int], ...] = tuple(
    (feature.name, index)
    for _, feature in _DEFAULTS.feature_groups(2)
    if feature.name in _ODD + _ODD_OF_MATRICES
    for index in range(_DEFAULTS.num_channels(feature))
)
"""The odd channels: feature and index within its group. Not the parameter: weight decay is the user's."""

_DECAYS = tuple(
    (name, index)
    for name in ("initial_momentum_decays", "initial_rms_decays", "initial_adafactor_decays")
    for index in range(len(getattr(_DEFAULTS, name)))
)
DECAY_UNIT = 4.0  # change of log(1 - β) per unit of its coordinate
TERM_UNIT = 4.0  # change of γ and ρ, and of log τ and log λ, per unit of their coordinates
SUPPRESSION = 50.0  # λ at the coordinate 0
VANISHED = (("rsqrt_row", "row"), ("rsqrt_col", "col"))  # r and p, c and q; the first channel of each
_NO_MIXTURE = (
    "these weights are no mixture: their direction is not a weighted sum of the odd channels. Mixtures are "
    "what `celo2 search` and `make_weights` make."
)
LONGEST, SHORTEST = 1e-4, 1.0  # bounds of 1 - β: a memory of 10,000 steps, and none


class Mixture(NamedTuple):
    """A rule: weights of the channels, and decays of the accumulators (a `Decays` of `accumulators`).

    Attributes:
        shares: Weights of `CHANNELS`, `(15,)`; only their ratios matter, since steps are normalised.
        initial_momentum_decays: The three decays of the momenta.
        initial_rms_decays: The decay of the second moment.
        initial_adafactor_decays: The three decays of the factored second moments.
        bend: γ and τ, with τ as a multiple of the sum of magnitudes of `shares`; None: not bent.
        revival: ρ_row, ρ_col, τ and λ, with the first two as multiples of that sum; None: no such term.
    """

    shares: Any
    initial_momentum_decays: tuple[Any, ...]
    initial_rms_decays: tuple[Any, ...]
    initial_adafactor_decays: tuple[Any, ...]
    bend: tuple[Any, Any] | None = None
    revival: tuple[Any, Any, Any, Any] | None = None


NUM_PLAIN = len(CHANNELS) + len(_DECAYS)  # numbers of a vector without optional terms, 22


def to_vector(bends: bool = False, revives: bool = False) -> np.ndarray:
    """Returns the vector of the Adam-like start: its channel weights, and 0 for all other numbers.

    Args:
        bends: Whether the rules are bent, which takes two more numbers than the 22.
        revives: Whether they revive dead units, which takes four more.
    """
    shares = [ADAM_MIXTURE.get(channel, 0.0) for channel in CHANNELS]
    return np.asarray([*shares, *np.zeros(len(_DECAYS) + 2 * bends + 4 * revives)])


def to_mixture(vector: Any) -> Mixture:
    """Decodes a vector, which may be traced: channel weights, decays, then the optional terms.

    A decay β has the coordinate z with `1 - β = (1 - β₀) exp(4 z)`, clipped to [1e-4, 1]. Of 24 or 28
    coordinates, the next two are γ / 4 and log(τ) / 4; of 26 or 28, the last four are ρ_row / 4, ρ_col / 4,
    log(τ) / 4 and log(λ / 50) / 4.
    """
    shares, coordinates = vector[: len(CHANNELS)], vector[len(CHANNELS) :]
    decays: dict[str, list[Any]] = {}
    for position, (name, index) in enumerate(_DECAYS):
        complement = (1.0 - getattr(_DEFAULTS, name)[index]) * jnp.exp(DECAY_UNIT * coordinates[position])
        decays.setdefault(name, []).append(1.0 - jnp.clip(complement, LONGEST, SHORTEST))
    last = TERM_UNIT * coordinates[len(_DECAYS) :]
    bend = (last[0], jnp.exp(last[1])) if len(last) in (2, 6) else None
    revival = None
    if len(last) >= 4:
        revival = last[-4], last[-3], jnp.exp(last[-2]), SUPPRESSION * jnp.exp(last[-1])
    terms = {"bend": bend, "revival": revival}
    return Mixture(shares, **terms, **{name: tuple(values) for name, values in decays.items()})


def encode(mixture: Mixture) -> np.ndarray:
    """Returns a vector that `to_mixture` decodes to this mixture.

    Example:
        >>> from celo2 import load_checkpoint
        >>> encode(read_mixture(load_checkpoint("celo2"))).shape  # a start for another search
        (22,)
    """
    decays = [
        math.log((1.0 - getattr(mixture, name)[index]) / (1.0 - getattr(_DEFAULTS, name)[index])) / DECAY_UNIT
        for name, index in _DECAYS
    ]
    terms: list[float] = []
    if mixture.bend is not None:
        gamma, tau = mixture.bend
        terms += [gamma, math.log(tau)]
    if mixture.revival is not None:
        *sizes, tau, suppression = mixture.revival
        terms += [*sizes, math.log(tau), math.log(suppression / SUPPRESSION)]
    return np.asarray([*mixture.shares, *decays, *(number / TERM_UNIT for number in terms)])


def make_weights(vector: np.ndarray, variant: str, provenance: Mapping[str, str]) -> Weights:
    """Makes finished weights from a vector, with channel weights scaled so that their magnitudes sum to 1.

    Args:
        vector: The rule, as in `to_mixture`.
        variant: "celo2" or "celo2-base".
        provenance: Provenance for the weight file.
    """
    return weights_of_mixture(to_mixture(np.asarray(vector, np.float64)), variant, provenance)


def weights_of_mixture(mixture: Mixture, variant: str, provenance: Mapping[str, str]) -> Weights:
    """Makes finished weights from a mixture, as `make_weights` does from its vector."""
    decays = {name: tuple(round(float(b), 6) for b in getattr(mixture, name)) for name, _ in _DECAYS}
    config = dataclasses.replace(_DEFAULTS, orthogonalize=variant == "celo2", **decays)
    shares = np.asarray(mixture.shares, np.float64)
    shares = shares / np.abs(shares).sum()
    theta = {name: jnp.zeros(shape, jnp.float32) for name, shape in config.weight_shapes().items()}
    mixed = _mix(theta, config, mixture._replace(shares=shares))
    return Weights({name: np.asarray(array) for name, array in mixed.items()}, config, provenance)


def _mix(theta: Mapping[str, Any], config: RuleConfig, mixture: Mixture) -> dict[str, Array]:
    """Sets the first output of a network to a mixture's direction, exactly."""
    mixed = mixture_theta(dict(theta), config, dict(zip(CHANNELS, mixture.shares.tolist(), strict=True)))
    units = 6 if mixture.revival is not None else 4 if mixture.bend is not None else 2
    if units > 2 and (config.ff_hidden_layers != 2 or config.ff_hidden_size < units):
        raise ValueError(f"these terms need two hidden layers of at least {units} units.")
    if mixture.bend is not None:
        gamma, tau = (float(number) for number in mixture.bend)
        for unit, sign in ((0, 1.0), (1, -1.0)):  # unit 0 is relu(s), unit 1 is relu(-s)
            mixed["w1"] = mixed["w1"].at[:, unit + 2].set(0.0).at[unit, unit + 2].set(1.0)
            mixed["b1"] = mixed["b1"].at[unit + 2].set(-tau)
            mixed["w2"] = mixed["w2"].at[unit + 2, 0].set(sign * gamma)
    return mixed if mixture.revival is None else _add_revival(mixed, config, mixture.revival)


def _add_revival(mixed: dict[str, Array], config: RuleConfig, revival: tuple[Any, ...]) -> dict[str, Array]:
    """Computes the term's two ReLUs in units 2 and 3 of the first layer, and passes them through 4 and 5."""
    *sizes, tau, suppression = (float(number) for number in revival)
    names = {feature.name: name for name, feature in config.feature_groups(2)}
    for unit, (channels, size) in enumerate(zip(VANISHED, sizes, strict=True), start=2):
        for name in names.values():
            mixed[name] = mixed[name].at[:, unit].set(0.0)
        for channel, weight in zip(channels, (1.0, -suppression), strict=True):
            mixed[names[channel]] = mixed[names[channel]].at[0, unit].set(weight)
        mixed["b0"] = mixed["b0"].at[unit].set(-tau)
        mixed["w1"] = mixed["w1"].at[unit].set(0.0).at[:, unit + 2].set(0.0).at[unit, unit + 2].set(1.0)
        mixed["w2"] = mixed["w2"].at[unit + 2, 0].set(-size)
    return mixed


def read_mixture(weights: Weights) -> Mixture:
    """Reads the mixture of finished weights; the inverse of `make_weights`.

    Raises:
        ValueError: The network computes something other than a weighted sum of `CHANNELS`.
    """
    names = {feature.name: name for name, feature in weights.config.feature_groups(2)}
    try:
        shares = [float(weights.arrays[names[feature]][index, 0]) for feature, index in CHANNELS]
        zeros = {name: jnp.zeros_like(array) for name, array in weights.arrays.items()}
        decays = {name: getattr(weights.config, name) for name, _ in _DECAYS}
        found = Mixture(np.asarray(shares), **decays)
        if weights.config.ff_hidden_layers == 2:
            found = found._replace(bend=_read_bend(weights), revival=_read_revival(weights, names))
        mixed = _mix(zeros, weights.config, found)
    except (KeyError, IndexError, ValueError) as error:  # other channels, or a single hidden unit
        raise ValueError(_NO_MIXTURE) from error
    same = all(np.array_equal(mixed[name], array) for name, array in weights.arrays.items())
    if not same or weights.config.mlp_activation != "relu":
        raise ValueError(_NO_MIXTURE)
    return found


def _read_bend(weights: Weights) -> tuple[float, float] | None:
    tau = -float(weights.arrays["b1"][2])
    return (float(weights.arrays["w2"][2, 0]), tau) if tau > 0 else None


def _read_revival(weights: Weights, names: Mapping[str, str]) -> tuple[float, ...] | None:
    tau, suppression = -float(weights.arrays["b0"][2]), -float(weights.arrays[names["row"]][0, 2])
    sizes = (-float(output) for output in weights.arrays["w2"][4:6, 0])
    return (*sizes, tau, suppression) if tau > 0 else None


def _scale_by_mixture(
    mixture: Mixture, orthogonalizes: bool, dimension_numbers: Any
) -> optax.GradientTransformation:
    """Makes `scale_by_celo2` with the weights of a mixture, computed without the network.

    Args:
        mixture: The rule.
        orthogonalizes: Whether Newton–Schulz follows on matrices.
        dimension_numbers: Dimension numbers of stacks of matrices, None for arrays used as stored.
    """

    def init(params: Any) -> ScaleByCelo2State:
        return init_state(params, make_layouts(params, dimension_numbers), mixture)

    def update(updates: Any, state: ScaleByCelo2State, params: Any = None) -> tuple[Any, ScaleByCelo2State]:
        grads, treedef = jax.tree.flatten(updates)
        others = map(treedef.flatten_up_to, (params, make_layouts(params, dimension_numbers)))
        done = [
            _compute_step(grad, param, memory, layout.axes, mixture, orthogonalizes)
            for grad, memory, param, layout in zip(
                grads, state_to_leaves(state, treedef), *others, strict=True
            )
        ]
        steps, memories = zip(*done, strict=True) if done else ((), ())
        count = jnp.asarray(optax.safe_increment(state.count))
        return treedef.unflatten(steps), leaves_to_state(memories, count, treedef, state)

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]


def _compute_step(
    grad: Array,
    param: Array,
    memory: accumulators.Accumulators,
    axes: Axes | None,
    mixture: Mixture,
    orthogonalizes: bool,
) -> tuple[Array, accumulators.Accumulators]:
    grad = accumulators.clip(grad)
    memory = accumulators.update(memory, grad, axes, mixture)
    factors = features.compute_factors(memory.row, memory.col, axes)
    groups = features.compute_full(grad, param, memory.momentum, memory.rms, factors, _DEFAULTS)
    names = {feature.name: name for name, feature in _DEFAULTS.feature_groups(grad.ndim)}
    direction = jnp.zeros_like(grad)
    for position, (feature, index) in enumerate(CHANNELS):
        if feature in names:
            direction += mixture.shares[position] * _normalize(groups[names[feature]][index])
    total = jnp.sum(jnp.abs(mixture.shares))
    if mixture.bend is not None:
        gamma, tau = mixture.bend[0], mixture.bend[1] * total
        direction += gamma * (jax.nn.relu(direction - tau) - jax.nn.relu(-direction - tau))
    if mixture.revival is not None and axes is not None:
        *sizes, tau, suppression = mixture.revival
        vectors = features.compute_vectors(memory.row, memory.col, _DEFAULTS)
        for size, channels in zip(sizes, VANISHED, strict=True):
            inverse, moment = (_normalize(vectors[names[channel]][0]) for channel in channels)
            direction -= size * total * jax.nn.relu(inverse - suppression * moment - tau)
    if orthogonalizes and grad.ndim >= 2:
        direction = orthogonalize.compute(direction, _DEFAULTS)
    return _normalize(direction), memory


def _normalize(array: Array) -> Array:
    return array * mlp.normalizer(mlp.mean_square(array))


def make_optimizer(
    mixture: Mixture,
    variant: str,
    schedule: optax.Schedule,
    weight_decay: float = 0.0,
    *,
    adamw_lr_scale: float = ADAMW_LR_SCALE,
    eigenbasis_every: int = 0,
    stored_kernels: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Makes the complete optimizer of a mixture, as `celo2.celo2` or `celo2.celo2_base` does for weights.

    Args:
        mixture: The rule; may be traced.
        variant: "celo2" or "celo2-base".
        schedule: Learning-rate schedule.
        weight_decay: Decoupled weight decay.
        adamw_lr_scale: Learning rate of AdamW's share divided by that of the rule.
        eigenbasis_every: Steps between updates of the eigenbasis in which the rule runs, as in
            `celo2.Harness`; 0: no basis. With a basis, `update` accepts the step number as `step=`.
        stored_kernels: Whether convolution kernels are stacks of small matrices, as stored, instead of the
            single matrix that the public optimizers find in each.
    """
    is_base = variant == "celo2-base"
    adamw = optax.adamw(
        lambda count: adamw_lr_scale * schedule(count), *ADAMW_BETAS, weight_decay=weight_decay
    )

    make_rule = partial(_scale_by_mixture, mixture, not is_base)
    if eigenbasis_every:
        make_rule = partial(rotate_direction, make_rule, eigenbasis_every)

    def make(params: Any) -> optax.GradientTransformation:
        numbers = None if stored_kernels else find_dimension_numbers(params, base=is_base)
        rule = optax.chain(
            on_matrices(make_rule, numbers),
            optax.add_decayed_weights(weight_decay),
            optax.scale_by_learning_rate(schedule),
        )
        if is_base:
            return rule
        labels = jax.tree.map(lambda own: "celo2" if own else "adamw", find_updated(params, variant))
        return optax.partition({"celo2": rule, "adamw": adamw}, labels)

    return from_params(make)


def find_updated(params: Any, variant: str) -> Any:
    """Returns a tree of booleans: whether an array is updated by the rule rather than by AdamW."""
    labels = param_labels(params, undecided="allow")
    return jax.tree.map(lambda label: variant == "celo2-base" or label == "celo2", labels)


def describe(vector: np.ndarray) -> str:
    """Describes the larger channel weights and all decays of a vector, on one line."""
    mixture = to_mixture(np.asarray(vector, np.float64))
    shares = np.asarray(vector[: len(CHANNELS)]) / np.abs(vector[: len(CHANNELS)]).sum()
    largest = np.argsort(-np.abs(shares))[:8]
    parts = [f"{CHANNELS[i][0]}[{CHANNELS[i][1]}] {shares[i]:+.2f}" for i in largest if abs(shares[i]) > 0.01]
    names = list(dict.fromkeys(name for name, _ in _DECAYS))
    decays = [" ".join(f"{1 - float(b):.2g}" for b in getattr(mixture, name)) for name in names]
    bend = "; bend γ {:+.2f}, τ {:.2f}".format(*map(float, mixture.bend)) if mixture.bend else ""
    revival = ""
    if mixture.revival is not None:
        revival = "; revival ρ {:+.2f} {:+.2f}, τ {:.2f}, λ {:.0f}".format(*map(float, mixture.revival))
    return f"{', '.join(parts)}; 1 - β: {' | '.join(decays)}{bend}{revival}"


def is_vector(vector: np.ndarray, bends: bool = False, revives: bool = False) -> bool:
    """Returns whether a vector has the length of `to_vector` and only finite numbers."""
    return vector.shape == to_vector(bends, revives).shape and bool(np.isfinite(vector).all())
