"""Weight files and hub repositories as optimizers: what they are called, and that they are what they hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import celo2
from celo2.baselines import find_optimizer, qualified_name
from celo2.weights.checkpoint import Weights, ZooWeights, compute_checksum, save_weights
from celo2.zoo.specs import AdafacMlp, Celo, MemberConfig, Velo
from helpers.weights_examples import make_arrays, make_weights, save_port

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def save_zoo(name: str, config: MemberConfig, *stated: str) -> None:
    arrays = {array: np.zeros(shape, np.float32) for array, shape in config.weight_shapes().items()}
    save_weights(name, ZooWeights(arrays, config, stated=frozenset(stated)))


AS_THEY_ARE = {
    "registered": "adamw",
    "shipped": "celo2",
    "rule": "celo2:mine.safetensors",
    "predecessor": "velo_s:owner/name",
    "module": "module:make",
    "module of a file's name": "module:a.safetensors",
    "unknown": "muom",
    "three parts": "a/b/c",
    "too long for a path": "a" * 5000,
    "no path": "\0",
}


@pytest.mark.parametrize("name", AS_THEY_ARE.values(), ids=AS_THEY_ARE)
def test_another_name_stays_as_it_is_and_nothing_is_read(name):
    assert qualified_name(name) == name


FILES = {
    "celo2": lambda name: save_weights(name, make_weights()),
    "celo2-base": lambda name: save_weights(name, make_weights(orthogonalize=False)),
    "adafac_mlp": lambda name: save_zoo(name, AdafacMlp()),
    "celo": lambda name: save_zoo(name, Celo(lstm_size=3)),  # phase 1 uses the same weights
    "velo": lambda name: save_zoo(name, Velo(lstm_size=3, num_mlps=2)),
    "velo_4000": lambda name: save_zoo(name, Velo(ff_mult=100.0), "ff_mult"),
}


@pytest.mark.parametrize("whose", FILES)
def test_a_weight_file_is_named_after_what_it_holds(whose):
    FILES[whose]("w.safetensors")
    full = f"{whose}:w.safetensors"
    assert qualified_name("w.safetensors") == qualified_name(full) == full


@pytest.mark.parametrize("whose", ["celo", "adafac_mlp"])
def test_an_upstream_file_of_a_predecessor_is_named_after_it(whose):
    FILES[whose]("theta.state")
    assert qualified_name("theta.state") == f"{whose}:theta.state"
    assert qualified_name(str(Path.cwd())) == f"{whose}:{Path.cwd()}"  # the folder that holds it


def test_a_file_of_the_port_is_celo2():
    save_port(Path("model.safetensors"), make_arrays())
    assert find_optimizer("model.safetensors").name == "celo2:model.safetensors"


def test_a_hub_repository_is_an_optimizer(monkeypatch, here):
    save_port(here / "model.safetensors", make_arrays())
    monkeypatch.setattr("celo2.weights.sources.download", lambda *_: here / "model.safetensors")
    spec = find_optimizer("owner/name")
    assert spec.name == "celo2:owner/name"
    assert spec.weights == compute_checksum(Weights(make_arrays()).arrays, Weights(make_arrays()).config)


def test_equal_weights_have_one_checksum_whatever_they_are_called():
    save_port(Path("model.safetensors"), make_arrays())
    for name, weights in {"a": make_weights(), "base": make_weights(orthogonalize=False)}.items():
        save_weights(f"{name}.safetensors", weights)
    found = {name: find_optimizer(f"{name}.safetensors").weights for name in ("model", "a", "base")}
    assert found["model"] == found["a"] == find_optimizer("celo2:a.safetensors").weights
    assert found["base"] != found["a"]


def test_an_optimizer_of_a_file_takes_the_steps_of_its_weights():
    save_port(Path("model.safetensors"), make_arrays())
    params = {"layers": [{"kernel": jnp.ones((4, 3))}]}
    grads = jax.tree.map(lambda leaf: jnp.linspace(0.1, 1.0, leaf.size).reshape(leaf.shape), params)

    def step(tx: Any) -> Any:
        return tx.update(grads, tx.init(params), params)[0]

    ours = step(find_optimizer("model.safetensors").make(0.01, 0.1))
    jax.tree.map(
        np.testing.assert_array_equal,
        ours,
        step(celo2.celo2(0.01, weights=Weights(make_arrays()), weight_decay=0.1)),
    )


def test_an_upstream_file_of_an_unknown_variant_is_told_how_to_be_named():
    save_weights("theta.state", make_weights())
    with pytest.raises(ValueError, match=r"name it as celo2:theta\.state .* or as celo2-base:theta\.state"):
        find_optimizer("theta.state")
    assert find_optimizer("celo2-base:theta.state").name == "celo2-base:theta.state"


def test_weights_that_fit_two_presets_are_told_how_to_be_named():
    save_zoo("theta.state", Velo())
    with pytest.raises(ValueError, match=r"which of velo, velo_4000 .* Name it with a preset: velo:theta"):
        find_optimizer("theta.state")


def test_weights_with_options_of_no_preset_are_refused():
    save_zoo("w.safetensors", Velo(lstm_size=3, num_mlps=2, ff_mult=7.0), "ff_mult")
    with pytest.raises(ValueError, match=r"options that no preset has: .*ff_mult=7"):
        find_optimizer("w.safetensors")


@pytest.mark.parametrize("whose", ["celo2", "celo"])
def test_weights_named_as_anothers_are_told_their_name(whose):
    FILES[whose]("w.safetensors")
    with pytest.raises(ValueError, match=rf"As an optimizer, name them {whose}:w\.safetensors\."):
        find_optimizer("celo2-base:w.safetensors")


def test_a_file_that_is_not_there_is_not_found():
    with pytest.raises(FileNotFoundError, match=r"no weights at 'nothing\.safetensors'"):
        find_optimizer("nothing.safetensors")
