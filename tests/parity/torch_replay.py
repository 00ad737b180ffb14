"""Recorded runs of the rule, replayed in PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from celo2.config import RuleConfig
from celo2.torch import DimensionNumbers
from celo2.torch.batching import Leaf, iterate_leaves
from celo2.torch.dimensions import make_layout
from celo2.torch.optimizer.state import init_rule, rule_accumulators
from celo2.torch.weights import Network
from celo2.weights.checkpoint import Weights
from helpers.rule_runs import Leaves, Run

torch.set_num_threads(1)  # of a process that is one of several: two threads would wait for each other


class Replay:
    """The rule on named parameters, one call for each step."""

    def __init__(
        self,
        theta: Mapping[str, NDArray],
        options: Mapping[str, Any],
        shapes: Mapping[str, Sequence[int]],
        dtype: torch.dtype,
        *,
        numbers: DimensionNumbers | None = None,
        state_dtype: torch.dtype | None = None,
    ):
        self.dtype = dtype
        config = RuleConfig(**options)
        self.network = Network(Weights(theta, config), config)
        self.layouts = {name: make_layout(tuple(shape), numbers) for name, shape in shapes.items()}
        self.states = {
            name: init_rule(
                torch.empty(tuple(shape), dtype=dtype), layout, config, state_dtype, on_device=False
            )
            for (name, shape), layout in zip(shapes.items(), self.layouts.values(), strict=True)
        }

    def step(self, grads: Leaves, params: Leaves, *, stack: bool = True) -> Leaves:
        """The un-negated steps."""
        leaves = []
        for number, (name, layout) in enumerate(self.layouts.items()):
            self.states[name]["step"] += 1
            grad, param = (torch.tensor(np.asarray(t[name]), dtype=self.dtype) for t in (grads, params))
            state = rule_accumulators(self.states[name])
            leaves.append(Leaf(grad, param, state, self.states[name]["step"], layout, number))
        names = list(self.layouts)
        pairs = iterate_leaves(self.network, leaves, stack=stack)
        return {names[leaf.number]: step.numpy() for leaf, step in pairs}


def replay_torch(run: Run, dtype: torch.dtype, *, stack: bool = True) -> list[Leaves]:
    """The rule's updates at every step, given the recorded parameters and gradients."""
    shapes = {name: param.shape for name, param in run.params[0].items()}
    replay = Replay(run.theta, run.options, shapes, dtype)
    return [replay.step(g, p, stack=stack) for p, g in zip(run.params, run.grads, strict=True)]
