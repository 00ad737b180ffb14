"""Cost of one training step: time, and the optimizer's memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import NamedTuple

import jax
import optax

from celo2._utils.signals import interruptible_pool
from celo2.jax.runtime import compiler_options
from celo2.tasks.base import Batch, Task
from celo2.training.optimizer_step import TrainState, make_step

TIME_BUDGET = 3.0  # seconds, for all optimizers together
MIN_ROUNDS, MAX_ROUNDS = 5, 300


class StepCost(NamedTuple):
    """The cost of one step of one run on one device.

    Attributes:
        seconds: Loss, gradient and update, compiled with `celo2.compiler_options`: the median over
            interleaved rounds.
        state_bytes: Size of the optimizer's state.
    """

    seconds: float
    state_bytes: int


class _Candidate:
    """A compiled step with its inputs and state."""

    def __init__(self, task: Task, optimizer: optax.GradientTransformation, batch: Batch) -> None:
        params = task.init(jax.random.key(0))
        state = optimizer.init(params)
        self.state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        self.batch = batch
        self.train_state: TrainState = (params, state)
        self.lowered = jax.jit(make_step(task, optimizer)).lower(self.train_state, batch)

    def compile(self) -> None:
        """Compiles the step without holding Python's lock."""
        self.step = self.lowered.compile(compiler_options())

    def run(self) -> float:
        """Runs a step; returns the seconds it took."""
        begin = time.perf_counter()
        self.train_state, _ = jax.block_until_ready(self.step(self.train_state, self.batch))
        return time.perf_counter() - begin


class StepTimer:
    """Measures the compiled steps of several optimizers.

    Args:
        task: The problem.
        optimizers: Optax transforms by name, with a constant learning rate.
    """

    def __init__(self, task: Task, optimizers: Mapping[str, optax.GradientTransformation]) -> None:
        batch = task.first_batch(task.init(jax.random.key(0)), jax.random.key(1))
        self._candidates = {
            name: _Candidate(task, optimizer, batch) for name, optimizer in optimizers.items()
        }
        with interruptible_pool() as pool:
            list(pool.map(_Candidate.compile, self._candidates.values()))

    def measure(self) -> dict[str, StepCost]:
        """Measures a step of each optimizer, in interleaved rounds: a busy machine affects all alike."""
        candidates = self._candidates
        for candidate in candidates.values():
            candidate.run()  # the first run is slower
        one_round = sum(candidate.run() for candidate in candidates.values())
        rounds = max(MIN_ROUNDS, min(MAX_ROUNDS, int(TIME_BUDGET / one_round)))
        seconds: dict[str, list[float]] = {name: [] for name in candidates}
        for _ in range(rounds):
            for name, candidate in candidates.items():
                seconds[name].append(candidate.run())
        return {
            name: StepCost(statistics.median(seconds[name]), candidate.state_bytes)
            for name, candidate in candidates.items()
        }
