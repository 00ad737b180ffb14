"""Celo2 for AlgoPerf, in PyTorch.

A learned rule of 347 numbers with Newton–Schulz for hidden matrices, AdamW for the rest (arXiv 2602.19142).

Written by benchmarks/algoperf/generate.py of the celo2 package: not to be edited. The rule is that of the
package, without kernels of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from algoperf import spec
from algoperf.pytorch_utils import pytorch_setup
from torch import Tensor, nn

BASE = False  # Celo2-base: every parameter by the rule, without Newton–Schulz
MANY_PROCESSES, _, DEVICE, _ = pytorch_setup()


# What a trial sets. Under the self-tuning rules `hyperparameters` is None and all of these stand.

DEFAULTS: dict[str, float] = {
    "dropout_rate": 0.1,
    "horizon": 1.0,
    "label_smoothing": 0.1,
    "learning_rate": 0.002,
    "warmup_factor": 0.05,
    "weight_decay": 0.1,
}
LOG_EVERY = 100  # steps


def setting(hyperparameters: Any, name: str) -> Any:
    """The value of the trial, else the default."""
    return getattr(hyperparameters, name, DEFAULTS[name])


class Schedule(NamedTuple):
    """Lengths in steps: of the whole run, after which the learning rate is 0, and of its warm-up."""

    total: int
    warmup: int


def make_schedule(workload: Any, hyperparameters: Any) -> Schedule:
    total = max(int(setting(hyperparameters, "horizon") * workload.step_hint), 1)
    return Schedule(total, int(setting(hyperparameters, "warmup_factor") * total))


# The rule.


# <rule torch celo2 without init update>
# The rule, written by tools/vendor_rule.py from examples/celo2_minimal_torch.py: not to be edited.
ADAMW_SCALE = 20.0  # learning rate of AdamW's share over the rule's
ADAMW_BETAS = (0.9, 0.95)


class Rule(NamedTuple):
    """The learned numbers: the network's 347 weights and seven decays."""

    weights: dict[str, Tensor]
    momentum: list[float]  # three decays
    rms: float
    factored: list[float]  # three decays

    def to(self, *where: Any) -> Rule:
        """The rule on another device or in another dtype, those of the parameters."""
        return self._replace(weights={key: array.to(*where) for key, array in self.weights.items()})


# fmt: off
RULE = Rule(
    weights={
        "w0__0": torch.tensor([
            [0.11375127, -0.11375127, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        ], dtype=torch.float32),
        "w0__1": torch.tensor([
            [0.09868469, -0.09868469, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        ], dtype=torch.float32),
        "w0__2": torch.zeros((1, 8), dtype=torch.float32),
        "w0__3": torch.tensor([
            [0.0004784338, -0.0004784338, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            [0.03721826, -0.03721826, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            [-0.040277198, 0.040277198, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        ], dtype=torch.float32),
        "w0__4": torch.zeros((1, 8), dtype=torch.float32),
        "w0__5": torch.tensor([
            [0.19559765, -0.19559765, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            [0.023755109, -0.023755109, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            [-0.017360024, 0.017360024, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        ], dtype=torch.float32),
        "w0__6": torch.zeros((1, 8), dtype=torch.float32),
        "w0__7": torch.tensor([
            [0.16930087, -0.16930087, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            [0.012514954, -0.012514954, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            [0.046055835, -0.046055835, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        ], dtype=torch.float32),
        "w0__8": torch.tensor([
            [0.08293959, -0.08293959, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        ], dtype=torch.float32),
        "w0__9": torch.zeros((3, 8), dtype=torch.float32),
        "w0__10": torch.zeros((3, 8), dtype=torch.float32),
        "w0__11": torch.zeros((3, 8), dtype=torch.float32),
        "w0__12": torch.zeros((3, 8), dtype=torch.float32),
        "w0__13": torch.tensor([
            [0.09460274, -0.09460274, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            [0.013765628, -0.013765628, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            [0.053697757, -0.053697757, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        ], dtype=torch.float32),
        "b0": torch.zeros((8,), dtype=torch.float32),
        "w1": torch.tensor([
            [1.0, -1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            [-1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        ], dtype=torch.float32),
        "b1": torch.zeros((8,), dtype=torch.float32),
        "w2": torch.tensor([
            [1.0, 0.0, 0.0],
            [-1.0, 0.0, 0.0],
            [0.0, 0.0, 0.0],
            [0.0, 0.0, 0.0],
            [0.0, 0.0, 0.0],
            [0.0, 0.0, 0.0],
            [0.0, 0.0, 0.0],
            [0.0, 0.0, 0.0],
        ], dtype=torch.float32),
        "b2": torch.zeros((3,), dtype=torch.float32),
    },
    momentum=[0.935211, 0.97806, 0.991888],
    rms=0.98188,
    factored=[0.9834, 0.995147, 0.999153],
)
# fmt: on


# 1. Accumulators: exponential moving averages that start at zero and are not bias-corrected.


def largest_axes(shape: torch.Size) -> tuple[int, int]:
    """The second largest and the largest axis; of equal ones, the later counts as larger."""
    second, first = sorted(range(len(shape)), key=lambda axis: shape[axis])[-2:]
    return second, first


def init_leaf(p: Tensor) -> dict[str, Any]:
    r = c = torch.zeros_like(p)  # below rank 2 there are no rows and columns: r is the full second moment
    if p.ndim >= 2:
        second, first = largest_axes(p.shape)
        r, c = r.mean(first, keepdim=True), c.mean(second, keepdim=True)
    return {"m": [torch.zeros_like(p)] * 3, "v": torch.zeros_like(p), "r": [r] * 3, "c": [c] * 3}


def accumulate(rule: Rule, state: dict[str, Any], g: Tensor) -> dict[str, Any]:
    square = g * g + 1e-30
    r = c = square
    if g.ndim >= 2:
        second, first = largest_axes(g.shape)
        r, c = square.mean(first, keepdim=True), square.mean(second, keepdim=True)
    return {
        "m": [beta * m + (1 - beta) * g for m, beta in zip(state["m"], rule.momentum, strict=True)],
        "v": rule.rms * state["v"] + (1 - rule.rms) * g * g,
        "r": [beta * old + (1 - beta) * r for old, beta in zip(state["r"], rule.factored, strict=True)],
        "c": [beta * old + (1 - beta) * c for old, beta in zip(state["c"], rule.factored, strict=True)],
    }


# 2. Features: 30 numbers for each element of a matrix, 15 below rank 2, in the order of the network's inputs.


def compute_features(g: Tensor, p: Tensor, state: dict[str, Any]) -> list[Tensor]:
    m, v, r, c = state["m"], state["v"], state["r"], state["c"]
    rsqrt_v = torch.rsqrt(v + 1e-8)
    if g.ndim < 2:
        factors = [torch.rsqrt(d + 1e-9) for d in r]
    else:  # Adafactor's estimate of 1 / √E[g²] from its row and column means
        second, _ = largest_axes(g.shape)
        rows = [x / (x.mean(second, keepdim=True) + 1e-9) for x in r]
        factors = [torch.rsqrt(x.clamp(min=1e-9)) for x in rows]
        factors = [f * torch.rsqrt(x.clamp(min=1e-9)) for f, x in zip(factors, c, strict=True)]

    features = [g, g.clamp(-0.1, 0.1), p, *m, v]
    features += [x * rsqrt_v for x in m]
    features += [rsqrt_v]
    features += [g * f for f in factors]
    features += [g * rsqrt_v]
    if g.ndim >= 2:
        features += [*r, *c]
        features += [torch.rsqrt(x + 1e-8) for x in (*r, *c)]
        features += [x * f for x, f in zip(m, factors, strict=True)]
    return [x.expand_as(g) for x in features]


def normalize(x: Tensor) -> Tensor:
    """x / rms(x), over the last two axes: each matrix of a stack by itself."""
    return x * torch.rsqrt((x * x).mean(tuple(range(x.ndim))[-2:], keepdim=True) + 1e-9)


# 3. The network, applied to each element by itself: features → 8 → 8 → 3. Output 0 is the direction.


def apply_network(weights: dict[str, Tensor], features: list[Tensor]) -> Tensor:
    x = torch.stack([normalize(feature) for feature in features], dim=-1)
    groups = 14 if x.shape[-1] == 30 else 9  # of rows of the first layer
    w0 = torch.cat([weights[f"w0__{i}"] for i in range(groups)])
    x = torch.relu(x @ w0 + weights["b0"])
    x = torch.relu(x @ weights["w1"] + weights["b1"])
    return (x @ weights["w2"] + weights["b2"])[..., 0]


# 4. Newton–Schulz, as in Muon: moves all singular values of a matrix towards 1.


def orthogonalize(x: Tensor) -> Tensor:
    x = x / (torch.sqrt((x * x).sum((-2, -1), keepdim=True)) + 1e-8)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x  # the product x xᵀ is then the smaller one
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.mT if tall else x


# 5. The step of one tensor: root mean square 1, so that the learning rate alone sets its size.


def rule_step(rule: Rule, g: Tensor, p: Tensor, state: Any, *, base: bool = False) -> tuple[Tensor, Any]:
    """Celo2's un-negated step; without Newton–Schulz for Celo2-base."""
    g = g.clamp(-1000, 1000)
    state = accumulate(rule, state, g)
    direction = apply_network(rule.weights, compute_features(g, p, state))
    if p.ndim >= 2 and not base:
        direction = orthogonalize(direction)
    return normalize(direction), state


def adamw_step(g: Tensor, state: dict[str, Tensor], count: int) -> tuple[Tensor, dict[str, Tensor]]:
    (b1, b2), m, v = ADAMW_BETAS, state["m"], state["v"]
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
    corrected_m, corrected_v = m / (1 - b1**count), v / (1 - b2**count)
    return corrected_m / (torch.sqrt(corrected_v) + 1e-8), {"m": m, "v": v}


# </rule>


# Routing: which parameters are hidden matrices, and along which axes.

ORDERED_BY_HEAD = ("query", "key", "value")  # Flax's names of projections to (heads, head size)
OUTPUT_SIZES = ("_num_classes", "num_classes", "_num_outputs", "_vocab_size", "vocab_size")  # of workloads
MOST_BY_RULE = 1 << 26  # elements; larger tables of Celo2-base would need more memory than a device has


class View(NamedTuple):
    """Matrices in a parameter: the axes of their inputs and outputs, and into how many these are cut."""

    reduction: tuple[int, ...]
    output: tuple[int, ...]
    splits: int = 1


class Entry(NamedTuple):
    """A parameter: its name, its matrices (None: taken as stored), and whether the rule updates it."""

    name: str
    view: View | None
    hidden: bool


def find_view(kind: Any, path: Sequence[str], shape: Sequence[int], *, outputs_first: bool) -> View | None:
    """The matrices of a parameter; None for vectors, and for what is a vector for each channel.

    Args:
        kind: Its `spec.ParameterType`.
        path: The names of its modules, and its own.
        shape: Its shape.
        outputs_first: Whether layers store `(out, in, window…)`, as in PyTorch, or `(window…, in, out)`.
    """
    if sum(size > 1 for size in shape) < 2 or kind.name.endswith(("BIAS", "SCALE")):
        return None
    rank, parent = len(shape), path[-2] if len(path) > 1 else ""
    if kind is spec.ParameterType.CONV_WEIGHT and rank > 2:
        channels, output = (1, 0) if outputs_first else (rank - 2, rank - 1)
        if outputs_first and "transpose" in ".".join(path).lower():
            channels, output = output, channels
        if shape[channels] == 1:
            return None  # depthwise, or the first layer on grey images
        return View(tuple(axis for axis in range(rank) if axis != output), (output,))
    if rank == 3 and parent in ORDERED_BY_HEAD:
        return View((0,), (1, 2))
    if rank == 3 and kind is spec.ParameterType.ATTENTION_OUT:
        return View((0, 1), (2,))
    if rank != 2:
        return None
    view = View((0,), (1,))
    if outputs_first and kind is not spec.ParameterType.EMBEDDING:
        view = View((1,), (0,))
    splits = count_splits(kind, path)
    return view._replace(splits=1 if shape[view.output[0]] % splits else splits)


def count_splits(kind: Any, path: Sequence[str]) -> int:
    """How many matrices a layer keeps side by side: queries, keys and values, or an LSTM's gates."""
    if path[-1].startswith(("weight_ih_l", "weight_hh_l")):
        return 4
    if kind is spec.ParameterType.ATTENTION_QKV or "qkv" in ".".join(path[-2:]):
        return 3
    return 2 if kind is spec.ParameterType.ATTENTION_KV else 1


def says_output(workload: Any, path: Sequence[str]) -> bool:
    """Whether the workload names this as its output layer; some have no answer, or raise an error."""
    for key in {path[0], ".".join(path), "/".join(path)}:
        try:
            if workload.is_output_params(key):
                return True
        except (AttributeError, NotImplementedError):
            continue
    return False


def make_entries(
    workload: Any, params: Sequence[tuple[Sequence[str], Any, Sequence[int]]], *, outputs_first: bool
) -> tuple[Entry, ...]:
    """Routes all parameters, given as path, type and shape.

    A dense layer is the output too if it has as many outputs as the workload has classes or tokens.
    """
    sizes = {size for size in (getattr(workload, name, None) for name in OUTPUT_SIZES) if size}
    entries = []
    for path, kind, shape in params:
        view = find_view(kind, path, shape, outputs_first=outputs_first)
        hidden = view is not None and kind is not spec.ParameterType.EMBEDDING
        if view is not None and hidden:
            by_size = len(shape) == 2 and view.splits == 1 and shape[view.output[0]] in sizes
            hidden = not (by_size or says_output(workload, path))
        by_base = BASE and math.prod(shape) <= MOST_BY_RULE
        entries.append(Entry("/".join(path), view, hidden or by_base))
    return tuple(entries)


def list_params(workload: Any, model: nn.Module) -> list[tuple[list[str], Any, tuple[int, ...]]]:
    """The path, without wrappers, the type and the shape of each parameter."""
    listed = []
    for name, param in model.named_parameters():
        path = [part for part in name.split(".") if part not in ("module", "_orig_mod")]
        listed.append((path, workload.model_params_types[".".join(path)], tuple(param.shape)))
    return listed


# The optimizer.


def to_matrices(entry: Entry, tensor: Tensor) -> list[Tensor]:
    """The matrices `(inputs, outputs)` of a parameter; itself, if it is taken as stored."""
    if entry.view is None:
        return [tensor]
    reduction, output, splits = entry.view
    inputs = math.prod(tensor.shape[axis] for axis in reduction)
    return list(tensor.permute(reduction + output).reshape(inputs, -1).chunk(splits, dim=1))


def from_matrices(entry: Entry, matrices: list[Tensor], shape: Sequence[int]) -> Tensor:
    """Inverts `to_matrices`."""
    if entry.view is None:
        return matrices[0]
    axes = entry.view.reduction + entry.view.output
    tensor = torch.cat(matrices, dim=1).reshape([shape[axis] for axis in axes])
    return tensor.permute(sorted(range(len(axes)), key=axes.__getitem__))


class Optimizer(torch.optim.Optimizer):
    """The rule for hidden matrices, AdamW for the rest, at the learning rate of a warm-up and a cosine.

    Args:
        params: The parameters.
        entries: Where each of them goes.
        peak: The highest learning rate.
        weight_decay: Of the rule's matrices, times their learning rate.
        schedule: The lengths of the run and its warm-up.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        entries: Sequence[Entry],
        peak: float,
        weight_decay: float,
        schedule: Schedule,
    ) -> None:
        super().__init__(params, {"count": 0})
        self.entries = dict(zip(params, entries, strict=True))
        self.rule = RULE.to(DEVICE)
        self.peak, self.weight_decay, self.schedule = peak, weight_decay, schedule

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Changes the parameters by their gradients; one that has none stays."""
        del closure
        for group in self.param_groups:
            rate = learning_rate(self.peak, self.schedule, group["count"])
            group["count"] += 1
            for p in group["params"]:
                if p.grad is not None:
                    self._step_one(p, rate, group["count"])

    def _step_one(self, p: Tensor, rate: float, count: int) -> None:
        entry, state = self.entries[p], self.state[p]
        if not entry.hidden:
            old = state or {"m": torch.zeros_like(p), "v": torch.zeros_like(p)}
            step, new = adamw_step(p.grad, old, count)
            state.update(new)
            p.sub_(ADAMW_SCALE * rate * step)
            return
        matrices = to_matrices(entry, p)
        olds = state.get("matrices") or [init_leaf(matrix) for matrix in matrices]
        found = [
            step_matrix(self.rule, *arrays)
            for arrays in zip(to_matrices(entry, p.grad), matrices, olds, strict=True)
        ]
        state["matrices"] = [new for _, new in found]
        step = from_matrices(entry, [step for step, _ in found], p.shape)
        decay = self.weight_decay if entry.view else 0.0
        p.sub_(rate * (step + decay * p))


def step_matrix(rule: Rule, g: Tensor, p: Tensor, state: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """The rule's step; none, and the old state, where the gradient is exactly zero. Waits for no device."""
    step, new = rule_step(rule, g, p, state, base=BASE)
    busy = (g * g != 0).any()
    kept = {
        key: [torch.where(busy, a, b) for a, b in zip(value, state[key], strict=True)]
        if isinstance(value, list)
        else torch.where(busy, value, state[key])
        for key, value in new.items()
    }
    return torch.where(busy, step, 0.0), kept


def learning_rate(peak: float, schedule: Schedule, count: int) -> float:
    """The rate of a step, given how many came before: linear warm-up, then a cosine to zero."""
    rise = min((count + 1) / max(schedule.warmup, 1), 1.0)
    share = (count - schedule.warmup) / max(schedule.total - schedule.warmup, 1)
    return peak * rise * 0.5 * (1 + math.cos(math.pi * min(max(share, 0.0), 1.0)))


# Training. In several processes each has a part of the batch, and gradients are averaged over them.


def init_optimizer_state(
    workload: Any, model_params: nn.Module, model_state: Any, hyperparameters: Any, rng: Any
) -> dict[str, Any]:
    """The optimizer, whose state dict checkpoints hold."""
    del model_state, rng
    entries = make_entries(workload, list_params(workload, model_params), outputs_first=True)
    peak, decay = (setting(hyperparameters, name) for name in ("learning_rate", "weight_decay"))
    schedule = make_schedule(workload, hyperparameters)
    return {"optimizer": Optimizer(list(model_params.parameters()), entries, peak, decay, schedule)}


def mean_loss(summed: Tensor, n_valid: Any) -> tuple[Tensor, Tensor]:
    """The loss whose gradients, averaged over the processes, are those of the mean; and that mean."""
    n_valid = torch.as_tensor(n_valid, dtype=summed.dtype, device=summed.device)
    if not MANY_PROCESSES:
        return summed / n_valid, (summed / n_valid).detach()
    totals = torch.stack([summed.detach(), n_valid])
    torch.distributed.all_reduce(totals)
    return summed * torch.distributed.get_world_size() / totals[1], totals[0] / totals[1]


def grad_norm(model: nn.Module) -> Tensor:
    """The norm of all gradients, which stay as they are."""
    norms = [torch.linalg.vector_norm(p.grad.float()) for p in model.parameters() if p.grad is not None]
    return torch.linalg.vector_norm(torch.stack(norms))


def update_params(
    workload: Any,
    current_param_container: nn.Module,
    current_params_types: Any,
    model_state: Any,
    hyperparameters: Any,
    batch: dict[str, Any],
    loss_type: Any,
    optimizer_state: dict[str, Any],
    eval_results: Any,
    global_step: int,
    rng: Any,
    train_state: dict[str, Any] | None = None,
) -> tuple[Any, Any, Any]:
    """One step: the optimizer state and the model, both changed in place, and the model state."""
    del current_params_types, loss_type, eval_results, train_state
    model, optimizer = current_param_container, optimizer_state["optimizer"]
    model.train()
    optimizer.zero_grad()
    mode, dropout_rate = spec.ForwardPassMode.TRAIN, setting(hyperparameters, "dropout_rate")
    logits, model_state = workload.model_fn(
        model, batch, model_state, mode, rng, update_batch_norm=True, dropout_rate=dropout_rate
    )
    found = workload.loss_fn(
        label_batch=batch["targets"],
        logits_batch=logits,
        mask_batch=batch.get("weights"),
        label_smoothing=setting(hyperparameters, "label_smoothing"),
    )
    loss, mean = mean_loss(found["summed"], found["n_valid_examples"])
    loss.backward()
    optimizer.step()
    if workload.metrics_logger is not None and global_step % LOG_EVERY == 0:
        numbers = {"loss": float(mean), "grad_norm": float(grad_norm(model))}
        workload.metrics_logger.append_scalar_metrics(numbers, global_step)
    return optimizer_state, model, model_state


# What is the same in all submissions.

BATCH_SIZES = {  # the benchmark's own baseline has the same
    "cifar": 16384,
    "criteo1tb": 262_144,
    "fastmri": 32,
    "finewebedu_lm": 64,
    "imagenet_resnet": 1024,
    "imagenet_resnet_gelu": 512,
    "imagenet_resnet_silu": 512,
    "imagenet_vit": 1024,
    "librispeech_conformer": 256,
    "librispeech_deepspeech": 256,
    "mnist": 16,
    "ogbg": 512,
    "wmt": 128,
}


def get_batch_size(workload_name: str) -> int:
    """The global batch size; a variant has that of the workload whose name it begins with."""
    known = [name for name in BATCH_SIZES if workload_name.startswith(name)]
    if not known:
        raise ValueError(f"no batch size for workload {workload_name!r}; there are {', '.join(BATCH_SIZES)}.")
    return BATCH_SIZES[max(known, key=len)]


def data_selection(
    workload: Any,
    input_queue: Iterator[dict[str, Any]],
    optimizer_state: Any,
    current_param_container: Any,
    model_state: Any,
    hyperparameters: Any,
    global_step: int,
    rng: Any,
) -> dict[str, Any]:
    """The next batch."""
    del workload, optimizer_state, current_param_container, model_state, hyperparameters, global_step, rng
    return next(input_queue)


def prepare_for_eval(
    workload: Any,
    current_param_container: Any,
    current_params_types: Any,
    model_state: Any,
    hyperparameters: Any,
    loss_type: Any,
    optimizer_state: Any,
    eval_results: Any,
    global_step: int,
    rng: Any,
) -> tuple[Any, Any, Any]:
    """Evaluation takes the parameters as they are."""
    del workload, current_params_types, hyperparameters, loss_type, eval_results, global_step, rng
    return optimizer_state, current_param_container, model_state
