"""AdamW for parameters that the rule does not train: PyTorch's own, one group at a time.

float16 and bfloat16 parameters are updated in float32, with float32 moments, so that the small second
moments of an embedding are not lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from celo2.torch.harness import agreeing

ADAMW_EPS = 1e-8


class AdamWLeaf(NamedTuple):
    """One parameter with everything that its update needs.

    Attributes:
        grad: The gradient.
        param: The parameter; changed in place.
        exp_avg: The running mean of the gradient, in the working dtype; changed in place.
        exp_avg_sq: The running mean of its square; changed in place.
        count: The step count before this update, a float32 scalar; changed in place.
    """

    grad: Tensor
    param: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    count: Tensor  # type: ignore[assignment]  # tuple.count is not meant


def update(leaves: Sequence[AdamWLeaf], group: dict[str, Any], *, cautious: bool = False) -> None:
    """Updates parameters by AdamW at `adamw_lr_scale` times the group's learning rate.

    Args:
        leaves: The parameters to update.
        group: A parameter group: lr, adamw_lr_scale, betas, weight_decay, maximize, foreach,
            fused, capturable.
        cautious: Whether weights decay only where the step does not pull them away from zero.
    """
    fused = group["fused"]
    if group["foreach"] is None and fused is None and all(leaf.param.device.type == "cpu" for leaf in leaves):
        fused = True
    fitting = [leaf for leaf in leaves if fused and _fits_fused(leaf)]
    others = [leaf for leaf in leaves if not (fused and _fits_fused(leaf))]
    for own, kernels in ((fitting, True), (others, False if fused else fused)):
        if own:
            _update(own, group, kernels, cautious=cautious)


def _fits_fused(leaf: AdamWLeaf) -> bool:
    """Returns whether PyTorch's fused kernel supports a parameter; on CPUs it assumes contiguous memory."""
    tensors = (leaf.param, leaf.grad, leaf.exp_avg, leaf.exp_avg_sq)
    device = leaf.param.device.type
    return device != "meta" and (device != "cpu" or all(tensor.is_contiguous() for tensor in tensors))


def _update(
    leaves: Sequence[AdamWLeaf], group: dict[str, Any], fused: bool | None, *, cautious: bool
) -> None:
    params = [leaf.param.to(leaf.exp_avg.dtype) for leaf in leaves]
    beta1, beta2 = group["betas"]
    lr, decay = group["lr"] * group["adamw_lr_scale"], group["weight_decay"]
    if cautious and decay:
        for leaf, param in zip(leaves, params, strict=True):
            _decay_agreeing(leaf, _real(param), lr * decay, beta1, maximize=group["maximize"])
    adamw(
        [_real(param) for param in params],
        [_real(leaf.grad.to(leaf.exp_avg.dtype)) for leaf in leaves],
        [_real(leaf.exp_avg) for leaf in leaves],
        [_real(leaf.exp_avg_sq) for leaf in leaves],
        [],
        [leaf.count for leaf in leaves],
        foreach=group["foreach"],
        capturable=group["capturable"] and params[0].device.type not in ("cpu", "meta"),
        fused=fused,
        amsgrad=False,
        beta1=beta1,
        beta2=beta2,
        lr=lr,
        weight_decay=0.0 if cautious else decay,
        eps=ADAMW_EPS,
        maximize=group["maximize"],
    )
    for leaf, param in zip(leaves, params, strict=True):
        if param is not leaf.param:
            leaf.param.copy_(param)


def _decay_agreeing(leaf: AdamWLeaf, param: Tensor, share: Any, beta1: float, *, maximize: bool) -> None:
    """Decays, in place, the weights that the coming step does not pull away from zero.

    The step has the sign of the running mean of the gradient, and does not depend on the weights.
    """
    grad = _real(leaf.grad.to(leaf.exp_avg.dtype))
    mean = _real(leaf.exp_avg).lerp(-grad if maximize else grad, 1.0 - beta1)
    share = share.reshape(()) if isinstance(share, Tensor) else share
    param.sub_(share * agreeing(param, mean.sign()))


def _real(tensor: Tensor) -> Tensor:
    """Views a complex tensor as twice as many real numbers, each updated separately."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
