"""Options and meta-parameter arrays of each optimizer in the zoo, which its weight files must contain.

Sources: Celo and Celo-Adam, arXiv 2501.12670; AdaFac-MLP, arXiv 2203.11860; VeLO, arXiv 2211.09760; RNN-MLP
and NN-Adam, the public code of these. Arrays are named as in the public trees, joined by "/".
This module needs no JAX: files are inspected with the base install.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from numbers import Real
from typing import Any, ClassVar, NamedTuple

from celo2.config import RuleConfig, Schema
from celo2.constants import FLOAT32_MAX, FLOAT32_TINY

NUM_TIMES = 11  # time features of AdaFac-MLP and RNN-MLP
SCHEDULE_INPUTS = 18  # of Celo's LSTM: 9 time features, 9 loss features
VELO_INPUTS = SCHEDULE_INPUTS + 12  # and 12 statistics of the tensor
RNN_MLP_FROM_LSTM, RNN_MLP_FROM_MLP, RNN_MLP_TO_FF, RNN_MLP_WIDTH = 18, 16, 17, 32
_TYPES: dict[type, tuple[type, str]] = {
    bool: (bool, "true or false"),
    int: (int, "a whole number"),
    float: (Real, "a number"),
}
_TRUNCATED_STD = 0.87962566  # of a standard normal truncated at ±2


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemberConfig(Schema):
    """Options of one optimizer of the zoo.

    Attributes:
        needs: The inputs it needs besides gradients and parameters: "loss" (`value=` in `update`),
            "num_steps" (the length of the run, given at construction).
    """

    _needs: ClassVar[tuple[str, ...]] = ("loss", "num_steps")

    def __post_init__(self) -> None:
        """Checks that options have the types of their defaults and sizes are at least 1."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            kind, wanted = _TYPES[type(field.default)]
            if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
                raise ValueError(f"{field.name} must be {wanted}, got {value!r}.")
            if kind is Real:
                object.__setattr__(self, field.name, float(value))
        for name in ("lstm_size", "num_mlps"):
            value = getattr(self, name, 1)
            if not 1 <= value <= 4096:
                raise ValueError(f"{name} must be a whole number in [1, 4096], got {value!r}.")

    def array_specs(self) -> Arrays:
        """Returns the spec of every array of the meta-parameters, by name."""
        raise NotImplementedError

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shape of every array by name."""
        return {name: spec.shape for name, spec in self.array_specs().items()}

    @property
    def needs(self) -> frozenset[str]:
        """The required inputs besides gradients and parameters; see the class."""
        return frozenset(self._needs)

    @classmethod
    def sizes_of(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """Returns the options that follow from the shapes of the arrays."""
        sizes = {"lstm_size": ("lstm_init_state/hidden", 1), "num_mlps": ("ff_mod_stack/~/b0", 0)}
        fields = {field.name for field in dataclasses.fields(cls)}
        found = {}
        for option, (name, axis) in sizes.items():
            if option in fields and len(shapes.get(name, ())) == 2:
                found[option] = shapes[name][axis]
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Celo(MemberConfig):
    """Options of Celo: a rule with 14 feature groups, and an LSTM schedule.

    Attributes:
        lstm_size: The hidden size of the LSTM.
        num_mlps: The number of networks that the LSTM averages; one in the published optimizer.
        phase: 2 for rule and schedule; 1 for the rule alone, which needs neither the loss nor the number of
            steps.
    """

    kind: ClassVar[str] = "celo"
    deployment_options: ClassVar[frozenset[str]] = frozenset({"phase"})  # both use the same weights
    lstm_size: int = 64
    num_mlps: int = 1
    phase: int = 2

    def __post_init__(self) -> None:
        """Also checks the phase."""
        super().__post_init__()
        if self.phase not in (1, 2):
            raise ValueError(
                f"phase must be 1 (the rule alone) or 2 (with the schedule), got {self.phase!r}."
            )
        if self.phase == 1 and self.num_mlps > 1:
            raise ValueError(
                f"phase 1 has one network and no LSTM to weigh more, got num_mlps={self.num_mlps}."
            )

    @property
    def needs(self) -> frozenset[str]:
        """The required inputs; none in phase 1."""
        return super().needs if self.phase == 2 else frozenset()

    def array_specs(self) -> Arrays:
        """Implements `MemberConfig.array_specs`."""
        heads = linear("rnn_params/rnn_to_controls", self.lstm_size, self.num_mlps)
        heads |= linear("rnn_params/step_size", self.lstm_size, 1)
        return mlp_stack(self.num_mlps) | mixing(SCHEDULE_INPUTS, self.lstm_size) | heads


@dataclasses.dataclass(frozen=True, kw_only=True)
class CeloAdam(MemberConfig):
    """Options of Celo-Adam: Adam with Celo's schedule.

    Attributes:
        lstm_size: The hidden size of the LSTM.
    """

    kind: ClassVar[str] = "celo_adam"
    lstm_size: int = 64

    def array_specs(self) -> Arrays:
        """Implements `MemberConfig.array_specs`."""
        return mixing(SCHEDULE_INPUTS, self.lstm_size) | linear("rnn_params/step_size", self.lstm_size, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdafacMlp(MemberConfig):
    """Options of AdaFac-MLP ("small_fc_lopt"): a rule with 12 feature groups, time and learned decays."""

    kind: ClassVar[str] = "adafac_mlp"
    _needs: ClassVar[tuple[str, ...]] = ()

    def array_specs(self) -> Arrays:
        """Implements `MemberConfig.array_specs`."""
        hidden = MLP12.ff_hidden_size
        inputs = sum(MLP12.num_channels(feature) for _, feature in MLP12.feature_groups(2)) + NUM_TIMES
        widths = ((inputs, hidden), (hidden, hidden), (hidden, 2))
        layers = {f"nn/~/w{i}": ArraySpec(shape, shape[0] ** -0.5) for i, shape in enumerate(widths)}
        biases = {f"nn/~/b{i}": ArraySpec(shape[1:]) for i, shape in enumerate(widths)}
        decays = {
            "momentum_decays": MLP12.initial_momentum_decays,
            "rms_decays": MLP12.initial_rms_decays,
            "adafactor_decays": MLP12.initial_adafactor_decays,
        }
        return {name: ArraySpec((len(values),)) for name, values in decays.items()} | layers | biases


@dataclasses.dataclass(frozen=True, kw_only=True)
class RnnMlp(MemberConfig):
    """Options of RNN-MLP: a per-tensor LSTM and a per-parameter network that exchange messages.

    Attributes:
        lstm_size: The hidden size of the LSTM.
    """

    kind: ClassVar[str] = "rnn_mlp"
    _needs: ClassVar[tuple[str, ...]] = ("loss",)
    lstm_size: int = 64

    def array_specs(self) -> Arrays:
        """Implements `MemberConfig.array_specs`."""
        told, tells, width = RNN_MLP_FROM_LSTM, RNN_MLP_FROM_MLP, RNN_MLP_WIDTH
        start = {
            "initial_from_lstm": ArraySpec((told,), told**-0.5 / _TRUNCATED_STD),
            "initial_from_mlp": ArraySpec((tells,), tells**-0.5 / _TRUNCATED_STD),
        }
        heads = linear("rnn_to_ff_params/rnn_to_ff", self.lstm_size, RNN_MLP_TO_FF)
        heads |= linear("rnn_to_in_params/rnn_to_in", self.lstm_size, told)
        sizes = (23 + NUM_TIMES + 3 + RNN_MLP_TO_FF, width, width, 2 + tells)
        layers: Arrays = {}
        for i in range(3):
            layers |= linear(f"ffmod_params/mlp/~/linear_{i}", sizes[i], sizes[i + 1])
        return start | lstm(told + tells + 18, self.lstm_size) | heads | layers


@dataclasses.dataclass(frozen=True, kw_only=True)
class NnAdam(MemberConfig):
    """Options of NN-Adam: Adam with four hyperparameters set per tensor by an LSTM.

    Attributes:
        lstm_size: The hidden size of the LSTM.
        decay_strength: The fraction by which these return to their initial values at each step, in [0, 1].
    """

    kind: ClassVar[str] = "nn_adam"
    _needs: ClassVar[tuple[str, ...]] = ()
    lstm_size: int = 64
    decay_strength: float = 0.0

    def __post_init__(self) -> None:
        """Also checks the decay."""
        super().__post_init__()
        if not 0 <= self.decay_strength <= 1:
            raise ValueError(f"decay_strength must be in [0, 1], got {self.decay_strength!r}.")

    def array_specs(self) -> Arrays:
        """Implements `MemberConfig.array_specs`."""
        start = {"lr": 1e-4, "beta1": 1 - 0.9, "beta2": 1 - 0.999, "epsilon": 1e-8}  # lr, 1 - β1, 1 - β2, ε
        scalars = {f"per_layer_{name}": ArraySpec((), value=0.1 * math.log(y)) for name, y in start.items()}
        head = linear("rnn_to_controls_params/rnn_to_controls", self.lstm_size, 4, scale=0.0)
        return scalars | lstm(19, self.lstm_size) | head


@dataclasses.dataclass(frozen=True, kw_only=True)
class Velo(MemberConfig):
    """Options of VeLO: an LSTM that mixes, for each tensor, one rule with 14 feature groups out of many.

    Attributes:
        lstm_size: The hidden size of the LSTM.
        num_mlps: The number of networks that are mixed.
        ff_mult: The factor of the mixed weights.
        bugged_loss_features: Whether the loss features forget over 10 steps regardless of the run's length,
            as in the oldest published code.
        bugged_lstm_state: Whether the LSTM's state stays at its initial value, as in the oldest published
            code.
    """

    kind: ClassVar[str] = "velo"
    lstm_size: int = 512
    num_mlps: int = 256
    ff_mult: float = 1.0
    bugged_loss_features: bool = False
    bugged_lstm_state: bool = False

    def __post_init__(self) -> None:
        """Also checks the factor."""
        super().__post_init__()
        if not FLOAT32_TINY <= self.ff_mult <= FLOAT32_MAX:
            raise ValueError(f"ff_mult must be positive and finite in float32, got {self.ff_mult!r}.")

    def array_specs(self) -> Arrays:
        """Implements `MemberConfig.array_specs`."""
        heads = linear("rnn_params/rnn_to_controls", self.lstm_size, self.num_mlps)
        heads |= linear("rnn_params/step_size", self.lstm_size, 1)
        return mlp_stack(self.num_mlps) | mixing(VELO_INPUTS, self.lstm_size) | heads


MEMBERS: dict[str, type[MemberConfig]] = {
    member.kind: member for member in (Celo, CeloAdam, AdafacMlp, RnnMlp, NnAdam, Velo)
}
"""The kinds of optimizers."""

PRESETS: dict[str, MemberConfig] = {
    "celo": Celo(),
    "celo_phase1": Celo(phase=1),
    "celo_adam": CeloAdam(),
    "adafac_mlp": AdafacMlp(),
    "rnn_mlp": RnnMlp(),
    "nn_adam": NnAdam(),
    "velo": Velo(),
    "velo_s": Velo(lstm_size=64, num_mlps=32),
    "velo_4000": Velo(ff_mult=100.0),
}
"""Optimizers that `celo2.zoo.make` builds by name, with their published options."""


# The per-parameter network of Celo and VeLO has the features and layers of Celo2's, with other sizes.
MLP14 = RuleConfig(ff_hidden_size=4, initial_rms_decays=(0.999,), exp_mult=0.001, orthogonalize=False)
# AdaFac-MLP's has twelve of the fourteen groups, in the same order, as one array.
MLP12 = MLP14.replace(with_grad_clip_feat=False, with_rms_only_norm_g=False)


class ArraySpec(NamedTuple):
    """Shape and initialisation of one array.

    Attributes:
        shape: The shape.
        scale: The factor of a standard normal truncated at ±2; 0 for a constant array.
        value: The constant.
    """

    shape: tuple[int, ...]
    scale: float = 0.0
    value: float = 0.0


Arrays = dict[str, ArraySpec]


def linear(name: str, inputs: int, outputs: int, scale: float | None = None) -> Arrays:
    """Returns the arrays of a layer `x @ w + b`; by default the weights' scale is 1/√inputs."""
    size = inputs**-0.5 if scale is None else scale
    return {f"{name}/b": ArraySpec((outputs,)), f"{name}/w": ArraySpec((inputs, outputs), size)}


def lstm(inputs: int, size: int) -> Arrays:
    """Returns the arrays of an LSTM cell whose gates read `inputs` numbers, and its learned initial state."""
    start = {f"lstm_init_state/{name}": ArraySpec((1, size)) for name in ("cell", "hidden")}
    return start | linear("rnn_params/rnn/linear", inputs + size, 4 * size)


def mixing(inputs: int, size: int) -> Arrays:
    """Returns the arrays of the mixing block and its LSTM; `linear` is in the public trees but unused."""
    names = ("linear", "linear_1", "linear_2")
    layers = [linear(f"rnn_params/{name}", inputs, size) for name in names]
    return lstm(size, size) | layers[0] | layers[1] | layers[2]


def mlp_stack(count: int) -> Arrays:
    """Returns the stacked arrays of `count` networks; the fan-in of the first layer is all 30 channels."""
    shapes = MLP14.weight_shapes()
    first = sum(shape[0] for name, shape in shapes.items() if name.startswith("w0__"))

    def scale(name: str) -> float:
        fan_in = first if name.startswith("w0__") else shapes[name][0]
        return 0.0 if name.startswith("b") else fan_in**-0.5

    return {
        f"ff_mod_stack/~/{name}": ArraySpec((count, *shape), scale(name)) for name, shape in shapes.items()
    }


def sets_own_rate(optimizer: str) -> bool:
    """Returns whether an optimizer, such as `"celo:PATH"`, sets its own step sizes, by its name alone."""
    return optimizer.partition(":")[0] in PRESETS
