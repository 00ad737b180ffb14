"""The published image tasks: their sizes, names and initial losses."""

from __future__ import annotations

import functools
import math
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from celo2.tasks.base import SIZES, Dataset, Task
from celo2.tasks.registry import make_task
from celo2.tasks.vision import datasets, published_vit
from celo2.tasks.vision.published import IMAGE_TASKS
from celo2.tasks.vision.published_vit import VIT_TASKS

NUM_PARAMETERS = {
    "ImageMLP_FashionMnist_Relu128x128": 118_282,
    "ImageMLP_Cifar10_128x128x128_LayerNorm_Relu": 428_426,
    "ImageMLP_Cifar10_128x128x128_Tanh_bs128": 427_658,
    "Conv_Cifar10_32x64x64": 56_970,
    "Conv_Cifar10_32x64x64_batchnorm": 57_290,
    "Conv_Cifar10_32x64x64_layernorm": 57_290,
    "Conv_Cifar100_32x64x64": 62_820,
    "VIT_Cifar100_wideshallow": 10_983_652,
    "VIT_Cifar100_skinnydeep": 2_095_076,
    "ImageMLPAE_Cifar10_128x32x128_bs256": 797_984,
    "ImageMLPAE_Mnist_128x32x128_bs128": 209_968,
    "vit-s16": 22_122_472,
}
# Published. Of the transformers exactly ln K. With layer norm over channels it depends on how much the
# positions of an image differ, and crops of photographs are smoother than CIFAR-10's images.
INITIAL_LOSS = {
    "ImageMLP_FashionMnist_Relu128x128": 2.298,
    "ImageMLP_Cifar10_128x128x128_LayerNorm_Relu": 2.406,
    "ImageMLP_Cifar10_128x128x128_Tanh_bs128": 2.314,
    "Conv_Cifar10_32x64x64": 2.302,
    "Conv_Cifar10_32x64x64_batchnorm": 2.310,
    "Conv_Cifar100_32x64x64": 4.606,
    "ImageMLPAE_Mnist_128x32x128_bs128": 0.2312,
}
BATCH_SIZE = {"ImageMLPAE_Cifar10_128x32x128_bs256": 256, "vit-s16": 1_024}  # the others: 128
ONE_PERCENT = ("Conv_Cifar100_32x64x64", "VIT_Cifar100_wideshallow", "VIT_Cifar100_skinnydeep")


@pytest.fixture(autouse=True, scope="module")
def no_local_copies(tmp_path_factory: pytest.TempPathFactory):
    """A machine with the shipped sets and the photographs alone, and an ImageNet of four grey images."""
    folder = tmp_path_factory.mktemp("empty")
    arrays = {"image": np.full((4, 224, 224, 3), 128, np.uint8), "label": np.arange(4, dtype=np.uint8)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CELO2_DATA", str(folder))
        patch.setattr(Path, "home", lambda: folder)
        patch.setattr(datasets, "_DEBIAN_FOLDER", folder)
        patch.setattr(published_vit, "load_imagenet", lambda: Dataset("four-images", arrays, arrays))
        yield


@functools.cache
def task_of(name: str) -> Task:
    return make_task(name)


@functools.cache
def shapes_of(name: str) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(jax.eval_shape(task_of(name).init, jax.random.key(0)))
    return {"/".join(str(entry.key) for entry in path): leaf.shape for path, leaf in leaves}


def count(shapes: dict[str, tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def test_every_published_task_is_here() -> None:
    expected = {*NUM_PARAMETERS, *(f"{name}_1pct" for name in ONE_PERCENT)}
    assert {*IMAGE_TASKS, *VIT_TASKS} == expected


@pytest.mark.parametrize("name", NUM_PARAMETERS)
def test_published_task_has_its_parameters_batch_and_name(name: str) -> None:
    task = task_of(name)
    assert count(shapes_of(name)) == NUM_PARAMETERS[name]
    assert task.batch_size == BATCH_SIZE.get(name, 128)
    assert task.name == name


@pytest.mark.parametrize("name", NUM_PARAMETERS)
def test_tiny_task_is_small_and_its_arrays_are_those_of_the_published_one(name: str) -> None:
    tiny, full = shapes_of(f"{name}@tiny"), shapes_of(name)
    assert count(tiny) <= 20_000
    assert task_of(f"{name}@tiny").batch_size <= 32
    assert {path: len(shape) for path, shape in tiny.items()}.items() <= {
        path: len(shape) for path, shape in full.items()
    }.items()
    if "VIT" not in name and "vit" not in name:  # these have fewer blocks
        assert tiny.keys() == full.keys()
    assert count(tiny) < count(shapes_of(f"{name}@small")) < count(full)
    assert task_of(f"{name}@tiny").name == name


SHAPES = {
    "ImageMLP_Cifar10_128x128x128_LayerNorm_Relu": {"layer_0/kernel": (3072, 128), "norm_2/scale": (128,)},
    "Conv_Cifar10_32x64x64_batchnorm": {
        "conv_0/kernel": (3, 3, 3, 32),
        "conv_2/kernel": (3, 3, 64, 64),
        "norm_0/scale": (1, 1, 1, 32),
        "norm_2/bias": (1, 1, 1, 64),
        "head/kernel": (64, 10),
    },
    "Conv_Cifar10_32x64x64_layernorm": {"norm_1/scale": (64,)},
    "VIT_Cifar100_wideshallow": {
        "embedding/kernel": (16, 16, 3, 384),
        "cls": (1, 1, 384),
        "pos_embedding": (1, 5, 384),
        "block_5/attention/query/kernel": (384, 6, 64),
        "block_5/attention/value/bias": (6, 64),
        "block_5/attention/out/kernel": (6, 64, 384),
        "block_5/attention/out/bias": (384,),
        "block_5/mlp/up/kernel": (384, 1536),
        "head/kernel": (384, 100),
    },
    "VIT_Cifar100_skinnydeep": {"block_9/attention/query/kernel": (128, 4, 32), "pos_embedding": (1, 5, 128)},
    "ImageMLPAE_Cifar10_128x32x128_bs256": {"layer_1/kernel": (128, 32), "head/kernel": (128, 3072)},
    "vit-s16": {"block_11/mlp/down/kernel": (1536, 384), "pre_logits/kernel": (384, 384)},
}


@pytest.mark.parametrize("name", SHAPES)
def test_arrays_have_their_published_shapes(name: str) -> None:
    assert SHAPES[name].items() <= shapes_of(name).items()


@pytest.mark.parametrize("name", INITIAL_LOSS)
def test_initial_loss_is_the_published_one(name: str) -> None:
    task = task_of(name)
    arrays = {key: jnp.asarray(array[:64]) for key, array in task.dataset.train.items()}
    batch = {key: array[: 4 if name.startswith("Conv") else 64] for key, array in arrays.items()}
    keys = jax.random.split(jax.random.key(0, impl="rbg"), 20)  # of the generator that takes no time to run
    losses = jax.jit(lambda keys: jax.lax.map(lambda key: task.loss(task.init(key), batch), keys))(keys)
    assert_allclose(losses.mean(), INITIAL_LOSS[name], rtol=0.05)
    assert_allclose(task.initial_loss, INITIAL_LOSS[name], rtol=0.01)


@pytest.mark.parametrize("name", ["VIT_Cifar100_wideshallow", "vit-s16"])
def test_untrained_transformer_scores_the_logarithm_of_the_classes(name: str) -> None:
    task = task_of(f"{name}@tiny")
    batch = {key: jnp.asarray(array[:16]) for key, array in task.dataset.train.items()}
    loss = jax.jit(lambda key: task.loss(task.init(key), batch))(jax.random.key(0))
    assert_allclose(loss, math.log(100), rtol=1e-6)


def test_vit_s16_sees_pixels_from_minus_one_to_one() -> None:
    task = task_of("vit-s16@tiny")
    grey = {"image": jnp.full((1, 8, 8, 3), 51, jnp.uint8), "label": jnp.zeros(1, jnp.uint8)}  # 0.2 of white
    params = jax.jit(task.init)(jax.random.key(0))
    params["head"]["kernel"] = jax.random.normal(jax.random.key(1), params["head"]["kernel"].shape)

    def loss(params, batch, gain):  # what the patches read, times the gain
        kernel = params["embedding"]["kernel"]
        return task.loss({**params, "embedding": {**params["embedding"], "kernel": gain * kernel}}, batch)

    black = {**grey, "image": jnp.zeros((1, 8, 8, 3), jnp.uint8)}  # -1, as 0.2 is -0.6
    assert_allclose(jax.jit(loss)(params, black, 0.6), jax.jit(loss)(params, grey, 1.0), rtol=1e-5)


# Data and dependencies.


@pytest.mark.parametrize("name", ONE_PERCENT)
def test_one_percent_trains_on_500_of_the_images_and_validates_on_the_same(name: str) -> None:
    part, whole = (task_of(f"{name}{suffix}@tiny").dataset for suffix in ("_1pct", ""))
    assert part.size("train") == 500 < whole.size("train")
    assert_array_equal(part.train["image"], whole.train["image"][:500])
    assert_array_equal(part.valid["label"], whole.valid["label"])
    assert part.name != whole.name
    assert task_of(f"{name}_1pct@tiny").name == f"{name}_1pct"


@pytest.mark.parametrize("size", SIZES)
def test_data_are_stand_ins_under_their_own_names(size: str) -> None:
    side = {"full": (28, 32), "small": (14, 16), "tiny": (8, 8)}[size]
    fashion = task_of(f"ImageMLP_FashionMnist_Relu128x128@{size}").dataset
    colour = task_of(f"Conv_Cifar10_32x64x64@{size}").dataset
    assert fashion.name == "fashion-mnist-sample-10k" + ("" if size == "full" else f"-{side[0]}x{side[0]}")
    assert colour.name == f"patches10-rgb-{side[1]}x{side[1]}"
    assert fashion.train["image"].shape[1:] == (side[0], side[0])
    assert colour.train["image"].shape[1:] == (side[1], side[1], 3)


@pytest.mark.parametrize("name", ["Conv_Cifar10_32x64x64", "ImageMLPAE_Mnist_128x32x128_bs128", "vit-s16"])
def test_batch_size_is_an_option(name: str) -> None:
    assert make_task(f"{name}@tiny", batch_size=6).batch_size == 6


def test_listing_tasks_does_not_need_flax() -> None:
    code = "import sys; import celo2.tasks.registry; sys.exit('flax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", ["Conv_Cifar10_32x64x64", "VIT_Cifar100_skinnydeep", "vit-s16"])
def test_missing_flax_names_the_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ImportError, match=r"flax.*celo2\[eval\]"):
        make_task(f"{name}@tiny")
