"""A stand-in for the iterations of meta-training that computes nothing; loop and files are the real ones."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from celo2.meta import outer
from celo2.meta.config import MetaConfig
from celo2.meta.outer import OuterMetrics, OuterState

CONFIG = MetaConfig(datasets=("digits",))


class InstantOuter:
    """In place of `outer.init` and `outer.make_outer_steps`.

    Attributes:
        bad: Iterations whose meta-gradient is not finite.
        given: What the loop hands on, by name: "optimizer", "data".
    """

    def __init__(self) -> None:
        self.bad: set[int] = set()
        self.given: dict[str, list] = {"optimizer": [], "data": []}
        self._theta = {name: jnp.zeros(shape) for name, shape in CONFIG.rule.weight_shapes().items()}

    def init(self, _config: MetaConfig, _mesh: object, optimizer: object) -> OuterState:
        self.given["optimizer"].append(optimizer)
        return OuterState(self._theta, {}, {}, {}, jnp.zeros((), jnp.int32))  # type: ignore[arg-type]

    def make_outer_steps(self, _config: MetaConfig, _mesh: object, optimizer: object) -> Any:
        self.given["optimizer"].append(optimizer)
        return self.steps

    def steps(self, state: OuterState, data: object, num_steps: int) -> tuple[OuterState, OuterMetrics]:
        self.given["data"].append(data)
        count = np.arange(outer.MAX_STEPS) + int(state.count) + 1
        skipped = np.isin(count, list(self.bad))
        numbers = (2.0, np.where(skipped, math.nan, 1.0), 0.1, 0.25, 3, 4, 1, skipped, 0, 0.0)
        arrays: Any = (np.broadcast_to(number, count.shape) for number in numbers)  # NumPy compiles nothing
        losses: Any = np.full((len(count), 1), 2.0)
        metrics = OuterMetrics(losses, *arrays)
        return state._replace(count=state.count + num_steps), metrics
