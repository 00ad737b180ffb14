"""What PyTorch submissions ask about the process: here one process on the CPU."""

from __future__ import annotations

import torch


def pytorch_setup() -> tuple[bool, int, torch.device, int]:
    """Whether processes train together (DDP), this one's rank, its device, and the number of GPUs."""
    return False, 0, torch.device("cpu"), 0
