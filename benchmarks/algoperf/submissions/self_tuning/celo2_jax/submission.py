"""Celo2 for AlgoPerf, in JAX.

A learned rule of 347 numbers with Newton–Schulz for hidden matrices, AdamW for the rest (arXiv 2602.19142).

Written by benchmarks/algoperf/generate.py of the celo2 package: not to be edited. The rule is that of the
package, without kernels of its own; small matrices of equal shape are updated together.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from algoperf import jax_sharding_utils, spec
from jax import Array, lax

BASE = False  # Celo2-base: every parameter by the rule, without Newton–Schulz
TOGETHER = 1 << 22  # elements that are computed at once; the rule needs memory for 30 times as many


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


# <rule jax celo2 without init update>
# The rule, written by tools/vendor_rule.py from examples/celo2_minimal.py: not to be edited.
ADAMW_SCALE = 20.0  # learning rate of AdamW's share over the rule's
ADAMW_BETAS = (0.9, 0.95)


class Rule(NamedTuple):
    """The learned numbers: the network's 347 weights and seven decays."""

    weights: dict[str, np.ndarray]
    momentum: list[float]  # three decays
    rms: float
    factored: list[float]  # three decays


# fmt: off
RULE = Rule(
    weights={
        "w0__0": np.array([
            [0.11375127, -0.11375127, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        ], np.float32),
        "w0__1": np.array([
            [0.09868469, -0.09868469, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        ], np.float32),
        "w0__2": np.zeros((1, 8), np.float32),
        "w0__3": np.array([
            [0.0004784338, -0.0004784338, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            [0.03721826, -0.03721826, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            [-0.040277198, 0.040277198, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        ], np.float32),
        "w0__4": np.zeros((1, 8), np.float32),
        "w0__5": np.array([
            [0.19559765, -0.19559765, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            [0.023755109, -0.023755109, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            [-0.017360024, 0.017360024, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        ], np.float32),
        "w0__6": np.zeros((1, 8), np.float32),
        "w0__7": np.array([
            [0.16930087, -0.16930087, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            [0.012514954, -0.012514954, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            [0.046055835, -0.046055835, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        ], np.float32),
        "w0__8": np.array([
            [0.08293959, -0.08293959, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        ], np.float32),
        "w0__9": np.zeros((3, 8), np.float32),
        "w0__10": np.zeros((3, 8), np.float32),
        "w0__11": np.zeros((3, 8), np.float32),
        "w0__12": np.zeros((3, 8), np.float32),
        "w0__13": np.array([
            [0.09460274, -0.09460274, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            [0.013765628, -0.013765628, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            [0.053697757, -0.053697757, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        ], np.float32),
        "b0": np.zeros((8,), np.float32),
        "w1": np.array([
            [1.0, -1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            [-1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        ], np.float32),
        "b1": np.zeros((8,), np.float32),
        "w2": np.array([
            [1.0, 0.0, 0.0],
            [-1.0, 0.0, 0.0],
            [0.0, 0.0, 0.0],
            [0.0, 0.0, 0.0],
            [0.0, 0.0, 0.0],
            [0.0, 0.0, 0.0],
            [0.0, 0.0, 0.0],
            [0.0, 0.0, 0.0],
        ], np.float32),
        "b2": np.zeros((3,), np.float32),
    },
    momentum=[0.935211, 0.97806, 0.991888],
    rms=0.98188,
    factored=[0.9834, 0.995147, 0.999153],
)
# fmt: on


# 1. Accumulators: exponential moving averages that start at zero and are not bias-corrected.


def largest_axes(shape: tuple[int, ...]) -> tuple[int, int]:
    """The second largest and the largest axis; of equal ones, the later counts as larger."""
    second, first = np.argsort(shape, kind="stable")[-2:]
    return int(second), int(first)


def init_leaf(p: Array) -> dict[str, Any]:
    r = c = jnp.zeros_like(p)  # below rank 2 there are no rows and columns: r is the full second moment
    if p.ndim >= 2:
        second, first = largest_axes(p.shape)
        r, c = jnp.mean(r, first, keepdims=True), jnp.mean(c, second, keepdims=True)
    return {"m": [jnp.zeros_like(p)] * 3, "v": jnp.zeros_like(p), "r": [r] * 3, "c": [c] * 3}


def accumulate(rule: Rule, state: dict[str, Any], g: Array) -> dict[str, Any]:
    square = g * g + 1e-30
    r = c = square
    if g.ndim >= 2:
        second, first = largest_axes(g.shape)
        r, c = jnp.mean(square, first, keepdims=True), jnp.mean(square, second, keepdims=True)
    return {
        "m": [beta * m + (1 - beta) * g for m, beta in zip(state["m"], rule.momentum, strict=True)],
        "v": rule.rms * state["v"] + (1 - rule.rms) * g * g,
        "r": [beta * old + (1 - beta) * r for old, beta in zip(state["r"], rule.factored, strict=True)],
        "c": [beta * old + (1 - beta) * c for old, beta in zip(state["c"], rule.factored, strict=True)],
    }


# 2. Features: 30 numbers for each element of a matrix, 15 below rank 2, in the order of the network's inputs.


def compute_features(g: Array, p: Array, state: dict[str, Any]) -> list[Array]:
    m, v, r, c = state["m"], state["v"], state["r"], state["c"]
    rsqrt_v = lax.rsqrt(v + 1e-8)
    if g.ndim < 2:
        factors = [lax.rsqrt(d + 1e-9) for d in r]
    else:  # Adafactor's estimate of 1 / √E[g²] from its row and column means
        second, _ = largest_axes(g.shape)
        rows = [x / (jnp.mean(x, second, keepdims=True) + 1e-9) for x in r]
        factors = [lax.rsqrt(jnp.maximum(x, 1e-9)) for x in rows]
        factors = [f * lax.rsqrt(jnp.maximum(x, 1e-9)) for f, x in zip(factors, c, strict=True)]

    features = [g, jnp.clip(g, -0.1, 0.1), p, *m, v]
    features += [x * rsqrt_v for x in m]
    features += [rsqrt_v]
    features += [g * f for f in factors]
    features += [g * rsqrt_v]
    if g.ndim >= 2:
        features += [*r, *c]
        features += [lax.rsqrt(x + 1e-8) for x in (*r, *c)]
        features += [x * f for x, f in zip(m, factors, strict=True)]
    return [jnp.broadcast_to(x, g.shape) for x in features]


def normalize(x: Array) -> Array:
    """x / rms(x), over the last two axes: each matrix of a stack by itself."""
    return x * lax.rsqrt(jnp.mean(x * x, tuple(range(x.ndim))[-2:], keepdims=True) + 1e-9)


# 3. The network, applied to each element by itself: features → 8 → 8 → 3. Output 0 is the direction.


def apply_network(weights: dict[str, np.ndarray], features: list[Array]) -> Array:
    x = jnp.stack([normalize(feature) for feature in features], axis=-1)
    groups = 14 if x.shape[-1] == 30 else 9  # of rows of the first layer
    w0 = np.concatenate([weights[f"w0__{i}"] for i in range(groups)])
    x = jax.nn.relu(x @ w0 + weights["b0"])
    x = jax.nn.relu(x @ weights["w1"] + weights["b1"])
    return (x @ weights["w2"] + weights["b2"])[..., 0]


# 4. Newton–Schulz, as in Muon: moves all singular values of a matrix towards 1.


def orthogonalize(x: Array) -> Array:
    x = x / (jnp.sqrt(jnp.sum(x * x, (-2, -1), keepdims=True)) + 1e-8)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x  # the product x xᵀ is then the smaller one
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.mT if tall else x


# 5. The step of one array: root mean square 1, so that the learning rate alone sets its size.


def rule_step(rule: Rule, g: Array, p: Array, state: Any, *, base: bool = False) -> tuple[Array, Any]:
    """Celo2's un-negated step; without Newton–Schulz for Celo2-base."""
    g = jnp.clip(g, -1000, 1000)
    state = accumulate(rule, state, g)
    direction = apply_network(rule.weights, compute_features(g, p, state))
    if p.ndim >= 2 and not base:
        direction = orthogonalize(direction)
    return normalize(direction), state


def adamw_step(g: Array, state: dict[str, Array], count: Array) -> tuple[Array, dict[str, Array]]:
    (b1, b2), m, v = ADAMW_BETAS, state["m"], state["v"]
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
    corrected_m, corrected_v = m / (1 - b1**count), v / (1 - b2**count)
    return corrected_m / (jnp.sqrt(corrected_v) + 1e-8), {"m": m, "v": v}


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


def list_params(workload: Any, params: Any) -> list[tuple[list[str], Any, tuple[int, ...]]]:
    """The path, type and shape of each parameter; the tree of types has its names in lower case."""
    listed = []
    for keys, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        path = [str(getattr(key, "key", key)) for key in keys]
        kind = workload.model_params_types
        for name in path:
            kind = kind[name if name in kind else name.lower()]
        listed.append((path, kind, leaf.shape))
    return listed


# The optimizer. Its state: for each shape of matrices, their accumulators, stacked; for AdamW, by parameter.


def to_matrices(entry: Entry, array: Array) -> Array:
    """The matrices `(inputs, outputs)` of a parameter, stacked; itself, if it is taken as stored."""
    if entry.view is None:
        return array[None]
    reduction, output, splits = entry.view
    inputs = math.prod(array.shape[axis] for axis in reduction)
    parts = array.transpose(reduction + output).reshape(inputs, splits, array.size // inputs // splits)
    return jnp.swapaxes(parts, 0, 1)


def from_matrices(entry: Entry, matrices: Array, shape: Sequence[int]) -> Array:
    """Inverts `to_matrices`."""
    if entry.view is None:
        return matrices[0]
    axes = entry.view.reduction + entry.view.output
    array = jnp.swapaxes(matrices, 0, 1).reshape([shape[axis] for axis in axes])
    return array.transpose(np.argsort(axes))


class Plan(NamedTuple):
    """All parameters, and the indices of the rule's by the shape of their matrices."""

    entries: tuple[Entry, ...]
    groups: dict[str, list[int]]


def make_plan(workload: Any, params: Any) -> Plan:
    leaves, groups = jax.tree.leaves(params), {}
    entries = make_entries(workload, list_params(workload, params), outputs_first=False)
    for index, (entry, leaf) in enumerate(zip(entries, leaves, strict=True)):
        if entry.hidden:
            shape = jax.eval_shape(functools.partial(to_matrices, entry), leaf).shape[1:]
            groups.setdefault("x".join(map(str, shape)) or "scalar", []).append(index)
    return Plan(entries, groups)


def stack(plan: Plan, key: str, arrays: Sequence[Array]) -> Array:
    """All matrices of one shape."""
    return jnp.concatenate([to_matrices(plan.entries[index], arrays[index]) for index in plan.groups[key]])


def init_state(plan: Plan, leaves: Sequence[Array]) -> dict[str, Any]:
    rule = {key: jax.vmap(init_leaf)(stack(plan, key, leaves)) for key in plan.groups}
    adamw = {
        entry.name: {"m": jnp.zeros_like(leaf), "v": jnp.zeros_like(leaf)}
        for entry, leaf in zip(plan.entries, leaves, strict=True)
        if not entry.hidden
    }
    return {"count": jnp.zeros((), jnp.int32), "rule": rule, "adamw": adamw}


def step_matrix(g: Array, p: Array, state: dict[str, Any]) -> tuple[Array, dict[str, Any]]:
    """The rule's step; none, and the old state, where the gradient is exactly zero."""
    step, new = rule_step(RULE, g, p, state, base=BASE)
    busy = jnp.any(g * g != 0)
    return jnp.where(busy, step, 0.0), jax.tree.map(lambda a, b: jnp.where(busy, a, b), new, state)


def rule_steps(plan: Plan, key: str, grads: Sequence[Array], params: Sequence[Array], state: Any) -> Any:
    """The steps of the parameters with matrices of one shape, by index, and the new state."""
    arrays = (stack(plan, key, grads), stack(plan, key, params), state)
    if arrays[0].size <= TOGETHER:
        stacked, state = jax.vmap(step_matrix)(*arrays)
    else:
        stacked, state = lax.map(lambda matrix: step_matrix(*matrix), arrays)
    steps, start = {}, 0
    for index in plan.groups[key]:
        entry = plan.entries[index]
        end = start + (entry.view.splits if entry.view else 1)
        steps[index] = from_matrices(entry, stacked[start:end], params[index].shape)
        start = end
    return steps, state


def learning_rate(hyperparameters: Any, schedule: Schedule, count: Array) -> Array:
    """The rate of a step, given how many came before: linear warm-up, then a cosine to zero."""
    count = jnp.asarray(count, jnp.float32)
    rise = jnp.minimum((count + 1.0) / max(schedule.warmup, 1), 1.0)
    share = (count - schedule.warmup) / max(schedule.total - schedule.warmup, 1)
    fall = 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.clip(share, 0.0, 1.0)))
    return setting(hyperparameters, "learning_rate") * rise * fall


def make_optimizer(workload: Any, params: Any, hyperparameters: Any) -> tuple[Any, Callable[..., Any]]:
    """The initial state, and `update(grads, state, params, loss) → params, state`."""
    plan = make_plan(workload, params)
    schedule, decay = make_schedule(workload, hyperparameters), setting(hyperparameters, "weight_decay")

    def update(grads: Any, state: dict[str, Any], params: Any, loss: Array) -> tuple[Any, dict[str, Any]]:
        del loss
        grads, olds = as_float32(grads), as_float32(params)
        rate, count = learning_rate(hyperparameters, schedule, state["count"]), state["count"] + 1
        new, rule, adamw = list(olds), {}, {}
        for key, old in state["rule"].items():
            steps, rule[key] = rule_steps(plan, key, grads, olds, old)
            for index, step in steps.items():
                p = olds[index]
                new[index] = p - rate * (step + (decay if plan.entries[index].view else 0.0) * p)
        for index, entry in enumerate(plan.entries):
            if not entry.hidden:
                old = state["adamw"][entry.name]
                step, adamw[entry.name] = adamw_step(grads[index], old, count.astype(jnp.float32))
                new[index] = olds[index] - ADAMW_SCALE * rate * step
        return like_params(new, params), {"count": count, "rule": rule, "adamw": adamw}

    return jax.jit(functools.partial(init_state, plan))(as_float32(params)), update


# Training: one jitted step, with the batch divided among the devices and everything else on each of them.


class Training(NamedTuple):
    """What is fixed when the step is compiled."""

    dropout_rate: float
    label_smoothing: float


def as_float32(tree: Any) -> list[Array]:
    """The leaves in the dtype of the optimizer; some workloads keep parameters in bfloat16."""
    return [leaf.astype(jnp.float32) for leaf in jax.tree.leaves(tree)]


def like_params(leaves: Sequence[Array], params: Any) -> Any:
    """New parameters in the structure and the dtypes of the old, so that nothing is compiled anew."""
    olds, treedef = jax.tree.flatten(params)
    return treedef.unflatten([new.astype(old.dtype) for new, old in zip(leaves, olds, strict=True)])


def train_step(
    workload: Any,
    update: Callable[..., Any],
    training: Training,
    state: Any,
    params: Any,
    model_state: Any,
    batch: dict[str, Any],
    rng: Any,
) -> tuple[Any, Any, Any, dict[str, Array]]:
    def mean_loss(params: Any) -> tuple[Array, Any]:
        mode = spec.ForwardPassMode.TRAIN
        logits, new_model_state = workload.model_fn(
            params, batch, model_state, mode, rng, update_batch_norm=True, dropout_rate=training.dropout_rate
        )
        found = workload.loss_fn(
            label_batch=batch["targets"],
            logits_batch=logits,
            mask_batch=batch.get("weights"),
            label_smoothing=training.label_smoothing,
        )
        return found["summed"] / found["n_valid_examples"], new_model_state

    (loss, model_state), grads = jax.value_and_grad(mean_loss, has_aux=True)(params)
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in as_float32(grads)))
    params, state = update(grads, state, params, loss)
    return state, params, model_state, {"loss": loss, "grad_norm": norm}


@functools.cache
def jit_train_step() -> Callable[..., Any]:
    """The compiled step; made when it is first needed, since it asks for the devices."""
    same, divided = jax_sharding_utils.get_replicate_sharding(), jax_sharding_utils.get_batch_dim_sharding()
    return jax.jit(
        train_step,
        static_argnums=(0, 1, 2),
        donate_argnums=(3, 4, 5),
        in_shardings=(same, same, same, divided, same),
        out_shardings=same,
    )


def replicate(tree: Any) -> Any:
    """A tree with its arrays on each device; arrays that are elsewhere would be another program's."""
    same = jax_sharding_utils.get_replicate_sharding()
    if all(getattr(leaf, "sharding", None) == same for leaf in jax.tree.leaves(tree)):
        return tree
    return jax.device_put(tree, same)


def init_optimizer_state(
    workload: Any, model_params: Any, model_state: Any, hyperparameters: Any, rng: Any
) -> tuple[Any, Callable[..., Any]]:
    """The state as a tree of arrays, which checkpoints hold, and the function that updates with it."""
    del model_state, rng
    return make_optimizer(workload, model_params, hyperparameters)


def update_params(
    workload: Any,
    current_param_container: Any,
    current_params_types: Any,
    model_state: Any,
    hyperparameters: Any,
    batch: dict[str, Any],
    loss_type: Any,
    optimizer_state: tuple[Any, Callable[..., Any]],
    eval_results: Any,
    global_step: int,
    rng: Any,
    train_state: dict[str, Any] | None = None,
) -> tuple[Any, Any, Any]:
    """One step: the new optimizer state, parameters and model state."""
    del current_params_types, loss_type, eval_results, train_state
    state, update = optimizer_state
    training = Training(*(setting(hyperparameters, name) for name in Training._fields))
    trees = replicate((state, current_param_container, model_state))
    state, params, model_state, metrics = jit_train_step()(workload, update, training, *trees, batch, rng)
    if workload.metrics_logger is not None and global_step % LOG_EVERY == 0:
        numbers = {name: float(value) for name, value in metrics.items()}
        workload.metrics_logger.append_scalar_metrics(numbers, global_step)
    return (state, update), params, model_state


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
