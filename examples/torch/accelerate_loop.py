"""Trains a small network with Celo2 and Accelerate, which runs the plain loop on many devices.

pip install accelerate
accelerate launch examples/torch/accelerate_loop.py
"""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from celo2.torch import Celo2


def main(epochs: int = 30) -> list[float]:
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    inputs = torch.randn(256, 8)
    data = DataLoader(TensorDataset(inputs, inputs[:, :4].argmax(1)), batch_size=64, shuffle=True)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))

    optimizer = Celo2(model, lr=3e-3, weight_decay=0.1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(data) // 2)
    model, optimizer, data, scheduler = accelerator.prepare(model, optimizer, data, scheduler)

    losses = []
    for _ in range(epochs):
        for batch, classes in data:
            with accelerator.accumulate(model):
                loss = nn.functional.cross_entropy(model(batch), classes)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            losses.append(loss.item())
    return losses


if __name__ == "__main__":
    losses = main()
    print(f"loss {losses[0]:.3f} → {losses[-1]:.3f}")
