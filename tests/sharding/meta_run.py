"""Meta-trains for a few iterations on one process of some, and writes theta as an `.npz`.

A script of its own, since a process cannot change its devices; `test_meta_sharding.py` runs it. The inner
runs are real, of a network with one layer and a rule of two units, which compile faster.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

STEPS = 4
NUM_PAIRS = 8


def make_config() -> Any:
    from celo2.meta.config import MetaConfig

    return MetaConfig(
        datasets=("digits",),
        tasks_per_set=NUM_PAIRS,
        batch_size=8,
        truncation_length=3,
        min_unroll=3,
        max_unroll=8,
        resume_probability=0.5,  # each pair has its saved state, which lies where the pair does
        sigma=0.1,  # and a rate at which the losses of a pair differ by more than the last digits of either
        inner_learning_rate=0.05,
        start="adam",
        level="none",
    )


def train(num_devices: int) -> dict[str, Any]:
    """Theta before and after, by name, the norms of the meta-gradients, and how many pairs were resumed."""
    import jax
    import numpy as np
    from jax.sharding import AxisType, Mesh

    from celo2.config import RuleConfig
    from celo2.meta import outer
    from celo2.meta.config import MetaConfig
    from celo2.meta.inner import unroll
    from celo2.meta.inner.families import load_datasets, stack_data
    from celo2.meta.run import distributed
    from celo2.tasks.families.images import ImageMLPFamily

    unroll.make_family = lambda config, _: ImageMLPFamily(  # type: ignore[assignment]
        widths=(64, 10), batch_size=config.batch_size, level=config.level
    )
    MetaConfig.rule = property(  # type: ignore[assignment]
        lambda config: RuleConfig(orthogonalize=config.variant == "celo2", ff_hidden_size=2)
    )
    config = make_config()
    devices = np.array(jax.devices()[:num_devices])
    mesh = Mesh(devices, (outer.PAIRS,), axis_types=(AxisType.Auto,))
    data = stack_data(load_datasets(config), config)
    state = outer.init(config, mesh)
    before = jax.device_get(state.theta)
    outer_steps = outer.make_outer_steps(config, mesh)
    state, metrics = outer_steps(state, distributed.replicate(data, mesh), STEPS)
    measured = {name: np.asarray(getattr(metrics, name))[:STEPS] for name in ("grad_norm", "resumed")}
    after = jax.device_get(state.theta)
    named = {f"before {name}": array for name, array in before.items()}
    return named | {f"after {name}": array for name, array in after.items()} | measured


def main(out: str, counts: str, *process: str) -> None:
    """Writes OUT/COUNT.npz for each of the numbers of devices, or OUT/processes.npz."""
    import jax
    import numpy as np

    from celo2.meta.run import distributed

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 1 if process else max(map(int, counts.split(","))))
    if process:
        coordinator, process_id = process
        distributed.join(coordinator, int(counts), int(process_id))
    for count in map(int, counts.split(",")):
        found = train(count)
        if distributed.is_first():
            np.savez(Path(out) / ("processes.npz" if process else f"{count}.npz"), **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
