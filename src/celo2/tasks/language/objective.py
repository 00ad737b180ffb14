"""Language-model objectives: builds a `Task` from any network and rows of tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import Array

from celo2.tasks.base import Batch, Dataset, Params, Task
from celo2.tasks.language.stdlib_text import PAD
from celo2.tasks.micro_batches import split_batches
from celo2.tasks.nn import cross_entropies, cross_entropy


class Network(Protocol):
    """The interface of a Flax module that the tasks use."""

    def init(self, rngs: Any, tokens: Array) -> Any:
        """Returns the variables, with the trained ones under `params`."""
        ...

    def apply(self, variables: Any, tokens: Array, *, rngs: Any = None) -> Any:
        """Computes next-token logits `(N, T, vocabulary)` from `(N, T)` int32."""
        ...


def padded_loss(logits: Array, tokens: Array) -> Array:
    """Averages the cross-entropy over the batch's non-padding input tokens, in nats.

    The step from the last token to the padding counts; steps within the padding do not.

    Args:
        logits: Next-token logits after each of the first T tokens, `(N, T, vocabulary)`.
        tokens: `(N, T + 1)` integers; the first of each row is not padding.
    """
    counted = (tokens[:, :-1] != PAD).astype(jnp.float32)
    return (counted * cross_entropies(logits, tokens[:, 1:])).sum() / counted.sum()


def contiguous_loss(logits: Array, tokens: Array) -> Array:
    """Averages the cross-entropy of all tokens but the first of each row, in nats.

    Args:
        logits: `(N, T, vocabulary)`; those at the last position are unused.
        tokens: `(N, T)` integers.
    """
    return cross_entropy(logits[:, :-1], tokens[:, 1:])


def make_padded_task(
    name: str,
    network: Network,
    dataset: Dataset,
    *,
    batch_size: int,
    initial_loss: float,
    stochastic: bool = False,
) -> Task:
    """Makes a language-modelling task on records, with the loss `padded_loss`.

    Args:
        name: The task's name.
        network: A Flax module; its `dropout` stream is the batch's key if the task is stochastic.
        dataset: `tokens` `(N, T + 1)` in each split.
        batch_size: Records in a training batch.
        initial_loss: Approximate loss of an untrained network.
        stochastic: Whether the network draws random numbers.
    """

    def loss(params: Params, batch: Batch) -> Array:
        tokens = batch["tokens"].astype(jnp.int32)
        rngs = {"dropout": jax.random.wrap_key_data(batch["key"])} if stochastic else None
        return padded_loss(network.apply({"params": params}, tokens[:, :-1], rngs=rngs), tokens)

    context = dataset.train["tokens"].shape[1] - 1
    return Task(
        name=name,
        dataset=dataset,
        init=_make_init(network, context),
        loss=loss,
        batch_size=batch_size,
        initial_loss=initial_loss,
        stochastic=stochastic,
        tokens_per_batch=batch_size * context,
    )


def make_contiguous_task(
    name: str,
    network: Network,
    dataset: Dataset,
    *,
    batch_size: int,
    initial_loss: float,
    rows_at_once: int | None = None,
) -> Task:
    """Makes a language-modelling task on contiguous text, with the loss `contiguous_loss`.

    Args:
        name: The task's name.
        network: A Flax module.
        dataset: `tokens` `(N, T)` in each split.
        batch_size: Rows in a training batch.
        initial_loss: Approximate loss of an untrained network.
        rows_at_once: Number of rows computed together, if fewer than the batch's.

    Raises:
        ValueError: `rows_at_once` does not divide the batch size.
    """

    def loss(params: Params, batch: Batch) -> Array:
        tokens = batch["tokens"].astype(jnp.int32)
        return contiguous_loss(network.apply({"params": params}, tokens), tokens)

    context = dataset.train["tokens"].shape[1]
    task = Task(
        name=name,
        dataset=dataset,
        init=_make_init(network, context),
        loss=loss,
        batch_size=batch_size,
        initial_loss=initial_loss,
        tokens_per_batch=batch_size * context,
        mean_over_examples=True,
    )
    return task if rows_at_once is None else split_batches(task, rows_at_once)


def _make_init(network: Network, context: int) -> Callable[[Array], Params]:
    """Returns a compiled `key → params`, so that the logits that Flax computes on the way are eliminated."""

    def init(key: Array) -> Params:
        params_key, dropout_key = jax.random.split(key)
        rngs = {"params": params_key, "dropout": dropout_key}
        return network.init(rngs, jnp.zeros((1, context), jnp.int32))["params"]

    return jax.jit(init)
