"""Meta-training as a task: the parameters are the weights of a learned optimizer that trains a perceptron.

Source: `LOpt_AdafacMLPLOpt_FashionMnist_50` of google/learned_optimization.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from celo2.tasks.base import Batch, Params, Size, Task
from celo2.tasks.learned_optimizer import adafac_mlp
from celo2.tasks.nn import Initial, cross_entropy, sample_params
from celo2.tasks.vision.classifier import NUM_CLASSES, clip_or_ceiling
from celo2.tasks.vision.image_sets import load_evaluation_set
from celo2.tasks.vision.mlp import compute_mlp, init_mlp
from celo2.zoo.specs import AdafacMlp

INITIAL_LOSS = 2.33  # nats, to 1 % at every size; the published curves begin at 2.254, as a lower envelope


@dataclasses.dataclass(frozen=True)
class InnerTraining:
    """The inner training run by each loss.

    Attributes:
        steps: Number of updates.
        batch_size: Number of images in each update.
        widths: Layer widths of the perceptron: pixels, hidden units, classes.
    """

    steps: int = 50
    batch_size: int = 128
    widths: tuple[int, ...] = (64, 32, NUM_CLASSES)


_SIZES: Mapping[Size, InnerTraining] = {
    "tiny": InnerTraining(steps=5, batch_size=16, widths=(64, 8, NUM_CLASSES)),
    "small": InnerTraining(steps=20, batch_size=32),
    "full": InnerTraining(),
}


def init_theta(key: Array) -> Params:
    """Draws the 197 untrained meta-parameters, with the zoo's names and distributions."""
    specs = AdafacMlp().array_specs()
    template = {name: Initial(spec.shape, spec.value, spec.scale) for name, spec in specs.items()}
    return sample_params(key, template)


def compute_loss(theta: Params, batch: Batch, inner: InnerTraining) -> Array:
    """Trains a new perceptron with the optimizer theta; returns the mean of the losses before each update.

    Every inner step is rematerialized: reverse mode keeps the state before a step and recomputes the rest.

    Args:
        theta: Weights, as from `init_theta`.
        batch: `image` uint8 `(steps · batch_size, 8, 8)` and `label`, cut into batches in order, and
            the `key` for the perceptron's initial parameters.
        inner: The inner training.

    Returns:
        The loss in nats, in [0, 1.5 ln 10]; `()` of theta's dtype.
    """
    dtype = jnp.result_type(*jax.tree.leaves(theta))
    params = init_mlp(jax.random.wrap_key_data(batch["key"]), inner.widths)
    layout = adafac_mlp.Layout(tuple(leaf.shape for leaf in jax.tree.leaves(params)))
    start, unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf.astype(dtype), params))

    def score(vector: Array, images: Array, labels: Array) -> Array:
        logits = compute_mlp(unravel(vector), images.astype(dtype) / 255.0)
        return clip_or_ceiling(cross_entropy(logits, labels), NUM_CLASSES)

    def step(
        carry: tuple[Array, adafac_mlp.RuleState], batch: tuple[Array, Array]
    ) -> tuple[tuple[Array, adafac_mlp.RuleState], Array]:
        vector, state = carry
        loss, grad = jax.value_and_grad(score)(vector, *batch)
        return adafac_mlp.update(theta, layout, state, grad, vector), loss

    batches = [
        batch[name].reshape(inner.steps, inner.batch_size, *batch[name].shape[1:])
        for name in ("image", "label")
    ]
    carry = (start, adafac_mlp.init_state(layout, dtype))
    _, losses = jax.lax.scan(jax.checkpoint(step, prevent_cse=False), carry, tuple(batches))
    return losses.mean()


def make_learned_optimizer(*, size: Size = "full") -> Task:
    """Makes the task of AdaFac-MLP, 197 parameters, training a perceptron 50 steps on Fashion-MNIST 8 × 8.

    An example is one image of an inner batch; a batch has the images of all inner steps, 50 × 128. Images are
    rounded to integer grey levels after resizing.

    Args:
        size: `"small"` has 20 inner steps of 32 images; `"tiny"` has 5 of 16 and 8 hidden units, not 32.
    """
    inner = _SIZES[size]
    return Task(
        name="LOpt_AdafacMLPLOpt_FashionMnist_50",
        dataset=load_evaluation_set("fashion-mnist", 8),
        init=init_theta,
        loss=partial(compute_loss, inner=inner),
        batch_size=inner.steps * inner.batch_size,
        initial_loss=INITIAL_LOSS,
        stochastic=True,
    )


LEARNED_OPTIMIZERS: Mapping[str, tuple[Callable[..., Task], str]] = {
    "LOpt_AdafacMLPLOpt_FashionMnist_50": (
        make_learned_optimizer,
        "AdaFac-MLP's 197 weights, by how well it trains a perceptron on Fashion-MNIST, 8 × 8",
    ),
}
"""Constructor and one-line summary of each task, by name."""
