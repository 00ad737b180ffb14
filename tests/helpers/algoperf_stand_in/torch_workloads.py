"""Two PyTorch workloads in miniature: fused attention, and convolutions with batch norm."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from . import batches, spec


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(batches.WIDTH), nn.LayerNorm(batches.WIDTH)
        self.attention = nn.MultiheadAttention(batches.WIDTH, batches.HEADS, batch_first=True)
        self.linear1 = nn.Linear(batches.WIDTH, batches.HIDDEN)
        self.linear2 = nn.Linear(batches.HIDDEN, batches.WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        inputs = self.norm_1(x)
        future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        x = x + self.attention(inputs, inputs, inputs, attn_mask=future, need_weights=False)[0]
        return x + self.linear2(nn.functional.gelu(self.linear1(self.norm_2(x))))


class TransformerModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(batches.VOCABULARY, batches.WIDTH)
        nn.init.normal_(self.embed_tokens.weight, std=0.2)
        self.block = Block()
        self.linear1 = nn.Linear(batches.WIDTH, batches.VOCABULARY)  # the output; the block has another

    def forward(self, inputs: Tensor, dropout_rate: float = 0.0) -> Tensor:
        x = nn.functional.dropout(self.embed_tokens(inputs.long()), dropout_rate, self.training)
        return self.linear1(self.block(x))


class ConvolutionModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        sizes = (batches.CHANNELS, *batches.FILTERS)
        self.conv1 = nn.Conv2d(sizes[0], sizes[1], 3, padding=1, bias=False)
        self.batch_norm1 = nn.BatchNorm2d(sizes[1])
        self.conv2 = nn.Conv2d(sizes[1], sizes[2], 3, padding=1, bias=False)
        self.batch_norm2 = nn.BatchNorm2d(sizes[2])
        self.fc = nn.Linear(sizes[2], batches.CLASSES)

    def forward(self, images: Tensor, dropout_rate: float = 0.0) -> Tensor:
        del dropout_rate
        x = torch.relu(self.batch_norm1(self.conv1(images.permute(0, 3, 1, 2))))
        x = torch.relu(self.batch_norm2(self.conv2(x)))
        return self.fc(x.mean((2, 3)))


class TorchWorkload(spec.Workload):
    model: type[nn.Module]
    queue: Any

    def init_model_fn(self, seed: int) -> tuple[nn.Module, None]:
        torch.manual_seed(seed)
        model = self.model()
        self.model_params_types = {name: spec.find_type(name) for name, _ in model.named_parameters()}
        return model, None

    def model_fn(
        self,
        params: nn.Module,
        augmented_and_preprocessed_input_batch: dict[str, Tensor],
        model_state: Any,
        mode: spec.ForwardPassMode,
        rng: Any,
        update_batch_norm: bool,
        dropout_rate: float = 0.0,
    ) -> tuple[Tensor, None]:
        del model_state, rng, update_batch_norm
        params.train(mode == spec.ForwardPassMode.TRAIN)
        return params(augmented_and_preprocessed_input_batch["inputs"], dropout_rate), None

    def loss_fn(
        self,
        label_batch: Tensor,
        logits_batch: Tensor,
        mask_batch: Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> dict[str, Any]:
        losses = nn.functional.cross_entropy(
            logits_batch.flatten(0, -2),
            label_batch.long().flatten(),
            reduction="none",
            label_smoothing=label_smoothing,
        )
        mask = torch.ones_like(losses) if mask_batch is None else mask_batch.flatten()
        return {"summed": (losses * mask).sum(), "n_valid_examples": mask.sum(), "per_example": losses}


class Transformer(TorchWorkload):
    model, queue = TransformerModel, staticmethod(batches.make_tokens)

    def is_output_params(self, param_key: str) -> bool:
        return param_key in ("linear1.weight", "linear1.bias")


class Convolution(TorchWorkload):
    """It raises an error where it is asked for its output layer."""

    model, queue = ConvolutionModel, staticmethod(batches.make_images)
    _num_classes = batches.CLASSES

    def is_output_params(self, param_key: str) -> bool:
        return param_key.contains("fc")  # type: ignore[attr-defined]


WORKLOADS: dict[str, type[TorchWorkload]] = {"transformer": Transformer, "convolution": Convolution}


class Run:
    """A training run of a submission, one step at a time."""

    def __init__(self, submission: Any, workload: TorchWorkload, hyperparameters: Any) -> None:
        self.submission, self.workload, self.hyperparameters = submission, workload, hyperparameters
        self.global_step, self.rng = 0, [0, 0]
        self.batches: Iterator[dict[str, Any]] = type(workload).queue()
        self.params, self.model_state = workload.init_model_fn(1)
        self.optimizer_state = submission.init_optimizer_state(
            workload, self.params, self.model_state, hyperparameters, self.rng
        )

    @torch.no_grad()
    def evaluate(self, batch: dict[str, Tensor]) -> float:
        logits = self.params(batch["inputs"])
        found = self.workload.loss_fn(batch["targets"], logits, batch.get("weights"))
        return float(found["summed"] / found["n_valid_examples"])

    def step(self) -> float:
        """Takes a step, and returns the batch's loss before it, as training sees it."""
        about = (self.hyperparameters, self.global_step, self.rng)
        chosen = self.submission.data_selection(
            self.workload, self.batches, self.optimizer_state, self.params, self.model_state, *about
        )
        batch = {name: torch.from_numpy(array.copy()) for name, array in chosen.items()}
        loss = self.evaluate(batch)
        self.optimizer_state, self.params, self.model_state = self.submission.update_params(
            workload=self.workload,
            current_param_container=self.params,
            current_params_types=self.workload.model_params_types,
            model_state=self.model_state,
            hyperparameters=self.hyperparameters,
            batch=batch,
            loss_type=self.workload.loss_type,
            optimizer_state=self.optimizer_state,
            eval_results=[],
            global_step=self.global_step,
            rng=self.rng,
            train_state={"accumulated_submission_time": 0.0},
        )
        self.global_step += 1
        return loss
