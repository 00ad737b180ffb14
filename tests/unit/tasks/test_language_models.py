"""The language models: published sizes and starts, logits against float64 by hand, losses by hand."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from celo2.tasks.base import Dataset, Task
from celo2.tasks.language.gpt import GPT, rotate
from celo2.tasks.language.lstm import LSTMLM
from celo2.tasks.language.objective import (
    contiguous_loss,
    make_contiguous_task,
    make_padded_task,
    padded_loss,
)
from celo2.tasks.language.transformer import TransformerLM
from celo2.tasks.registry import make_task
from oracle import language_models as oracle

VOCABULARY = 11
TRANSFORMER = TransformerLM(
    vocabulary=VOCABULARY, width=6, num_heads=2, head_size=4, num_layers=2, dropout=0.0
)
LSTM = LSTMLM(vocabulary=VOCABULARY, embedding_size=5, hidden_size=4)
SMALL_GPT = GPT(vocabulary=VOCABULARY, width=8, num_layers=2, head_size=4)
TOKENS = np.array([[3, 9, 4, 10, 3, 5, 8], [4, 4, 7, 0, 6, 0, 0]])  # padding inside a row too
FULL = {  # name: (parameters, batch, tokens in a batch, whether stochastic)
    "TransformerLM_LM1B_MultiRuntime_0": (1_332_820, 4, 4 * 8, True),
    "TransformerLM_LM1B_MultiRuntime_2": (2_137_124, 8, 8 * 8, True),
    "TransformerLM_LM1B_MultiRuntime_5": (2_111_844, 8, 8 * 32, False),
    "RNNLM_lm1b32k_Patch32_LSTM256_Embed128": (12_753_252, 128, 128 * 32, False),
    "RNNLM_wikipediaen32k_Patch32_LSTM256_Embed128": (12_753_252, 128, 128 * 32, False),
    "lm-30m": (49_214_208, 64, 64 * 512, False),
    "gpt2-124m": (162_129_408, 512, 512 * 1024, False),
    "gpt3-xl": (1_413_812_224, 512, 512 * 2048, False),
}


@pytest.fixture(autouse=True)
def _no_local_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine has."""
    monkeypatch.setattr("celo2.tasks.language.corpora.find_folder", lambda _: None)
    monkeypatch.setattr("celo2.tasks.language.fineweb.find_folder", lambda _: None)


def shapes_of(task: Task) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(jax.eval_shape(task.init, jax.random.key(0)))
    assert {leaf.dtype for _, leaf in leaves} == {jnp.dtype(jnp.float32)}
    return {"/".join(str(entry.key) for entry in path): leaf.shape for path, leaf in leaves}


def fill(module, tokens: np.ndarray, key: int = 0):
    """Parameters of the module's shapes, all of them random: zero biases would hide a mistake."""
    shapes = jax.eval_shape(lambda k: module.init({"params": k, "dropout": k}, tokens), jax.random.key(0))
    leaves, structure = jax.tree.flatten(shapes["params"])
    rng = np.random.default_rng(key)
    return structure.unflatten([rng.normal(size=leaf.shape, scale=0.5) for leaf in leaves])


def logits_of(module, params, tokens: np.ndarray) -> np.ndarray:
    single = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    return np.asarray(jax.jit(lambda p, t: module.apply({"params": p}, t))(single, tokens))


MODULES = pytest.mark.parametrize(
    ("module", "compute"),
    [
        pytest.param(TRANSFORMER, lambda p, t: oracle.transformer_lm(p, t, 2, 2), id="transformer"),
        pytest.param(LSTM, oracle.lstm_lm, id="lstm"),
        pytest.param(SMALL_GPT, lambda p, t: oracle.gpt(p, t, 2), id="gpt"),
    ],
)


@MODULES
def test_logits_equal_those_by_hand_and_do_not_see_the_future(module, compute) -> None:
    params = fill(module, TOKENS)
    found = logits_of(module, params, TOKENS)
    expected = np.stack([compute(params, row) for row in TOKENS])
    # float32: 1e-6 of the largest logit, and ten times that for the sums in between.
    assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    changed = TOKENS.copy()
    changed[:, 4] = 2
    later = logits_of(module, params, changed)
    assert_array_equal(later[:, :4], found[:, :4])
    assert np.abs(later[:, 4:] - found[:, 4:]).max(axis=(0, 2)).min() > 1e-4


@pytest.mark.parametrize("name", FULL)
def test_full_size_is_the_published_one(name: str) -> None:
    task = make_task(name)
    assert task.name == name
    parameters = sum(map(math.prod, shapes_of(task).values()))
    assert (parameters, task.batch_size, task.tokens_per_batch, task.stochastic) == FULL[name]
    assert "python-" in task.dataset.name  # the stand-in says what it is


def test_full_sizes_have_the_published_leaves() -> None:
    transformer = shapes_of(make_task("TransformerLM_LM1B_MultiRuntime_0"))
    assert transformer["embedding/embedding"] == (32_100, 20)
    assert transformer["block_0/attention/query/kernel"] == (20, 160)
    assert transformer["block_0/attention/output/kernel"] == (160, 20)
    assert transformer["block_0/mlp/up/kernel"] == (20, 80)
    assert transformer["head/kernel"] == (20, 32_100)
    assert shapes_of(make_task("RNNLM_lm1b32k_Patch32_LSTM256_Embed128")) == {
        "embedding/embedding": (32_100, 128),
        "lstm/kernel": (384, 1_024),
        "lstm/bias": (1_024,),
        "lstm/initial_hidden": (1, 256),
        "lstm/initial_cell": (1, 256),
        "head/kernel": (256, 32_100),
        "head/bias": (32_100,),
    }
    gpt = shapes_of(make_task("lm-30m"))
    assert len(gpt) == 2 + 4 * 6
    assert gpt["block_5/attention/qkv"] == (3, 3, 384, 128)
    assert gpt["block_5/attention/output"] == (3, 128, 384)
    assert gpt["block_5/mlp/down/kernel"] == (1_536, 384)
    assert gpt["output_embedding"] == (50_257, 384)


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("TransformerLM_LM1B_MultiRuntime_0", 10.68),
        ("RNNLM_lm1b32k_Patch32_LSTM256_Embed128@tiny", None),
        ("lm-30m@tiny", None),
    ],
)
def test_untrained_network_scores_its_initial_loss(name: str, published: float | None) -> None:
    task = make_task(name)
    arrays = {key: jnp.asarray(array[:2_000]) for key, array in task.dataset.train.items()}

    def score(key: jax.Array) -> jax.Array:
        return task.loss(task.init(key), task.sample_batch(key, arrays))

    losses = jax.jit(lambda keys: jax.lax.map(score, keys))(jax.random.split(jax.random.key(0), 20))
    assert_allclose(losses.mean(), task.initial_loss, rtol=0.02)
    if published:
        assert_allclose(losses.mean(), published, rtol=0.05)


# Initial values.


def test_transformer_starts_with_the_published_scales() -> None:
    network = TRANSFORMER.copy(vocabulary=2_000, width=64, head_size=32, num_layers=4)

    @jax.jit  # what is not returned is not compiled
    def start(key: jax.Array) -> tuple[jax.Array, ...]:
        params: Any = network.init({"params": key, "dropout": key}, TOKENS)["params"]
        block = params["block_3"]
        hidden = block["attention"]["output"]["kernel"], block["mlp"]["down"]["kernel"]
        return params["embedding"]["embedding"], params["head"]["kernel"], *hidden

    table, head, *hidden = start(jax.random.key(0))
    for kernel in hidden:
        assert_allclose(kernel.std(), math.sqrt(2 / 4 / kernel.shape[0]), rtol=0.05)
    assert_allclose([head.std() * 8, table.std()], 0.8796, rtol=0.01)  # not corrected for the truncation
    assert_allclose([jnp.abs(head).max() * 8, jnp.abs(table).max()], 2.0, rtol=0.01)


def test_gpt_starts_with_the_published_scales() -> None:
    network = SMALL_GPT.copy(vocabulary=1_000, width=64, head_size=16, num_layers=1)
    params = jax.jit(network.init)(jax.random.key(0), TOKENS)["params"]
    block = params["block_0"]
    limits = {
        "qkv": (block["attention"]["qkv"], math.sqrt(6 / (3 * 4 * (64 + 16)))),
        "output": (block["attention"]["output"], math.sqrt(6 / (4 * (64 + 16)))),
        "mlp": (block["mlp"]["up"]["kernel"], math.sqrt(6 / (5 * 64))),
    }
    for array, limit in limits.values():
        assert limit * 0.99 < jnp.abs(array).max() <= limit * (1 + 1e-6)
        assert_allclose(array.std(), limit / math.sqrt(3), rtol=0.05)
    for table in (params["embedding"]["embedding"], params["output_embedding"]):
        assert_allclose(table.std(), 1 / 8, rtol=0.02)


def test_rotation_keeps_lengths_and_makes_products_depend_on_the_distance() -> None:
    query, key = np.random.default_rng(0).normal(size=(2, 8)).astype(np.float32)
    # One vector at every position.
    turned_query, turned_key = (rotate(jnp.tile(x, (1, 6, 1, 1)))[0, :, 0] for x in (query, key))
    products = np.asarray(turned_query @ turned_key.T)
    for distance in range(-4, 5):
        assert_allclose(np.diagonal(products, distance), np.diagonal(products, distance)[0], atol=1e-5)
    assert_allclose(jnp.square(turned_query).sum(-1), (query**2).sum(), rtol=1e-5)
    assert abs(products[0, 0] - products[0, 1]) > 1e-3


# Losses.


def test_padded_loss_counts_the_step_to_the_padding_and_none_within() -> None:
    logits = np.random.default_rng(0).normal(size=(2, 4, 5)).astype(np.float32)
    tokens = np.array([[3, 4, 0, 0, 0], [2, 3, 4, 1, 2]])
    log_probs = np.log([[oracle.softmax(row) for row in part] for part in logits.astype(np.float64)])
    counted = [(0, 0, 4), (0, 1, 0), (1, 0, 3), (1, 1, 4), (1, 2, 1), (1, 3, 2)]  # row, position, next token
    expected = -np.mean([log_probs[place] for place in counted])  # over the batch, not row by row
    assert_allclose(padded_loss(jnp.asarray(logits), jnp.asarray(tokens)), expected, rtol=1e-6)


def test_contiguous_loss_leaves_out_the_last_position() -> None:
    logits = np.random.default_rng(0).normal(size=(1, 3, 4)).astype(np.float32)
    tokens = np.array([[3, 0, 2]])
    log_probs = np.log([oracle.softmax(row) for row in logits[0].astype(np.float64)])
    expected = -(log_probs[0, 0] + log_probs[1, 2]) / 2
    assert_allclose(contiguous_loss(jnp.asarray(logits), jnp.asarray(tokens)), expected, rtol=1e-6)


def test_dropout_follows_the_key_of_the_batch() -> None:
    split = {"tokens": np.pad(TOKENS, ((0, 0), (0, 1))).astype(np.uint16)}
    task = make_padded_task(
        "dropping",
        TRANSFORMER.copy(num_layers=1, dropout=0.5),
        Dataset("seven", split, split),
        batch_size=2,
        initial_loss=1.0,
        stochastic=True,
    )
    params, loss = task.init(jax.random.key(0)), jax.jit(task.loss)
    batch = task.sample_batch(jax.random.key(1), jax.tree.map(jnp.asarray, split))
    other = {**batch, "key": jax.random.key_data(jax.random.key(2))}
    assert loss(params, batch) == loss(params, batch) != loss(params, other)


def test_rows_at_once_change_neither_loss_nor_gradient() -> None:
    rows = np.random.default_rng(0).integers(0, VOCABULARY, (4, 7)).astype(np.uint8)
    dataset = Dataset("four", {"tokens": rows}, {"tokens": rows})
    network = SMALL_GPT.copy(num_layers=1)
    options = {"batch_size": 4, "initial_loss": 1.0}
    whole, parts = (
        make_contiguous_task("gpt", network, dataset, rows_at_once=number, **options) for number in (None, 2)
    )
    params = whole.init(jax.random.key(0))
    expected, found = (
        jax.jit(jax.value_and_grad(task.loss))(params, {"tokens": jnp.asarray(rows)})
        for task in (whole, parts)
    )
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, expected)
    with pytest.raises(ValueError, match="multiple of 2 rows, got 5"):
        make_contiguous_task("gpt", network, dataset, rows_at_once=2, batch_size=5, initial_loss=1.0)


@pytest.mark.parametrize("name", FULL)
def test_tiny_size_is_small_and_of_the_same_kind(name: str) -> None:
    full, tiny = make_task(name), make_task(f"{name}@tiny")
    sizes, small = shapes_of(full), shapes_of(tiny)
    assert sum(map(math.prod, small.values())) <= 30_000
    assert {path: len(shape) for path, shape in small.items()} == {
        path: len(sizes[path]) for path in small
    }  # a subset: fewer blocks
    assert tiny.stochastic == full.stochastic
