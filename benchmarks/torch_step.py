"""Measures the cost of a step in PyTorch: AdamW, Muon, Celo2-base and Celo2, interleaved in one process.

    python benchmarks/torch_step.py --write
    python benchmarks/torch_step.py --programs plain blocks numba --size 15k 3m 12m
    python benchmarks/torch_step.py --programs plain blocks --size 8x64x64

Prints a table of medians, and median ratios to fused AdamW within a round, for wall time and CPU time (which
other processes affect less). Everything is timed on the parameters of a GPT-like transformer with given
gradients. With a GPU, it is timed there on a GPT-2 of 124 M, and a second table has whole training steps in
bfloat16 on 16 × 1,024 tokens. Muon updates the matrices of the blocks and fused AdamW the rest, as its
authors advise. `--programs` instead compares the programs of Celo2-base's rule
(`celo2.torch.implementation.use`) in turn, with ratios to the first of them; a size such as 8x64x64 is eight
matrices of 64 rows and 64 columns, and `plain-alone` is the plain program on one tensor after the other
(`foreach=False`).
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from celo2.torch import Celo2, Celo2Base, implementation
from celo2.torch.kernels.dispatch import Implementation

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
SIZES = {
    "15k": (32, 1, 64, 32),
    "3m": (384, 1, 1024, 1024),
    "12m": (384, 6, 5120, 1024),
    "124m": (768, 12, 50257, 1024),
    "tiny": (64, 2, 512, 1024),
}  # width, depth, vocabulary, positions
TOKENS = (16, 1024)  # sequences per training step, and their length
Step = Callable[[], object]


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, width // 32)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        qkv = nn.functional.linear(self.norm1(x), self.attention.in_proj_weight, self.attention.in_proj_bias)
        q, k, v = qkv.view(batch, length, 3, -1, 32).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attention.out_proj(y.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    def __init__(self, width: int, depth: int, vocabulary: int, positions: int):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(positions, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Computes the next-token loss; the head is tied."""
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = self.norm(x)[:, :-1] @ self.tokens.weight.T
        return nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


class MuonAndAdamW:
    """Combines two optimizers, since `torch.optim.Muon` only accepts matrices."""

    def __init__(self, model: nn.Module):
        matrices = [p for name, p in model.named_parameters() if "blocks" in name and p.ndim == 2]
        rest = [p for name, p in model.named_parameters() if not ("blocks" in name and p.ndim == 2)]
        self.parts = (torch.optim.Muon(matrices), torch.optim.AdamW(rest, fused=True))

    def step(self) -> None:
        for part in self.parts:
            part.step()


OPTIMIZERS: dict[str, Callable[[nn.Module], Any]] = {
    "AdamW(fused=True)": lambda model: torch.optim.AdamW(model.parameters(), fused=True),
    "AdamW(foreach=True)": lambda model: torch.optim.AdamW(model.parameters(), foreach=True),
    "Muon": MuonAndAdamW,
    "Celo2Base": lambda model: Celo2Base(model),
    "Celo2Base(fused=False)": lambda model: Celo2Base(model, fused=False),
    "Celo2": lambda model: Celo2(model),
    "Celo2Base, bfloat16 state": lambda model: Celo2Base(model, state_dtype=torch.bfloat16),
}
PROGRAMS = [name + suffix for suffix in ("", "-alone") for name in get_args(Implementation)]


def make_model(size: str, device: torch.device) -> nn.Module:
    """Makes a transformer or equal matrices with given gradients, the same at every call."""
    torch.manual_seed(0)
    if size in SIZES:
        model = Transformer(*SIZES[size]).to(device)
    else:
        count, *shape = map(int, size.split("x"))
        model = nn.ParameterList(0.02 * torch.randn(shape, device=device) for _ in range(count))
    for param in model.parameters():
        param.grad = 1e-3 * torch.randn_like(param)
    return model


def make_steps(size: str, device: torch.device, names: list[str], *, train: bool = False) -> dict[str, Step]:
    """Makes a step for each optimizer, on its own model; with `train`, of loss, gradient and update."""
    steps: dict[str, Step] = {}
    for name in names:
        model = make_model(size, device)
        optimizer = OPTIMIZERS[name](model)
        steps[name] = (
            make_training_step(model, optimizer, SIZES[size][2], device) if train else optimizer.step
        )
    return steps


def make_program_steps(size: str, device: torch.device, names: list[str]) -> dict[str, Step]:
    """Makes a step of Celo2-base for each of `PROGRAMS`, on its own model."""

    def make_step(name: str) -> Step:
        program: Any = name.removesuffix("-alone")
        foreach = False if name.endswith("-alone") else None
        optimizer: Any = Celo2Base(make_model(size, device), foreach=foreach)

        def step() -> None:
            with implementation.use(program):
                optimizer.step()

        return step

    return {name: make_step(name) for name in names}


def make_training_step(model: nn.Module, optimizer: Any, vocabulary: int, device: torch.device) -> Step:
    tokens = torch.randint(vocabulary, TOKENS, device=device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            loss = model(tokens)
        model.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def time_step(step: Step, device: torch.device) -> tuple[float, float]:
    """Returns the wall time and the CPU time over all cores, in seconds."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter(), time.process_time()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start[0], time.process_time() - start[1]


def make_table(steps: dict[str, Step], count: int, device: torch.device, rounds: int) -> str:
    """Times steps in turn; ratios are relative to the first one."""
    first = next(iter(steps))
    for step in steps.values():
        for _ in range(3 if device.type == "cuda" else 1):
            time_step(step, device)  # creates the state
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            times[name].append(time_step(step, device))
    lines = [f"| optimizer | ms/step | ns/parameter | × {first} | processor time, × |"]
    lines.append("|---|---:|---:|---:|---:|")
    for name, own in times.items():
        pairs = list(zip(own, times[first], strict=True))
        wall, cpu = (statistics.median(t[i] / max(base[i], 1e-9) for t, base in pairs) for i in (0, 1))
        seconds = statistics.median(t[0] for t in own)
        lines.append(
            f"| {name} | {1e3 * seconds:.1f} | {1e9 * seconds / count:.2f} | {wall:.2f} | {cpu:.2f} |"
        )
    return "\n".join(lines)


def describe(count: int, device: torch.device, rounds: int) -> str:
    cuda = device.type == "cuda"
    where = torch.cuda.get_device_name() if cuda else f"{torch.get_num_threads()} CPU threads"
    run = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False
    )
    commit = run.stdout.strip() or "unknown"
    version = torch.__version__
    return f"{count:,} parameters, float32, PyTorch {version}, {where}, {rounds} rounds, commit {commit}."


def print_first_steps(device: torch.device) -> None:
    """Prints the seconds of Celo2Base's first step, which compiles or loads kernels, and its second step."""
    layer = torch.nn.Linear(512, 512, device=device)
    layer(torch.ones(4, 512, device=device)).sum().backward()
    optimizer = Celo2Base(layer, lr=1e-3)
    for name in ("first", "second"):
        begin = time.perf_counter()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        print(f"{name} step: {time.perf_counter() - begin:.3f} s")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = "124m" if device.type == "cuda" else "12m"
    parser.add_argument("--size", nargs="+", default=[size], help=f"{', '.join(SIZES)}, or COUNTxROWSxCOLS")
    parser.add_argument("--rounds", type=int, default=7, help="timed steps of each optimizer")
    parser.add_argument("--only", nargs="*", choices=OPTIMIZERS, default=list(OPTIMIZERS))
    parser.add_argument("--programs", nargs="*", choices=PROGRAMS, help="compare these, not optimizers")
    parser.add_argument("--write", action="store_true", help=f"put the tables into {PAGE.name}")
    parser.add_argument("--first-step", action="store_true", help="time the first two steps of a process")
    options = parser.parse_args()
    if options.first_step:
        print_first_steps(device)
        return
    for size in options.size:
        if size not in SIZES and not (options.programs and re.fullmatch(r"\d+x\d+x\d+", size)):
            parser.error(f"--size {size}: choose from {', '.join(SIZES)}; COUNTxROWSxCOLS needs --programs.")
    names = [name for name in OPTIMIZERS if name in options.only or name == "AdamW(fused=True)"]
    makers: dict[str, Callable[[str, torch.device], dict[str, Step]]]
    if options.programs:
        makers = {"Celo2Base's update": partial(make_program_steps, names=options.programs)}
    else:
        makers = {"The update alone": partial(make_steps, names=names)}
        if device.type == "cuda":
            makers["Whole training steps"] = partial(make_steps, names=names, train=True)
    parts = []
    for size in options.size:
        count = sum(param.numel() for param in make_model(size, device).parameters())
        described = describe(count, device, options.rounds)
        for what, make in makers.items():
            table = make_table(make(size, device), count, device, options.rounds)
            parts.append(f"{what}: {described}\n\n{table}")
    text = "\n\n".join(parts)
    print(text)
    if options.write:
        mark = "torch-programs" if options.programs else f"torch-{device.type}"
        page = PAGE.read_text()
        page = re.sub(
            rf"(<!-- {mark} -->\n).*?(<!-- end -->)", lambda m: m[1] + text + "\n" + m[2], page, flags=re.S
        )
        PAGE.write_text(page)


if __name__ == "__main__":
    main()
