"""Shared test set-up: strict numerics, and the reference runs where they exist."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from helpers import quick

if TYPE_CHECKING:
    from helpers.instant_outer import InstantOuter

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", f"{quick.XLA_FLAGS} --xla_force_host_platform_device_count=2")
os.environ.setdefault(quick.DISABLE, "true")
os.environ.setdefault("NPROC", "4")  # as `use_cpu_devices` sets it, and for the same reason
if not Path("/dev/nvidia0").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported, by whomever

import jax
import pytest
from hypothesis.internal.conjecture import providers

# Hypothesis mixes numbers from the source of imported modules into its examples: a derandomised test would
# have other ones in each worker, by what ran there before.
providers._get_local_constants = lambda: providers._local_constants

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

ROOT = Path(__file__).resolve().parents[1]
SLOWEST_FIRST = (  # with two workers a long file must not come last
    "parity/test_rule.py",
    "contract/test_optax_contract.py",
    "e2e",
    "sharding",
    "parity",
    "contract",
    "unit/zoo/test_zoo_training.py",
    "unit/meta/test_unroll.py",
    "unit/weights/test_gradient_range.py",
    "unit/jax/test_batching.py",
    "unit/meta/test_inner_optimizer.py",
    "unit",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files in the order of `SLOWEST_FIRST`, then the doctests; Makefile keeps xdist from another order."""
    prefixes = [ROOT / "tests" / name for name in SLOWEST_FIRST]

    def rank(item: pytest.Item) -> int:
        return next((i for i, known in enumerate(prefixes) if item.path.is_relative_to(known)), len(prefixes))

    items.sort(key=rank)


@pytest.fixture(autouse=True)
def registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it: a later one in this process may read a whole registry."""
    from celo2.baselines import OPTIMIZERS
    from celo2.tasks.families import FAMILIES
    from celo2.tasks.registry import TASKS

    for registry in (TASKS, OPTIMIZERS, FAMILIES):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))


@pytest.fixture(scope="module")
def standard_promotion() -> Iterator[None]:
    """Optax's own code (Adam takes powers of a float with an int count) does not obey strict promotion."""
    jax.config.update("jax_numpy_dtype_promotion", "standard")  # not its context: threads would not see it
    yield
    jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture(scope="module")
def full_optimization() -> Iterator[None]:
    """For what is compiled as a user's program, and for what takes longer to run than to compile."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="module")
def small_meta_rule() -> Iterator[None]:
    """Meta-training of a rule that compiles faster."""
    from celo2.config import RuleConfig
    from celo2.meta.config import MetaConfig

    def small(config: MetaConfig) -> RuleConfig:
        return RuleConfig(orthogonalize=config.variant == "celo2", ff_hidden_size=2)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MetaConfig, "rule", property(small))
        yield


@pytest.fixture
def instant_training(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """Makes comparisons instant; returns the list of what is asked: learning rates, seeds, steps."""
    from celo2.evaluate.suite import local
    from helpers.stand_ins import InstantRunner

    asked: list[tuple] = []
    monkeypatch.setattr(InstantRunner, "asked", asked)
    monkeypatch.setattr(local, "GridRunner", InstantRunner)
    monkeypatch.setattr(local, "_compile_alone", lambda *_: None)
    return asked


@pytest.fixture
def interrupt_training(instant_training, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """A function that lets Ctrl-C come after that many instant optimizers are finished."""
    from helpers.stand_ins import InstantRunner

    train, calls = InstantRunner.train, []

    def interrupt_after(finished: int) -> None:
        def interrupted(*args, **options):
            calls.append(None)
            if len(calls) > finished:
                raise KeyboardInterrupt
            return train(*args, **options)

        monkeypatch.setattr(InstantRunner, "train", interrupted)

    return interrupt_after


@pytest.fixture
def signals_heard() -> Iterator[None]:
    """Signals that whoever runs the tests ignores, a background job say, are heard, by its children too."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    ignored = [number for number in numbers if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.default_int_handler)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture
def instant_outer(monkeypatch: pytest.MonkeyPatch) -> InstantOuter:
    """Makes the iterations of meta-training instant."""
    from celo2.meta import outer
    from helpers.instant_outer import InstantOuter

    stand_in = InstantOuter()
    monkeypatch.setattr(outer, "init", stand_in.init)
    monkeypatch.setattr(outer, "make_outer_steps", stand_in.make_outer_steps)
    return stand_in


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference runs beside the checkout; a user's checkout has none."""
    folder = ROOT.parent / "shared"
    if not folder.exists():
        pytest.skip("the reference runs (../shared) are not part of this checkout")
    return folder
