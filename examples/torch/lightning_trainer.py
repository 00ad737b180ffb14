"""Trains a small network with Celo2 in Lightning.

pip install lightning
python examples/torch/lightning_trainer.py
"""

from __future__ import annotations

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from celo2.torch import Celo2


class Classifier(lightning.LightningModule):
    def __init__(self, steps: int):
        super().__init__()
        self.steps = steps
        self.layers = nn.Sequential(
            nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)
        )
        self.losses: list[float] = []

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        inputs, classes = batch
        loss = nn.functional.cross_entropy(self.layers(inputs), classes)
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> dict:
        optimizer = Celo2(self, lr=3e-3, weight_decay=0.1)  # a sharding strategy has already sharded it
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def main(steps: int = 60) -> list[float]:
    lightning.seed_everything(0, verbose=False)
    inputs = torch.randn(256, 8)
    data = DataLoader(TensorDataset(inputs, inputs[:, :4].argmax(1)), batch_size=64, shuffle=True)
    model = Classifier(steps)
    trainer = lightning.Trainer(
        max_steps=steps,
        accelerator="cpu",
        devices=1,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, data)
    return model.losses


if __name__ == "__main__":
    losses = main()
    print(f"loss {losses[0]:.3f} → {losses[-1]:.3f}")
