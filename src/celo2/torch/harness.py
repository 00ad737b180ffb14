"""Applies the parts of `celo2.Harness` to steps and weights, as `celo2.jax.harness`, which has the sources.

    u ← orthogonalizer(u), at the norm of u                        a user-supplied function
    u ← rows of u / (√v + ε), at the norm of u                     v, running means of squares
    u ← u · max(1, min_update_ratio · ‖p‖ / ‖u‖)
    u ← 0.2 u                                                      under `match`
    p' ← p - lr (u + λ p · [u p ≥ 0])                              or decay without the condition
    p ← p' · ‖p at first‖ / ‖p'‖

Each part is a generator that yields the sums over matrices that it needs, so that sums of sharded parameters
are batched with those of others (`sharding.runtime`) and nothing is gathered. Only a user's orthogonaliser
and the eigenbasis need whole matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from celo2.constants import ROW_EPS, TINY
from celo2.harness import Harness
from celo2.torch import eigenbasis
from celo2.torch.batching import TOGETHER_LIMIT, iterate_leaves
from celo2.torch.matrices import Target, output_axis, reduced
from celo2.torch.sharding import step as sharded_step
from celo2.torch.sharding.collectives import UpdateTask
from celo2.torch.sharding.dtensor import local, zeros
from celo2.torch.sharding.newton_schulz import Buckets
from celo2.torch.sharding.runtime import run_alone, run_tasks
from celo2.torch.weights import Network

Blocks = list[Tensor]
MATRIX = (-2, -1)


class Parts(NamedTuple):
    """Holds the options of an optimizer for a matrix beyond the rule's own step.

    Attributes:
        harness: The options.
        rms: The root mean square of a matrix's step at a learning rate of 1.
    """

    harness: Harness = Harness()
    rms: float = 1.0

    @property
    def change_matrices(self) -> bool:
        """Whether steps and weights are changed in any way other than scaling and decay."""
        changed = self.harness.changed()
        changed.pop("adamw_lr_scale", None)
        return callable(changed.pop("orthogonalizer", None)) or bool(changed)


def init_state(parts: Parts, target: Target) -> UpdateTask:
    """Makes the parts' state for one parameter.

    Its entries are `row_mean_square`, with the layout's shape and a reduction axis of length 1; `radius`, the
    current norms of the parameter's matrices, `(..., 1, 1)`; and those of `eigenbasis.state_shapes`.
    Every process holds all of it.

    Args:
        parts: The parts.
        target: The parameter; its leaf's gradient and accumulators are ignored.

    Yields:
        A request for sums over the shards.

    Returns:
        The state by name.
    """
    harness, layout = parts.harness, target.layout
    shapes: dict[str, tuple[int, ...]] = {}
    if layout.axes is not None:
        if harness.row_decay is not None:
            shapes["row_mean_square"] = reduced(layout, [-3 - output_axis(layout)])
        if harness.preserve_norms:
            shapes["radius"] = reduced(layout, MATRIX)
        if harness.eigenbasis_every is not None:
            shapes |= eigenbasis.state_shapes(layout)
    state = {name: zeros(shape, target.dtype, target.param, whole=True) for name, shape in shapes.items()}
    if "radius" in state:
        blocks = target.enter(target.leaf.param.to(target.dtype))
        [total] = yield from target.sum_squares((blocks, MATRIX))
        local(state["radius"]).copy_(total.sqrt())
    return state


def update_all(
    network: Network,
    parts: Parts,
    targets: Sequence[Target],
    group: Mapping[str, Any],
    buckets: Buckets,
    *,
    stack: bool,
    kernels: bool,
) -> None:
    """Updates parameters by the rule and the parts, in place.

    Args:
        network: The weights and the options.
        parts: The parts.
        targets: The parameters to update; sharded ones in the same order in every process.
        group: A parameter group, with lr and weight_decay.
        buckets: As in `sharding.runtime.run_tasks`.
        stack: As in `batching.iterate_leaves`.
        kernels: As in `batching.iterate_leaves`.
    """
    every = parts.harness.eigenbasis_every

    def enter(target: Target) -> Any:
        return target.leaf if every is None else eigenbasis.enter(target)

    def conclude(target: Target, step: Tensor | None) -> UpdateTask:
        if every is not None:
            step = eigenbasis.leave(target, step, every)
        assert step is not None
        yield from _apply(parts, target, step, group)

    def update(target: Target) -> UpdateTask:
        leaf, step = enter(target), None
        if leaf is not None:
            assert target.spec is not None
            step = yield from sharded_step.update(network, leaf, target.spec, kernels=kernels)
        yield from conclude(target, step)

    alone = {target.leaf.number: target for target in targets if target.spec is None}
    for numbers in _divide(alone) if every is not None else [list(alone)]:
        entered = {number: enter(alone[number]) for number in numbers}
        for number, leaf in entered.items():
            if leaf is None:
                run_alone(conclude(alone[number], None))
        leaves = [leaf for leaf in entered.values() if leaf is not None]
        for leaf, step in iterate_leaves(network, leaves, stack=stack, kernels=kernels):
            run_alone(conclude(alone[leaf.number], step))
    shared = [(target, target.spec) for target in targets if target.spec is not None]
    tasks = [update(target) for target, _ in shared]
    run_tasks(network, tasks, [target.leaf for target, _ in shared], [spec for _, spec in shared], buckets)


def _divide(targets: Mapping[int, Target]) -> list[list[int]]:
    """Divides parameters into groups of bounded size, since a whole group has rotated copies at once."""
    groups: list[list[int]] = []
    size = 0
    for number, target in targets.items():
        param = target.leaf.param
        size += param.numel()
        if not groups or size > TOGETHER_LIMIT["cpu" if param.device.type == "cpu" else "gpu"]:
            groups.append([])
            size = param.numel()
        groups[-1].append(number)
    return groups


def _apply(parts: Parts, target: Target, step: Tensor, group: Mapping[str, Any]) -> UpdateTask:
    """Applies the parts to a local step in order, and updates the parameter."""
    harness, leaf, state = parts.harness, target.leaf, target.state
    if callable(harness.orthogonalizer) and target.has_matrices:
        step = _orthogonalize_by(harness.orthogonalizer, target, step)
    steps, params = target.enter(step), target.enter(leaf.param.to(step.dtype))
    if "row_mean_square" in state and harness.row_decay is not None:
        steps = yield from _normalize_rows(target, steps, local(state["row_mean_square"]), harness.row_decay)
    if harness.min_update_ratio:
        steps = yield from _floor_update_ratio(target, steps, params, harness.min_update_ratio)
    if parts.rms != 1.0:
        steps = [own * parts.rms for own in steps]
    lr, decay = group["lr"], group["weight_decay"]
    lr = lr.reshape(()) if isinstance(lr, Tensor) else lr
    move = partial(_move, lr=lr, decay=decay, cautious=harness.cautious_decay)
    moved = [move(*pair) for pair in zip(params, steps, strict=True)]
    if "radius" in state:
        moved = yield from _preserve_norms(target, moved, params, local(state["radius"]))
    if moved:
        leaf.param.copy_(target.leave(moved))


def _orthogonalize_by(function: Callable[[Tensor], Tensor], target: Target, step: Tensor) -> Tensor:
    """Applies a function to each matrix of a step, keeping the matrix's norm."""
    whole, layout = target.gather(step), target.layout
    turned = output_axis(layout) == -2  # a function sees (..., reduction, output), as in JAX
    matrices = layout.enter(whole)
    matrices = matrices.mT if turned else matrices
    made = function(matrices)
    if made.shape != matrices.shape:
        raise ValueError(
            f"the orthogonaliser made matrices of shape {tuple(made.shape)} of {tuple(matrices.shape)}; it "
            "must keep it."
        )
    norm, new = (torch.linalg.matrix_norm(x, keepdim=True) for x in (matrices, made.to(step.dtype)))
    made = torch.where(norm > 0, made.to(step.dtype) * (norm / (new + TINY)), 0.0)
    return target.share(layout.leave(made.mT if turned else made, whole.shape))


def _normalize_rows(target: Target, steps: Blocks, mean: Tensor, decay: float) -> UpdateTask:
    """Divides each output neuron's step by the root of its running mean square, which it updates."""
    layout, output = target.layout, output_axis(target.layout)
    inputs = -3 - output
    [squares] = yield from target.sum_squares((steps, (inputs,)))
    norm_square = squares.sum(output, keepdim=True)
    new = decay * mean + (1 - decay) * (squares / layout.shape[inputs])
    mean.copy_(torch.where(norm_square > 0, new, mean))
    scale = 1.0 / (mean.sqrt() + ROW_EPS)
    normalized = (squares * scale.square()).sum(output, keepdim=True).sqrt()
    return target.scale(steps, scale * (norm_square.sqrt() / (normalized + TINY)))


def _floor_update_ratio(target: Target, steps: Blocks, params: Blocks, ratio: float) -> UpdateTask:
    """Lengthens steps whose norm is below `ratio` times that of the weights."""
    sums = yield from target.sum_squares((steps, MATRIX), (params, MATRIX))
    step_norm, param_norm = (total.sqrt() for total in sums)
    factor = (ratio * param_norm / (step_norm + TINY)).clamp(min=1.0)
    return target.scale(steps, torch.where(step_norm > 0, factor, 1.0))


def _preserve_norms(target: Target, moved: Blocks, params: Blocks, radius: Tensor) -> UpdateTask:
    """Restores moved matrices to their initial norms, except those that were zero or have not moved."""
    changes = [new - old for new, old in zip(moved, params, strict=True)]
    total, change = yield from target.sum_squares((moved, MATRIX), (changes, MATRIX))
    bound = (radius > 0) & (change > 0)
    return target.scale(moved, torch.where(bound, radius / (total.sqrt() + TINY), 1.0))


def _move(param: Tensor, step: Tensor, *, lr: Any, decay: float, cautious: bool) -> Tensor:
    if decay and cautious:
        step = step + decay * agreeing(param, step)
    elif decay:
        param = param * (1.0 - lr * decay)
    return param - lr * step


def agreeing(param: Tensor, step: Tensor) -> Tensor:
    """Returns the weights that an un-negated step does not push away from zero, and 0 for the others.

    Source: Cautious Weight Decay, arXiv 2510.12402, equation 1.
    """
    return torch.where(step * param >= 0, param, 0.0)
