"""`celo2 meta-train`: make a rule."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import jax
import tyro

from celo2.meta.config import MetaConfig
from celo2.meta.train import TrainOptions, meta_train

__all__ = ["main"]

EPILOG = """
A quarter of an hour on two idle cores:
  celo2 meta-train --variant celo2 --outer-steps 3600 --out runs/celo2
Stop it with Ctrl-C; go on with the same command and --resume.
The weights are in OUT/weights; try them with
  celo2 compare --optimizers celo2:OUT/weights/celo2-003600.safetensors,adamw
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetaTrainCommand:
    """Meta-trains the Celo2 rule with persistent evolution strategies on small image classifiers."""

    recipe: Annotated[MetaConfig, tyro.conf.arg(name="")]
    out: Path
    """Folder of the run: recipe, metrics, checkpoints, weights."""
    outer_steps: int = 3600
    """Outer iterations in all; a resumed run continues up to it."""
    resume: bool = False
    """Continue the run in OUT from its last checkpoint."""
    checkpoint_every: int = 200
    """Outer iterations between checkpoints."""
    devices: int = 0
    """Host devices that share the pairs on a CPU; 0: one for each core that divides them equally."""


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit status."""
    command = tyro.cli(MetaTrainCommand, args=list(argv), prog="celo2 meta-train", description=None)
    jax.config.update("jax_num_cpu_devices", command.devices or _default_devices(command.recipe.num_pairs))
    options = TrainOptions(
        out=command.out,
        outer_steps=command.outer_steps,
        resume=command.resume,
        checkpoint_every=command.checkpoint_every,
    )
    try:
        path = meta_train(command.recipe, options)
    except (ValueError, OSError, ImportError) as error:
        print(f"celo2 meta-train: {error}")
        return 2
    print(f"weights: {path}")
    return 0


def _default_devices(num_pairs: int) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return next(count for count in range(min(cores, num_pairs), 0, -1) if num_pairs % count == 0)
