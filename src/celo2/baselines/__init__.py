"""Registry of optimizers by name, each with its tuning range of learning rates.

Every entry is an Optax transform in its well-known form: hand-designed ones are Optax's own
(`from_optax.py`) or have one file each, at strong settings, since a comparison is only as good as its weakest
baseline. The learned rule with the shipped weights is `celo2`; with other harnesses, `celo2-plus` (AdamW at
5, not 20 × the rate) and `celo2-eigenbasis`; without one, `celo2-base`. `celo2:PATH` has other weights.
Earlier learned optimizers, whose weights are not shipped, are `celo:PATH`, `velo_s:PATH` and so on
(`celo2.zoo`). The path or hub repository of weights may stand alone: `qualified_name` reads which optimizer
they belong to. Your own optimizer has the name under which it was registered (`register_optimizer`, or the
entry points `celo2.optimizers` of a package), or the function that makes it, `package.module:make`.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from functools import partial, update_wrapper
from typing import Any

import optax

from celo2._utils.registry import REFERENCE, Registry, first_line
from celo2.baselines import adamuon, from_optax, muon, normuon, shampoo, soap
from celo2.baselines.matrix_optimizer import UNIT_STEP_RANGE
from celo2.baselines.spec import EvalParams, MakeOptimizer, OptimizerSpec
from celo2.config import nearest_name
from celo2.constants import RULE_OPTIMIZERS
from celo2.jax.transform import celo2, celo2_base
from celo2.weights.checkpoint import (
    SHIPPED,
    AnyWeights,
    ZooWeights,
    compute_checksum,
    load_checkpoint,
)
from celo2.weights.checkpoint import load_weights as load_any_weights
from celo2.weights.sources import looks_like_source
from celo2.zoo.registry import make as make_predecessor
from celo2.zoo.specs import PRESETS, sets_own_rate
from celo2.zoo.weights import best_preset, load_weights

__all__ = [
    "OPTIMIZERS",
    "EvalParams",
    "MakeOptimizer",
    "OptimizerSpec",
    "check_optimizer_name",
    "describe_optimizers",
    "find_optimizer",
    "make_optimizer",
    "qualified_name",
    "register_optimizer",
    "sets_own_rate",
]

_TRANSFORMS = (celo2, partial(celo2, harness="plus"), partial(celo2, harness="eigenbasis"), celo2_base)
LEARNED: dict[str, Callable[..., Any]] = dict(zip(RULE_OPTIMIZERS, _TRANSFORMS, strict=True))


def _learned(name: str, weights: Any = None) -> MakeOptimizer:
    transform = LEARNED[name]
    return lambda learning_rate, weight_decay: transform(
        learning_rate, weights=weights, weight_decay=weight_decay
    )


_CELO2_PAPER = "arXiv 2602.19142"
_LEARNED_SPECS = (
    OptimizerSpec(
        "celo2",
        "Celo2: the learned rule and Newton–Schulz on hidden matrices, AdamW at 20 × the rate on the rest",
        _learned("celo2"),
        UNIT_STEP_RANGE,
        reference=_CELO2_PAPER,
        origin="celo2.celo2",
    ),
    OptimizerSpec(
        "celo2-plus",
        "Celo2 with AdamW at 5 × the rate on the rest",
        _learned("celo2-plus"),
        UNIT_STEP_RANGE,
        reference=_CELO2_PAPER,
        origin='celo2.celo2(…, harness="plus")',
    ),
    OptimizerSpec(
        "celo2-eigenbasis",
        "Celo2 in SOAP's eigenbasis, with AdamW at 5 × the rate on the rest",
        _learned("celo2-eigenbasis"),
        UNIT_STEP_RANGE,
        reference="arXiv 2602.19142, 2409.11321",
        origin='celo2.celo2(…, harness="eigenbasis")',
    ),
    OptimizerSpec(
        "celo2-base",
        "Celo2-base: the learned rule on every parameter",
        _learned("celo2-base"),
        UNIT_STEP_RANGE,
        reference=_CELO2_PAPER,
        origin="celo2.celo2_base",
    ),
)
_HAND_DESIGNED_SPECS = sorted(
    (*from_optax.SPECS, *(module.SPEC for module in (adamuon, muon, normuon, shampoo, soap))),
    key=lambda spec: spec.name,
)

OWN_RANGE = (1e-4, 1e-1)  # of an optimizer that does not specify its learning rates


def _as_spec(name: str, thing: Any) -> OptimizerSpec:
    """Converts a registered object, an entry or a function that makes the optimizer, to an entry."""
    if isinstance(thing, OptimizerSpec):
        if thing.sets_own_rate:
            raise ValueError(f"optimizer {name!r}: sets_own_rate is for the predecessors of Celo2 only.")
        return dataclasses.replace(thing, name=name)
    if not callable(thing):
        raise ValueError(
            f"optimizer {name!r} is {type(thing).__name__}, expected a function "
            "(learning_rate, weight_decay=0.0) that returns an Optax transform."
        )
    decays = "weight_decay" in inspect.signature(thing).parameters

    def make(learning_rate: optax.ScalarOrSchedule, weight_decay: float) -> optax.GradientTransformation:
        if weight_decay and not decays:
            raise ValueError(
                f"optimizer {name!r} takes a learning rate only; give it an argument weight_decay, for "
                f"{weight_decay}."
            )
        made = thing(learning_rate, weight_decay=weight_decay) if decays else thing(learning_rate)
        if not isinstance(made, optax.GradientTransformation):
            raise ValueError(
                f"optimizer {name!r} is made as {type(made).__name__}, expected an "
                "optax.GradientTransformation."
            )
        return made

    update_wrapper(make, thing, assigned=(), updated=())  # records where the code is
    return OptimizerSpec(name, first_line(thing) or f"made by {name}", make, OWN_RANGE, origin=name)


OPTIMIZERS: Registry[OptimizerSpec] = Registry(
    "optimizer",
    "celo2.optimizers",
    {spec.name: spec for spec in (*_LEARNED_SPECS, *_HAND_DESIGNED_SPECS)},
    _as_spec,
)
"""The optimizers by name: the learned ones, the others in alphabetical order, then those of others."""


def register_optimizer(name: str, make: MakeOptimizer | OptimizerSpec) -> None:
    """Registers an optimizer for comparisons, suites and probes, on the command line and in Python.

    Args:
        name: Its name; letters, digits and `_ . + -`.
        make: A function `(learning_rate, weight_decay=0.0)`, or `(learning_rate)`, that returns an Optax
            transform, such as `optax.adamw`; the learning rate may be a schedule. The tuning range is 1e-4 to
            1e-1; an `OptimizerSpec` has its own range, schedule and description.

    Raises:
        ValueError: The name is taken, or `make` is something else.

    Example:
        >>> register_optimizer("heavy-ball", lambda rate: optax.sgd(rate, momentum=0.9))
        >>> find_optimizer("heavy-ball").learning_rates(3)
        (0.0001, 0.00316, 0.1)
    """
    if name in PRESETS or name == "all":
        raise ValueError(f"{name!r} means something else on the command line; choose another name.")
    OPTIMIZERS.register(name, make)


def qualified_name(name: str) -> str:
    """Returns an optimizer's name; for weights alone, prefixed with the optimizer they belong to.

    The file is read only if the name is just a path or a hub repository of weights. Any other name is
    returned as it is, known or not.

    Raises:
        ValueError: It is not a weight file, or one that does not state its optimizer.
        OSError, ImportError: The weights cannot be read, as in `celo2.load_checkpoint`.

    Example:
        >>> qualified_name("adamw"), qualified_name("celo2:mine.safetensors")
        ('adamw', 'celo2:mine.safetensors')
    """
    prefix = name.partition(":")[0]
    if name in OPTIMIZERS or prefix in (*LEARNED, *PRESETS) or not looks_like_source(name):
        return name
    weights = load_any_weights(name, AnyWeights)
    if isinstance(weights, ZooWeights):
        try:
            return f"{best_preset(weights)}:{name}"
        except ValueError as error:
            raise ValueError(f"{name}: {error} Name it with a preset: {weights.kind}:{name}, say.") from error
    if "orthogonalize" not in weights.stated:
        raise ValueError(
            f"{name} does not say which variant of Celo2 its arrays are; name it as celo2:{name} (with "
            f"Newton–Schulz on hidden matrices) or as celo2-base:{name}."
        )
    return f"{weights.config.variant}:{name}"


def check_optimizer_name(name: str) -> None:
    """Raises a ValueError that suggests the nearest name if `find_optimizer` does not know a name."""
    variant, colon, source = name.partition(":")
    if name in OPTIMIZERS or (colon and source and variant in (*LEARNED, *PRESETS)):
        return
    if REFERENCE.fullmatch(name) and variant not in (*OPTIMIZERS, *PRESETS):
        OPTIMIZERS.find(name)
        return
    if sets_own_rate(name):
        raise ValueError(
            f"{name!r} has no weights in this package: name them as {variant}:PATH, or {variant}:OWNER/NAME "
            "for a hub repository (celo:amoudgl/celo, say)."
        )
    raise ValueError(
        f"unknown optimizer {name!r}{nearest_name(name, [*OPTIMIZERS, *PRESETS])} "
        f"There are {', '.join(OPTIMIZERS)}; weight files by path and hub repositories as OWNER/NAME, also "
        f"after a name ({', '.join(f'{one}:PATH' for one in LEARNED)}); the predecessors, which need weights "
        f"as in celo:PATH ({', '.join(PRESETS)}); and your own as package.module:make."
    )


def describe_optimizers() -> str:
    """Formats one line per name, for a command's help."""
    lines = OPTIMIZERS.describe(lambda spec: spec.description)
    width = max(map(len, lines))
    return "\n".join(f"  {name:{width}} {line}" for name, line in lines.items())


def find_optimizer(name: str, *, num_steps: int | None = None) -> OptimizerSpec:
    """Finds an optimizer by name.

    Args:
        name: A key of `OPTIMIZERS`, `package.module:make`, or `celo2:SOURCE` and the like, where the source
            is anything that `celo2.load_checkpoint` accepts, such as a path; or `PRESET:SOURCE` with a preset
            of `celo2.zoo` and a source that `celo2.zoo.load_weights` accepts; or a source alone
            (`qualified_name`).
        num_steps: The length of the runs, required by some presets of `celo2.zoo`.

    Raises:
        ValueError: The name is unknown (the message suggests the nearest), or the weights do not fit.
        OSError: The weight file cannot be read.

    Example:
        >>> find_optimizer("adamw").learning_rates(3)
        (0.0003, 0.00548, 0.1)
    """
    name = qualified_name(name)
    check_optimizer_name(name)
    learned, _, source = name.partition(":")
    if sets_own_rate(name):
        return _predecessor(name, num_steps)
    if learned not in LEARNED:
        return OPTIMIZERS.find(name)
    shipped = OPTIMIZERS[learned]
    variant = SHIPPED[learned == "celo2-base"]
    try:
        weights = load_checkpoint(source or variant, orthogonalize=variant == "celo2")
    except ValueError as error:
        raise ValueError(f"{error}{_suggest_name(source, name)}") from error
    checksum = compute_checksum(weights.arrays, weights.config)
    if not source:
        return dataclasses.replace(shipped, weights=checksum)
    return dataclasses.replace(
        shipped,
        name=name,
        description=f"{shipped.description}; weights from {source}",
        make=_learned(learned, weights),
        weights=checksum,
    )


def _suggest_name(source: str, name: str) -> str:
    """Returns a sentence with the right name for weights named as a different optimizer's, or ""."""
    try:
        other = qualified_name(source)
    except (OSError, ImportError, ValueError):
        return ""
    return f" As an optimizer, name them {other}." if other not in (source, name) else ""


def _predecessor(name: str, num_steps: int | None) -> OptimizerSpec:
    preset, _, source = name.partition(":")
    weights = load_weights(source)
    make_predecessor(preset, weights=weights, num_steps=num_steps)  # raises here rather than under tracing

    def make(learning_rate: optax.ScalarOrSchedule, weight_decay: float) -> optax.GradientTransformation:
        del learning_rate
        if weight_decay:
            raise ValueError(f"{name} has no learning rate to measure a weight decay of {weight_decay} by.")
        return make_predecessor(preset, weights=weights, num_steps=num_steps)

    description = f"{preset}, a learned optimizer that sets its own step sizes; weights from {source}"
    return OptimizerSpec(
        name,
        description,
        make,
        (1.0, 1.0),
        origin=f'celo2.zoo.make("{preset}")',
        sets_own_rate=True,
        weights=compute_checksum(weights.arrays, weights.config),
    )


def make_optimizer(
    name: str,
    learning_rate: optax.ScalarOrSchedule,
    *,
    weight_decay: float = 0.0,
    num_steps: int | None = None,
) -> optax.GradientTransformation:
    """Builds an optimizer by name; arguments and errors as in `find_optimizer`.

    Example:
        >>> make_optimizer("muom", 1e-3)
        Traceback (most recent call last):
        ValueError: unknown optimizer 'muom'; did you mean 'muon'? There are ...
    """
    return find_optimizer(name, num_steps=num_steps).make(learning_rate, weight_decay)
