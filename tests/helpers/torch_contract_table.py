"""Every PyTorch optimizer of the package, one row each, and a small model that has all kinds of layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from celo2.torch import Celo2, Celo2Base, Harness

torch.set_num_threads(1)  # of a process that is one of several: two threads would wait for each other


@dataclass(frozen=True)
class Row:
    """One optimizer: the test's id, the class, further keywords."""

    name: str
    factory: Callable[..., Celo2]
    options: Mapping[str, Any] = field(default_factory=dict)

    def make(self, params: Any, lr: Any = 0.01, **options: Any) -> Celo2:
        return self.factory(params, lr, **{**self.options, **options})

    def stored(self, working: torch.dtype) -> set[torch.dtype]:
        """The dtypes of momenta and second moments."""
        dtype = self.options.get("state_dtype", working)
        return {dtype, torch.bfloat16} if dtype == torch.int8 else {dtype}


PARTS = Harness(
    orthogonalizer="none", row_decay=0.9, min_update_ratio=1.0, cautious_decay=True, preserve_norms=True
)
ROWS = (
    Row("celo2", Celo2, {"weight_decay": 0.1}),
    Row("celo2_base", Celo2Base, {"weight_decay": 0.1}),
    Row("celo2_bfloat16", Celo2, {"state_dtype": torch.bfloat16}),
    Row("celo2_int8", Celo2, {"state_dtype": torch.int8}),
    Row("celo2_one_by_one", Celo2, {"maximize": True, "capturable": True, "foreach": False}),
    Row("celo2_harness", Celo2, {"weight_decay": 0.1, "harness": PARTS}),
    Row("celo2_eigenbasis", Celo2, {"weight_decay": 0.1, "harness": Harness(eigenbasis_every=2)}),
)


class Model(nn.Module):
    """Tokens → classes: an embedding, a position, a convolution, attention, an MLP, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(11, 8)
        self.position = nn.Parameter(0.1 * torch.randn(1, 6, 8))
        self.convolution = nn.Conv1d(8, 8, 3, padding=1)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.head = nn.Linear(8, 11)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.position
        x = self.convolution(x.mT).mT
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = x + self.down(self.up(self.norm(x)).relu())
        return self.head(x) * self.scale


TOKENS = torch.arange(24).view(4, 6).remainder(11)


def make_model(seed: int = 0, dtype: torch.dtype = torch.float32) -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Model().to(dtype)


def loss_of(model: nn.Module, tokens: Tensor = TOKENS) -> Tensor:
    """How well each token's successor is told; the sum is the same for any order of evaluation."""
    logits = model(tokens).float()
    return nn.functional.cross_entropy(logits.flatten(0, 1), tokens.roll(1, 1).flatten())


def grad_of(param: Tensor) -> Tensor:
    """The gradient, which there has to be."""
    assert param.grad is not None
    return param.grad


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> list[float]:
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def assert_same(left: nn.Module, right: nn.Module) -> None:
    """Bit for bit."""
    for (name, ours), theirs in zip(left.named_parameters(), right.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def assert_states_same(left: torch.optim.Optimizer, right: torch.optim.Optimizer) -> None:
    """Bit for bit, dtypes included."""
    ours, theirs = left.state_dict()["state"], right.state_dict()["state"]
    assert ours.keys() == theirs.keys()
    for number, state in ours.items():
        assert state.keys() == theirs[number].keys()
        for key, value in state.items():
            assert value.dtype == theirs[number][key].dtype
            assert torch.equal(value, theirs[number][key]), (number, key)
