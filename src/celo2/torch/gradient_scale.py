"""Tools to measure and normalize the scale of gradients, as in `celo2.jax.gradient_scale`.

The rule's epsilons and its clipped-gradient feature are absolute numbers, so multiplying the loss by a
constant changes its steps. `share_outside` measures how much of a network has gradients at a scale that the
weights did not see in meta-training. `GradientNormalizer` removes the scale: with `s` the running mean of
`mean(g²)` of a tensor, the gradient becomes `g · target / √s`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from celo2.constants import GRADIENT_DECAY
from celo2.gradient_range import check_normalization, resolve_range
from celo2.torch.sharding.dtensor import is_dtensor, local
from celo2.weights.checkpoint import SHIPPED, Weights


class GradientNormalizer:
    """Divides each gradient by the root of the running mean of its mean square, and multiplies by `target`.

    Call it between `backward` (and clipping, if any) and the optimizer's step: it changes `param.grad`.
    Non-finite gradients stay as they are and do not change the running mean; missing ones do not either.
    Squares are taken in float32: root mean squares below 1e-23 count as zero, above 1e19 as non-finite.
    Nothing waits for the device.

    Args:
        params: A module or parameters; only the rule's need it, since AdamW ignores the scale.
        target: Average root mean square of the scaled gradients, positive.
        decay: The decay of the running mean, in [0, 1); the mean is bias-corrected.

    Raises:
        ValueError: An argument is out of its range.

    Example:
        >>> layer = nn.Linear(2, 2, bias=False)
        >>> layer.weight.grad = torch.full((2, 2), 1e-9)
        >>> GradientNormalizer(layer, 1e-2)()
        >>> round(float(layer.weight.grad[0, 0]), 6)
        0.01
    """

    def __init__(self, params: nn.Module | Iterable[Tensor], target: float, *, decay: float = GRADIENT_DECAY):
        check_normalization(target, decay)
        self.params = list(params.parameters() if isinstance(params, nn.Module) else params)
        self.target, self.decay = target, decay
        self._means = [torch.zeros((), device=local(param).device) for param in self.params]
        self._weights = [torch.zeros_like(mean) for mean in self._means]  # running means of ones

    @torch.no_grad()
    def __call__(self) -> None:
        """Scales the gradients in place."""
        for param, mean, weight in zip(self.params, self._means, self._weights, strict=True):
            if param.grad is None or not param.numel():
                continue
            new = _whole(param.grad.float().square().mean())
            finite = torch.isfinite(new)
            for average, value in ((mean, new), (weight, torch.ones_like(new))):
                average.copy_(torch.where(finite, average.lerp(value, 1.0 - self.decay), average))
            factor = torch.where(mean == 0, 0.0, self.target * torch.rsqrt(mean / weight))
            grad = local(param.grad)
            grad.copy_(torch.where(finite, grad.float() * factor, grad.float()))

    def state_dict(self) -> dict[str, Any]:
        """Returns the running means, in the order of the parameters."""
        return {"mean_square": [m.clone() for m in self._means], "weight": [w.clone() for w in self._weights]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Loads a state returned by `state_dict`.

        Raises:
            ValueError: The state has a different number of parameters.
        """
        for own, saved in ((self._means, "mean_square"), (self._weights, "weight")):
            for tensor, value in zip(own, state_dict[saved], strict=True):
                tensor.copy_(value)


def share_outside(
    grads: Iterable[Tensor | None],
    low: float | None = None,
    high: float | None = None,
    *,
    weights: Weights | str = SHIPPED[0],
) -> Tensor:
    """Computes the share of parameters in tensors whose gradient has a root mean square outside [low, high].

    Tensors are weighted by their number of parameters. Those whose gradient is zero everywhere have no scale
    and are skipped; non-finite gradients are outside.

    Args:
        grads: Gradients of any floating dtypes, such as `[p.grad for p in model.parameters()]`; None and
            empty tensors are skipped.
        low: The lower end of the range; None: that of the weights.
        high: The upper end of the range; None: that of the weights.
        weights: The weights whose range is used if low or high is None: a result or an argument of
            `celo2.load_checkpoint`.

    Returns:
        A float32 scalar in [0, 1], on the gradients' device; 0 if nothing has a gradient.

    Raises:
        ValueError: 0 < low < high < ∞ does not hold, or the weights' file states no range.

    Example:
        >>> grads = [torch.full((3, 2), 1e-7), torch.full((2,), 1e-2), None]
        >>> float(share_outside(grads, 1e-4, 1.0))
        0.75
    """
    low, high = resolve_range(low, high, weights)
    found = [grad.detach() for grad in grads if grad is not None and grad.numel()]
    if not found:
        return torch.zeros(())
    device = local(found[0]).device
    rms = torch.stack([_root_mean_square(grad).to(device) for grad in found])
    sizes = torch.tensor([float(grad.numel()) for grad in found], device=device).where(rms != 0, 0.0)
    inside = (rms >= low) & (rms <= high)  # NaN is outside
    return (sizes * ~inside).sum() / sizes.sum().clamp_min(1.0)


def _root_mean_square(grad: Tensor) -> Tensor:
    """Computes the root mean square in float32, in units of the largest element to stay in range."""
    grad = grad.float().abs()
    largest = _whole(grad.max())
    unit = torch.where((largest > 0) & largest.isfinite(), largest, 1.0)
    return unit * _whole((grad / unit).square().mean()).sqrt()


def _whole(value: Any) -> Tensor:
    """Returns a scalar reduced over all processes, if it is a `DTensor`."""
    return value.full_tensor() if is_dtensor(value) else value
