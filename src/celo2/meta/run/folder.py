"""The folder of a meta-training run: checkpoints, metrics, recipe, weights.

With several processes, only the first writes, except that each writes its part of a checkpoint. All processes
must see the same folder.

OUT/config.json, options.json    the recipe, and how it is run (`recipe.py`)
OUT/start.safetensors            the weights it starts from, if the recipe names some
OUT/libraries.log                log messages of Orbax and other libraries, if any
OUT/metrics.jsonl                one line for each outer iteration
OUT/checkpoints/STEP/            the whole state, written by Orbax to a temporary name first, and checksums
OUT/weights/VARIANT-STEP.safetensors   theta alone, a few kB, one for each checkpoint
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from celo2._utils.checks import check_out_folder
from celo2._utils.files import remove_partial_files, write_atomic
from celo2._utils.locks import check_owner, lock_folder
from celo2.meta import outer
from celo2.meta.config import MetaConfig
from celo2.meta.inner.resume import Buffer
from celo2.meta.inner.theta import BUILT_IN, load_start, make_weights
from celo2.meta.inner.unroll import InnerState
from celo2.meta.outer import OuterState
from celo2.meta.run import distributed
from celo2.meta.run.checksums import Ranking, rank_checkpoints, write_checksums
from celo2.meta.run.errors import writing
from celo2.meta.run.metrics import METRICS_FILE, load_metrics, read_metrics
from celo2.meta.run.recipe import RECIPE_FILE, check_recipe, write_recipe
from celo2.weights.checkpoint import save_weights

KEPT = 3  # checkpoints; older ones are removed, but their weights are kept
START_FILE = "start.safetensors"


def with_start_beside(config: MetaConfig, file: Path) -> MetaConfig:
    """Points the recipe in a run's `config.json` to the run's own copy of its start, if there is one."""
    copy = file.parent / START_FILE
    kept = config.start not in BUILT_IN and copy.exists()
    return dataclasses.replace(config, start=str(copy)) if kept else config


class RunFiles:
    """The folder of one run; a context manager that waits for pending writes and releases the folder.

    Args:
        folder: The folder; `start` creates it if it does not exist.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder).absolute()
        self._lock = ExitStack()
        self._metrics = self.folder / METRICS_FILE
        self._start = self.folder / START_FILE

    @functools.cached_property
    def _manager(self) -> ocp.CheckpointManager:
        """Creates Orbax's manager, which all processes must first access at the same point, after `start`.

        It removes unfinished checkpoints of a killed run, which another run may be about to finish.
        """
        return ocp.CheckpointManager(
            self.folder / "checkpoints",
            item_handlers=ocp.StandardCheckpointHandler(),  # or an empty newest one decides how all are read
            options=ocp.CheckpointManagerOptions(
                max_to_keep=KEPT, enable_async_checkpointing=False, cleanup_tmp_directories=True
            ),
        )

    def __enter__(self) -> RunFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After an error other processes may never reach the point where they wait for each other.
        if error is None or not jax.distributed.is_initialized():
            self.close()
        self._lock.close()

    def close(self) -> None:
        """Waits for pending writes and releases the folder to other writers."""
        if "_manager" in vars(self):
            self._manager.close()
        self._lock.close()

    def check(self, *, resume: bool) -> None:
        """Checks, before any work, that a run can begin or continue here.

        Raises:
            FileExistsError, FileNotFoundError: See `start`.
            OSError: The folder cannot be created or written.
        """
        if distributed.is_first():
            self._check_there(self.folder / RECIPE_FILE, resume=resume)
            check_out_folder(self.folder)

    def start(self, config: MetaConfig, *, resume: bool) -> None:
        """Writes the recipe and starting weights of a new run, or checks that a resumed run has the same.

        The first process does this while the others wait. The folder is then locked against other runs.

        Raises:
            FolderInUseError: Another run writes into the folder.
            FileExistsError: The run is new, but the folder holds one already.
            FileNotFoundError: There is nothing to resume.
            ValueError: The resumed run has another recipe, or the starting weights have other options.
        """
        if distributed.is_first():
            self._start_or_check(config, resume=resume)
        distributed.wait_for_all()

    def _start_or_check(self, config: MetaConfig, *, resume: bool) -> None:
        path = self.folder / RECIPE_FILE
        self._check_there(path, resume=resume)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock.enter_context(lock_folder(self.folder, "celo2 meta-train"))
        self._check_there(path, resume=resume)  # another run may have begun meanwhile
        if resume:
            check_recipe(self.folder, config)
            remove_partial_files(self.folder)
            return
        if config.start not in BUILT_IN:
            start = load_start(config)
            with writing(self._start):
                save_weights(self._start, start)
        write_recipe(self.folder, config)

    def _check_there(self, path: Path, *, resume: bool) -> None:
        check_owner(self.folder, "celo2 meta-train")
        if not resume and not path.exists() and (self.folder / "probe.json").exists():
            raise ValueError(
                f"{self.folder} has results of celo2 probe (probe.json); use another folder for celo2 "
                "meta-train."
            )
        if resume and not path.exists():
            raise FileNotFoundError(f"nothing to resume: {path} does not exist; start without --resume.")
        if not resume and path.exists():
            raise FileExistsError(
                f"{self.folder} already holds a run; continue it with --resume or choose another --out."
            )

    def with_own_start(self, config: MetaConfig) -> MetaConfig:
        """Returns the recipe with the run's own copy of its starting weights, which nothing else changes."""
        return config if config.start in BUILT_IN else dataclasses.replace(config, start=str(self._start))

    def restore(
        self, config: MetaConfig, mesh: Mesh, optimizer: optax.GradientTransformation | None = None
    ) -> OuterState | None:
        """Restores the newest intact state, placed as by `outer.init`; returns None if there never was one.

        Later checkpoints, which are damaged, and later metrics are removed, since their iterations run again.

        Raises:
            ValueError: There are or were checkpoints, but none can be read; nothing has been removed.
        """
        like = jax.tree.map(
            lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding),
            _as_saved(outer.init(config, mesh, optimizer)),
        )
        steps, ranking = self._manager.all_steps(), Ranking([], {})  # called by all processes together
        if distributed.is_first():
            ranking = rank_checkpoints(self.folder / "checkpoints", steps)
        doubts = dict(ranking.doubts)
        for step in _agreed(ranking.steps):
            try:
                state = self._manager.restore(step, args=ocp.args.StandardRestore(like))  # type: ignore[call-arg]
            except Exception as error:  # whatever Orbax and TensorStore raise for a damaged file
                if jax.process_count() > 1:
                    raise  # the others may have read their part
                doubts[step] = f"{type(error).__name__}: {error}"
                continue
            self._go_back_to(step, doubts)
            return _from_saved(state)
        self._check_that_none_was_lost(doubts)
        self._drop_metrics_after(0)
        return None

    def _go_back_to(self, step: int, doubts: Mapping[int, str]) -> None:
        """Removes everything after the restored checkpoint, since its iterations run again."""
        if distributed.is_first():
            for other, doubt in sorted(doubts.items(), reverse=True):
                if other > step:
                    print(f"checkpoint {other} is not readable ({doubt}); going back to {step}")
                    shutil.rmtree(self._step_folder(other))
                elif other == step:
                    print(f"checkpoint {step} is taken, though {doubt}: there is no better one.")
        distributed.wait_for_all()
        self._manager.reload()
        self._drop_metrics_after(step)

    def _check_that_none_was_lost(self, doubts: Mapping[int, str]) -> None:
        """Raises a ValueError if a run that had made progress would start over."""
        if doubts:
            listed = "; ".join(f"{step}: {doubt:.200}" for step, doubt in sorted(doubts.items()))
            raise ValueError(
                f"no checkpoint of {self.folder} can be read ({listed}), and nothing was removed. They may "
                "be another version's: resume with it, put back a copy, or begin with another --out."
            )
        weights = sorted((self.folder / "weights").glob("*.safetensors"))
        if weights:
            raise ValueError(
                f"{self.folder / 'checkpoints'} has no checkpoint, though there was one, with "
                f"{weights[-1]}. Put it back, or begin with another --out, from these weights by --start."
            )

    def save(self, state: OuterState, config: MetaConfig, provenance: Mapping[str, str]) -> Path:
        """Writes the state and its weights; returns the weights' path.

        Raises:
            RunWriteError: One of them cannot be written.
        """
        step = int(state.count)
        if step not in self._manager.all_steps():
            with writing(self._step_folder(step)):
                args = ocp.args.StandardSave(_as_saved(state))  # type: ignore[call-arg]
                saved = self._manager.save(step, args=args)  # False if there are later checkpoints
                self._manager.wait_until_finished()
                if saved and distributed.is_first():
                    write_checksums(self._step_folder(step))
        path = self.weights_path(config, step)
        arrays = {name: np.asarray(array) for name, array in state.theta.items()}
        weights = make_weights(arrays, config, {**provenance, "outer_steps": str(step)})
        if distributed.is_first():
            with writing(path):
                path.parent.mkdir(exist_ok=True)
                save_weights(path, weights)
        return path

    def weights_path(self, config: MetaConfig, step: int) -> Path:
        """Returns the path of a checkpoint's weights."""
        return self.folder / "weights" / f"{config.variant}-{step:06d}.safetensors"

    def _step_folder(self, step: int) -> Path:
        return self.folder / "checkpoints" / str(step)

    def append_metrics(self, records: list[dict[str, Any]]) -> None:
        """Appends one JSON line per record.

        Raises:
            RunWriteError: They cannot be written.
        """
        if distributed.is_first():
            with writing(self._metrics), self._metrics.open("a") as stream:
                stream.writelines(json.dumps(record) + "\n" for record in records)

    def read_metrics(self) -> list[dict[str, Any]]:
        """Reads the records so far, oldest first."""
        return read_metrics(self.folder)

    def _drop_metrics_after(self, step: int) -> None:
        """Removes the records after a step, in the first process while the others wait."""
        if distributed.is_first():
            records, faults = load_metrics(self.folder)
            for fault in faults:
                print(fault)
            kept = [record for record in records if record["step"] <= step]
            if len(kept) < step:
                print(
                    f"{self._metrics} has lost {step - len(kept)} of the iterations up to {step}; "
                    "the run goes on without them."
                )
            with writing(self._metrics):
                write_atomic(self._metrics, "".join(json.dumps(record) + "\n" for record in kept).encode())
        distributed.wait_for_all()


def _agreed(steps: Sequence[int]) -> Sequence[int]:
    """Returns the first process's list of checkpoints to try; only the best with several processes."""
    if jax.process_count() == 1:
        return steps
    (first,) = distributed.agree(steps[0] + 1 if steps else 0)
    return [first - 1] if first else []


def _as_saved(state: OuterState) -> dict[str, Any]:
    """Converts a state to its form in the files, without empty trees, which Orbax cannot write."""
    fields = state._asdict() | {"inner": tuple(map(_runs_as_saved, state.inner))}
    if state.buffer is None:
        del fields["buffer"]
    else:
        runs = tuple(map(_runs_as_saved, state.buffer.runs))
        fields["buffer"] = state.buffer._asdict() | {"runs": runs}
    return fields


def _runs_as_saved(runs: InnerState) -> dict[str, Any]:
    return {name: tree for name, tree in runs._asdict().items() if name != "problem" or jax.tree.leaves(tree)}


def _from_saved(fields: Any) -> OuterState:
    def runs_of(saved: Any) -> tuple[InnerState, ...]:
        return tuple(InnerState(**runs) for runs in saved)

    buffer = fields.get("buffer")
    if buffer is not None:
        buffer = Buffer(**buffer | {"runs": runs_of(buffer["runs"])})
    return OuterState(**fields | {"inner": runs_of(fields["inner"]), "buffer": buffer})
