"""Parts and averages of searched rules, by `benchmarks/search_parts.py`."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from celo2 import load_checkpoint
from celo2.meta.search.mixture import make_weights, read_mixture, to_vector

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "search_parts.py"
PARTS = SimpleNamespace(**runpy.run_path(str(SCRIPT)))


@pytest.mark.parametrize("variant", ["celo2", "celo2-base"])
def test_each_part_has_one_half_of_the_search(variant: str) -> None:
    shipped = load_checkpoint(variant)
    start = make_weights(to_vector(), variant, {})
    parts = PARTS.take_apart(shipped)
    found, first = read_mixture(shipped), read_mixture(start)
    channels, decays = read_mixture(parts["channels"]), read_mixture(parts["decays"])
    np.testing.assert_allclose(channels.shares, found.shares, atol=1e-6)
    np.testing.assert_allclose(decays.shares, first.shares, atol=1e-6)
    assert parts["channels"].config == start.config
    assert parts["decays"].config == shipped.config


def test_an_average_lies_between_its_weights() -> None:
    vectors = [np.zeros(22), np.zeros(22)]
    vectors[0][0] = vectors[1][2] = 2.0  # of any size: each one's weights are scaled to a sum of 1
    vectors[0][15], vectors[1][15] = 0.1, -0.3
    mean = read_mixture(PARTS.average([make_weights(vector, "celo2", {}) for vector in vectors]))
    np.testing.assert_allclose(mean.shares[[0, 2]], 0.5)
    assert mean.initial_momentum_decays[0] == pytest.approx(1 - 0.1 * np.exp(-0.4), abs=1.5e-6)  # six digits
    assert mean.initial_momentum_decays[1:] == (0.99, 0.999)


def test_cosines_are_those_of_each_pair() -> None:
    vectors = [np.eye(22)[0], np.eye(22)[1], np.eye(22)[0] + np.eye(22)[1]]
    found = PARTS.cosines([make_weights(vector, "celo2", {}) for vector in vectors])
    np.testing.assert_allclose(found, [0.0, 0.5**0.5, 0.5**0.5], atol=1e-6)


@pytest.mark.parametrize("terms", [[-0.2, -0.25], [0.2, 0.1, 0.0, 0.0]], ids=["bent", "revives"])
def test_what_has_no_average_is_refused(terms: list[float]) -> None:
    with pytest.raises(ValueError, match="bent or revive"):
        PARTS.take_apart(make_weights(np.append(to_vector(), terms), "celo2", {}))
    with pytest.raises(ValueError, match="one variant"):
        PARTS.average([load_checkpoint("celo2"), load_checkpoint("celo2-base")])


def test_the_script_writes_files_that_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["search_parts.py", "--out", str(tmp_path / "parts"), "--average", "celo2", "celo2"]
    monkeypatch.setattr("sys.argv", words)
    PARTS.main()
    found = load_checkpoint(tmp_path / "parts" / "average.safetensors")
    shipped = load_checkpoint("celo2")
    for name, array in found.arrays.items():
        np.testing.assert_allclose(array, shipped.arrays[name], atol=1e-6)
    assert sorted(path.stem for path in (tmp_path / "parts").iterdir()) == ["average", "channels", "decays"]
