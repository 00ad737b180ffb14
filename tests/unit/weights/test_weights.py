"""`Weights` and the options they are run with."""

from __future__ import annotations

import copy
import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from celo2.config import CONTRACT_VERSION, RuleConfig
from celo2.weights import sources
from celo2.weights.checkpoint import (
    SHIPPED,
    Weights,
    compute_checksum,
    fit_tree,
    load_checkpoint,
    resolve_theta,
    save_weights,
    weights_from_tree,
)
from helpers.weights_examples import make_arrays, make_weights


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A package whose shipped weights are made up."""
    for name in SHIPPED:
        save_weights(tmp_path / f"{name}.safetensors", make_weights(orthogonalize=name == "celo2"))
    monkeypatch.setattr(sources, "_pretrained", lambda: tmp_path)
    return tmp_path


def without(name: str) -> dict:
    return {key: value for key, value in make_arrays().items() if key != name}


def test_import_loads_no_framework():
    check = "import sys, celo2.weights.checkpoint, celo2.commands.weights; "
    check += "print(sorted({'jax', 'torch', 'flax', 'huggingface_hub'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_weights_keep_their_own_copy():
    arrays = make_arrays()
    weights = Weights(arrays)
    before = float(arrays["b0"][0])
    arrays["b0"][0] = before + 1
    assert weights.arrays["b0"][0] == before


def test_weights_are_read_only():
    weights = make_weights()
    with pytest.raises(ValueError, match="read-only"):
        weights.arrays["b0"][0] = 1.0
    with pytest.raises(TypeError):
        weights.arrays["b0"] = np.zeros(8, np.float32)  # pyright: ignore[reportIndexIssue]


def test_weights_order_their_arrays_as_the_network_does():
    arrays = make_arrays()
    assert list(Weights(dict(reversed(arrays.items()))).arrays) == list(RuleConfig().weight_shapes())


def test_checksum_is_of_the_arrays_and_the_options():
    arrays, config = make_arrays(), RuleConfig()
    checksum = compute_checksum(arrays, config)
    assert compute_checksum(dict(reversed(arrays.items())), RuleConfig()) == checksum
    assert compute_checksum(arrays, config.replace(initial_rms_decays=(0.9,))) != checksum
    for other in (
        {**arrays, "b0": np.nextafter(arrays["b0"], np.float32(9))},
        {**arrays, "b0": arrays["b0"][None]},
        {**without("b0"), "b9": arrays["b0"]},
    ):
        assert compute_checksum(other, config) != checksum


def test_weights_survive_deepcopy():
    weights = make_weights(orthogonalize=False)
    other = copy.deepcopy(weights)
    assert other.config == weights.config
    assert dict(other.provenance) == dict(weights.provenance)
    np.testing.assert_array_equal(other.arrays["w1"], weights.arrays["w1"])


BAD_ARRAYS = {
    "missing": (without("w1") | {"w3": np.zeros((8, 8), np.float32)}, "missing w1, unexpected w3"),
    "extra": (make_arrays() | {"lstm": np.zeros(3, np.float32)}, "unexpected lstm"),
    "no bias": (without("b0"), "expected an array b0"),
    "wrong shape": (
        make_arrays() | {"w1": np.zeros((8, 7), np.float32)},
        r"w1 has shape \(8, 7\), expected \(8, 8\)",
    ),
    "other layers": (make_arrays(ff_hidden_layers=1), "ff_hidden_layers=1, expected 2"),
    "other width": (make_arrays(ff_hidden_size=4), "ff_hidden_size=4, expected 8"),
    "group gap": (without("w0__3"), r"expected w0__3 with shape \(channels, hidden size\), found nothing"),
    "group rank": (make_arrays() | {"w0__3": np.zeros(8, np.float32)}, r"found shape \(8,\)"),
    "fewer features": (make_arrays(with_p=False), "with_p=False"),
    "fewer decays": (
        make_arrays(initial_momentum_decays=(0.9, 0.99), initial_adafactor_decays=(0.9, 0.99)),
        r"momentum: 2, expected 3 as in initial_momentum_decays\) and .*initial_adafactor_decays",
    ),
    "float64": (make_arrays() | {"b1": np.zeros(8)}, "b1 has dtype float64, expected float32"),
    "float16": (make_arrays() | {"b1": np.zeros(8, np.float16)}, "dtype float16"),
    "bfloat16": (make_arrays() | {"b1": np.zeros(8, jnp.bfloat16)}, "dtype bfloat16"),
    "nan": (make_arrays() | {"b1": np.full(8, np.nan, np.float32)}, "b1 has 8 NaN or infinite numbers of 8"),
    "infinite": (make_arrays() | {"b2": np.array([0, 0, np.inf], np.float32)}, "b2 has 1 NaN or infinite"),
    "not an array": (make_arrays() | {"b1": [0.0] * 8}, "'b1' is a list"),
    "empty": ({}, "expected arrays named w0__0"),
    "too many": ({f"w{n}": np.zeros(1, np.float32) for n in range(300)}, "found 300 arrays"),
}


@pytest.mark.parametrize(("arrays", "message"), BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_weights_refuse_arrays_that_are_not_the_network(arrays, message):
    with pytest.raises(ValueError, match=message):
        Weights(arrays)


BAD_FIELDS = {
    "newer contract": ({"contract_version": CONTRACT_VERSION + 1}, ValueError, "upgrade celo2"),
    "no contract": ({"contract_version": 0}, ValueError, "at least 1"),
    "provenance": ({"provenance": {"seed": 3}}, ValueError, "text to text"),
    "stated": ({"stated": frozenset({"orthogonalise"})}, TypeError, "did you mean 'orthogonalize'"),
}


@pytest.mark.parametrize(("fields", "error", "message"), BAD_FIELDS.values(), ids=BAD_FIELDS)
def test_weights_refuse_bad_fields(fields, error, message):
    with pytest.raises(error, match=message):
        Weights(make_arrays(), **fields)


def test_weights_bound_the_work_by_their_arrays():
    """A config that asks for 10⁹ layers is refused before their names are listed."""
    with pytest.raises(ValueError, match="ff_hidden_layers must be from 0 to 16, got 1000000000"):
        Weights(make_arrays(), RuleConfig(ff_hidden_layers=10**9))


def test_resolve_merges_deployment_options():
    resolved = make_weights().resolve(rmsmult=0.2, ns_iters=3, ns_eps=1e-7, ns_coeffs=[2, -1.5, 0.5])
    assert resolved == RuleConfig(rmsmult=0.2, ns_iters=3, ns_eps=1e-7, ns_coeffs=(2.0, -1.5, 0.5))


def test_resolve_accepts_what_the_weights_state():
    weights = make_weights(orthogonalize=False)
    assert weights.resolve(orthogonalize=False, initial_rms_decays=np.array([0.95])) == weights.config


CONTRADICTIONS = {
    "celo2": (
        {"orthogonalize": False},
        {"orthogonalize": True},
        "Celo2-base weights .orthogonalize=False.*use celo2_base .*shipped .celo2.[.]$",
    ),
    "celo2-base": (
        {},
        {"orthogonalize": False},
        "Celo2 weights .orthogonalize=True.*use celo2 .*shipped .celo2-base",
    ),
    "option": ({}, {"exp_mult": 0.1}, "have exp_mult=0.0, asked for exp_mult=0.1; leave the option out"),
    "decays": ({}, {"initial_momentum_decays": (0.9,)}, "asked for initial_momentum_decays"),
    "size": ({}, {"ff_hidden_size": 16}, "have ff_hidden_size=8"),
    "not iterable": ({}, {"initial_rms_decays": 0.95}, "asked for initial_rms_decays=0.95"),
}


@pytest.mark.parametrize(("own", "asked", "message"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_resolve_refuses_the_wrong_variant(own, asked, message):
    with pytest.raises(ValueError, match=message):
        make_weights(**own).resolve(**asked)


def test_resolve_leaves_unstated_options_free():
    weights = weights_from_tree(make_arrays())
    assert weights.stated == {"ff_hidden_size", "ff_hidden_layers"}
    assert weights.resolve(orthogonalize=False, exp_mult=0.1).exp_mult == 0.1
    with pytest.raises(ValueError, match="14 input groups"):
        weights.resolve(with_p=False)


def test_resolve_refuses_unknown_options():
    with pytest.raises(TypeError, match="did you mean 'rmsmult'"):
        make_weights().resolve(rms_mult=1.0)


def test_tree_reads_sizes_from_its_arrays():
    arrays = make_arrays(ff_hidden_size=16, ff_hidden_layers=1)
    weights = weights_from_tree({"ff_mod_stack": {"~": arrays}}, orthogonalize=False)
    assert weights.config == RuleConfig(ff_hidden_size=16, ff_hidden_layers=1, orthogonalize=False)
    assert weights.stated == {"ff_hidden_size", "ff_hidden_layers", "orthogonalize"}


BAD_TREES = {
    "other level": (
        {"ff_mod_stack": {"x": make_arrays()}},
        "expected one entry 'ff_mod_stack' that holds '~'",
    ),
    "other name": ({"mlp": {"~": make_arrays()}}, "found 'mlp'"),
    "celo": ({"ff_mod_stack": {"~": make_arrays()}, "rnn_params": {}}, "belongs to Celo"),
    "stack of arrays": ({"ff_mod_stack": np.zeros(3)}, "not Celo2 weights"),
    "empty stack": ({"ff_mod_stack": {"~": {}}}, "expected arrays named"),
}


@pytest.mark.parametrize(("tree", "message"), BAD_TREES.values(), ids=BAD_TREES)
def test_tree_of_another_optimizer_is_refused(tree, message):
    with pytest.raises(ValueError, match=message):
        fit_tree(tree, RuleConfig, {})


def test_tree_suggests_features_within_the_callers_options():
    with pytest.raises(ValueError, match="with_m=False"):
        fit_tree(make_arrays(with_m=False, with_p=False), RuleConfig, {"with_p": False})


def test_tree_may_be_traced():
    @jax.jit
    def count_of(tree):
        arrays, config = resolve_theta(tree, orthogonalize=False)
        assert config.variant == "celo2-base"
        return sum(array.size for array in arrays.values()) + 0 * arrays["b0"].sum()

    assert count_of({"ff_mod_stack": {"~": make_arrays()}}) == RuleConfig().num_parameters


def test_theta_of_weights_gives_arrays_and_options():
    weights = make_weights(orthogonalize=False)
    arrays, config = resolve_theta(weights, rmsmult=0.5)
    assert config == dataclasses.replace(weights.config, rmsmult=0.5)
    assert list(arrays) == list(weights.arrays)


@pytest.mark.parametrize("orthogonalize", [True, False], ids=["celo2", "celo2-base"])
def test_theta_defaults_to_the_shipped_weights_that_fit(shipped, orthogonalize):
    arrays, config = resolve_theta(None, orthogonalize=orthogonalize, ns_iters=4)
    expected = make_weights(orthogonalize=orthogonalize)
    assert config == dataclasses.replace(expected.config, ns_iters=4)
    np.testing.assert_array_equal(arrays["w2"], expected.arrays["w2"])


def test_theta_default_names_the_option_that_no_shipped_weights_have(shipped):
    with pytest.raises(ValueError, match="have mlp_activation='relu', asked for mlp_activation='tanh'"):
        resolve_theta(None, mlp_activation="tanh")


def test_theta_of_another_type_is_refused():
    with pytest.raises(TypeError, match="a path or name of weights, a tree of arrays or None, got int"):
        resolve_theta(7)  # pyright: ignore[reportArgumentType]


def test_theta_by_a_path_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights at"):
        resolve_theta(tmp_path / "theta.state")


def test_shipped_weights_load_by_name(shipped):
    assert load_checkpoint("celo2-base").config.variant == "celo2-base"
    with pytest.raises(ValueError, match=r"celo2\.safetensors: wrong variant.*'celo2-base'"):
        load_checkpoint("celo2", orthogonalize=False)


def test_shipped_weights_that_are_missing_are_named(shipped):
    (shipped / "celo2.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no shipped weights 'celo2' at .*reinstall"):
        load_checkpoint("celo2")


def test_shipped_weights_without_a_digest_are_refused(shipped):
    path = shipped / "celo2.safetensors"
    with safetensors.safe_open(path, "np") as file:
        metadata = {name: text for name, text in file.metadata().items() if name != "sha256"}
    safetensors.numpy.save_file(dict(make_arrays()), path, metadata)
    with pytest.raises(ValueError, match=r"celo2\.safetensors: not the weights that celo2 ships.*reinstall"):
        load_checkpoint("celo2")
    assert load_checkpoint(path).config.variant == "celo2"
