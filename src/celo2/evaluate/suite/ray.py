"""Trains a suite's groups on a Ray cluster and collects the results on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from celo2._utils.extras import require
from celo2.evaluate.suite.local import Failure, GroupProgress, Machine, train_groups
from celo2.evaluate.suite.results import RunResult
from celo2.evaluate.suite.run import Engine
from celo2.evaluate.suite.spec import Group
from celo2.jax.runtime import num_cores, use_cpu_devices


def make_ray_engine(address: str, *, num_cpus: float | None = None, num_gpus: float | None = None) -> Engine:
    """Makes an engine for `run_suite` that runs each group as a Ray task on any machine of a cluster.

    All machines need this package and the data, at the same versions and paths. Only this process writes
    the folder of runs, so they need no shared file system. Step times are those of the machine that trained
    the group.

    Args:
        address: The address of the cluster: "auto", "HOST:PORT", "ray://HOST:PORT", or "local" for this
            machine alone.
        num_cpus: The cores that a group reserves; None: all of the smallest machine, or its share per GPU.
        num_gpus: The GPUs that a group reserves; None: one, if the cluster has any.

    Raises:
        ImportError: Ray is not installed.
        ConnectionError: No cluster answers at the address.
    """
    require("ray", "ray")
    import ray

    def engine(
        tasks: Sequence[Sequence[Group]], machine: Machine, on_progress: Callable[[GroupProgress], None]
    ) -> Iterator[list[RunResult] | Failure]:
        if not ray.is_initialized():
            ray.init(address=address, log_to_driver=False)
        resources = _resources(ray, num_cpus, num_gpus)
        train = ray.remote(_train_one).options(**resources)
        groups = {train.remote(group, machine): group for task in tasks for group in task}
        waiting = list(groups)
        try:
            while waiting:
                [done], waiting = ray.wait(waiting, num_returns=1)
                on_progress(GroupProgress(groups[done], None))
                yield _fetch(ray, done, groups[done])
        finally:
            for reference in waiting:
                ray.cancel(reference)

    return engine


def _train_one(group: Group, machine: Machine) -> list[RunResult] | Failure:
    """Trains one group on a worker."""
    use_cpu_devices(machine.devices or num_cores())
    [outcome] = train_groups([group], machine._replace(checkpoints=None))  # the disk may be the worker's own
    return outcome


def _fetch(ray: Any, reference: Any, group: Group) -> list[RunResult] | Failure:
    try:
        return ray.get(reference)
    except ray.exceptions.RayError as error:  # for example, the worker died
        reason = str(getattr(error, "cause", None) or error)
        return Failure(group, f"{type(error).__name__}: {reason}")


def _resources(ray: Any, num_cpus: float | None, num_gpus: float | None) -> dict[str, Any]:
    """Returns the resources that a group reserves."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if num_gpus is None:
        num_gpus = float(any(node.get("GPU", 0) for node in alive))
    if num_cpus is None:
        shares = [node.get("CPU", 0) // max(1, node.get("GPU", 0)) for node in alive]
        num_cpus = min((share for share in shares if share), default=1)
    return {"num_cpus": num_cpus, "num_gpus": num_gpus}
