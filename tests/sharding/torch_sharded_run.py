"""Trains on several processes and writes, as JSON, how the result compares with one process.

A script of its own, since a process group is a process's for life; `test_torch_sharding.py` runs it.
Processes are forked from one that has imported everything, and meet through a file.

python torch_sharded_run.py FOLDER SCENARIO:NUMBER_OF_PROCESSES …
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from torch_sharded_modules import run_load, run_modules, run_save
from torch_sharded_parameters import run_layouts, run_shared_rows, run_uneven_gradients, train_bare

SCENARIOS = {
    "layouts": lambda _: run_layouts(),
    "uneven": lambda _: run_uneven_gradients(),
    "rows": lambda _: run_shared_rows(),
    "modules": lambda _: run_modules(),
    "save": run_save,
    "load": run_load,
}


def work(scenario: str, rank: int, size: int, folder: str) -> None:
    torch.set_num_threads(1)
    path = f"{folder}/meeting_{scenario}_{size}"
    store = dist.FileStore(path, size)  # pyright: ignore[reportPrivateImportUsage]  # it is documented
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    try:
        found = SCENARIOS[scenario](folder)
        if rank == 0:
            Path(folder, f"{scenario}_{size}.json").write_text(json.dumps(found))
        dist.barrier()
    finally:
        dist.destroy_process_group()


def run(scenario: str, size: int, folder: str) -> None:
    fork = multiprocessing.get_context("fork")
    workers = [fork.Process(target=work, args=(scenario, rank, size, folder)) for rank in range(size)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        sys.exit(f"{scenario}: exit codes {[worker.exitcode for worker in workers]}")


def main(folder: str, *tasks: str) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*returned a view tensor")  # PyTorch's, of any model
    train_bare("base", torch.float32)  # what PyTorch imports at the first step, it imports once
    for task in tasks:
        scenario, size = task.split(":")
        run(scenario, int(size), folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
