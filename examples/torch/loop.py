"""Trains a small network on generated data with Celo2, in a plain PyTorch loop.

python examples/torch/loop.py
"""

from __future__ import annotations

import torch
from torch import nn

from celo2.torch import Celo2


def main(steps: int = 60) -> list[float]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(256, 8, generator=generator)
    classes = inputs[:, :4].argmax(1)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))

    optimizer = Celo2(model, lr=3e-3, weight_decay=0.1)
    print(optimizer)  # which parameters get the rule, which AdamW, and why
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), classes)
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
        if step % 20 == 0:
            print(f"step {step}: loss {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    main()
