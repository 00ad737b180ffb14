"""The probes of a run: when they are due, which weights are kept, and what a resumed run makes of them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from celo2 import Weights, load_checkpoint
from celo2.config import RuleConfig
from celo2.meta.probe import ProbeConfig
from celo2.meta.probe.log import ProbeLog, as_point, describe_probe
from celo2.weights.checkpoint import save_weights
from helpers.probe_records import make_record

CONFIG = ProbeConfig()


@pytest.fixture
def log_of(tmp_path: Path):
    """A function: losses by step → the log of a run whose weights of a step have that loss."""

    def make(losses: dict[int, float | None], every: int = 10, config: ProbeConfig = CONFIG) -> ProbeLog:
        (tmp_path / "weights").mkdir(exist_ok=True)
        for step in losses:
            shapes = RuleConfig().weight_shapes()
            arrays = {name: np.full(shape, step, np.float32) for name, shape in shapes.items()}
            save_weights(weights_of(tmp_path, step), Weights(arrays, provenance={"outer_steps": str(step)}))

        def measure(theta):
            return {"quadratic": make_record(losses[int(theta["b0"][0])])}

        return ProbeLog(tmp_path, every, config, measure)

    return make


def weights_of(folder: Path, step: int) -> Path:
    return folder / "weights" / f"celo2-{step:06d}.safetensors"


def take(log: ProbeLog, folder: Path, *steps: int) -> None:
    for step in steps:
        log.take(step, weights_of(folder, step))


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "probes.jsonl").read_text().splitlines()]


def test_due_at_the_start_and_at_multiples_once(log_of, tmp_path: Path) -> None:
    log = log_of({0: 1.0, 10: 1.0})
    assert [step for step in range(25) if log.is_due(step)] == [0, 10, 20]
    take(log, tmp_path, 0)
    assert not log.is_due(0)
    assert [log.steps_to_next(step) for step in (0, 3, 10)] == [10, 7, 10]


def test_never_means_never(log_of, tmp_path: Path) -> None:
    log = log_of({}, every=0)
    log.start(0)
    assert not any(log.is_due(step) for step in range(25))
    assert log.steps_to_next(3) > 10**9
    assert list(tmp_path.iterdir()) == [tmp_path / "weights"]


def test_best_weights_are_a_copy_with_the_score(log_of, tmp_path: Path) -> None:
    log = log_of({0: 2.0, 10: 1.0, 20: 1.5, 30: None})
    log.start(0)
    take(log, tmp_path, 0, 10, 20, 30)
    assert [record["score"] for record in lines(tmp_path)] == [
        0.0,
        pytest.approx(math.log(0.5)),
        pytest.approx(math.log(0.75)),
        None,
    ]
    best = load_checkpoint(tmp_path / "best.safetensors")
    assert best.provenance["outer_steps"] == "10"
    assert float(best.provenance["probe_score"]) == pytest.approx(math.log(0.5), abs=1e-6)
    assert best.provenance["probe_tasks"] == "quadratic 1.0000 at 0.01"
    assert best.provenance["chosen_from"] == "4 probes"
    np.testing.assert_array_equal(best.arrays["b0"], load_checkpoint(weights_of(tmp_path, 10)).arrays["b0"])


def test_no_weights_are_best_while_all_diverge(log_of, tmp_path: Path) -> None:
    log = log_of({0: None, 10: 4.0})
    take(log, tmp_path, 0)
    assert not (tmp_path / "best.safetensors").exists()
    take(log, tmp_path, 10)  # the start counts as untrained: 8
    assert lines(tmp_path)[1]["score"] == pytest.approx(math.log(0.5))
    assert (tmp_path / "best.safetensors").exists()


def test_resumed_run_forgets_later_probes_and_their_best_weights(log_of, tmp_path: Path) -> None:
    losses: dict[int, float | None] = {0: 2.0, 10: 1.5, 20: 1.0}
    log = log_of(losses)
    log.start(0)
    take(log, tmp_path, 0, 10, 20)
    whole = lines(tmp_path)
    again = log_of(losses)
    again.start(15)
    assert [record["step"] for record in lines(tmp_path)] == [0, 10]
    assert load_checkpoint(tmp_path / "best.safetensors").provenance["outer_steps"] == "10"
    take(again, tmp_path, 20)
    assert [{**record, "seconds": 0} for record in lines(tmp_path)] == [{**r, "seconds": 0} for r in whole]
    assert load_checkpoint(tmp_path / "best.safetensors").provenance["outer_steps"] == "20"


def test_torn_last_line_is_taken_again(log_of, tmp_path: Path) -> None:
    log = log_of({0: 2.0, 10: 1.5})
    log.start(0)
    take(log, tmp_path, 0, 10)
    path = tmp_path / "probes.jsonl"
    path.write_text(path.read_text()[:-20])
    again = log_of({0: 2.0, 10: 1.5})
    again.start(10)
    assert again.is_due(10)


def test_other_settings_are_refused_where_scores_would_be_compared(log_of, tmp_path: Path) -> None:
    log = log_of({0: 2.0})
    log.start(0)
    take(log, tmp_path, 0)
    log_of({0: 2.0}, every=5).start(0)  # another pace is the same probe
    other = log_of({0: 2.0}, config=ProbeConfig(seeds=3))
    with pytest.raises(ValueError, match=r"seeds: 8 before, 3 now.*remove its probes\.jsonl"):
        other.start(0)
    (tmp_path / "probes.jsonl").unlink()
    log_of({0: 2.0}, config=ProbeConfig(seeds=3)).start(0)


def test_line_and_point_of_a_probe(log_of, tmp_path: Path) -> None:
    log = log_of({0: 2.0, 10: 1.0})
    take(log, tmp_path, 0, 10)
    _, record = lines(tmp_path)
    assert describe_probe(record).startswith(
        "probe at 10: score -0.6931, losses -50.0 % from the start; quadratic 1.0000 at 0.01; "
    )
    point = as_point(record)
    assert point["step"] == 10
    assert point["probe"]["quadratic"] == {"loss": 1.0, "spread": None, "rate": 0.01}
