"""Trains a small GPT on bytes with Celo2 or AdamW: one file, meant to be modified.

The text is the source code of Python's standard library, which every machine has.

pip install 'celo2[torch]'  # 'celo2[cpu]' is faster on a CPU
python examples/torch/train_gpt.py                      # about a minute on two cores
python examples/torch/train_gpt.py --optimizer adamw    # the same run with AdamW
python examples/torch/train_gpt.py --checkpoint gpt.pt --save-every 100
python examples/torch/train_gpt.py --checkpoint gpt.pt --resume
"""

from __future__ import annotations

import argparse
import math
import sysconfig
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from celo2.torch import Celo2

VOCABULARY = 256  # bytes
# The best of 1e-3, 3e-3, 6e-3 and of 5e-4, 1e-3, 2e-3, 4e-3 by validation loss with --steps 150.
DEFAULT_RATES = {"celo2": 3e-3, "adamw": 1e-3}
TINY = {"steps": 30, "width": 32, "layers": 1, "heads": 2, "context": 32, "batch_size": 8, "eval_every": 15}


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Trains a small GPT on bytes with Celo2 or AdamW.")
    parser.add_argument("--optimizer", choices=("celo2", "adamw"), default="celo2")
    parser.add_argument("--lr", type=float, help="after the warm-up; by default the best of a few tried")
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--clip", type=float, help="largest norm of the gradient; by default no clipping")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--warmup", type=float, default=0.05, help="share of the steps")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--accumulate", type=int, default=1, help="batches whose gradients are averaged")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--eval-every", type=int, default=50)
    parser.add_argument("--checkpoint", type=Path, help="file to save to and to resume from")
    parser.add_argument("--save-every", type=int, default=100)
    parser.add_argument("--resume", action="store_true", help="go on from --checkpoint")
    parser.add_argument("--stop-after", type=int, help="end after this step; the schedule stays as it is")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="a run of seconds, to try the script")
    if parser.parse_known_args(arguments)[0].tiny:
        parser.set_defaults(**TINY)
    options = parser.parse_args(arguments)
    if options.resume and options.checkpoint is None:
        parser.error("--resume needs --checkpoint FILE")
    if options.width % options.heads:
        parser.error(f"--width must be a multiple of --heads, got {options.width} and {options.heads}")
    return options


class Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)  # by its name, three matrices side by side
        self.out_proj = nn.Linear(width, width, bias=False)
        self.mlp_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out_proj(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(functional.gelu(self.up(self.mlp_norm(x))))


class GPT(nn.Module):
    def __init__(self, width: int, layers: int, heads: int, context: int):
        super().__init__()
        self.token_embedding = nn.Embedding(VOCABULARY, width)
        self.position_embedding = nn.Embedding(context, width)
        blocks = [Block(width, heads) for _ in range(layers)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        self.head.weight = self.token_embedding.weight  # tied; Celo2 detects this and assigns it to AdamW
        self.apply(self._init)
        for block in blocks:  # additions to the residual stream start smaller, as in GPT-2
            for layer in (block.out_proj, block.down):
                nn.init.normal_(layer.weight, std=0.02 / math.sqrt(2 * layers))

    @staticmethod
    def _init(module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.token_embedding(tokens) + self.position_embedding(positions)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def load_text(max_bytes: int = 4_000_000) -> tuple[Tensor, Tensor]:
    """Returns the library's source as bytes, with the last tenth for validation."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    text = b"".join(file.read_bytes() for file in files)[:max_bytes]
    tokens = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    border = len(tokens) * 9 // 10
    return tokens[:border], tokens[border:]


def draw_batch(
    text: Tensor, options: argparse.Namespace, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    starts = torch.randint(len(text) - options.context, (options.batch_size, 1), generator=generator)
    rows = text[starts + torch.arange(options.context + 1)].long().to(options.device)
    return rows[:, :-1], rows[:, 1:]


def compute_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    tokens, targets = batch
    return functional.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())


@torch.no_grad()
def validate(model: nn.Module, text: Tensor, options: argparse.Namespace, batches: int = 8) -> float:
    generator = torch.Generator().manual_seed(0)  # the same batches every time
    losses = [compute_loss(model, draw_batch(text, options, generator)) for _ in range(batches)]
    return torch.stack(losses).mean().item()


def make_optimizer(model: nn.Module, options: argparse.Namespace) -> torch.optim.Optimizer:
    lr = DEFAULT_RATES[options.optimizer] if options.lr is None else options.lr
    named = list(model.named_parameters())
    groups = [  # matrices and embeddings decay, norms do not
        {"params": [(n, p) for n, p in named if p.ndim >= 2], "weight_decay": options.weight_decay},
        {"params": [(n, p) for n, p in named if p.ndim < 2], "weight_decay": 0.0},
    ]
    if options.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95))
    # Groups contain no layers: `module` shows which parameters are embeddings, heads or hidden matrices.
    optimizer = Celo2(groups, lr=lr, module=model)
    print(optimizer)
    return optimizer


def make_schedule(
    optimizer: torch.optim.Optimizer, options: argparse.Namespace
) -> torch.optim.lr_scheduler.LambdaLR:
    """Makes a linear warm-up, then a cosine to zero; Celo2's AdamW share follows it at 20 times the rate."""
    warmup = max(1, round(options.warmup * options.steps))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, options.steps - warmup)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def main(arguments: Sequence[str] | None = None) -> dict[str, list[float]]:
    options = parse_arguments(arguments)
    torch.manual_seed(options.seed)
    train_text, valid_text = load_text()
    model = GPT(options.width, options.layers, options.heads, options.context).to(options.device)
    optimizer = make_optimizer(model, options)
    scheduler = make_schedule(optimizer, options)
    generator = torch.Generator().manual_seed(options.seed)  # for the batches
    first = 0
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}

    if options.resume:
        saved = torch.load(options.checkpoint, map_location=options.device, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        generator.set_state(saved["generator"].cpu())
        first = saved["step"]
        print(f"resumed after step {first}")

    last = options.steps if options.stop_after is None else min(options.stop_after, options.steps)
    losses, valid_losses, start = [], [], time.perf_counter()
    for step in range(first + 1, last + 1):
        total = 0.0
        for _ in range(options.accumulate):
            loss = compute_loss(model, draw_batch(train_text, options, generator)) / options.accumulate
            loss.backward()
            total += loss.item()
        if options.clip is not None:  # after the last batch; Celo2's steps are normalised anyway
            nn.utils.clip_grad_norm_(model.parameters(), options.clip)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(total)

        if step % options.eval_every == 0 or step == last:
            valid_losses.append(validate(model, valid_text, options))
            seconds = time.perf_counter() - start
            print(f"step {step}: loss {total:.3f}, validation loss {valid_losses[-1]:.3f}, {seconds:.0f} s")
        if options.checkpoint is not None and (step % options.save_every == 0 or step == last):
            states = {name: part.state_dict() for name, part in parts.items()}
            torch.save({**states, "generator": generator.get_state(), "step": step}, options.checkpoint)
    return {"train": losses, "valid": valid_losses}


if __name__ == "__main__":
    main()
