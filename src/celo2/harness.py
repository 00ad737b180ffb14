"""Options for what an optimizer does beyond the learned direction, shared by both backends.

The learned rule sees each coordinate separately, so it cannot learn how a step should depend on the whole
matrix. Each option is a published idea; `docs/harness.md` says which of them help, and by how much.
"""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Callable
from typing import Any

from celo2.config import nearest_name
from celo2.constants import ADAMW_LR_SCALE
from celo2.newton_schulz import coefficient_options, polar_express

ORTHOGONALIZERS = ("newton-schulz", "polar-express", "none")
MATCHES = {"adamw": (0.2, 1.0)}
"""Optimizer whose learning rate is kept → a matrix step's root mean square, and AdamW's share of the rate."""


def _is_number(value: Any, kind: type, least: float) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and least <= value < float("inf")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Harness:
    """Options for a matrix's step and weights beyond the learned direction; hashable.

    The defaults are those of the Celo2 paper: Newton–Schulz, a step of root mean square 1, decoupled decay.
    The parts are applied in the order listed here, to what the rule updates; `cautious_decay` also applies to
    AdamW's parameters. Vectors that an override gives to the rule count as one matrix for `min_update_ratio`;
    the other parts ignore them.

    Attributes:
        eigenbasis_every: The number of steps, ≥ 1, between updates of the eigenbasis. The direction is
            computed in the eigenbasis of Shampoo's two factors of the gradient, as SOAP does with Adam's
            direction (arXiv 2409.11321, algorithm 3). Each side of a matrix needs two square matrices of
            state. None: no basis.
        orthogonalizer: `"newton-schulz"`; `"polar-express"`, the same with the best polynomial for each
            iteration (arXiv 2505.16932); `"none"`; or a function that maps matrices
            `(..., reduction, output)` of root mean square 1 to matrices of the same shape and any scale.
        row_decay: The decay, in [0, 1), of the running mean square of each output neuron's steps. The steps
            are divided by its root, and the norm of the matrix is restored (NorMuon, arXiv 2510.05491,
            algorithm 1, uses 0.95). State: one float per neuron. None: no division.
        min_update_ratio: The minimum ratio, ≥ 0, of a step's norm to its weights' norm, before the learning
            rate; shorter steps are scaled up to it. Steps have root mean square 1, so 10 affects
            matrices whose root mean square is above 0.1 (Skylight, modded-nanogpt track 3). 0: no bound.
        cautious_decay: Whether weights decay only where step and weight have the same sign (arXiv 2510.12402,
            equation 1).
        preserve_norms: Whether each matrix is rescaled to its initial norm after the step (Hyperball,
            arXiv 2606.16899); weight decay then has no effect on matrices.
        adamw_lr_scale: The learning rate of AdamW's parameters divided by that of matrices, ≥ 0; used when
            the optimizer's argument of the same name is not given. The paper uses 20.

    Raises:
        TypeError: `cautious_decay` or `preserve_norms` is not a bool, or a function is not hashable.
        ValueError: Another option is out of its range.

    Example:
        >>> Harness(min_update_ratio=10.0).changed()
        {'min_update_ratio': 10.0}
    """

    eigenbasis_every: int | None = None
    orthogonalizer: str | Callable[[Any], Any] = "newton-schulz"
    row_decay: float | None = None
    min_update_ratio: float = 0.0
    cautious_decay: bool = False
    preserve_norms: bool = False
    adamw_lr_scale: float = ADAMW_LR_SCALE

    def __post_init__(self) -> None:
        """Checks the options."""
        if self.eigenbasis_every is not None and not _is_number(self.eigenbasis_every, numbers.Integral, 1):
            raise ValueError(
                "eigenbasis_every must be a whole number of steps from 1, or None, got "
                f"{self.eigenbasis_every!r}."
            )
        if not callable(self.orthogonalizer) and self.orthogonalizer not in ORTHOGONALIZERS:
            raise ValueError(
                f"unknown orthogonalizer {self.orthogonalizer!r}"
                f"{nearest_name(str(self.orthogonalizer), ORTHOGONALIZERS)} There are "
                f"{', '.join(ORTHOGONALIZERS)}, and your own as a function of matrices."
            )
        hash(self.orthogonalizer)  # the function may be a static argument of a jitted one
        decay = self.row_decay
        if decay is not None and not (_is_number(decay, numbers.Real, 0) and decay < 1):
            raise ValueError(f"row_decay must be in [0, 1), or None, got {self.row_decay!r}.")
        for name in ("min_update_ratio", "adamw_lr_scale"):
            value = getattr(self, name)
            if not _is_number(value, numbers.Real, 0):
                raise ValueError(f"{name} must be finite and not negative, got {value!r}.")
        for name in ("cautious_decay", "preserve_norms"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {getattr(self, name)!r}.")

    def changed(self) -> dict[str, Any]:
        """Returns the options that differ from the defaults."""
        fields = dataclasses.fields(self)
        return {f.name: getattr(self, f.name) for f in fields if getattr(self, f.name) != f.default}

    @property
    def has_newton_schulz(self) -> bool:
        """Whether the rule's own Newton–Schulz iterations run."""
        return self.orthogonalizer in ("newton-schulz", "polar-express")

    def ns_options(self, ns_coeffs: Any = None) -> dict[str, Any]:
        """Returns the rule's options that follow from the orthogonaliser and an optimizer's `ns_coeffs`.

        Raises:
            ValueError: Both are given.
        """
        if ns_coeffs is not None and self.orthogonalizer != "newton-schulz":
            raise ValueError(
                "ns_coeffs are the coefficients of Newton–Schulz, and the harness's orthogonalizer is "
                f"{self.orthogonalizer!r}; leave one of them out."
            )
        return coefficient_options(polar_express() if self.orthogonalizer == "polar-express" else ns_coeffs)


PRESETS = {
    "paper": Harness(),
    "plus": Harness(adamw_lr_scale=5.0),
    "eigenbasis": Harness(adamw_lr_scale=5.0, eigenbasis_every=10),
}
"""Presets by name: the Celo2 paper's, the best at the same time and memory, and the best overall
(`docs/harness.md`)."""


def resolve_harness(harness: Harness | str) -> Harness:
    """Returns the harness, or the preset of that name.

    Raises:
        TypeError: The argument is neither.
        ValueError: There is no such preset.

    Example:
        >>> resolve_harness("plus").changed()
        {'adamw_lr_scale': 5.0}
    """
    if isinstance(harness, Harness):
        return harness
    if not isinstance(harness, str):
        raise TypeError(f"harness must be a Harness or the name of a preset, got {harness!r}.")
    if harness not in PRESETS:
        names = ", ".join(map(repr, PRESETS))
        raise ValueError(f"unknown harness {harness!r}{nearest_name(harness, PRESETS)} There are {names}.")
    return PRESETS[harness]


def match_scales(match: str | None, adamw_lr_scale: float | None, default: float) -> tuple[float, float]:
    """Returns the root mean square of a matrix step at learning rate 1, and AdamW's share of the rate.

    Args:
        match: The optimizer whose learning rate is kept: None or "adamw".
        adamw_lr_scale: AdamW's share, if given.
        default: AdamW's share without `match`.

    Raises:
        ValueError: There is no such match.

    References:
        Moonlight, arXiv 2502.16982, section 2.2: AdamW's steps have a root mean square of about 0.2 to 0.4.
    """
    if match is not None and match not in MATCHES:
        raise ValueError(f"match must be None or {' or '.join(map(repr, MATCHES))}, got {match!r}.")
    rms, share = (1.0, default) if match is None else MATCHES[match]
    return rms, share if adamw_lr_scale is None else adamw_lr_scale
