"""Bare parameters of many shapes, trained on meshes of one and two axes and in one process."""

from __future__ import annotations

import contextlib
import warnings
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch_sharded_errors import misplaced, param_errors, state_error

from celo2 import Weights
from celo2.config import RuleConfig
from celo2.torch import Celo2, Celo2Base, DimensionNumbers, Harness

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
IDLE: dict[str, Any] = {  # in the second step the gradient is zero there
    "fewer rows than processes": ...,
    "stack": 1,
    "factored in front": (slice(None), 2),
    "q, k, v by heads": slice(4, 8),
    "vector": ...,
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


PARTS = Harness(
    orthogonalizer="none", row_decay=0.9, min_update_ratio=1.0, cautious_decay=True, preserve_norms=True
)
BASIS = Harness(eigenbasis_every=1, row_decay=0.9)


def polar_factor(matrices: Tensor) -> Tensor:
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    return left @ right


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that each kind of collective had, and how often it ran."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, list[int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        if name.startswith(("c10d::", "_c10d_functional::")) and "wait" not in name:
            tensors = [x for x in tree_leaves(args) if isinstance(x, Tensor)]
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
    "parts": lambda params, **options: Celo2(params, LR, weight_decay=0.1, harness=PARTS, **options),
    "basis": lambda params, **options: Celo2(params, LR, weight_decay=0.1, harness=BASIS, **options),
    "int8": lambda params, **options: Celo2(params, LR, state_dtype=torch.int8, **options),
    "own orthogonalizer": lambda params, **options: Celo2(
        params, LR, harness=Harness(orthogonalizer=polar_factor), match="adamw", **options
    ),
}

CASES = {
    "celo2": (torch.float32, ("rows", "columns", "replicas", "rows, columns", "replicated rows")),
    "base": (torch.float32, ("rows", "columns", "replicas", "rows, columns", "rows twice")),
    "odd": (torch.float64, ("rows", "columns, rows")),
    "raw": (torch.float64, ("replicated rows",)),
    "parts": (torch.float64, ("rows", "columns", "replicas", "rows, columns", "rows twice")),
    "basis": (torch.float64, ("rows", "columns, rows", "replicas")),
    "int8": (torch.float64, ("rows", "replicas", "replicated rows", "rows twice")),
    "own orthogonalizer": (torch.float64, ("columns", "replicated rows")),
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
    """A few steps on gradients drawn at random, the last of which are zero for some matrices."""
    start = draw(0, dtype, 0.1)
    module = Holder({name: place(tensor, mesh, placements) for name, tensor in start.items()})
    optimizer, watch = make_optimizer(variant, module, **options), Largest()
    for step in range(STEPS):
        grads = draw(step + 1, dtype, 0.01)
        for name, entries in IDLE.items() if step else ():
            grads[name][entries] = 0.0
        for param, grad in zip(module.parameters(), grads.values(), strict=True):
            param.grad = place(grad, mesh, placements)
        watched = step == STEPS - 1 and variant in ("celo2", "base", "parts")  # it slows everything down
        with watch if watched else contextlib.nullcontext():
            optimizer.step()
    return module, optimizer, watch


def to_local(tensor: Tensor | None) -> Tensor:
    """The part that this process holds."""
    assert isinstance(tensor, DTensor)
    return tensor.to_local()


def run_uneven_gradients() -> dict[str, Any]:
    """What all processes decide together where one has a NaN; what they save where one has no gradient."""
    rank, mesh = dist.get_rank(), init_device_mesh("cpu", (dist.get_world_size(),))
    named = {name: place(tensor, mesh, (Shard(0),)) for name, tensor in draw(0, torch.float32, 0.1).items()}
    module = Holder({name: named[name] for name in ("even", "uneven", "vector")})
    optimizer = Celo2(module, LR, overrides={"p0[01]": "celo2"}, skip_nonfinite_gradients=True)
    first, second, third = module.parameters()
    before = [to_local(param.detach()).clone() for param in module.parameters()]
    for param in (first, second):
        param.grad = torch.ones_like(param)
    if rank == 1:
        to_local(second.grad)[0, 0] = float("nan")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer.step()
    moved = [bool((to_local(p) != old).any()) for p, old in zip(module.parameters(), before, strict=True)]
    keys = [sorted(optimizer.state[param]) for param in (first, second, third)]
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, {"moved": moved, "counted": optimizer.num_nonfinite, "keys": keys})
    return {"every": every}


def run_shared_rows() -> dict[str, Any]:
    """What an optimizer with momenta of one byte says of each way to share a parameter."""
    mesh, said = init_device_mesh("cpu", (dist.get_world_size(),)), {}
    for shape in ((6, 4), (2, 4, 6), (8,)):
        for axis in range(len(shape)):
            param = nn.Parameter(place(torch.ones(shape), mesh, (Shard(axis),)))
            param.grad = torch.ones_like(param)
            try:
                Celo2Base([param], LR, state_dtype=torch.int8).step()
            except ValueError as error:
                said[f"{shape} along {axis}"] = str(error)
    return {"said": said}


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
