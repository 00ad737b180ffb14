"""Measures the cost of an optimizer step on a parameter tree: time, compile time, and memory."""

from __future__ import annotations

import signal
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import optax

from celo2._utils.signals import Stopped
from celo2.baselines import OptimizerSpec, find_optimizer
from celo2.evaluate.bench_trees import Tree, count_parameters
from celo2.report.kit import shorten
from celo2.tasks.language.tiny_lm import TransformerConfig, make_tiny_lm
from celo2.training.optimizer_step import make_step
from celo2.training.timing import CompilerOptions, Step, TimedStep, time_steps

REFERENCE = "adamw"  # all times are divided by this optimizer's
COLUMNS = (  # column heads of `BenchRow.cells`
    "optimizer",
    "ms/step",
    "ns/param",
    f"× {REFERENCE}",
    "compile, s",
    "state, B/param",
    "temporaries, floats/param",
)
LEARNING_RATE = 1e-3
LOSS, NUM_STEPS = 1.0, 1000  # for optimizers that need them; neither changes the cost
GRAD_SCALE, PARAM_SCALE = 1e-3, 0.02  # of the random arrays
WHOLE_STEP = TransformerConfig(width=256, num_layers=4, num_heads=4, context=128)  # 3.3 M parameters
WHOLE_STEP_BATCH = 16  # rows, 2,048 tokens

OnProgress = Callable[[str], None]
_MakeStep = Callable[[optax.GradientTransformation], Step]


class BenchRow(NamedTuple):
    """Cost of one optimizer on one tree.

    Attributes:
        optimizer: The name of the optimizer.
        num_parameters: The number of parameters in the tree.
        seconds: The time of one step, as the median over interleaved rounds; None if it was only compiled.
        ratio: The median over the rounds of the step's time divided by AdamW's in the same round.
        compile_seconds: The time to trace, lower and compile the step.
        state_bytes: The size of the optimizer's state.
        temp_bytes: The peak size of the temporaries according to the compiler; None if the backend does not
            report it.
        weights: The checksum of a learned optimizer's weights, as in `OptimizerSpec`; "" for hand-designed
            optimizers.
    """

    optimizer: str
    num_parameters: int
    seconds: float | None
    ratio: float | None
    compile_seconds: float
    state_bytes: int
    temp_bytes: int | None
    weights: str = ""

    def cells(self) -> tuple[str, ...]:
        """Returns the row as text, one cell for each of `COLUMNS`; missing measurements are dashes."""
        count = self.num_parameters
        return (
            shorten(self.optimizer),
            _show(self.seconds, ".2f", 1e3),
            _show(self.seconds, ".2f", 1e9 / count),
            _show(self.ratio, ".3g"),
            _show(self.compile_seconds, ".1f"),
            _show(self.state_bytes, ".2f", 1 / count),
            _show(self.temp_bytes, ".2f", 1 / (4 * count)),
        )


def _show(value: float | None, form: str, scale: float = 1.0) -> str:
    return "–" if value is None else format(scale * value, form)


class BenchStopped(Stopped):
    """Raised when a signal arrives before everything was measured.

    Attributes:
        rows: The rows for the optimizers compiled so far, with times from the finished rounds.
    """

    def __init__(self, stop: KeyboardInterrupt, rows: list[BenchRow]) -> None:
        super().__init__(getattr(stop, "number", signal.SIGINT), "interrupted; shown is what was measured.")
        self.rows = rows


class _Candidate(NamedTuple):
    """An optimizer with its compiled step."""

    spec: OptimizerSpec
    step: TimedStep


def bench_tree(
    tree: Tree,
    optimizers: Sequence[str],
    *,
    timed: bool = True,
    budget: float = 20.0,
    options: CompilerOptions = None,
    on_progress: OnProgress = lambda _: None,
) -> list[BenchRow]:
    """Measures a step (update and application) of each optimizer on a tree.

    Args:
        tree: The shapes and dtypes of the parameters.
        optimizers: Names as in `celo2.baselines`; `adamw` is always included.
        timed: Whether to run the steps; False only compiles them.
        budget: The seconds for timing all optimizers together.
        options: XLA options for every optimizer, such as `celo2.compiler_options()`; None: XLA's defaults.
        on_progress: Called with a line that describes the current work.

    Raises:
        BenchStopped: A signal arrived; the error carries the rows so far.
    """

    def make_update(optimizer: optax.GradientTransformation) -> Step:
        extended = optax.with_extra_args_support(optimizer)

        def update(carry: tuple[Any, Any], grads: Any) -> tuple[tuple[Any, Any], None]:
            params, state = carry
            updates, state = extended.update(grads, state, params, value=LOSS)
            return (optax.apply_updates(params, updates), state), None

        return update

    candidates: list[_Candidate] = []
    with _keeping(candidates, count_parameters(tree)):
        _compile(candidates, optimizers, make_update, tree, tree, options, on_progress)
        if timed:
            on_progress("timing")
            time_steps(
                [one.step for one in candidates],
                lambda: _random(tree, PARAM_SCALE),
                _random(tree, GRAD_SCALE),
                budget,
            )
    return _rows(candidates, count_parameters(tree))


def bench_whole_step(
    optimizers: Sequence[str],
    *,
    config: TransformerConfig = WHOLE_STEP,
    batch_size: int = WHOLE_STEP_BATCH,
    budget: float = 20.0,
    options: CompilerOptions = None,
    on_progress: OnProgress = lambda _: None,
) -> list[BenchRow]:
    """Measures a training step of a byte-level GPT with each optimizer, as `bench_tree` does.

    Args:
        optimizers: Names as in `celo2.baselines`; `adamw` is always included.
        config: The network's sizes.
        batch_size: The number of rows of `config.context` tokens.
        budget: The seconds for timing all optimizers together.
        options: XLA options for every optimizer, such as `celo2.compiler_options()`; None: XLA's defaults.
        on_progress: Called with a line that describes the current work.

    Raises:
        BenchStopped: A signal arrived; the error carries the rows so far.
    """
    task = make_tiny_lm(config=config, batch_size=batch_size)
    init_key, batch_key = jax.random.split(jax.random.key(0))
    shapes = jax.eval_shape(task.init, init_key)
    batch = task.sample_batch(batch_key, dict(task.dataset.train))
    candidates: list[_Candidate] = []
    with _keeping(candidates, count_parameters(shapes)):
        make = lambda optimizer: make_step(task, optimizer)  # noqa: E731
        _compile(candidates, optimizers, make, shapes, batch, options, on_progress)
        on_progress("timing")
        time_steps([one.step for one in candidates], lambda: task.init(init_key), batch, budget)
    return _rows(candidates, count_parameters(shapes))


@contextmanager
def _keeping(candidates: Sequence[_Candidate], num_parameters: int) -> Iterator[None]:
    """Converts a KeyboardInterrupt to `BenchStopped` if anything has been measured.

    Raises:
        BenchStopped: A signal arrived after the first optimizer was compiled.
    """
    try:
        yield
    except KeyboardInterrupt as stop:
        if not candidates:
            raise
        raise BenchStopped(stop, _rows(candidates, num_parameters)) from stop


def _compile(
    candidates: list[_Candidate],
    optimizers: Sequence[str],
    make_step: _MakeStep,
    params: Any,
    inputs: Any,
    options: CompilerOptions,
    on_progress: OnProgress,
) -> None:
    """Compiles the candidates and appends them, the reference first."""
    for name in dict.fromkeys([REFERENCE, *optimizers]):
        on_progress(f"compiling {name}")
        spec = find_optimizer(name, num_steps=NUM_STEPS)
        optimizer = spec.make(LEARNING_RATE, 0.0)
        step = TimedStep(make_step(optimizer), optimizer, params, inputs, options)
        candidates.append(_Candidate(spec, step))


def _rows(candidates: Sequence[_Candidate], num_parameters: int) -> list[BenchRow]:
    return [_row(candidate, candidates[0].step, num_parameters) for candidate in candidates]


def _row(candidate: _Candidate, reference: TimedStep, num_parameters: int) -> BenchRow:
    step = candidate.step
    # An interrupted round lacks the times of some candidates.
    ratios = [own / other for own, other in zip(step.times, reference.times, strict=False)]
    return BenchRow(
        candidate.spec.name,
        num_parameters,
        step.seconds if ratios else None,
        statistics.median(ratios) if ratios else None,
        step.compile_seconds,
        step.state_bytes,
        step.temp_bytes,
        candidate.spec.weights,
    )


def _random(tree: Tree, scale: float) -> Tree:
    """Returns normal random arrays with a tree's shapes, the same in each call."""

    def make(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        return (scale * jax.random.normal(jax.random.key(leaf.size), leaf.shape)).astype(leaf.dtype)

    return jax.jit(lambda: jax.tree.map(make, tree))()
