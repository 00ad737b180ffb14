"""The same meta-training on one and on eight devices, and on two processes."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from helpers import quick

SCRIPT = Path(__file__).with_name("meta_run.py")
TOLERANCE = 1e-5  # the sums over pairs are taken in another order; found: a quarter of it
NORMS, RESUMED = "grad_norm", "resumed"  # beside theta, before and after, in what a run leaves
SPREADS = ["8", "processes"]  # one pair on each device, and several


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, np.ndarray]]:
    """What each spread of the pairs leads to, by the number of devices."""
    out = tmp_path_factory.mktemp("meta")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    started = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(out), *words],
            env=quick.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for words in (["1,8"], ["2", coordinator, "0"], ["2", coordinator, "1"])
    ]
    for process in started:
        printed, _ = process.communicate(timeout=600.0)
        assert process.returncode == 0, printed
    return {name: dict(np.load(out / f"{name}.npz")) for name in ("1", *SPREADS)}


@pytest.mark.parametrize("spread", SPREADS)
def test_theta_does_not_depend_on_the_spread_of_the_pairs(found, spread: str) -> None:
    """Every entry, relative to theta's largest."""
    names = found["1"].keys() - {NORMS, RESUMED}
    scale = max(np.abs(found["1"][name]).max() for name in names)
    for name in names:
        assert np.abs(found[spread][name] - found["1"][name]).max() < TOLERANCE * scale, name


@pytest.mark.parametrize("spread", SPREADS)
def test_what_was_learned_does_not_depend_on_it_either(found, spread: str) -> None:
    """The change of theta is a thousandth of it, and is as exact; so are the norms of the meta-gradients.

    By its norm: Adam's first steps are signs of gradients, and one that is nearly zero has either.
    """
    one, other = (_change(run) for run in (found["1"], found[spread]))
    assert np.abs(one).max() > 1e-3
    assert np.linalg.norm(other - one) / np.linalg.norm(one) < TOLERANCE
    np.testing.assert_allclose(found[spread][NORMS], found["1"][NORMS], rtol=TOLERANCE)


@pytest.mark.parametrize("spread", SPREADS)
def test_the_same_pairs_continue_from_saved_states(found, spread: str) -> None:
    assert found["1"][RESUMED].sum() > 0
    np.testing.assert_array_equal(found[spread][RESUMED], found["1"][RESUMED])


def _change(run: dict[str, np.ndarray]) -> np.ndarray:
    names = [name.removeprefix("before ") for name in run if name.startswith("before ")]
    return np.concatenate([(run[f"after {name}"] - run[f"before {name}"]).ravel() for name in names])
