"""What a step costs in PyTorch: AdamW, Muon, Celo2-base and Celo2 in one process, interleaved.

    python benchmarks/torch_step.py

Prints a table: medians, and the median ratio to fused AdamW within a round. Everything is timed on the
parameters of a GPT-like transformer with gradients given; on a GPU if there is one. Muon updates the
matrices of the blocks and fused AdamW the rest, as its authors advise.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from celo2.torch import Celo2, Celo2Base

SIZES = {"12m": (384, 6, 5120), "124m": (768, 12, 50257), "tiny": (64, 2, 512)}  # width, depth, vocabulary
Step = Callable[[], object]


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, width // 32)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)


class Transformer(nn.Module):
    def __init__(self, width: int, depth: int, vocabulary: int):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(1024, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)


class MuonAndAdamW:
    """Two optimizers as one, since `torch.optim.Muon` takes matrices alone."""

    def __init__(self, model: nn.Module):
        matrices = [p for name, p in model.named_parameters() if "blocks" in name and p.ndim == 2]
        rest = [p for name, p in model.named_parameters() if not ("blocks" in name and p.ndim == 2)]
        self.parts = (torch.optim.Muon(matrices), torch.optim.AdamW(rest, fused=True))

    def step(self) -> None:
        for part in self.parts:
            part.step()


OPTIMIZERS: dict[str, Callable[[nn.Module], object]] = {
    "AdamW(fused=True)": lambda model: torch.optim.AdamW(model.parameters(), fused=True),
    "AdamW(foreach=True)": lambda model: torch.optim.AdamW(model.parameters(), foreach=True),
    "Muon": MuonAndAdamW,
    "Celo2Base": lambda model: Celo2Base(model),
    "Celo2": lambda model: Celo2(model),
    "Celo2Base, bfloat16 state": lambda model: Celo2Base(model, state_dtype=torch.bfloat16),
}


def make_steps(size: str, device: torch.device, names: list[str]) -> tuple[dict[str, Step], int]:
    """A step of each optimizer, each on a model of its own, and the number of parameters."""
    steps: dict[str, Step] = {}
    count = 0
    for name in names:
        torch.manual_seed(0)
        model = Transformer(*SIZES[size]).to(device)
        for param in model.parameters():
            param.grad = 1e-3 * torch.randn_like(param)
        steps[name] = OPTIMIZERS[name](model).step
        count = sum(param.numel() for param in model.parameters())
    return steps, count


def time_step(step: Step, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="12m", help="parameters of the transformer")
    parser.add_argument("--rounds", type=int, default=7, help="timed steps of each optimizer")
    parser.add_argument("--only", nargs="*", choices=OPTIMIZERS, default=list(OPTIMIZERS))
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    names = [name for name in OPTIMIZERS if name in options.only or name == "AdamW(fused=True)"]
    steps, count = make_steps(options.size, device, names)
    for step in steps.values():
        time_step(step, device)  # makes the state
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(options.rounds):
        for name, step in steps.items():
            times[name].append(time_step(step, device))
    where = (
        torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    )
    print(f"{count:,} parameters, float32, PyTorch {torch.__version__}, {where}, {options.rounds} rounds\n")
    print("| optimizer | ms/step | ns/parameter | × AdamW(fused=True) |\n|---|---:|---:|---:|")
    for name, own in times.items():
        ratio = statistics.median(t / base for t, base in zip(own, times["AdamW(fused=True)"], strict=True))
        seconds = statistics.median(own)
        print(f"| {name} | {1e3 * seconds:.1f} | {1e9 * seconds / count:.2f} | {ratio:.1f} |")


if __name__ == "__main__":
    main()
