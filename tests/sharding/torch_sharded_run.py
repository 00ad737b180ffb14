"""Trains on several processes and prints, as JSON, how the result compares with one process.

A script of its own, since a process group is a process's for life; `test_torch_sharding.py` runs it.
Processes are forked from one that has imported everything, and meet through a file.

python torch_sharded_run.py FOLDER SCENARIO:NUMBER_OF_PROCESSES …
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
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
RAW = RuleConfig(
    rmsmult=2.0, normalize_input=False, with_fac_rms=False, mlp_activation="tanh", orthogonalize=False
)


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
    "raw": lambda params, **options: Celo2Base(params, LR, weights=make_weights(RAW), **options),
}

CASES = {
    "celo2": (torch.float32, ("rows", "columns", "replicas", "rows, columns", "replicated rows")),
    "base": (torch.float32, ("rows", "columns", "replicas", "rows, columns", "rows twice")),
    "odd": (torch.float64, ("rows", "columns, rows")),
    "raw": (torch.float64, ("replicated rows",)),
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
        watched = step == STEPS - 1 and variant in ("celo2", "base")  # it slows everything down
        with watch if watched else contextlib.nullcontext():
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
    """Bare parameters of many shapes, on meshes of one and two axes."""
    found = {}
    meshes = {shape: init_device_mesh("cpu", shape) for shape, _ in LAYOUTS.values()}
    for variant, (dtype, layouts) in CASES.items():
        twin, expected, _ = train_bare(variant, dtype)
        for layout in layouts:
            mesh_shape, placements = LAYOUTS[layout]
            module, optimizer, watch = train_bare(variant, dtype, meshes[mesh_shape], placements)
            found[f"{variant} | {layout}"] = {
                "errors": param_errors(module, twin, draw(0, dtype, 0.1)),
                "state_error": state_error(optimizer, expected),
                "misplaced": misplaced(optimizer),
                "collectives": watch.found,
            }
    return found


class Model(nn.Module):
    """Tokens → classes, with sizes that four processes cannot share evenly."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(11, 6)
        self.attention = nn.MultiheadAttention(6, 3, batch_first=True)
        self.convolution = nn.Conv1d(6, 6, 3, padding=1)
        self.norm = nn.LayerNorm(6)
        self.up, self.down = nn.Linear(6, 10), nn.Linear(10, 6)
        self.head = nn.Linear(6, 11)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = x + self.convolution(x.mT).mT
        x = x + self.down(self.up(self.norm(x)).relu())
        return self.head(x)


def make_model() -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Model().double()  # in float32, noise is all that some biases' gradients are


def train(model: nn.Module, optimizer: Celo2, steps: int, rank: int = 0, size: int = 1) -> None:
    """Each process has its share of the batch."""
    tokens = torch.arange(24).view(8, 3).remainder(11)
    own = tokens.chunk(size)[rank]
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(own).flatten(0, 1), own.roll(1, 1).flatten()).backward()
        optimizer.step()


def share(model: nn.Module, kind: str) -> nn.Module:
    """Divides a model among all processes."""
    size = dist.get_world_size()
    if kind == "ddp":
        return nn.parallel.DistributedDataParallel(model)
    if kind == "fsdp":
        mesh = init_device_mesh("cpu", (size,))
    else:
        mesh = init_device_mesh("cpu", (2, size // 2), mesh_dim_names=("outer", "inner"))
    if kind == "fsdp and tensor parallel":
        plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
        parallelize_module(model, mesh["inner"], plan)
        mesh = mesh["outer"]
    for layer in (model.attention, model.up, model.down):
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def train_shared(
    kind: str, optimizer_class: type[Celo2], steps: int, **options: Any
) -> tuple[nn.Module, Celo2]:
    model = share(make_model(), kind)
    if kind == "ddp":
        options["process_group"] = dist.group.WORLD
    optimizer = optimizer_class(model, LR, weight_decay=0.1, **options)
    coordinate = (dist.get_rank(), dist.get_world_size())
    if kind == "fsdp and tensor parallel":
        coordinate = (dist.get_rank() // 2, 2)
    train(model, optimizer, steps, *coordinate)
    return model, optimizer


def train_alone(optimizer_class: type[Celo2], steps: int, **options: Any) -> tuple[nn.Module, Celo2]:
    model = make_model()
    optimizer = optimizer_class(model, LR, weight_decay=0.1, **options)
    train(model, optimizer, steps)
    return model, optimizer


def start() -> dict[str, Tensor]:
    return {name: param.detach() for name, param in make_model().named_parameters()}


def run_modules() -> dict[str, Any]:
    """Every way to train a module on several processes."""
    found = {}
    for name, (optimizer_class, options) in {
        "celo2": (Celo2, {}),
        "base": (Celo2Base, {}),
        "bfloat16": (Celo2, {"state_dtype": torch.bfloat16, "split_heads": True}),
    }.items():
        twin, expected = train_alone(optimizer_class, STEPS, **options)
        for kind in ("ddp", "fsdp", "hsdp", "fsdp and tensor parallel"):
            model, optimizer = train_shared(kind, optimizer_class, STEPS, **options)
            found[f"{name} | {kind}"] = {
                "errors": param_errors(model, twin, start()),
                "state_error": state_error(optimizer, expected),
                "misplaced": misplaced(optimizer),
                "dtypes": sorted({str(v.dtype) for s in optimizer.state.values() for v in s.values()}),
                "collectives": {},
            }
    return found


def checkpoint(model: nn.Module, optimizer: Celo2, *, flatten: bool) -> dict[str, Any]:
    options = StateDictOptions(flatten_optimizer_state_dict=flatten)
    model_state, optimizer_state = get_state_dict(model, optimizer, options=options)
    return {"model": model_state, "optimizer": optimizer_state}


def run_save(folder: str) -> dict[str, Any]:
    for flatten in (False, True):
        model, optimizer = train_shared("fsdp", Celo2, STEPS)
        dcp.save(checkpoint(model, optimizer, flatten=flatten), checkpoint_id=f"{folder}/saved_{flatten}")
    return {}


def run_load(folder: str) -> dict[str, Any]:
    """Continues on this number of processes what `run_save` began on another."""
    twin, expected = train_alone(Celo2, 2 * STEPS)
    found = {}
    for flatten in (False, True):
        size = dist.get_world_size()
        model = make_model() if size == 1 else share(make_model(), "fsdp")
        optimizer = Celo2(model, 7.0)
        saved = checkpoint(model, optimizer, flatten=flatten)
        dcp.load(saved, checkpoint_id=f"{folder}/saved_{flatten}")
        options = StateDictOptions(flatten_optimizer_state_dict=flatten)
        parts = {"model_state_dict": saved["model"], "optim_state_dict": saved["optimizer"]}
        set_state_dict(model, optimizer, **parts, options=options)
        train(model, optimizer, STEPS, dist.get_rank(), size)
        found[f"flat: {flatten}"] = {
            "errors": param_errors(model, twin, start()),
            "state_error": state_error(optimizer, expected),
            "misplaced": misplaced(optimizer),
            "lr": optimizer.param_groups[0]["lr"],
            "collectives": {},
        }
    return found


SCENARIOS = {
    "layouts": lambda _: run_layouts(),
    "modules": lambda _: run_modules(),
    "save": run_save,
    "load": run_load,
}


def work(scenario: str, rank: int, size: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/meeting_{scenario}_{size}", size)
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
