"""A suite on a Ray cluster of this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from celo2.evaluate.suite.ray import make_ray_engine
from celo2.evaluate.suite.run import run_suite
from celo2.evaluate.suite.spec import Suite
from celo2.evaluate.suite.store import RunStore

pytestmark = [
    pytest.mark.usefixtures("standard_promotion"),
    pytest.mark.filterwarnings("ignore"),  # Ray's own
]

SUITE = Suite(
    name="one", tasks=("quadratic",), optimizers=("sgd", "adamw"), num_learning_rates=2, seeds=1, steps=5
)


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


def test_groups_run_on_the_cluster_and_come_back(ray: object, tmp_path: Path) -> None:
    there, here = RunStore(tmp_path / "there"), RunStore(tmp_path / "here")
    assert run_suite(SUITE, there, engine=make_ray_engine("auto")) == []
    assert run_suite(SUITE, here) == []
    found, wanted = there.load().results, here.load().results
    assert [run.spec for run in found] == [run.spec for run in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert one.train_loss.tolist() == pytest.approx(other.train_loss.tolist(), rel=1e-4)
