"""Options of the Celo2 rule, the table of its input features, and `Schema`, the base of all options.

Source: Celo2 (arXiv 2602.19142), section 3 and the options of its public implementation.
Every backend (JAX, PyTorch, the weight files) reads this table, so a feature's position in the weight
matrices `w0__0 … w0__13` has a single definition.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple, Self, cast

import numpy as np

from celo2.constants import FLOAT32_MAX, FLOAT32_TINY
from celo2.newton_schulz import Polynomial, has_each_iteration

CONTRACT_VERSION = 1  # of the feature table and the network below; stored in every weight file
NUM_OUTPUTS = 3  # direction, magnitude, and one output that the rule never reads

Activation = Literal["relu", "tanh"]
ACTIVATIONS: tuple[str, ...] = ("relu", "tanh")
_LAYER = re.compile(r"w[1-9]\d*")


class Feature(NamedTuple):
    """A group of the network's input channels.

    Attributes:
        name: Its name in the backends.
        option: The `RuleConfig` switch that enables it.
        channels: The number of channels: `"one"`, or the accumulator family with one channel per decay.
        min_rank: The lowest tensor rank with this feature (factored features need a matrix).
    """

    name: str
    option: str
    channels: Literal["one", "momentum", "rms", "adafactor"]
    min_rank: int = 0


FEATURES: tuple[Feature, ...] = (
    Feature("grad", "with_g", "one"),
    Feature("clipped_grad", "with_grad_clip_feat", "one"),
    Feature("param", "with_p", "one"),
    Feature("momentum", "with_m", "momentum"),
    Feature("rms", "with_rms", "rms"),
    Feature("normalized_momentum", "with_rms_norm_g", "momentum"),
    Feature("rsqrt_rms", "with_rsqrt_rms", "rms"),
    Feature("factored_grad", "with_fac_norm_g", "adafactor"),
    Feature("normalized_grad", "with_rms_only_norm_g", "rms"),
    Feature("row", "with_fac_rms", "adafactor", 2),
    Feature("col", "with_fac_rms", "adafactor", 2),
    Feature("rsqrt_row", "with_fac_rsqrt", "adafactor", 2),
    Feature("rsqrt_col", "with_fac_rsqrt", "adafactor", 2),
    Feature("factored_momentum", "with_fac_mom_mult", "adafactor", 2),
)
"""The 14 input groups in the order of the weight matrices (arXiv 2602.19142, section 3)."""


def nearest_name(name: str, valid: Iterable[str]) -> str:
    """Returns the end of an error message about a wrong name: `"; did you mean 'x'?"`, or a full stop."""
    close = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else "."


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schema:
    """Options that determine the arrays of a network; each subclass is one kind of weight file.

    Subclasses are frozen dataclasses whose options all have defaults.

    Attributes:
        kind: The optimizer's name.
        levels: The names of the levels that enclose the arrays in the public implementation's files.
        deployment_options: The options that may differ from those used in training.
    """

    kind: ClassVar[str]
    levels: ClassVar[tuple[str, ...]] = ()
    deployment_options: ClassVar[frozenset[str]] = frozenset()

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shape of every array by name."""
        raise NotImplementedError

    @classmethod
    def sizes_of(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """Returns the options that follow from the shapes of the arrays."""
        raise NotImplementedError

    @property
    def variant(self) -> str:
        """The optimizer's name, finer than `kind` where variants share a kind."""
        return self.kind

    @property
    def num_parameters(self) -> int:
        """The total number of elements in the arrays."""
        return sum(math.prod(shape) for shape in self.weight_shapes().values())

    def replace(self, **options: Any) -> Self:
        """Returns a copy with some options changed; the error for an unknown name suggests the nearest."""
        self.check_option_names(options)
        return dataclasses.replace(self, **options)

    @classmethod
    def option_names(cls) -> tuple[str, ...]:
        """Returns the names of all options."""
        return tuple(field.name for field in dataclasses.fields(cls))

    @classmethod
    def check_option_names(cls, names: Iterable[str]) -> None:
        """Raises a TypeError that suggests the nearest valid name for an unknown option."""
        valid = cls.option_names()
        for name in names:
            if name not in valid:
                raise TypeError(
                    f"{cls.kind} has no option {name!r}{nearest_name(name, valid)} "
                    f"It has {', '.join(valid) or 'none'}."
                )

    def to_json(self, names: Iterable[str] | None = None) -> str:
        """Formats these options, all by default, as a JSON object."""
        names = self.option_names() if names is None else names
        return json.dumps({name: getattr(self, name) for name in sorted(names)})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Parses the output of `to_json`; refuses unknown options, fills in defaults for absent ones."""
        options = json.loads(text)
        if not isinstance(options, Mapping):
            raise ValueError(f"options of {cls.kind} must be a JSON object, got {type(options).__name__}.")
        cls.check_option_names(options)
        return cls(**options)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RuleConfig(Schema):
    """All options of the rule; the defaults are the reference's (the Celo2 variant).

    Attributes:
        ff_hidden_size: Width of the hidden layers, 1 to 1024; `NUM_OUTPUTS` without hidden layers.
        ff_hidden_layers: Number of hidden layers, 0 to 16; with 0 the network is linear.
        initial_momentum_decays: Decays β of the momentum accumulators `m ← β m + (1-β) g`, in [0, 1).
        initial_rms_decays: Decays of the second-moment accumulators `v ← β v + (1-β) g²`: one,
            or as many as there are momentum decays.
        initial_adafactor_decays: Decays of the row and column accumulators; as many as there are
            momentum decays when `with_fac_mom_mult` is on.
        exp_mult: Factor in `step = direction · exp(exp_mult · magnitude)`; 0 ignores the magnitude.
        rmsmult: Root mean square of a normalised step, positive.
        with_g: Feature: gradient.
        with_m: Feature: momenta.
        with_rms: Feature: second moment.
        with_rms_norm_g: Feature: momenta over the root of the second moment.
        with_rsqrt_rms: Feature: reciprocal root of the second moment.
        with_p: Feature: parameter.
        with_fac_norm_g: Feature: gradient over the factored second moment.
        with_fac_rms: Features: row and column second moments (rank ≥ 2).
        with_fac_rsqrt: Features: their reciprocal roots (rank ≥ 2).
        with_grad_clip_feat: Feature: gradient clipped to ±0.1.
        with_fac_mom_mult: Feature: momenta over the factored second moment (rank ≥ 2).
        with_rms_only_norm_g: Feature: gradient over the root of the second moment.
        param_scale_mult: Multiply the step by the parameter's root mean square.
        precondition_output: Multiply the final step by the reciprocal root of the last second moment.
        normalize_input: Divide each input channel by its own root mean square.
        normalize_output: Divide the step by its root mean square.
        aggregate_mag: Use the tensor's mean magnitude instead of one magnitude per element.
        bias_correction: Divide the accumulators by `1 - β^t`.
        mlp_activation: `"relu"` or `"tanh"`.
        orthogonalize: Apply Newton–Schulz to the last two axes of tensors of rank ≥ 2: on for Celo2,
            off for Celo2-base.
        ns_coeffs: The three coefficients of the Newton–Schulz polynomial, or three for each iteration, such
            as `celo2.polar_express(ns_iters)`.
        ns_iters: Newton–Schulz iterations, 0 to 100.
        ns_eps: Added to the Frobenius norm before Newton–Schulz.

    Raises:
        ValueError: An option is out of its range; the message says what to use instead.

    Example:
        >>> RuleConfig(orthogonalize=False).variant
        'celo2-base'
        >>> RuleConfig().num_parameters
        347
    """

    kind: ClassVar[str] = "celo2"
    levels: ClassVar[tuple[str, ...]] = ("ff_mod_stack", "~")
    deployment_options: ClassVar[frozenset[str]] = frozenset({"rmsmult", "ns_coeffs", "ns_iters", "ns_eps"})

    ff_hidden_size: int = 8
    ff_hidden_layers: int = 2
    initial_momentum_decays: tuple[float, ...] = (0.9, 0.99, 0.999)
    initial_rms_decays: tuple[float, ...] = (0.95,)
    initial_adafactor_decays: tuple[float, ...] = (0.9, 0.99, 0.999)
    exp_mult: float = 0.0
    rmsmult: float = 1.0
    with_g: bool = True
    with_m: bool = True
    with_rms: bool = True
    with_rms_norm_g: bool = True
    with_rsqrt_rms: bool = True
    with_p: bool = True
    with_fac_norm_g: bool = True
    with_fac_rms: bool = True
    with_fac_rsqrt: bool = True
    with_grad_clip_feat: bool = True
    with_fac_mom_mult: bool = True
    with_rms_only_norm_g: bool = True
    param_scale_mult: bool = False
    precondition_output: bool = False
    normalize_input: bool = True
    normalize_output: bool = True
    aggregate_mag: bool = False
    bias_correction: bool = False
    mlp_activation: Activation = "relu"
    orthogonalize: bool = True
    ns_coeffs: Polynomial | tuple[Polynomial, ...] = (3.4445, -4.7750, 2.0315)
    ns_iters: int = 5
    ns_eps: float = 1e-8

    def __post_init__(self) -> None:
        """Normalises sequences to tuples of floats and checks every range."""
        for field in dataclasses.fields(self):
            if field.name == "ns_coeffs":
                object.__setattr__(self, field.name, _as_polynomials(self.ns_coeffs))
            elif isinstance(field.default, tuple):
                object.__setattr__(self, field.name, _as_floats(field.name, getattr(self, field.name)))
            else:
                _check_type(field.name, getattr(self, field.name), field.default)
        self._check_ranges()

    def _check_ranges(self) -> None:
        for name, least, most in (
            ("ff_hidden_size", 1, 1024),
            ("ff_hidden_layers", 0, 16),
            ("ns_iters", 0, 100),
        ):
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"{name} must be from {least} to {most}, got {getattr(self, name)}.")
        for name in ("initial_momentum_decays", "initial_rms_decays", "initial_adafactor_decays"):
            decays = getattr(self, name)
            if not decays or not all(0.0 <= decay < 1.0 and np.float32(decay) < 1.0 for decay in decays):
                raise ValueError(
                    f"{name} must be one or more decays in [0, 1), also as float32, got {decays}."
                )
        if self.ff_hidden_layers == 0 and self.ff_hidden_size != NUM_OUTPUTS:
            raise ValueError(
                f"ff_hidden_size must be {NUM_OUTPUTS}, the number of outputs, where ff_hidden_layers is 0, "
                f"got {self.ff_hidden_size}."
            )
        if len(self.initial_rms_decays) not in (1, len(self.initial_momentum_decays)):
            raise ValueError(
                "initial_rms_decays must have one decay or as many as initial_momentum_decays "
                f"({len(self.initial_momentum_decays)}), got {len(self.initial_rms_decays)}."
            )
        if self.with_fac_mom_mult and len(self.initial_adafactor_decays) != len(self.initial_momentum_decays):
            raise ValueError(
                "with_fac_mom_mult pairs each momentum with a row and a column accumulator: "
                f"initial_adafactor_decays has {len(self.initial_adafactor_decays)} decays, expected "
                f"{len(self.initial_momentum_decays)}; give as many, or set with_fac_mom_mult=False."
            )
        if len(self.ns_polynomials) != self.ns_iters:
            raise ValueError(
                f"ns_coeffs has coefficients for {len(self.ns_coeffs)} iterations, expected ns_iters="
                f"{self.ns_iters}; give ns_iters={len(self.ns_coeffs)} too, or one triple for all iterations."
            )
        if self.mlp_activation not in ACTIVATIONS:
            raise ValueError(f"mlp_activation must be one of {ACTIVATIONS}, got {self.mlp_activation!r}.")
        for name in ("rmsmult", "ns_eps"):
            value = getattr(self, name)
            if value < FLOAT32_TINY:
                raise ValueError(
                    f"{name} must be positive, at least {FLOAT32_TINY:.3g} (float32), got {value}."
                )
        if not self.feature_groups(0):
            raise ValueError("every feature of vectors is switched off; enable one, with_g=True say.")

    @property
    def variant(self) -> str:
        """`"celo2"` when the rule orthogonalises, `"celo2-base"` when it does not."""
        return "celo2" if self.orthogonalize else "celo2-base"

    @property
    def num_outputs_read(self) -> int:
        """The number of network outputs that are used: the direction, and with `exp_mult` the magnitude."""
        return 2 if self.exp_mult else 1

    @property
    def ns_polynomials(self) -> tuple[Polynomial, ...]:
        """The coefficients of each Newton–Schulz iteration."""
        if has_each_iteration(self.ns_coeffs):
            return cast("tuple[Polynomial, ...]", self.ns_coeffs)
        return (cast("Polynomial", self.ns_coeffs),) * self.ns_iters

    def num_channels(self, feature: Feature) -> int:
        """Returns the number of input channels of a feature group under these decays."""
        return {
            "one": 1,
            "momentum": len(self.initial_momentum_decays),
            "rms": len(self.initial_rms_decays),
            "adafactor": len(self.initial_adafactor_decays),
        }[feature.channels]

    def feature_groups(self, rank: int) -> tuple[tuple[str, Feature], ...]:
        """Returns the enabled groups of a tensor of this rank as ordered `(weight name, feature)` pairs.

        The numbering counts the enabled groups of a matrix; a vector uses the first of them.
        """
        enabled = [feature for feature in FEATURES if getattr(self, feature.option)]
        return tuple(
            (f"w0__{index}", feature) for index, feature in enumerate(enabled) if rank >= feature.min_rank
        )

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of all arrays of the network by name: `w0__i`, `b0`, `w1`, `b1` and so on."""
        hidden = self.ff_hidden_size
        shapes: dict[str, tuple[int, ...]] = {
            name: (self.num_channels(feature), hidden) for name, feature in self.feature_groups(2)
        }
        shapes["b0"] = (hidden,)
        for layer in range(1, self.ff_hidden_layers + 1):
            width = NUM_OUTPUTS if layer == self.ff_hidden_layers else hidden
            shapes[f"w{layer}"] = (hidden, width)
            shapes[f"b{layer}"] = (width,)
        return shapes

    @classmethod
    def sizes_of(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """Returns `ff_hidden_size` and `ff_hidden_layers`.

        Raises:
            ValueError: There is no one-dimensional bias `b0` to read the width from.
        """
        bias = shapes.get("b0")
        if bias is None or len(bias) != 1:
            names = ", ".join(f"{name:.80}" for name in list(shapes)[:8])
            found = f"arrays {names or 'none'}" if bias is None else f"shape {bias}"
            raise ValueError(
                f"not Celo2 weights: expected an array b0 of shape (hidden size,), found {found}."
            )
        return {"ff_hidden_size": bias[0], "ff_hidden_layers": sum(map(bool, map(_LAYER.fullmatch, shapes)))}


def _as_floats(name: str, value: Any) -> tuple[float, ...]:
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise ValueError(f"{name} must be a sequence of numbers, got {value!r}.")
    try:
        numbers = tuple(float(number) for number in value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be a sequence of numbers, got {value!r}.") from error
    if not all(abs(number) <= FLOAT32_MAX for number in numbers):  # refuses nan and infinities too
        raise ValueError(f"{name} must be finite in float32, at most {FLOAT32_MAX:.3g}, got {numbers}.")
    return numbers


def _as_polynomials(value: Any) -> tuple[Any, ...]:
    """Returns three coefficients, or a tuple of three for each iteration."""
    if hasattr(value, "tolist"):  # an array
        value = value.tolist()
    nested = has_each_iteration(value)
    triples = tuple(_as_floats("ns_coeffs", triple) for triple in (value if nested else [value]))
    wrong = [triple for triple in triples if len(triple) != 3]
    if wrong:
        raise ValueError(
            "ns_coeffs must be three coefficients, or a tuple of three for each iteration, got "
            f"{len(wrong[0])} coefficients {wrong[0]}."
        )
    return triples if nested else triples[0]


def _check_type(name: str, value: Any, default: Any) -> None:
    kind = type(default)
    right = isinstance(value, kind) and (kind is bool) == isinstance(value, bool)
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        right = abs(value) <= FLOAT32_MAX  # refuses nan, infinities and integers beyond floats
    if not right:
        wanted = f"number within ±{FLOAT32_MAX:.3g} (float32)" if kind is float else kind.__name__
        raise ValueError(f"{name} must be a {wanted}, got {value!r}.")
