"""Trains the model of modded-nanogpt's optimizer track with Celo2, Muon or AdamW, in one file.

    python train.py --tiny                                      # a minute on a CPU, on text that is there
    torchrun --standalone --nproc_per_node=8 train.py --seed 0  # the real run, on 1, 2, 4 or 8 GPUs
    python train.py --resume logs/celo2-seed0-….pt              # goes on after Ctrl-C

Model, data, batch and validation are the track's; what may change is the optimizer, its schedule and the
initialization. README.md beside this file says what a run costs and which data it reads. The file needs
PyTorch and NumPy, and the log of a run contains it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import json
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

CODE = Path(__file__).read_text("utf-8")

# 1. Settings. The real ones are the track's; of a run only the command line's options may differ from them.

HIDDEN_DEFAULTS = {  # of the hidden matrices: learning rate, decay, steps of warm-up, what trains the rest
    "celo2": (1e-3, 1.25, 0, "share"),  # not tuned: Muon's change per step and decay per step
    "muon": (0.025, 0.05, 0, "roles"),  # the track's tuned baseline
    "adamw": (1.5e-3, 0.125, 250, "roles"),  # the track's notes
}
TINY_DEFAULTS = {  # rates from the sweep in README.md
    "celo2": (2e-3, 0.1, 10, "share"),
    "muon": (0.02, 0.1, 10, "roles"),
    "adamw": (1e-3, 0.1, 10, "roles"),
}
# AdamW's learning rates and betas in the track's tuned baseline; those of the tiny mode are not tuned.
ROLES = {"embed": 0.7, "head": 0.004, "vectors": 0.015}
TINY_ROLES = {"embed": 0.03, "head": 0.003, "vectors": 0.003}
ROLES_BETAS = (0.8, 0.95)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that decides a run's numbers, and is written to its log."""

    optimizer: str = "celo2"
    lr: float = 0.0  # of hidden matrices; Celo2's is the root mean square of a step
    decay: float = 0.0  # decoupled, of hidden matrices only
    rest: str = "share"  # AdamW of all else at Celo2's share of `lr`, or at one learning rate for each role
    warmup: int = 0  # steps
    cooldown: float = 0.7  # share of the schedule
    steps: int = 3250  # of the schedule
    stop_step: int = 3250
    grad_scale: float = 1.0  # factor on the gradients that hidden matrices' optimizers see
    seed: int = 0
    tiny: bool = False
    data: str = "data/fineweb10B"
    width: int = 768
    layers: int = 12
    head_width: int = 128
    vocabulary: int = 50304
    context: int = 1024
    batch_sequences: int = 512
    val_tokens: int = 20 * 524288
    val_every: int = 125
    dtype: str = "bfloat16"  # of products and of the embedding; other parameters are float32
    eps: float = 1e-10 / 524288  # AdamW's: the track's 1e-10 is for gradients of summed losses

    @property
    def batch_tokens(self) -> int:
        return self.batch_sequences * self.context


TINY: dict[str, Any] = {
    "tiny": True,
    "data": "",
    "width": 64,
    "layers": 2,
    "head_width": 32,
    "vocabulary": 256,
    "context": 64,
    "batch_sequences": 32,
    "val_tokens": 1 << 15,
    "val_every": 50,
    "steps": 300,
    "dtype": "float32",
    "eps": 1e-8,
}


def make_settings(given: dict[str, Any]) -> Settings:
    """The defaults of the real or the tiny mode, and of the optimizer, under what was given."""
    tiny = given.get("tiny", False)
    optimizer = given.get("optimizer", Settings.optimizer)
    hidden = (TINY_DEFAULTS if tiny else HIDDEN_DEFAULTS)[optimizer]
    defaults = dict(zip(("lr", "decay", "warmup", "rest"), hidden, strict=True))
    merged = {**(TINY if tiny else {}), **defaults, **given}
    settings = Settings(**{"stop_step": merged.get("steps", Settings.steps), **merged})
    if not 1 <= settings.stop_step <= settings.steps:
        raise ValueError(
            f"--stop-step must be from 1 to the {settings.steps} steps, got {settings.stop_step}."
        )
    return settings


# 2. The data: shards of tokens, read in their order, so that a step's batch is a function of its number.

MAGIC, VERSION, HEADER = 20240520, 1, 256  # of a shard's header of 32-bit integers; tokens have 16 bits


def read_shard(path: Path) -> np.ndarray:
    header = np.fromfile(path, np.int32, 3)
    if len(header) < 3 or tuple(header[:2]) != (MAGIC, VERSION):
        raise ValueError(
            f"{path} is no shard of tokens: it begins with {header.tolist()}, not {MAGIC}, {VERSION}."
        )
    tokens = np.memmap(path, np.uint16, "r", offset=4 * HEADER)
    if len(tokens) != header[2]:
        raise ValueError(f"{path} has {len(tokens)} tokens and says {header[2]}: load it anew.")
    return tokens


def find_shards(settings: Settings, split: Literal["train", "val"]) -> list[np.ndarray]:
    folder = Path(settings.data).absolute()
    paths = sorted(folder.glob(f"*_{split}_*.bin"))
    if not paths:
        raise FileNotFoundError(
            f"no files *_{split}_*.bin in {folder}. In a checkout of github.com/KellerJordan/modded-nanogpt,"
            " `python data/cached_fineweb10B.py 18` loads the tokens of FineWeb (18 shards, 3.6 GB) into"
            " data/fineweb10B; say where they are with --data, or try the script with --tiny."
        )
    return [read_shard(path) for path in paths]


def read_library(split: Literal["train", "val"]) -> list[np.ndarray]:
    """The source text of Python's standard library as bytes; its last tenth is for validation."""
    paths = sorted(Path(os.__file__).parent.glob("*.py"))
    text = np.frombuffer(b"".join(path.read_bytes() for path in paths), np.uint8)
    border = len(text) * 9 // 10
    return [text[:border] if split == "train" else text[border:]]


class Batches:
    """Consecutive batches of a split."""

    def __init__(self, settings: Settings, split: Literal["train", "val"]):
        self.settings, self.split = settings, split
        self.tokens = settings.batch_tokens if split == "train" else settings.val_tokens
        self.shards = find_shards(settings, split) if settings.data else read_library(split)
        self.counts = [
            (len(shard) - 2) // self.tokens for shard in self.shards
        ]  # what is left over is not read

    def require(self, number: int) -> None:
        if sum(self.counts) < number:
            raise ValueError(
                f"{number} batches of {self.tokens} {self.split} tokens are needed, and there are"
                f" {sum(self.counts)} in {len(self.shards)} shards: load more, or take fewer --steps."
            )

    def rows(self, number: int, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of some of the sequences of a batch."""
        index, context = 0, self.settings.context
        while number >= self.counts[index]:
            number, index = number - self.counts[index], index + 1
        start = number * self.tokens + first * context
        tokens = torch.from_numpy(
            self.shards[index][start : start + (last - first) * context + 1].astype(np.int64)
        )
        if int(tokens.max()) >= self.settings.vocabulary:
            raise ValueError(
                f"token {int(tokens.max())} is not in the vocabulary of {self.settings.vocabulary}."
            )
        return tokens[:-1].view(-1, context), tokens[1:].view(-1, context)


# 3. The model: fixed by the track.


class Linear(nn.Linear):
    """Float32 parameters, products in the dtype of the input."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(input, self.weight.to(input.dtype), self.bias.to(input.dtype))


class Norm(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.gains = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, x.shape[-1:], self.gains.to(x.dtype))


class Attention(nn.Module):
    SCALE = 0.12  # of the logits, whose queries and keys have root mean square 1

    def __init__(self, width: int, head_width: int):
        super().__init__()
        self.head_width = head_width
        self.query, self.key, self.value, self.out = (Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, rotation: Tensor) -> Tensor:
        query, key, value = (
            layer(x).unflatten(-1, (-1, self.head_width)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        query, key = (rotate(functional.rms_norm(y, y.shape[-1:]), rotation) for y in (query, key))
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=self.SCALE)
        return self.out(mixed.transpose(1, 2).flatten(-2))


def make_rotation(context: int, head_width: int) -> Tensor:
    """Cosines and sines by position; half of the pairs of coordinates are not rotated."""
    frequencies = 1024.0 ** -torch.linspace(0, 1, head_width // 4)
    angles = torch.outer(torch.arange(context).float(), functional.pad(frequencies, (0, head_width // 4)))
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    (cos, sin), (first, second) = rotation, x.to(rotation.dtype).chunk(2, dim=-1)
    return torch.cat([first * cos + second * sin, second * cos - first * sin], dim=-1).to(x.dtype)


class Block(nn.Module):
    def __init__(self, width: int, head_width: int):
        super().__init__()
        self.attention_norm, self.mlp_norm = Norm(width), Norm(width)
        self.attention = Attention(width, head_width)
        self.up, self.down = Linear(width, 4 * width), Linear(4 * width, width)

    def forward(self, x: Tensor, rotation: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), rotation)
        return x + self.down(torch.relu(self.up(self.mlp_norm(x))).square())


class GPT(nn.Module):
    CAP = 15.0  # of the logits

    def __init__(self, settings: Settings):
        super().__init__()
        width, vocabulary = settings.width, settings.vocabulary
        self.embed = nn.Embedding(vocabulary, width, dtype=getattr(torch, settings.dtype))
        self.blocks = nn.ModuleList(Block(width, settings.head_width) for _ in range(settings.layers))
        self.embed_norm, self.head_norm = Norm(width), Norm(width)
        self.head = Linear(width, vocabulary)
        self.rotation = nn.Buffer(make_rotation(settings.context, settings.head_width), persistent=False)
        self.init_parameters(settings.seed)

    def init_parameters(self, seed: int) -> None:
        """Drawn on the CPU by the order of names, so that all processes and devices begin alike."""
        generator = torch.Generator().manual_seed(seed)
        for name, p in self.named_parameters():
            kind = name.split(".")[-2:]
            if kind[-1] == "gains":
                nn.init.ones_(p)
            elif kind[-1] == "bias" or kind[0] in ("out", "down", "head"):
                nn.init.zeros_(p)  # blocks begin as nothing, logits as zero
            else:
                std = 1.0 if kind[0] == "embed" else (0.33 / p.shape[1]) ** 0.5
                nn.init.normal_(p, std=std, generator=generator)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """The sum of the cross-entropies."""
        x = self.embed_norm(self.embed(tokens))
        for block in self.blocks:
            x = block(x, self.rotation)
        logits = self.head(self.head_norm(x)).to(self.rotation.dtype).flatten(0, 1)
        capped = self.CAP * logits * torch.rsqrt(logits.square() + self.CAP**2)
        return functional.cross_entropy(capped, targets.flatten(), reduction="sum")


# 4. Celo2's rule with its numbers. Newton–Schulz below serves Muon, too.

# <rule torch celo2 without adamw_step init update>
# The rule, written by tools/vendor_rule.py from examples/celo2_minimal_torch.py: not to be edited.
ADAMW_SCALE = 20.0  # learning rate of AdamW's share over the rule's
ADAMW_BETAS = (0.9, 0.95)


class Rule(NamedTuple):
    """The learned numbers: the network's 347 weights and seven decays."""

    weights: dict[str, Tensor]
    momentum: list[float]  # three decays
    rms: float
    factored: list[float]  # three decays

    def to(self, *where: Any) -> Rule:
        """The rule on another device or in another dtype, those of the parameters."""
        return self._replace(weights={key: array.to(*where) for key, array in self.weights.items()})


# fmt: off
RULE = Rule(
    weights={
        "w0__0": torch.tensor([
            [0.11375127, -0.11375127, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        ], dtype=torch.float32),
        "w0__1": torch.tensor([
            [0.09868469, -0.09868469, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        ], dtype=torch.float32),
        "w0__2": torch.zeros((1, 8), dtype=torch.float32),
        "w0__3": torch.tensor([
            [0.0004784338, -0.0004784338, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            [0.03721826, -0.03721826, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            [-0.040277198, 0.040277198, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        ], dtype=torch.float32),
        "w0__4": torch.zeros((1, 8), dtype=torch.float32),
        "w0__5": torch.tensor([
            [0.19559765, -0.19559765, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            [0.023755109, -0.023755109, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            [-0.017360024, 0.017360024, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        ], dtype=torch.float32),
        "w0__6": torch.zeros((1, 8), dtype=torch.float32),
        "w0__7": torch.tensor([
            [0.16930087, -0.16930087, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            [0.012514954, -0.012514954, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            [0.046055835, -0.046055835, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        ], dtype=torch.float32),
        "w0__8": torch.tensor([
            [0.08293959, -0.08293959, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        ], dtype=torch.float32),
        "w0__9": torch.zeros((3, 8), dtype=torch.float32),
        "w0__10": torch.zeros((3, 8), dtype=torch.float32),
        "w0__11": torch.zeros((3, 8), dtype=torch.float32),
        "w0__12": torch.zeros((3, 8), dtype=torch.float32),
        "w0__13": torch.tensor([
            [0.09460274, -0.09460274, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            [0.013765628, -0.013765628, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            [0.053697757, -0.053697757, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        ], dtype=torch.float32),
        "b0": torch.zeros((8,), dtype=torch.float32),
        "w1": torch.tensor([
            [1.0, -1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            [-1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        ], dtype=torch.float32),
        "b1": torch.zeros((8,), dtype=torch.float32),
        "w2": torch.tensor([
            [1.0, 0.0, 0.0],
            [-1.0, 0.0, 0.0],
            [0.0, 0.0, 0.0],
            [0.0, 0.0, 0.0],
            [0.0, 0.0, 0.0],
            [0.0, 0.0, 0.0],
            [0.0, 0.0, 0.0],
            [0.0, 0.0, 0.0],
        ], dtype=torch.float32),
        "b2": torch.zeros((3,), dtype=torch.float32),
    },
    momentum=[0.935211, 0.97806, 0.991888],
    rms=0.98188,
    factored=[0.9834, 0.995147, 0.999153],
)
# fmt: on


# 1. Accumulators: exponential moving averages that start at zero and are not bias-corrected.


def largest_axes(shape: torch.Size) -> tuple[int, int]:
    """The second largest and the largest axis; of equal ones, the later counts as larger."""
    second, first = sorted(range(len(shape)), key=lambda axis: shape[axis])[-2:]
    return second, first


def init_leaf(p: Tensor) -> dict[str, Any]:
    r = c = torch.zeros_like(p)  # below rank 2 there are no rows and columns: r is the full second moment
    if p.ndim >= 2:
        second, first = largest_axes(p.shape)
        r, c = r.mean(first, keepdim=True), c.mean(second, keepdim=True)
    return {"m": [torch.zeros_like(p)] * 3, "v": torch.zeros_like(p), "r": [r] * 3, "c": [c] * 3}


def accumulate(rule: Rule, state: dict[str, Any], g: Tensor) -> dict[str, Any]:
    square = g * g + 1e-30
    r = c = square
    if g.ndim >= 2:
        second, first = largest_axes(g.shape)
        r, c = square.mean(first, keepdim=True), square.mean(second, keepdim=True)
    return {
        "m": [beta * m + (1 - beta) * g for m, beta in zip(state["m"], rule.momentum, strict=True)],
        "v": rule.rms * state["v"] + (1 - rule.rms) * g * g,
        "r": [beta * old + (1 - beta) * r for old, beta in zip(state["r"], rule.factored, strict=True)],
        "c": [beta * old + (1 - beta) * c for old, beta in zip(state["c"], rule.factored, strict=True)],
    }


# 2. Features: 30 numbers for each element of a matrix, 15 below rank 2, in the order of the network's inputs.


def compute_features(g: Tensor, p: Tensor, state: dict[str, Any]) -> list[Tensor]:
    m, v, r, c = state["m"], state["v"], state["r"], state["c"]
    rsqrt_v = torch.rsqrt(v + 1e-8)
    if g.ndim < 2:
        factors = [torch.rsqrt(d + 1e-9) for d in r]
    else:  # Adafactor's estimate of 1 / √E[g²] from its row and column means
        second, _ = largest_axes(g.shape)
        rows = [x / (x.mean(second, keepdim=True) + 1e-9) for x in r]
        factors = [torch.rsqrt(x.clamp(min=1e-9)) for x in rows]
        factors = [f * torch.rsqrt(x.clamp(min=1e-9)) for f, x in zip(factors, c, strict=True)]

    features = [g, g.clamp(-0.1, 0.1), p, *m, v]
    features += [x * rsqrt_v for x in m]
    features += [rsqrt_v]
    features += [g * f for f in factors]
    features += [g * rsqrt_v]
    if g.ndim >= 2:
        features += [*r, *c]
        features += [torch.rsqrt(x + 1e-8) for x in (*r, *c)]
        features += [x * f for x, f in zip(m, factors, strict=True)]
    return [x.expand_as(g) for x in features]


def normalize(x: Tensor) -> Tensor:
    """x / rms(x), over the last two axes: each matrix of a stack by itself."""
    return x * torch.rsqrt((x * x).mean(tuple(range(x.ndim))[-2:], keepdim=True) + 1e-9)


# 3. The network, applied to each element by itself: features → 8 → 8 → 3. Output 0 is the direction.


def apply_network(weights: dict[str, Tensor], features: list[Tensor]) -> Tensor:
    x = torch.stack([normalize(feature) for feature in features], dim=-1)
    groups = 14 if x.shape[-1] == 30 else 9  # of rows of the first layer
    w0 = torch.cat([weights[f"w0__{i}"] for i in range(groups)])
    x = torch.relu(x @ w0 + weights["b0"])
    x = torch.relu(x @ weights["w1"] + weights["b1"])
    return (x @ weights["w2"] + weights["b2"])[..., 0]


# 4. Newton–Schulz, as in Muon: moves all singular values of a matrix towards 1.


def orthogonalize(x: Tensor) -> Tensor:
    x = x / (torch.sqrt((x * x).sum((-2, -1), keepdim=True)) + 1e-8)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x  # the product x xᵀ is then the smaller one
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.mT if tall else x


# 5. The step of one tensor: root mean square 1, so that the learning rate alone sets its size.


def rule_step(rule: Rule, g: Tensor, p: Tensor, state: Any, *, base: bool = False) -> tuple[Tensor, Any]:
    """Celo2's un-negated step; without Newton–Schulz for Celo2-base."""
    g = g.clamp(-1000, 1000)
    state = accumulate(rule, state, g)
    direction = apply_network(rule.weights, compute_features(g, p, state))
    if p.ndim >= 2 and not base:
        direction = orthogonalize(direction)
    return normalize(direction), state


# </rule>

# 5. Optimizers. Matrices of one shape are updated as a stack, each as a matrix (inputs, outputs).

STACK_ELEMENTS = 12 * 768**2  # the features of one stack then take 0.85 GB


class StackedOptimizer(torch.optim.Optimizer):
    """What Celo2 and Muon have in common: stacks, gradient scale, learning rate, decoupled decay."""

    def __init__(self, params: Sequence[Tensor], lr: float, decay: float, grad_scale: float = 1.0):
        super().__init__(params, {"lr": lr, "decay": decay})
        self.grad_scale = grad_scale

    def direction(self, g: Tensor, p: Tensor, state: dict[str, Any]) -> Tensor:
        """The un-negated steps of stacked matrices; changes their state."""
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        if closure is not None:
            raise ValueError("closures are not supported: call backward() before step().")
        for group in self.param_groups:
            for stack in make_stacks(group["params"]):
                g = torch.stack([p.grad.mT for p in stack if p.grad is not None]) * self.grad_scale
                step = self.direction(g, torch.stack([p.mT for p in stack]), self.state[stack[0]])
                for p, own in zip(stack, step, strict=True):
                    p.mul_(1 - group["lr"] * group["decay"]).sub_(own.mT, alpha=group["lr"])


def make_stacks(params: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Matrices of one shape together; never more than a side, since the rule looks for the largest axes."""
    by_shape: dict[torch.Size, list[Tensor]] = {}
    for p in params:
        by_shape.setdefault(p.shape, []).append(p)
    for shape, own in by_shape.items():
        size = min(max(STACK_ELEMENTS // shape.numel(), 1), *shape)
        yield from (own[i : i + size] for i in range(0, len(own), size))


class Celo2(StackedOptimizer):
    """The learned rule; a step's root mean square is the learning rate."""

    rule: Rule | None = None

    def direction(self, g: Tensor, p: Tensor, state: dict[str, Any]) -> Tensor:
        if self.rule is None:
            self.rule = RULE.to(p.device, p.dtype)
        step, new = rule_step(self.rule, g, p, state or init_leaf(p))
        state.update(new)
        return step


class Muon(StackedOptimizer):
    """Orthogonalized momentum (Jordan et al., 2024), scaled by the shape as in the track's baseline."""

    MOMENTUM = 0.95

    def direction(self, g: Tensor, p: Tensor, state: dict[str, Any]) -> Tensor:
        momentum = state.setdefault("momentum", torch.zeros_like(p))
        momentum.lerp_(g, 1 - self.MOMENTUM)
        inputs, outputs = p.shape[-2:]
        return orthogonalize(g.lerp(momentum, self.MOMENTUM)) * max(1.0, outputs / inputs) ** 0.5


def make_optimizers(model: GPT, settings: Settings) -> list[torch.optim.Optimizer]:
    """The optimizer of the hidden matrices, and AdamW for embedding, head, biases and gains."""
    hidden = [p for p in model.blocks.parameters() if p.ndim == 2]
    roles = {"embed": [model.embed.weight], "head": [model.head.weight]}
    roles["vectors"] = [p for p in model.parameters() if p.ndim < 2]
    if settings.rest == "share":
        rates, betas = dict.fromkeys(roles, ADAMW_SCALE * settings.lr), ADAMW_BETAS
    else:
        rates, betas = TINY_ROLES if settings.tiny else ROLES, ROLES_BETAS
    groups: list[dict[str, Any]] = [{"params": own, "lr": rates[role]} for role, own in roles.items()]
    rest = torch.optim.AdamW(groups, betas=betas, eps=settings.eps, weight_decay=0.0)
    if settings.optimizer == "adamw":
        options: dict[str, Any] = {"betas": ADAMW_BETAS, "eps": settings.eps, "weight_decay": settings.decay}
        first: torch.optim.Optimizer = torch.optim.AdamW(hidden, lr=settings.lr, **options)
    else:
        kind = {"celo2": Celo2, "muon": Muon}[settings.optimizer]
        first = kind(hidden, settings.lr, settings.decay, settings.grad_scale)
    for group in (*first.param_groups, *rest.param_groups):
        group["peak"] = group["lr"]
    return [first, rest]


def schedule(step: int, settings: Settings) -> float:
    """The factor on all learning rates at a step, which begin at 0: warm-up, constant, linear to zero."""
    warmup = min(1.0, (step + 1) / max(settings.warmup, 1))
    return warmup * min(1.0, (settings.steps - step) / max(settings.cooldown * settings.steps, 1e-9))


# 6. Processes, log, checkpoints.


class World(NamedTuple):
    """The processes of a run; all of them have all parameters and all state, and a part of each batch."""

    rank: int
    size: int
    device: torch.device

    def sum(self, tensor: Tensor) -> Tensor:
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        if self.size == 1:
            return flag
        return bool(self.sum(torch.tensor(float(flag), device=self.device)) > 0)


@contextlib.contextmanager
def join_world(device: str) -> Iterator[World]:
    """The processes that torchrun has started, or this one alone."""
    rank, size = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    own = (
        torch.device(device, int(os.environ.get("LOCAL_RANK", 0)))
        if device == "cuda"
        else torch.device(device)
    )
    if device == "cuda":
        torch.cuda.set_device(own)
    if size > 1:
        dist.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        yield World(rank, size, own)
    finally:
        if size > 1:
            dist.destroy_process_group()


class Log:
    """A text file with the code, the versions, the settings and every validation; on the screen, too."""

    def __init__(self, path: Path, world: World):
        self.path, self.first = path, world.rank == 0

    def write(self, text: str, *, screen: bool = True) -> None:
        if self.first:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(f"{text}\n")
            if screen:
                print(text, flush=True)

    def begin(self, settings: Settings, world: World) -> None:
        self.write(f"{CODE}\n{'=' * 100}\n{describe_machine(world)}\n{'=' * 100}", screen=False)
        self.write(f"settings {json.dumps(dataclasses.asdict(settings))}", screen=False)


def describe_machine(world: World) -> str:
    lines = [
        f"Python {platform.python_version()}, PyTorch {torch.__version__}, NumPy {np.__version__}",
        f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}, {platform.platform()}",
        f"{world.size} processes on {world.device.type}",
    ]
    if shutil.which("nvidia-smi"):
        lines.append(subprocess.run(["nvidia-smi"], capture_output=True, text=True).stdout)
    else:
        lines.append("nvidia-smi: not on this machine")
    return "\n".join(lines)


@dataclasses.dataclass
class Progress:
    step: int = 0
    seconds: float = 0.0  # of training, without validation and checkpoints
    losses: dict[int, float] = dataclasses.field(default_factory=dict)  # of validation, by step


def save(path: Path, settings: Settings, progress: Progress, model: GPT, optimizers: Sequence[Any]) -> None:
    """Writes beside the file and then renames, so that there is always a whole one."""
    saved = {
        "code": hashlib.sha256(CODE.encode()).hexdigest(),
        "settings": dataclasses.asdict(settings),
        "progress": dataclasses.asdict(progress),
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(saved, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)


def load(path: Path) -> dict[str, Any]:
    saved = torch.load(path, map_location="cpu", weights_only=True)
    if saved["code"] != hashlib.sha256(CODE.encode()).hexdigest():
        raise ValueError(
            f"{path} was written by another version of this file, and a log has one code: start a new run, or"
            " go on with the code that is in the log."
        )
    return saved


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM end the run after the step that is being taken."""
    stopped: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda number, _: stopped.append(number)) for number in numbers]
    try:
        yield lambda: bool(stopped)
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


# 7. Training.


class Trainer:
    """One process of a run."""

    def __init__(self, settings: Settings, world: World, micro: int, compiled: bool):
        sequences = settings.batch_sequences // world.size
        self.micro = min(micro, sequences)
        if settings.batch_sequences % (world.size * self.micro):
            raise ValueError(
                f"the batch of {settings.batch_sequences} sequences cannot be divided among {world.size}"
                f" processes in parts of --micro {micro}: take powers of two."
            )
        self.settings, self.world = settings, world
        self.model = GPT(settings).to(world.device)
        self.loss: Callable[..., Tensor] = (
            torch.compile(self.model, dynamic=False) if compiled else self.model
        )
        self.optimizers = make_optimizers(self.model, settings)
        self.train, self.val = Batches(settings, "train"), Batches(settings, "val")
        self.train.require(settings.stop_step)
        self.val.require(1)

    def parts(self, batches: Batches, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's share of a batch, in parts that fit into memory."""
        sequences = batches.tokens // self.settings.context
        share = sequences // self.world.size
        first = self.world.rank * share
        for start in range(first, first + share, self.micro):
            inputs, targets = batches.rows(number, start, min(start + self.micro, first + share))
            yield inputs.to(self.world.device), targets.to(self.world.device)

    def step(self, number: int) -> None:
        for inputs, targets in self.parts(self.train, number):
            (self.loss(inputs, targets) / self.settings.batch_tokens).backward()
        for p in self.model.parameters():
            if p.grad is not None:
                self.world.sum(p.grad)
        factor = schedule(number, self.settings)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = factor * group["peak"]
            optimizer.step()
            optimizer.zero_grad()

    @torch.no_grad()
    def validate(self) -> float:
        losses = [self.loss(*part).double() for part in self.parts(self.val, 0)]
        return self.world.sum(torch.stack(losses).sum()).item() / self.settings.val_tokens

    @torch.no_grad()
    def check_replicas(self) -> None:
        """All processes must have the same parameters: they compute the same steps, each by itself.

        Parameters that are not finite in all of them are the same, too: such a run has diverged.

        Raises:
            RuntimeError: The parameters differ.
        """
        if self.world.size > 1:
            own = torch.stack([p.double().sum() for p in self.model.parameters()])
            others = [torch.empty_like(own) for _ in range(self.world.size)]
            dist.all_gather(others, own)
            if not all(torch.allclose(own, other, rtol=0, atol=0, equal_nan=True) for other in others):
                raise RuntimeError(
                    "the processes' parameters differ, since their GPUs do not compute the same results; run"
                    " on a single GPU, or on GPUs of one kind."
                )

    def synchronize(self) -> float:
        if self.world.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def run(trainer: Trainer, progress: Progress, log: Log, pause_after: int | None, save_every: int) -> Progress:
    """Trains from a progress on until the stopping step, a pause or a signal."""
    settings, world = trainer.settings, trainer.world
    checkpoint, last = log.path.with_suffix(".pt"), settings.stop_step
    seconds, measured = progress.seconds, progress.step
    start = trainer.synchronize()

    def write_checkpoint() -> None:
        if world.rank == 0:
            save(checkpoint, settings, progress, trainer.model, trainer.optimizers)

    with stop_signals() as stopped:
        while True:
            step = progress.step
            if (step % settings.val_every == 0 or step == last) and step not in progress.losses:
                now = trainer.synchronize()
                progress.seconds += now - start
                average = 1000 * (progress.seconds - seconds) / max(step - measured, 1)
                trainer.check_replicas()
                loss = progress.losses[step] = trainer.validate()
                log.write(
                    f"step:{step}/{settings.steps} val_loss:{loss:.5f} train_time:{progress.seconds:.1f}s"
                    f" step_avg:{average:.1f}ms"
                )
                if not math.isfinite(loss):
                    log.write(f"stopped at step {step}: the loss is not finite; try a lower learning rate")
                    return progress
                seconds, measured, start = progress.seconds, step, trainer.synchronize()
            if step == last:
                log.write(f"finished at step {step}")
                return progress
            if world.any(stopped()) or step == pause_after:
                progress.seconds += trainer.synchronize() - start
                write_checkpoint()
                log.write(f"paused after step {step}; go on with --resume {checkpoint}")
                return progress
            trainer.step(step)
            progress.step = step + 1
            if progress.step % save_every == 0:
                progress.seconds += trainer.synchronize() - start
                write_checkpoint()
                start = trainer.synchronize()


def parse_arguments(arguments: Sequence[str] | None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--tiny", action="store_true", help="a small model on Python's own source text")
    parser.add_argument("--optimizer", choices=tuple(HIDDEN_DEFAULTS), help="of the hidden matrices")
    parser.add_argument(
        "--rest",
        choices=("share", "roles"),
        help="AdamW's learning rates for all else. share: 20 × --lr; roles: the track's rates for embedding,"
        " head and vectors",
    )
    parser.add_argument("--lr", type=float, help="of the hidden matrices")
    parser.add_argument("--decay", type=float, help="of the hidden matrices, times the learning rate")
    parser.add_argument("--warmup", type=int, help="steps")
    parser.add_argument("--cooldown", type=float, help="share of the schedule; 0.7")
    parser.add_argument("--steps", type=int, help="of the schedule")
    parser.add_argument(
        "--stop-step", type=int, help="ends the run before the schedule, at a step fixed for all seeds"
    )
    parser.add_argument("--grad-scale", type=float, help="factor on the hidden matrices' gradients")
    parser.add_argument("--seed", type=int, help="of the initialization; the data has one order")
    parser.add_argument("--data", help="folder of *_train_*.bin and *_val_*.bin")
    parser.add_argument("--val-every", type=int, help="steps between validations")
    own = parser.add_argument_group("without influence on the numbers")
    own.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    own.add_argument("--micro", type=int, default=64, help="sequences that go through the model at once")
    own.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, default=None, help="on GPUs by default"
    )
    own.add_argument("--folder", type=Path, default=Path("logs"), help="of logs and checkpoints")
    own.add_argument("--save-every", type=int, default=500, help="steps between checkpoints")
    own.add_argument(
        "--pause-after", type=int, default=None, help="step to write a checkpoint after, and end"
    )
    own.add_argument("--resume", type=Path, default=None, help="checkpoint to go on from, with its settings")
    given = vars(parser.parse_args(arguments))
    names = {field.name for field in dataclasses.fields(Settings)}
    if given["resume"] and names & given.keys():
        parser.error(
            f"a resumed run has its own settings: leave out {', '.join(sorted(names & given.keys()))}"
        )
    return {"settings": {name: value for name, value in given.items() if name in names}, **given}


def main(arguments: Sequence[str] | None = None) -> Progress:
    given = parse_arguments(arguments)
    if given["device"] == "cuda":
        torch.set_float32_matmul_precision("high")
    with join_world(given["device"]) as world:
        saved = load(given["resume"]) if given["resume"] else None
        settings = Settings(**saved["settings"]) if saved else make_settings(given["settings"])
        compiled = given["device"] == "cuda" if given["compile"] is None else given["compile"]
        trainer = Trainer(settings, world, given["micro"], compiled)
        progress = Progress()
        if saved:
            log = Log(given["resume"].with_suffix(".txt"), world)
            progress = Progress(**saved["progress"])
            trainer.model.load_state_dict(saved["model"])
            for optimizer, state in zip(trainer.optimizers, saved["optimizers"], strict=True):
                optimizer.load_state_dict(state)
            log.write(f"resumed after step {progress.step}")
        else:
            name = f"{settings.optimizer}-seed{settings.seed}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
            log = Log(given["folder"] / f"{name}.txt", world)
            log.begin(settings, world)
        return run(trainer, progress, log, given["pause_after"], given["save_every"])


if __name__ == "__main__":
    sys.exit(not all(map(math.isfinite, main().losses.values())))
