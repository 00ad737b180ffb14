"""Times training steps of several optimizers in interleaved rounds, so that load affects all equally."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax

MIN_ROUNDS, MAX_ROUNDS = 5, 300

CompilerOptions = dict[str, bool | str] | None  # what `celo2.compiler_options` returns
Step = Callable[[Any, Any], tuple[Any, Any]]  # ((params, state), inputs) → ((params, state), anything)


def count_bytes(tree: Any) -> int:
    """Returns the size of a tree of arrays, or of their shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


class TimedStep:
    """One optimizer's compiled step, with donated parameters and state, and its times.

    Args:
        step: `((params, state), inputs) → ((params, state), anything)`.
        optimizer: The optimizer, which initializes the state.
        params: Shapes and dtypes of the parameters, or arrays.
        inputs: The same for the inputs.
        options: XLA options, such as `celo2.compiler_options()`; None: XLA's defaults.

    Attributes:
        compile_seconds: The time to trace, lower and compile the step.
        state_bytes: The size of the optimizer's state.
        temp_bytes: The peak size of the temporaries; None if the backend does not report it.
        times: The seconds of each timed step.
    """

    def __init__(
        self,
        step: Step,
        optimizer: optax.GradientTransformation,
        params: Any,
        inputs: Any,
        options: CompilerOptions = None,
    ) -> None:
        self._init = optimizer.init
        state = jax.eval_shape(optimizer.init, params)
        self.state_bytes = count_bytes(state)
        begin = time.perf_counter()
        self._step = jax.jit(step, donate_argnums=0).lower((params, state), inputs).compile(options)
        self.compile_seconds = time.perf_counter() - begin
        memory: Any = self._step.memory_analysis()
        self.temp_bytes = None if memory is None else int(memory.temp_size_in_bytes)
        self.times: list[float] = []

    @property
    def seconds(self) -> float:
        """The median of the times."""
        return statistics.median(self.times)

    def finish(self) -> None:
        """Frees the parameters and the state."""
        self._carry = None

    def start(self, params: Any) -> None:
        """Initializes the state; the parameters are donated to the first step."""
        self._carry = params, jax.jit(self._init)(params)

    def run(self, inputs: Any) -> float:
        """Takes a step and returns its seconds; each step's result is the input of the next."""
        begin = time.perf_counter()
        self._carry, _ = jax.block_until_ready(self._step(self._carry, inputs))
        return time.perf_counter() - begin


def time_steps(
    steps: Sequence[TimedStep], make_params: Callable[[], Any], inputs: Any, budget: float
) -> None:
    """Times steps in turn, round by round; the first step of each does not count.

    Args:
        steps: The steps; their times are appended to `times`.
        make_params: Makes the initial parameters, once for each step.
        inputs: The inputs of every step.
        budget: The seconds for all steps together; at least `MIN_ROUNDS` rounds are run.
    """
    try:
        for step in steps:
            step.start(make_params())
            step.run(inputs)
        one_round = sum(step.run(inputs) for step in steps)
        for _ in range(max(MIN_ROUNDS, min(MAX_ROUNDS, int(budget / one_round)))):
            for step in steps:
                step.times.append(step.run(inputs))
    finally:
        for step in steps:
            step.finish()
