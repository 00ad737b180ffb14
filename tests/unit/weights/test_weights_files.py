"""Weight files: both formats there and back, and the reference's files."""

from __future__ import annotations

import hashlib
import math
import os
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from celo2.config import CONTRACT_VERSION, RuleConfig
from celo2.weights.checkpoint import SHIPPED, Weights, load_checkpoint, save_weights
from celo2.weights.checkpoint import make_weights as make_any
from celo2.weights.sources import shipped_file
from celo2.zoo.specs import Velo
from helpers.rule_runs import REFERENCE_RUNS, load_run
from helpers.weights_examples import make_arrays, make_weights


def assert_same_arrays(weights: Weights, expected: dict) -> None:
    assert set(weights.arrays) == set(expected)
    for name, array in weights.arrays.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


@pytest.mark.parametrize("name", REFERENCE_RUNS)
def test_upstream_file_of_the_reference_loads(shared, name):
    folder = shared / "conformance" / "rule"
    run = load_run(folder / f"{name}.npz")
    weights = load_checkpoint(folder / f"{name}.theta.state", **run.options)
    assert_same_arrays(weights, run.theta)
    assert weights.config == RuleConfig(**run.options)


@pytest.mark.parametrize(
    ("run", "remedy"),
    [
        ("features_subset", "with_g=False, with_grad_clip_feat=False, with_p=False, with_fac_rms=False"),
        ("decays_two", r"w0__3 \(momentum: 2, expected 3 as in initial_momentum_decays\)"),
    ],
    ids=["features", "decays"],
)
def test_upstream_file_without_its_options_says_which_to_give(shared, run, remedy):
    with pytest.raises(ValueError, match=remedy):
        load_checkpoint(shared / "conformance" / "rule" / f"{run}.theta.state")


@pytest.mark.parametrize("name", ["celo", "celo_adam"])
def test_upstream_file_of_a_predecessor_is_refused(shared, name):
    with pytest.raises(
        ValueError, match=rf"{name}\.theta\.state: not Celo2 weights: .*'rnn_params'.*'{name}'"
    ):
        load_checkpoint(shared / "checkpoints" / f"{name}.theta.state")


def test_upstream_file_loads_from_its_folder(tmp_path):
    save_weights(tmp_path / "theta.state", make_weights(orthogonalize=False))
    weights = load_checkpoint(str(tmp_path), orthogonalize=False)
    assert_same_arrays(weights, make_arrays())
    assert weights.provenance["source"] == "theta.state"
    assert weights.stated == {"ff_hidden_size", "ff_hidden_layers", "orthogonalize"}


def test_upstream_file_is_what_flax_reads(tmp_path):
    from flax.serialization import msgpack_restore

    save_weights(tmp_path / "theta.state", make_weights())
    tree: Any = msgpack_restore((tmp_path / "theta.state").read_bytes())
    assert_same_arrays(make_weights(), tree["ff_mod_stack"]["~"])


def test_safetensors_keep_everything(tmp_path):
    saved = make_weights(orthogonalize=False, ff_hidden_size=4, mlp_activation="tanh")
    save_weights(tmp_path / "w.safetensors", saved)
    loaded = load_checkpoint(tmp_path / "w.safetensors")
    assert_same_arrays(loaded, dict(saved.arrays))
    assert (loaded.config, loaded.stated) == (saved.config, saved.stated)
    assert (dict(loaded.provenance), loaded.contract_version) == ({"command": "a test"}, CONTRACT_VERSION)


def test_safetensors_are_read_by_the_library(tmp_path):
    save_weights(tmp_path / "w.safetensors", make_weights())
    assert_same_arrays(make_weights(), safetensors.numpy.load_file(tmp_path / "w.safetensors"))
    with safetensors.safe_open(tmp_path / "w.safetensors", "np") as file:
        assert set(file.metadata()) == {"format", "contract_version", "config", "provenance", "sha256"}


def test_safetensors_with_a_changed_number_are_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(path, make_weights())
    arrays = {**make_arrays(), "b2": np.zeros(3, np.float32)}
    with safetensors.safe_open(path, "np") as file:
        safetensors.numpy.save_file(arrays, path, file.metadata())
    with pytest.raises(ValueError, match=r"w\.safetensors: the file is damaged"):
        load_checkpoint(path)


@pytest.mark.parametrize("field", ["config", "provenance"])
def test_safetensors_with_changed_metadata_are_refused(tmp_path, field):
    path = tmp_path / "w.safetensors"
    save_weights(path, make_weights())
    with safetensors.safe_open(path, "np") as file:
        metadata = {**file.metadata(), field: "{}"}
    safetensors.numpy.save_file(dict(make_arrays()), path, metadata)
    with pytest.raises(ValueError, match=r"w\.safetensors: the file is damaged"):
        load_checkpoint(path)


def test_safetensors_without_a_digest_load(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(path, make_weights())
    with safetensors.safe_open(path, "np") as file:
        metadata = {name: text for name, text in file.metadata().items() if name != "sha256"}
    safetensors.numpy.save_file(dict(make_arrays()), path, metadata)
    assert_same_arrays(load_checkpoint(path), make_arrays())


def test_safetensors_of_the_same_weights_have_the_same_bytes(tmp_path):
    save_weights(tmp_path / "a.safetensors", make_weights())
    save_weights(tmp_path / "b.safetensors", load_checkpoint(tmp_path / "a.safetensors"))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_file_is_written_again_to_the_bit(tmp_path, name):
    save_weights(tmp_path / "w.safetensors", load_checkpoint(name))
    assert (tmp_path / "w.safetensors").read_bytes() == shipped_file(name).read_bytes()


FORMATS = {
    ("celo2", "safetensors"): "d84c87d03b57cf56f93da50f7fe3b4ddbb3c5fabc76e1ec96fba1bd121ec386e",
    ("celo2", "state"): "b02aceeeb2467b13e33259ae418fe71818e2cf5af4d70168cfdfc55a889093eb",
    ("velo", "safetensors"): "608c2ebef7e5add1722bac6f911bdd871603938855a6666509700e7a689d90d5",
    ("velo", "state"): "0f47c9113099425ad211a079b4c0847100098ee254cd6b3aee3792d2785cbfc0",
}


@pytest.mark.parametrize(("kind", "suffix"), FORMATS)
def test_files_are_those_of_earlier_versions_to_the_bit(tmp_path, kind, suffix):
    """SHA-256 of files that the first version to have these formats wrote."""
    config = (
        RuleConfig(orthogonalize=False) if kind == "celo2" else Velo(lstm_size=3, num_mlps=2, ff_mult=100.0)
    )
    shapes = config.weight_shapes()
    arrays = {
        name: np.arange(math.prod(shape), dtype=np.float32).reshape(shape) for name, shape in shapes.items()
    }
    path = tmp_path / f"w.{suffix}"
    save_weights(path, make_any(arrays, config, {"command": "a test", "seed": "0"}))
    assert hashlib.sha256(path.read_bytes()).hexdigest() == FORMATS[kind, suffix]


def test_load_applies_deployment_options(tmp_path):
    save_weights(tmp_path / "w.safetensors", make_weights())
    assert load_checkpoint(tmp_path / "w.safetensors", rmsmult=0.2).config.rmsmult == 0.2


def test_save_needs_a_known_variant(tmp_path):
    save_weights(tmp_path / "theta.state", make_weights())
    with pytest.raises(ValueError, match="orthogonalize=True"):
        save_weights(tmp_path / "w.safetensors", load_checkpoint(tmp_path))


def test_save_refuses_another_suffix(tmp_path):
    with pytest.raises(ValueError, match=r"must end in \.safetensors or \.state"):
        save_weights(tmp_path / "weights.pkl", make_weights())


def test_save_refuses_what_could_not_be_loaded(tmp_path):
    weights = Weights(make_arrays(), provenance={"log": "x" * Weights.max_bytes})
    with pytest.raises(ValueError, match="expected at most"):
        save_weights(tmp_path / "w.safetensors", weights)
    assert not list(tmp_path.iterdir())


def test_save_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    save_weights(path, make_weights())
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_weights(path, make_weights(orthogonalize=False))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
