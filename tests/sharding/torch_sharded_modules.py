"""A module trained and saved on several processes, in every way that PyTorch has, and in one process."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch_sharded_errors import misplaced, param_errors, state_error

from celo2.torch import Celo2, Celo2Base, Harness

STEPS = 2
LR = 0.01


def polar_factor(matrices: Tensor) -> Tensor:
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    return left @ right


PARTS = Harness(
    orthogonalizer=polar_factor,
    row_decay=0.9,
    min_update_ratio=1.0,
    cautious_decay=True,
    preserve_norms=True,
)
SAVED: dict[str, tuple[bool, dict[str, Any]]] = {  # whether flat, options of the optimizer
    "flat: False": (False, {}),
    "flat: True": (True, {}),
    "with parts": (True, {"harness": PARTS}),
    "int8": (True, {"state_dtype": torch.int8}),
}


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
    for layer in ("attention", "up", "down"):
        fully_shard(model.get_submodule(layer), mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


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
        "int8": (Celo2, {"state_dtype": torch.int8}),
        "parts": (Celo2, {"harness": PARTS}),
    }.items():
        twin, expected = train_alone(optimizer_class, STEPS, **options)
        whole_rows = ("ddp", "fsdp", "hsdp")
        for kind in whole_rows if name == "int8" else (*whole_rows, "fsdp and tensor parallel"):
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
    for number, (flatten, own) in enumerate(SAVED.values()):
        model, optimizer = train_shared("fsdp", Celo2, STEPS, **own)
        save(checkpoint(model, optimizer, flatten=flatten), checkpoint_id=f"{folder}/saved_{number}")
    return {}


def run_load(folder: str) -> dict[str, Any]:
    """Continues on this number of processes what `run_save` began on another."""
    found = {}
    for number, (name, (flatten, own)) in enumerate(SAVED.items()):
        twin, expected = train_alone(Celo2, 2 * STEPS, **own)
        size = dist.get_world_size()
        model = make_model() if size == 1 else share(make_model(), "fsdp")
        optimizer = Celo2(model, 7.0, **own)
        saved = checkpoint(model, optimizer, flatten=flatten)
        load(saved, checkpoint_id=f"{folder}/saved_{number}")
        options = StateDictOptions(flatten_optimizer_state_dict=flatten)
        parts = {"model_state_dict": saved["model"], "optim_state_dict": saved["optimizer"]}
        set_state_dict(model, optimizer, **parts, options=options)
        train(model, optimizer, STEPS, dist.get_rank(), size)
        found[name] = {
            "errors": param_errors(model, twin, start()),
            "state_error": state_error(optimizer, expected),
            "misplaced": misplaced(optimizer),
            "lr": optimizer.param_groups[0]["lr"],
            "collectives": {},
        }
    return found
