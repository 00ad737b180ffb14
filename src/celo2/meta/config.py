"""Configuration of a meta-training run: every option that affects its result, and all checks."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import math
import os
from typing import Literal, Self, get_args, get_type_hints

from tyro.conf import Suppress as RecipeOnly  # an option without a flag

from celo2._utils.checks import check_count, check_seeds
from celo2.config import RuleConfig
from celo2.constants import FLOAT32_MAX, FLOAT32_TINY
from celo2.meta.inner.expert import find_expert
from celo2.meta.parsing import load_config, parse_fields, parse_rule_options, parse_shares, split_by_weight
from celo2.tasks.base import Split
from celo2.tasks.families import FAMILIES
from celo2.tasks.families.augmentation import LEVELS, Level, parse_mixture
from celo2.tasks.families.base import Source
from celo2.zoo.specs import PRESETS, Celo, MemberConfig

Variant = Literal[
    "celo2",
    "celo2-base",
    "celo",
    "celo_adam",
    "adafac_mlp",
    "rnn_mlp",
    "nn_adam",
    "velo",
    "velo_s",
    "velo_4000",
]
RateUnits = Literal["stored", "network"]
Schedule = Literal["constant", "cosine"]
Estimator = Literal["pes", "truncated-es", "full-es", "noise-reuse-es", "full-reverse"]
LossScale = Literal["linear", "log"]
UnrollLaw = Literal["log-uniform", "uniform"]
LossDifference = Literal["value", "sign"]
OuterOptimizer = Literal[
    "adamw",
    "lion",
    "adam",
    "nadam",
    "radam",
    "amsgrad",
    "adabelief",
    "yogi",
    "adagrad",
    "rmsprop",
    "sgd",
    "custom",
]
MetaLoss = Literal["training", "held-out", "final", "end"]

CHOICES: dict[str, tuple[str, ...]] = {
    "variant": get_args(Variant),
    "outer_optimizer": get_args(OuterOptimizer),
    "estimator": get_args(Estimator),
    "loss_difference": get_args(LossDifference),
    "loss_scale": get_args(LossScale),
    "meta_loss": get_args(MetaLoss),
    "unroll_law": get_args(UnrollLaw),
    "level": LEVELS,
    "rate_units": get_args(RateUnits),
    "inner_schedule": get_args(Schedule),
}
"""The options of `MetaConfig` with a fixed set of values, and these values."""

DECAYING = ("adamw", "lion")  # outer optimizers with weight decay
_OF_THE_RATE = ("inner_learning_rate", "rate_spread", "rate_units", "inner_schedule", "adamw_lr_scale")
_FROZEN_BY_PHASE = ((), ("lstm_init_state/*", "rnn_params/*"), ("ff_mod_stack/*",))  # none, 1, 2
_AT_LEAST_ONE = ("tasks_per_set", "truncation_length", "batch_size")
_NOT_NEGATIVE = (
    "expert_weight",
    "reverse_steps",
    "inner_clip",
    "outer_weight_decay",
    "outer_warmup",
    "outer_decay_steps",
    "outer_clip",
)
_POSITIVE = ("outer_learning_rate", "sign_scale", "sigma", "inner_learning_rate", "adamw_lr_scale")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetaConfig:
    """The recipe of one run; defaults are the published values unless stated otherwise.

    Source: arXiv 2602.19142, section 4 and its public meta-training command. Options marked `RecipeOnly` are
    not on the command line.

    Attributes:
        variant: "celo2" (Newton–Schulz on matrices, AdamW on vectors), "celo2-base", or a predecessor by its
            name in `celo2.zoo`. Predecessors set their own step sizes, so the inner rate and its related
            options must keep their defaults.
        phase: Phase of "celo": 1 trains the rule, 2 its schedule with the rule of `start` frozen, 0 both.
        rule_options: Non-default options of the rule, as `NAME=VALUE` with the names of
            `celo2.RuleConfig` and JSON values: "ff_hidden_size=16", "initial_rms_decays=[0.999]",
            "normalize_input=false".
        outer_optimizer: Name of the Optax optimizer that updates theta; "custom" for any other chain,
            given in Python.
        outer_learning_rate: Peak rate of the outer optimizer. The published runs use 5e-5 (Celo2) and
            1e-4 (Celo2-base) for 100,000 iterations; the default is for a few thousand.
        outer_weight_decay: Weight decay of the outer optimizer; "adamw" and "lion" only.
        outer_warmup: Outer iterations over which the rate rises from zero.
        outer_decay_steps: Outer iterations over which a cosine lowers the rate to a tenth; 0: never.
        outer_clip: Global norm to which the meta-gradient is clipped; 0: not clipped.
        frozen: Weight arrays that keep their starting values, by name or pattern: "w0__*", "b?", "w2".
        families: Kinds of task, `NAME` or `NAME:WEIGHT`. Pairs are allocated by weight, at least one each;
            the names are those of `celo2.tasks.families.FAMILIES`. The published recipe uses only "mlp".
        datasets: The image sets, over which the pairs of each family of image tasks are spread evenly.
        tasks_per_set: Antithetic pairs per image set; times the number of image sets, this is the number of
            pairs of all families, including those that use no images.
        estimator: Meta-gradient estimator: "pes", persistent evolution strategies; "truncated-es", which
            ignores a perturbation's effects after its K steps; "full-es", whole runs in each outer
            iteration; "noise-reuse-es", one perturbation per run (`celo2.meta.estimators`); "full-reverse",
            whole runs differentiated in reverse mode (`celo2.meta.reverse`), for Celo2 and Celo2-base.
        loss_difference: How the estimate uses a pair's loss difference: its "value", or its "sign"
            times `sign_scale` (1 unless a recipe sets it), so that no pair outweighs the others.
        sign_scale: Factor of the sign.
        reverse_steps: Inner steps at the start of each truncation through which the meta-loss is also
            differentiated in reverse mode; the meta-gradient is then the inverse-variance mean of that
            gradient and the estimate (`meta.reverse`). From 2 to `truncation_length`; 0: no such gradient.
            Celo2 and Celo2-base only.
        meta_loss: The objective of a rule: the mean "training" loss of the steps; the mean loss of a
            "held-out" batch at each step, from the part of the set not used for training; the "final" loss,
            the training loss of a run's last step; or the "end", the mean training loss of its last fifth.
        loss_scale: "linear", or "log": the logarithm of each loss, so that one per cent counts the same on
            every task and at every size of the loss. The difference within a pair then equals that of the log
            ratios to any third rule (such as the start) on the same task, seed, rate and step, which cancels.
        expert: Hand-designed optimizer of `celo2.baselines` whose directions the rule is kept close to, such
            as "muon" or "normuon" (`celo2.meta.inner.expert`); "": none. Celo2 and Celo2-base only.
        expert_weight: Weight of the direction loss, which lies in [0, 2] and is added to each step's
            meta-loss after `loss_scale` and clipping; positive with an expert, 0 without one.
        sigma: Standard deviation of the perturbations of theta; no effect with "full-reverse".
        truncation_length: Inner steps K of one outer iteration, or of one segment of a whole run.
        min_unroll: Minimum length of an inner run; at least `truncation_length`, unless whole runs are
            trained.
        max_unroll: Maximum length of an inner run.
        unroll_law: Lengths are "log-uniform" (published) or "uniform" between the two. With
            "noise-reuse-es" they are rounded up to multiples of K, so that runs end with a truncation.
        resume_probability: Probability, in [0, 1), that an ended inner run continues from a saved state and
            so becomes longer (`celo2.meta.inner.resume`); 0: always a new task. Not for whole runs. The
            "cosine" schedule then uses the new length.
        inner_clip: Norm to which the gradients of each inner step are clipped; 0: not clipped.
        family_rates: `NAME:FACTOR`: factor on the inner rate in a family's runs, so that the drawn rates lie
            around each family's best.
        inner_learning_rate: Peak learning rate of the networks that are trained.
        rate_spread: Each run's peak rate is drawn log-uniformly between the inner learning rate divided by
            this factor and multiplied by it; at least 1.
        rate_units: Units of the rate. "stored", the published recipe: the parameters as the
            augmentation stores them, so that a scale also multiplies the change of the network. "network":
            the parameters as the network uses them, so that the scales do not affect its changes.
        inner_schedule: "constant", the published recipe, or "cosine": from the peak to zero over each
            run, as in deployment.
        adamw_lr_scale: Ratio of the learning rate of Celo2's AdamW branch to the inner learning rate.
        level: The granularity of the augmentation's scales, see `celo2.tasks.families.augmentation`.
        scale_range: Minimum and maximum scale of the augmentation.
        mixture: Levels from which each task draws one, instead of `level`: "LEVEL", or "LEVEL:LOW:HIGH" for a
            range other than `scale_range`; a level listed twice is twice as likely.
        batch_size: Examples in an inner batch; for text, bytes to be predicted.
        start: "random"; "adam", which makes the rule Adam with Nesterov momentum until it learns better; or
            weights, anything that `celo2.load_checkpoint` accepts.
        seed: Seed of all random numbers, in [0, 2³²).
    """

    variant: Variant = "celo2"
    phase: int = 0
    rule_options: tuple[str, ...] = ()
    outer_optimizer: OuterOptimizer = "adamw"
    outer_learning_rate: float = 4e-4
    outer_weight_decay: RecipeOnly[float] = 0.0
    outer_warmup: int = 0
    outer_decay_steps: int = 0
    outer_clip: float = 0.0
    frozen: tuple[str, ...] = ()
    families: tuple[str, ...] = ("mlp",)
    datasets: tuple[str, ...] = ("fashion-mnist", "mnist", "digits", "patches")
    tasks_per_set: int = 8
    estimator: Estimator = "pes"
    loss_difference: LossDifference = "value"
    loss_scale: RecipeOnly[LossScale] = "linear"
    sign_scale: RecipeOnly[float] = 1.0
    reverse_steps: RecipeOnly[int] = 0
    meta_loss: MetaLoss = "training"
    expert: RecipeOnly[str] = ""
    expert_weight: RecipeOnly[float] = 0.0
    sigma: RecipeOnly[float] = 0.01
    truncation_length: int = 50
    min_unroll: int = 100
    max_unroll: int = 2000
    unroll_law: RecipeOnly[UnrollLaw] = "log-uniform"
    resume_probability: RecipeOnly[float] = 0.0
    inner_clip: RecipeOnly[float] = 0.0
    family_rates: RecipeOnly[tuple[str, ...]] = ()
    inner_learning_rate: float = 1e-3
    rate_spread: float = 1.0
    rate_units: RateUnits = "stored"
    inner_schedule: Schedule = "constant"
    adamw_lr_scale: RecipeOnly[float] = 20.0
    level: Level = "global"
    scale_range: tuple[float, float] = (1e-3, 1e3)
    mixture: RecipeOnly[tuple[str, ...]] = ()
    batch_size: RecipeOnly[int] = 64
    start: str = "random"
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks every range and combination."""
        for name in (
            "rule_options",
            "families",
            "datasets",
            "scale_range",
            "frozen",
            "mixture",
            "family_rates",
        ):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        _check_values(self)
        _check_outer(self)
        _check_variant(self)
        _check_expert(self)
        _check_resumption(self)
        least = 1 if self.trains_whole_runs else self.truncation_length
        if not least <= self.min_unroll <= self.max_unroll:
            raise ValueError(
                "min_unroll must be at most max_unroll and, unless whole runs are trained, at least "
                "truncation_length, since a run is reset at most once in a truncation; got "
                f"truncation_length {self.truncation_length}, min_unroll {self.min_unroll} and max_unroll "
                f"{self.max_unroll}."
            )
        if self.reverse_steps:
            _check_reverse(self)
        if self.estimator == "full-reverse":
            _check_full_reverse(self)
        for name, parse in (
            ("rule_options", lambda: self.rule),
            ("mixture", lambda: parse_mixture(self.mixture, self.scale_range)),
            ("families", lambda: self.pairs_by_family),
            ("family_rates", lambda: self.rate_factors),
        ):
            try:
                parse()
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        _check_frozen(self)

    @property
    def num_pairs(self) -> int:
        """The number of antithetic pairs in one outer iteration; with "full-reverse" a pair is one run."""
        return len(self.datasets) * self.tasks_per_set

    @property
    def trains_whole_runs(self) -> bool:
        """Whether each outer iteration trains from new starts to the ends of the runs."""
        return self.estimator in ("full-es", "full-reverse")

    @property
    def pairs_by_family(self) -> dict[str, int]:
        """The number of pairs of each family, in the order of `families`."""
        return split_by_weight(self.num_pairs, parse_shares(self.families, FAMILIES))

    def sets_of(self, source: Source) -> tuple[str, ...]:
        """Returns the names of the data sets of a source's families; none if each task has its own data."""
        return {"images": self.datasets, "text": ("text",), "problem": ()}[source]

    @property
    def frozen_names(self) -> frozenset[str]:
        """The weight arrays that match `frozen`, and those that the phase does not train."""
        names = self.weight_shapes()
        patterns = (*self.frozen, *_FROZEN_BY_PHASE[self.phase])
        return frozenset(name for pattern in patterns for name in names if fnmatch.fnmatchcase(name, pattern))

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits of each data set that an outer iteration draws from."""
        return ("train", "valid") if self.meta_loss == "held-out" else ("train",)

    @property
    def rate_factors(self) -> dict[str, float]:
        """The factor on each family's inner rate; 1 for families without one."""
        return parse_shares(self.family_rates, list(self.pairs_by_family)) if self.family_rates else {}

    @property
    def mean_unroll(self) -> float:
        """The mean number of steps of a new or continued run, before rounding to `K`."""
        if self.min_unroll == self.max_unroll or self.unroll_law == "uniform":
            return (self.min_unroll + self.max_unroll) / 2
        return (self.max_unroll - self.min_unroll) / math.log(self.max_unroll / self.min_unroll)

    @property
    def rule(self) -> RuleConfig:
        """The configuration of the trained rule, for Celo2 and Celo2-base."""
        return RuleConfig().replace(
            **parse_rule_options(self.rule_options), orthogonalize=self.variant == "celo2"
        )

    @property
    def member(self) -> MemberConfig | None:
        """The predecessor's configuration; None for Celo2 and Celo2-base."""
        if self.variant == "celo":
            return Celo(phase=self.phase or 2)
        return PRESETS.get(self.variant)

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the name and shape of every array of theta."""
        return (self.member or self.rule).weight_shapes()

    def to_json(self) -> str:
        """Returns the recipe as a JSON object."""
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Parses the output of `to_json`; missing options take their defaults.

        Raises:
            ValueError: The text is not a JSON object, or has an unknown name, or a value of the wrong
                type or range.
        """
        return cls(**parse_fields(cls, text, "a meta-training config"))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Reads the `config.json` of a run; errors are those of `parsing.load_config`."""
        return load_config(cls, path)


RECIPE_ONLY = tuple(
    name
    for name, hint in get_type_hints(MetaConfig, include_extras=True).items()
    if RecipeOnly in getattr(hint, "__metadata__", ())
)
"""The options without a flag, which a recipe file or Python sets."""


def _check_values(config: MetaConfig) -> None:
    """Checks each option separately: its type, range and choices."""
    for name, choices in CHOICES.items():
        if getattr(config, name) not in choices:
            raise ValueError(f"{name} must be one of {choices}, got {getattr(config, name)!r}.")
    for name in _AT_LEAST_ONE:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}.")
    for name in _POSITIVE:
        value = getattr(config, name)
        if not FLOAT32_TINY <= value <= FLOAT32_MAX:
            raise ValueError(f"{name} must be positive and finite in float32, got {value}.")
    for name in _NOT_NEGATIVE:
        value = getattr(config, name)
        if not 0 <= value <= FLOAT32_MAX:
            raise ValueError(f"{name} must be finite in float32 and not negative, got {value}.")
    for field in dataclasses.fields(config):
        if isinstance(field.default, int) and field.name != "seed":
            check_count(field.name, getattr(config, field.name))
    if not 1 <= config.rate_spread < math.inf:
        raise ValueError(f"rate_spread is a factor of at least 1, got {config.rate_spread}.")
    if len(config.scale_range) != 2 or not 0 < config.scale_range[0] <= config.scale_range[1] < math.inf:
        raise ValueError(f"scale_range must be two rising positive numbers, got {config.scale_range}.")
    if not config.datasets:
        raise ValueError("datasets must name at least one image set.")
    check_seeds(config.seed)


def _check_outer(config: MetaConfig) -> None:
    """Checks the outer optimizer, its weight decay and its schedule."""
    if config.outer_weight_decay and config.outer_optimizer not in DECAYING:
        raise ValueError(
            f"outer_weight_decay belongs to {DECAYING}, got outer_optimizer={config.outer_optimizer!r}; "
            "choose one of them, or no decay."
        )
    if config.outer_decay_steps and config.outer_decay_steps <= config.outer_warmup:
        raise ValueError(
            "outer_decay_steps counts from the first iteration and must be above outer_warmup, got "
            f"{config.outer_decay_steps} and {config.outer_warmup}."
        )


def _check_variant(config: MetaConfig) -> None:
    """Checks the phase, and rejects options that do not apply to a predecessor."""
    phases = (0, 1, 2) if config.variant == "celo" else (0,)
    if config.phase not in phases:
        raise ValueError(f"phase must be one of {phases} for {config.variant!r}, got {config.phase!r}.")
    if config.member is None:
        return
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for name in _OF_THE_RATE:
        if getattr(config, name) != defaults[name]:
            raise ValueError(
                f"{config.variant!r} sets its own step sizes, so {name} has no meaning; leave it out "
                f"(got {getattr(config, name)!r})."
            )
    if config.rule_options:
        raise ValueError(f"rule_options are Celo2's, not those of {config.variant!r}; leave them out.")
    if config.start == "adam":
        raise ValueError(f"only Celo2 can start at Adam, not {config.variant!r}; say random, or weights.")


def _check_expert(config: MetaConfig) -> None:
    """Checks that an expert has a weight and exists for this variant."""
    if bool(config.expert) != (config.expert_weight > 0):
        raise ValueError(
            "expert and expert_weight belong together: name a hand-designed optimizer and a positive weight, "
            f"or leave both out; got {config.expert!r} and {config.expert_weight}."
        )
    if config.expert and config.member is not None:
        raise ValueError(
            f"expert is an option of Celo2 and Celo2-base, not of {config.variant!r}; leave it and "
            "expert_weight out."
        )
    if config.expert:
        find_expert(config.expert)


def _check_resumption(config: MetaConfig) -> None:
    """Checks the probability that ended runs continue."""
    if not 0 <= config.resume_probability < 1:
        raise ValueError(f"resume_probability must be in [0, 1), got {config.resume_probability}.")
    if config.resume_probability and config.trains_whole_runs:
        raise ValueError(
            f"{config.estimator} trains whole runs in each iteration, so none continues; choose another "
            "estimator, or no resume_probability."
        )


def _check_reverse(config: MetaConfig) -> None:
    """Checks that a reverse-mode gradient exists and is comparable with the estimate."""
    what = f"reverse_steps={config.reverse_steps}"
    if config.member is not None:
        raise ValueError(
            f"{what} is for Celo2 and Celo2-base; not every predecessor's program has a derivative in JAX, "
            f"and that of {config.variant!r} is not tested. Use 0."
        )
    if config.reverse_steps == 1:
        raise ValueError(f"{what} has no effect: a loss is measured before its step; choose 2 or more, or 0.")
    if config.reverse_steps > config.truncation_length:
        raise ValueError(
            f"{what} is more than truncation_length={config.truncation_length}; choose at most as many."
        )
    if config.trains_whole_runs:
        raise ValueError(
            f"{what} needs truncations, which {config.estimator!r} lacks; choose another estimator."
        )
    if config.loss_difference == "sign":
        raise ValueError(
            f'{what} is a gradient of the loss, of which "sign" forgets the size; choose '
            'loss_difference="value".'
        )
    if config.meta_loss in ("final", "end"):
        raise ValueError(
            f"{what} sees the end of a run in few truncations and a few steps back only; choose the "
            'meta-loss "training" or "held-out".'
        )
    if config.num_pairs < 2:
        raise ValueError(f"{what} needs two pairs or more, whose variance weighs the two; got 1.")


def _check_full_reverse(config: MetaConfig) -> None:
    """Checks that whole runs can be differentiated."""
    if config.member is not None:
        raise ValueError(
            "full-reverse is for Celo2 and Celo2-base; not every predecessor's program has a derivative in "
            f"JAX, and that of {config.variant!r} is not tested. Choose another estimator."
        )
    if config.loss_difference == "sign":
        raise ValueError(
            "full-reverse does not compare two runs, so there is no difference whose sign could count; "
            'choose loss_difference="value".'
        )


def _check_frozen(config: MetaConfig) -> None:
    """Checks that the frozen arrays exist and that some array remains to be trained."""
    names = list(config.weight_shapes())
    for pattern in config.frozen:
        if not fnmatch.filter(names, pattern):
            raise ValueError(f"frozen: no weight array is named {pattern!r}; there are {', '.join(names)}.")
    if len(config.frozen_names) == len(names):
        raise ValueError(f"frozen: {config.frozen} leave nothing to train; free at least one weight array.")
