"""Trains a small language model with Celo2 in the Hugging Face Trainer.

The model has random weights and the text is generated, so nothing is downloaded.

pip install transformers accelerate
python examples/torch/huggingface_trainer.py
"""

from __future__ import annotations

import tempfile

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainingArguments,
    get_cosine_schedule_with_warmup,
)

from celo2.torch import Celo2


def make_text(rows: int = 64, length: int = 16, vocabulary: int = 32) -> list[dict[str, torch.Tensor]]:
    """Makes rows that count in steps, whose size must be inferred from the start of the row."""
    rows_of_tokens = [torch.arange(length) * (1 + row % 3) + row for row in range(rows)]
    return [{"input_ids": row % vocabulary, "labels": row % vocabulary} for row in rows_of_tokens]


def main(steps: int = 40) -> list[float]:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_positions=16, n_embd=32, n_layer=2, n_head=2))

    optimizer = Celo2(model, lr=3e-3, weight_decay=0.1, adamw_lr_scale=5.0)
    print(optimizer)  # the tied embedding and head get AdamW
    scheduler = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=16,
            max_grad_norm=1.0,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = Trainer(model, arguments, train_dataset=make_text(), optimizers=(optimizer, scheduler))
        trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


if __name__ == "__main__":
    losses = main()
    print(f"loss {losses[0]:.3f} → {losses[-1]:.3f}")
