"""Trains on several processes and prints, as JSON, how the result compares with one process.

A script of its own, since a process group is a process's for life; `test_torch_sharding.py` runs it.
Processes are forked from one that has imported everything, and meet through a file.

python torch_sharded_run.py SCENARIO NUMBER_OF_PROCESSES FOLDER
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.utils._python_dispatch import TorchDispatchMode

from celo2 import Weights
from celo2.config import RuleConfig
from celo2.torch import Celo2, Celo2Base, DimensionNumbers

STEPS = 2
LR = 0.01
SHAPES: dict[str, tuple[tuple[int, ...], DimensionNumbers | None]] = {
    "even": ((16, 12), None),
    "uneven": ((13, 7), DimensionNumbers(1, 0)),
    "fewer rows than processes": ((3, 9), None),
    "square": ((9, 9), None),
    "stack": ((5, 4, 6), None),
    "factored in front": ((10, 9, 3, 2), None),
    "convolution": ((6, 5, 3, 2), DimensionNumbers((1, 2, 3), 0)),
    "transposed convolution": ((5, 6, 2, 3), DimensionNumbers((0, 2, 3), 1)),
    "q, k, v": ((18, 7), DimensionNumbers(1, 0, 3)),
    "q, k, v by heads": ((24, 5), DimensionNumbers(1, 0, 6)),
    "q, k, v as (in, out)": ((7, 18), DimensionNumbers(0, 1, 3)),
    "heads, merged": ((7, 3, 5), DimensionNumbers(0, (1, 2), 3)),
    "vector": ((11,), None),
    "scalar": ((), None),
}
LAYOUTS: dict[str, tuple[tuple[int, ...], tuple[Any, ...]]] = {  # shape of the mesh, placements
    "rows": ((4,), (Shard(0),)),
    "columns": ((4,), (Shard(1),)),
    "replicas": ((4,), (Replicate(),)),
    "rows, columns": ((2, 2), (Shard(0), Shard(1))),
    "columns, rows": ((2, 2), (Shard(1), Shard(0))),
    "replicated rows": ((2, 2), (Replicate(), Shard(0))),
    "rows twice": ((2, 2), (Shard(0), Shard(0))),
}
ODD = RuleConfig(
    exp_mult=0.1, aggregate_mag=True, param_scale_mult=True, precondition_output=True, bias_correction=True
)
MIXED = RuleConfig(exp_mult=0.1, rmsmult=2.0, normalize_input=False, with_fac_rms=False, orthogonalize=False)


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that each kind of collective had, and how often it ran."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, list[int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        if name.startswith(("c10d::", "_c10d_functional::")) and "wait" not in name:
            tensors = [x for x in torch.utils._pytree.tree_leaves(args) if isinstance(x, Tensor)]
            entry = self.found.setdefault(name.split("::")[1].strip("_"), [0, 0])
            entry[:] = [max(entry[0], *(x.numel() for x in tensors)), entry[1] + 1]
        return func(*args, **(kwargs or {}))


def make_weights(config: RuleConfig) -> Weights:
    rng = np.random.default_rng(0)
    arrays = {n: rng.standard_normal(s).astype(np.float32) for n, s in config.weight_shapes().items()}
    return Weights(arrays, config)


OPTIMIZERS = {
    "celo2": lambda params, **options: Celo2(params, LR, weight_decay=0.1, **options),
    "base": lambda params, **options: Celo2Base(params, LR, weight_decay=0.1, **options),
    "odd": lambda params, **options: Celo2(params, LR, weights=make_weights(ODD), maximize=True, **options),
    "mixed": lambda params, **options: Celo2Base(params, LR, weights=make_weights(MIXED), **options),
}


class Holder(nn.Module):
    """Bare parameters with names of letters, so that routing sees no layer."""

    def __init__(self, tensors: dict[str, Tensor]):
        super().__init__()
        for number, tensor in enumerate(tensors.values()):
            self.register_parameter(f"p{number:02}", nn.Parameter(tensor))


def draw(seed: int, dtype: torch.dtype, scale: float) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: scale * torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        for name, (shape, _) in SHAPES.items()
    }


def make_optimizer(variant: str, module: nn.Module, **options: Any) -> Celo2:
    numbers = {f"p{i:02}": n for i, (_, n) in enumerate(SHAPES.values()) if n is not None}
    everything = {f"p{i:02}": "celo2" for i, (shape, _) in enumerate(SHAPES.values()) if len(shape) > 1}
    return OPTIMIZERS[variant](module, dimension_numbers=numbers, overrides=everything, **options)


def place(tensor: Tensor, mesh: Any, placements: tuple[Any, ...]) -> Tensor:
    if mesh is None:
        return tensor
    fitting = [p if isinstance(p, Replicate) or p.dim < tensor.ndim else Replicate() for p in placements]
    return distribute_tensor(tensor.clone(), mesh, fitting, src_data_rank=None)


def train_bare(
    variant: str, dtype: torch.dtype, mesh: Any = None, placements: tuple[Any, ...] = (), **options: Any
) -> tuple[Holder, Celo2, Largest]:
    """A few steps on gradients drawn at random."""
    start = draw(0, dtype, 0.1)
    module = Holder({name: place(tensor, mesh, placements) for name, tensor in start.items()})
    optimizer, watch = make_optimizer(variant, module, **options), Largest()
    for step in range(STEPS):
        grads = draw(step + 1, dtype, 0.01)
        for param, grad in zip(module.parameters(), grads.values(), strict=True):
            param.grad = place(grad, mesh, placements)
        with watch if step == STEPS - 1 else contextlib.nullcontext():  # it slows everything down
            optimizer.step()
    return module, optimizer, watch


def local_pair(ours: Tensor, whole: Tensor) -> tuple[Tensor, Tensor]:
    """What this process holds of a tensor, and of the one expected."""
    if not isinstance(ours, DTensor):
        return ours, whole
    placed = distribute_tensor(whole, ours.device_mesh, ours.placements, src_data_rank=None)
    return ours.to_local(), placed.to_local()


def difference(ours: Tensor, expected: Tensor, size: Tensor) -> float:
    """Largest difference over the largest entry of `size`; infinite if it is not a number."""
    mine, theirs = local_pair(ours.detach(), expected.detach())
    if not mine.numel():
        return 0.0
    error = ((mine.double() - theirs.double()).abs().max() / size.abs().max()).item()
    return error if np.isfinite(error) else float("inf")


def largest(values: list[float]) -> list[float]:
    """Over all processes."""
    together = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(together, op=dist.ReduceOp.MAX)
    return together.tolist()


def param_errors(module: nn.Module, twin: nn.Module, start: dict[str, Tensor]) -> dict[str, float]:
    """Of the parameters' changes."""
    triples = zip(module.parameters(), twin.parameters(), start.values(), strict=True)
    found = [difference(ours, theirs, theirs.detach() - old) for ours, theirs, old in triples]
    return dict(zip(start, largest(found), strict=True))


def state_error(optimizer: Celo2, twin: Celo2) -> float:
    """The largest of all state."""
    states = zip(optimizer.state.values(), twin.state.values(), strict=True)
    found = [difference(a[key], b[key], b[key]) for a, b in states for key in b]
    return max(largest(found))


def misplaced(optimizer: Celo2) -> list[str]:
    """State that is not placed as its parameter; row and column means are everywhere whole."""
    wrong = []
    for param, state in optimizer.state.items():
        for key, value in state.items():
            if key == "step" or not isinstance(param, DTensor):
                continue
            whole = param.ndim > 1 and key.startswith(("row", "col"))
            wanted = (Replicate(),) * param.device_mesh.ndim if whole else param.placements
            if not isinstance(value, DTensor) or value.placements != tuple(wanted):
                wrong.append(key)
    return wrong


def run_layouts() -> dict[str, Any]:
    found = {}
    meshes = {shape: init_device_mesh("cpu", shape) for shape, _ in LAYOUTS.values()}
    for variant in OPTIMIZERS:
        for kind, dtype in (("float32", torch.float32), ("float64", torch.float64)):
            if kind == "float32" and variant not in ("celo2", "base"):
                continue
            twin, expected, _ = train_bare(variant, dtype)
            for layout, (mesh_shape, placements) in LAYOUTS.items():
                mesh = meshes[mesh_shape]
                module, optimizer, watch = train_bare(variant, dtype, mesh, placements)
                found[f"{variant} | {layout} | {kind}"] = {
                    "errors": param_errors(module, twin, draw(0, dtype, 0.1)),
                    "state_error": state_error(optimizer, expected),
                    "misplaced": misplaced(optimizer),
                    "collectives": watch.found,
                }
    return found


SCENARIOS = {"layouts": run_layouts}


def work(scenario: str, rank: int, size: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/meeting_{scenario}_{size}", size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    try:
        found = SCENARIOS[scenario]()
        if rank == 0:
            Path(folder, f"{scenario}_{size}.json").write_text(json.dumps(found))
        dist.barrier()
    finally:
        dist.destroy_process_group()


def main(scenario: str, size: int, folder: str) -> None:
    torch.set_num_threads(1)
    fork = multiprocessing.get_context("fork")
    workers = [fork.Process(target=work, args=(scenario, rank, size, folder)) for rank in range(size)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        sys.exit(f"{scenario}: exit codes {[worker.exitcode for worker in workers]}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
