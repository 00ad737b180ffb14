"""Two JAX workloads in miniature, with parameters named and shaped as Flax does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from . import batches, spec

Tree = dict[str, Any]


class JaxWorkload(spec.Workload):
    queue: Any

    def init_model_fn(self, rng: Array) -> tuple[Tree, Any]:
        params = _draw(self.shapes(), np.random.default_rng(int(rng[-1])))
        self.model_params_types = _find_types(params)
        return params, self.model_state()

    def shapes(self) -> Tree:
        """The shape of each parameter."""
        raise NotImplementedError

    def model_state(self) -> Any:
        """Batch statistics, for those that have them."""
        return None

    def loss_fn(
        self,
        label_batch: Array,
        logits_batch: Array,
        mask_batch: Array | None = None,
        label_smoothing: float = 0.0,
    ) -> Tree:
        logs = jax.nn.log_softmax(logits_batch)
        picked = jnp.take_along_axis(logs, label_batch[..., None], axis=-1)[..., 0]
        losses = -(1 - label_smoothing) * picked - label_smoothing * jnp.mean(logs, axis=-1)
        mask = jnp.ones_like(losses) if mask_batch is None else mask_batch
        return {"summed": jnp.sum(losses * mask), "n_valid_examples": jnp.sum(mask), "per_example": losses}


class Transformer(JaxWorkload):
    """One block on tokens, with a scalar in bfloat16; `Dense_0` is the output layer at the top, and a hidden
    one in the block.
    """

    queue = staticmethod(batches.make_tokens)

    def is_output_params(self, param_key: str) -> bool:
        return param_key == "Dense_0"

    def shapes(self) -> Tree:
        width, heads, hidden = batches.WIDTH, batches.HEADS, batches.HIDDEN
        size = width // heads
        norm = {"scale": (width,), "bias": (width,)}
        attention: Tree = {
            name: {"kernel": (width, heads, size), "bias": (heads, size)}
            for name in ("query", "key", "value")
        }
        attention["out"] = {"kernel": (heads, size, width), "bias": (width,)}
        block = {
            "LayerNorm_0": norm,
            "MultiHeadDotProductAttention_0": attention,
            "attn_scale": (),
            "LayerNorm_1": norm,
            "Dense_0": {"kernel": (width, hidden), "bias": (hidden,)},
            "Dense_1": {"kernel": (hidden, width), "bias": (width,)},
        }
        return {
            "Embed_0": {"embedding": (batches.VOCABULARY, width)},
            "EncoderBlock_0": block,
            "Dense_0": {"kernel": (width, batches.VOCABULARY), "bias": (batches.VOCABULARY,)},
        }

    def model_fn(
        self,
        params: Tree,
        batch: Tree,
        model_state: Any,
        mode: spec.ForwardPassMode,
        rng: Array,
        update_batch_norm: bool,
        dropout_rate: float = 0.1,
    ) -> tuple[Array, Any]:
        del model_state, update_batch_norm
        x = params["Embed_0"]["embedding"][batch["inputs"]]
        if mode == spec.ForwardPassMode.TRAIN:
            x = x * jax.random.bernoulli(rng, 1 - dropout_rate, x.shape).astype(x.dtype) / (1 - dropout_rate)
        block = params["EncoderBlock_0"]
        attention, scale = block["MultiHeadDotProductAttention_0"], block["attn_scale"]
        x = x + _attend(attention, scale, _layer_norm(block["LayerNorm_0"], x))
        hidden = jax.nn.gelu(_dense(block["Dense_0"], _layer_norm(block["LayerNorm_1"], x)))
        return _dense(params["Dense_0"], x + _dense(block["Dense_1"], hidden)), None


class Convolution(JaxWorkload):
    """Two convolutions with batch norm; it does not say which layer is the output, but how many classes."""

    queue = staticmethod(batches.make_images)
    _num_classes = batches.CLASSES

    def shapes(self) -> Tree:
        first, second = batches.FILTERS
        return {
            "Conv_0": {"kernel": (3, 3, batches.CHANNELS, first)},
            "BatchNorm_0": {"scale": (first,), "bias": (first,)},
            "Conv_1": {"kernel": (3, 3, first, second)},
            "BatchNorm_1": {"scale": (second,), "bias": (second,)},
            "Dense_0": {"kernel": (second, batches.CLASSES), "bias": (batches.CLASSES,)},
        }

    def model_state(self) -> Tree:
        sizes = dict(zip(("BatchNorm_0", "BatchNorm_1"), batches.FILTERS, strict=True))
        return {name: {"mean": jnp.zeros(size), "var": jnp.ones(size)} for name, size in sizes.items()}

    def model_fn(
        self,
        params: Tree,
        augmented_and_preprocessed_input_batch: Tree,
        model_state: Tree,
        mode: spec.ForwardPassMode,
        rng: Array,
        update_batch_norm: bool,
        dropout_rate: float = 0.0,
    ) -> tuple[Array, Any]:
        del rng, dropout_rate
        x, new_state = augmented_and_preprocessed_input_batch["inputs"], {}
        for index in range(2):
            name = f"BatchNorm_{index}"
            x = lax.conv_general_dilated(
                x,
                params[f"Conv_{index}"]["kernel"],
                (1, 1),
                "SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
            train = mode == spec.ForwardPassMode.TRAIN
            x, new_state[name] = _batch_norm(params[name], model_state[name], x, train=train)
            x = jax.nn.relu(x)
        logits = _dense(params["Dense_0"], jnp.mean(x, axis=(1, 2)))
        return logits, new_state if update_batch_norm else model_state


WORKLOADS: dict[str, type[JaxWorkload]] = {"transformer": Transformer, "convolution": Convolution}


def _draw(shapes: Any, rng: np.random.Generator, name: str = "") -> Any:
    if isinstance(shapes, dict):
        return {key: _draw(shape, rng, key) for key, shape in shapes.items()}
    if name in ("bias", "scale"):
        return jnp.full(shapes, float(name == "scale"), jnp.float32)
    if name == "attn_scale":
        return jnp.ones(shapes, jnp.bfloat16)
    fan_in = 25 if name == "embedding" else int(np.prod(shapes[:-1]))
    return jnp.asarray(rng.standard_normal(shapes) * fan_in**-0.5, jnp.float32)


def _find_types(params: Tree, path: str = "") -> Tree:
    """Types in a tree whose names are in lower case, as AlgoPerf's are."""
    types = {}
    for key, value in params.items():
        name = f"{path}/{key}".lower()
        types[key.lower()] = _find_types(value, name) if isinstance(value, dict) else spec.find_type(name)
    return types


def _dense(params: Tree, x: Array) -> Array:
    return x @ params["kernel"] + params["bias"].reshape((1,) * (x.ndim - 1) + (-1,))


def _layer_norm(params: Tree, x: Array) -> Array:
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    x = x * lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)
    return x * params["scale"].reshape(1, 1, -1) + params["bias"].reshape(1, 1, -1)


def _attend(params: Tree, scale: Array, x: Array) -> Array:
    query, key, value = (
        jnp.einsum("btd,dhk->bthk", x, params[name]["kernel"]) + params[name]["bias"][None, None]
        for name in ("query", "key", "value")
    )
    scores = jnp.einsum("bthk,bshk->bhts", query, key) * scale.astype(x.dtype) * query.shape[-1] ** -0.5
    causal = jnp.tril(jnp.ones(scores.shape[-2:], bool))[None, None]
    shares = jax.nn.softmax(jnp.where(causal, scores, -1e9))
    mixed = jnp.einsum("bhts,bshk->bthk", shares, value)
    return jnp.einsum("bthk,hkd->btd", mixed, params["out"]["kernel"]) + params["out"]["bias"][None, None]


def _batch_norm(params: Tree, stats: Tree, x: Array, *, train: bool) -> tuple[Array, Tree]:
    mean, var = stats["mean"], stats["var"]
    if train:
        mean, var = jnp.mean(x, axis=(0, 1, 2)), jnp.var(x, axis=(0, 1, 2))
        stats = {"mean": 0.9 * stats["mean"] + 0.1 * mean, "var": 0.9 * stats["var"] + 0.1 * var}
    x = (x - mean.reshape(1, 1, 1, -1)) * lax.rsqrt(var.reshape(1, 1, 1, -1) + 1e-5)
    return x * params["scale"].reshape(1, 1, 1, -1) + params["bias"].reshape(1, 1, 1, -1), stats


class Run:
    """A training run of a submission, one step at a time, as AlgoPerf's runner takes them."""

    def __init__(self, submission: Any, workload: JaxWorkload, hyperparameters: Any) -> None:
        self.submission, self.workload, self.hyperparameters = submission, workload, hyperparameters
        self.rng, self.global_step = jax.random.PRNGKey(0), 0
        self.batches: Iterator[Tree] = type(workload).queue()
        self.params, self.model_state = workload.init_model_fn(jax.random.PRNGKey(1))
        self.optimizer_state = submission.init_optimizer_state(
            workload, self.params, self.model_state, hyperparameters, self.rng
        )
        self._loss = jax.jit(self._evaluate)

    def _evaluate(self, params: Tree, model_state: Any, batch: Tree) -> Array:
        mode = spec.ForwardPassMode.TRAIN  # as training sees it, without dropout
        logits, _ = self.workload.model_fn(params, batch, model_state, mode, self.rng, False, 0.0)  # type: ignore[attr-defined]
        found = self.workload.loss_fn(batch["targets"], logits, batch.get("weights"))
        return found["summed"] / found["n_valid_examples"]

    def step(self) -> float:
        """Takes a step, and returns the batch's loss before it, as training sees it but without dropout."""
        about = (self.hyperparameters, self.global_step, self.rng)
        batch = self.submission.data_selection(
            self.workload, self.batches, self.optimizer_state, self.params, self.model_state, *about
        )
        loss = float(self._loss(*jax.device_get((self.params, self.model_state)), batch))
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
            rng=jax.random.fold_in(self.rng, self.global_step),
            train_state={"accumulated_submission_time": 0.0},
        )
        self.global_step += 1
        return loss

    def count_traces(self) -> list[None]:
        """Returns a list that grows by one element each time that the step is traced, from now on."""
        state, update = self.optimizer_state
        traces: list[None] = []

        def counted(*arguments: Any) -> Any:
            traces.append(None)
            return update(*arguments)

        self.optimizer_state = (state, counted)
        return traces

    def prepare_for_eval(self) -> None:
        self.optimizer_state, self.params, self.model_state = self.submission.prepare_for_eval(
            workload=self.workload,
            current_param_container=self.params,
            current_params_types=self.workload.model_params_types,
            model_state=self.model_state,
            hyperparameters=self.hyperparameters,
            loss_type=self.workload.loss_type,
            optimizer_state=self.optimizer_state,
            eval_results=[],
            global_step=self.global_step,
            rng=self.rng,
        )
