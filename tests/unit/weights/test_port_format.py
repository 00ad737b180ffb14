"""Files of the public PyTorch port, made here from shipped weights and from random numbers."""

from __future__ import annotations

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch

import celo2
from celo2.commands import weights as command
from celo2.config import RuleConfig
from celo2.torch import Celo2
from celo2.weights.checkpoint import Weights, load_checkpoint, save_weights
from celo2.zoo.weights import load_weights as load_zoo_weights
from helpers.weights_examples import make_arrays, port_arrays, save_port

PORT_SHAPES = {  # written out, since the code under test derives them
    **{f"w0.{group}": (rows, 8) for group, rows in enumerate([1, 1, 1, 3, 1, 3, 1, 3, 1, 3, 3, 3, 3, 3])},
    **{"b0": (8,), "dense_w.0": (8, 8), "dense_b.0": (8,), "dense_w.1": (8, 3), "dense_b.1": (3,)},
}


@pytest.fixture
def path(tmp_path):
    """A file of random numbers, under the name that the port's files have."""
    save_port(tmp_path / "model.safetensors", make_arrays())
    return tmp_path / "model.safetensors"


def test_the_examples_have_the_form_of_the_port():
    assert {name: array.shape for name, array in port_arrays(make_arrays()).items()} == PORT_SHAPES


@pytest.mark.parametrize(
    "arrays", [make_arrays(), load_checkpoint("celo2").arrays], ids=["random", "shipped"]
)
def test_port_file_loads_as_celo2_with_the_published_options(path, arrays):
    save_port(path, arrays)
    weights = load_checkpoint(path)
    assert {name: array.tobytes() for name, array in weights.arrays.items()} == {
        name: array.tobytes() for name, array in arrays.items()
    }
    assert weights.config == RuleConfig()
    assert weights.stated == set(RuleConfig.option_names())


def test_port_file_leaves_its_name_and_its_form_in_the_provenance(path):
    assert load_checkpoint(path).provenance == {
        "source": "model.safetensors",
        "source_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "options": "not in the file, whose form is the public PyTorch port's; those of celo2 as published",
    }


def test_port_file_is_not_celo2_base(path):
    with pytest.raises(ValueError, match=r"model\.safetensors: wrong variant: these are Celo2 weights"):
        load_checkpoint(path, orthogonalize=False)
    assert load_checkpoint(path, ns_iters=3).config == RuleConfig(ns_iters=3)


def test_port_file_without_metadata_loads(path):
    safetensors.numpy.save_file(port_arrays(make_arrays()), path)
    assert load_checkpoint(path).config == RuleConfig()


def test_port_file_is_no_file_of_the_zoo(path):
    with pytest.raises(
        ValueError, match=r"these are weights of Celo2; load them with celo2\.load_checkpoint"
    ):
        load_zoo_weights(path)


@pytest.mark.usefixtures("standard_promotion")
def test_optax_transform_takes_a_port_file(path):
    params = {"layers": [{"kernel": jnp.ones((4, 3))}], "bias": jnp.ones(3)}
    grads = jax.tree.map(lambda leaf: jnp.linspace(0.1, 1.0, leaf.size).reshape(leaf.shape), params)
    steps = []
    for weights in (str(path), Weights(make_arrays())):
        tx = celo2.celo2(1e-2, weights=weights)
        steps.append(tx.update(grads, tx.init(params), params)[0])
    jax.tree.map(np.testing.assert_array_equal, *steps)
    assert float(jnp.abs(steps[0]["layers"][0]["kernel"]).max()) > 0


def test_torch_optimizer_takes_a_port_file(path):
    stepped = []
    for weights in (str(path), Weights(make_arrays())):
        module = torch.nn.Linear(4, 3).double()  # without compiled kernels
        with torch.no_grad():
            for param in module.parameters():
                param.fill_(0.5)
                param.grad = torch.linspace(0.1, 1.0, param.numel()).reshape(param.shape).double()
        Celo2(module, lr=1e-2, weights=weights).step()
        stepped.append(module.weight.detach().clone())
    assert torch.equal(*stepped)
    assert not torch.equal(stepped[0], torch.full_like(stepped[0], 0.5))


def changed(**entries: Any) -> dict[str, np.ndarray]:
    """The port's arrays with some replaced, or left out by None; `__` in a name stands for its dot."""
    arrays = port_arrays(make_arrays()) | {name.replace("__", "."): value for name, value in entries.items()}
    return {name: array for name, array in arrays.items() if array is not None}


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


BROKEN = {
    "missing group": (changed(w0__13=None), r"have 19 arrays: missing w0\.13, unexpected none"),
    "missing layer": (changed(dense_w__1=None, dense_b__1=None), r"missing dense_b\.1, dense_w\.1"),
    "missing bias": (changed(b0=None), "missing b0, unexpected none"),
    "only a layer": ({"dense_w.0": zeros(8, 8)}, r"missing b0, .* and 10 more, unexpected none"),
    "misshapen group": (changed(w0__3=zeros(2, 8)), r"w0\.3 has shape \(2, 8\), expected \(3, 8\)"),
    "transposed": (changed(dense_w__1=zeros(3, 8)), r"dense_w\.1 has shape \(3, 8\), expected \(8, 3\)"),
    "another width": (changed(b0=zeros(4)), r"b0 has shape \(4,\), expected \(8,\)"),
    "another layer": (changed(dense_w__2=zeros(3, 3)), r"missing none, unexpected dense_w\.2"),
    "both forms": (changed(w1=zeros(8, 8)), "unexpected w1"),
    "wrapped": (changed(b0=None) | {"network.b0": zeros(8)}, r"missing b0, unexpected network\.b0"),
    "float64": (changed(dense_b__1=np.zeros(3)), r"dense_b\.1 has dtype F64, expected F32"),
    "nan": (changed(dense_w__0=np.full((8, 8), np.nan, np.float32)), r"dense_w\.0 has 64 NaN or infinite"),
}


@pytest.mark.parametrize(("arrays", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_port_file_is_refused_by_the_names_of_its_arrays(path, arrays, message):
    safetensors.numpy.save_file(arrays, path, {"format": "pt"})
    with pytest.raises(ValueError, match=rf"model\.safetensors: .*{message}"):
        load_checkpoint(path)
    assert command.main(["verify", str(path)]) == 1


def test_commands_take_a_port_file(path, tmp_path, capsys):
    assert command.main(["verify", str(path)]) == 0
    assert "celo2, 347 numbers; not verifiable, the file carries no digest" in capsys.readouterr().out
    assert command.main(["inspect", str(path)]) == 0
    out = capsys.readouterr().out
    assert "those of celo2 as published" in out
    assert not [line for line in out.splitlines() if line[:2] in (" ?", "*?")]  # no option is assumed
    assert command.main(["convert", str(path), str(tmp_path / "ours.safetensors")]) == 0
    ours, port = load_checkpoint(tmp_path / "ours.safetensors"), load_checkpoint(path)
    assert (ours.config, ours.provenance) == (port.config, port.provenance)


def test_released_arrays_are_known_in_every_form(shared, tmp_path, capsys):
    released = load_checkpoint(shared / "checkpoints" / "celo2_released.safetensors")
    save_weights(tmp_path / "theta.state", released)
    save_port(tmp_path / "port.safetensors", released.arrays)
    for name in ("theta.state", "port.safetensors"):
        assert load_checkpoint(tmp_path / name).config == released.config
        assert command.main(["verify", str(tmp_path / name)]) == 0
        assert "celo2, 347 numbers; known: Celo2 as its authors released it" in capsys.readouterr().out
        with pytest.raises(ValueError, match=r"these are Celo2 weights \(orthogonalize=True"):
            load_checkpoint(tmp_path / name, orthogonalize=False)


def test_known_upstream_file_converts_without_options(shared, tmp_path):
    save_weights(
        tmp_path / "theta.state", load_checkpoint(shared / "checkpoints" / "celo2_released.safetensors")
    )
    assert command.main(["convert", str(tmp_path / "theta.state"), str(tmp_path / "w.safetensors")]) == 0
    assert load_checkpoint(tmp_path / "w.safetensors").config == RuleConfig()
