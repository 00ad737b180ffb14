"""Hostile weight files: each is refused with a ValueError that says what was expected and found."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
from pathlib import Path
from typing import Any, cast

import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from celo2.config import CONTRACT_VERSION, RuleConfig
from celo2.weights.checkpoint import Weights, load_checkpoint, save_weights
from helpers.weights_examples import make_arrays, make_weights, save_port

FUZZ = settings(derandomize=True, max_examples=60, deadline=None)


class _Explosive:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", ["theta.state", "w.safetensors"])
def test_pickles_are_never_loaded(tmp_path, name, protocol):
    marker = tmp_path / "marker"
    (tmp_path / name).write_bytes(pickle.dumps(_Explosive(marker), protocol))
    with pytest.raises(ValueError, match=name):
        load_checkpoint(tmp_path / name)
    assert not marker.exists()


def pack_array(shape=(8,), dtype="float32", buffer: Any = bytes(32)) -> msgpack.ExtType:
    return msgpack.ExtType(1, msgpack.packb((shape, dtype, buffer)))


def theta(**entries) -> bytes:
    """An upstream file with some entries replaced."""
    good = {name: pack_array(a.shape, "float32", a.tobytes()) for name, a in make_arrays().items()}
    return cast(bytes, msgpack.packb({"ff_mod_stack": {"~": good | entries}}))


HOSTILE_THETA = {
    "empty": (b"", "not msgpack"),
    "truncated": (theta()[:-100], "not msgpack"),
    "trailing bytes": (theta() + b"\x00", "not msgpack"),
    "a number": (b"\x05", "expected a msgpack map at the top, found int"),
    "number keys": (msgpack.packb({1: 2}), "not msgpack"),
    "deep nesting": (b"\x81\xa1a" * 100_000 + b"\xc0", "not msgpack"),
    "deep maps": (b"\x81\xa1a" * 50 + b"\xc0", "at most 4 levels"),
    "huge map": (b"\xdf\xff\xff\xff\xff", "not msgpack"),
    "huge array": (b"\x81\xa1a\xdd\x7f\xff\xff\xff", "not msgpack"),
    "huge bytes": (b"\x81\xa1a\xc6\xff\xff\xff\xff", "not msgpack"),
    "huge extension": (b"\x81\xa1a\xc9\xff\xff\xff\xff\x01", "not msgpack"),
    "list": (msgpack.packb({"ff_mod_stack": [1]}), "ff_mod_stack is of list, expected an array"),
    "complex": (theta(b1=msgpack.ExtType(2, b"\x92\x00\x00")), "b1 is of extension type 2"),
    "scalar": (theta(b1=msgpack.ExtType(3, b"")), "b1 is of extension type 3"),
    "unknown extension": (theta(b1=msgpack.ExtType(99, b"")), "b1 is of extension type 99"),
    "timestamp": (theta(b1=msgpack.Timestamp(0)), "b1 is of Timestamp"),
    "chunked": (theta(b1={"__msgpack_chunked_array__": True}), "b1 is a chunked array"),
    "broken array": (theta(b1=msgpack.ExtType(1, b"\x93\x00")), "not msgpack"),
    "array of two": (theta(b1=msgpack.ExtType(1, b"\x92\x00\x00")), "not packed as"),
    "float64": (
        theta(b1=pack_array(dtype="float64", buffer=bytes(64))),
        "dtype b'float64', expected float32",
    ),
    "float16": (theta(b1=pack_array(dtype="float16", buffer=bytes(16))), "dtype b'float16'"),
    "bfloat16": (theta(b1=pack_array(dtype="bfloat16", buffer=bytes(16))), "dtype b'bfloat16'"),
    "object dtype": (theta(b1=pack_array(dtype="object")), "dtype b'object'"),
    "short buffer": (theta(b1=pack_array(buffer=bytes(31))), "31 bytes, expected 32"),
    "no buffer": (theta(b1=pack_array(buffer=7)), "b1 has int, expected 32"),
    "negative shape": (theta(b1=pack_array((-1, -8))), "positive lengths"),
    "overflowing shape": (theta(b1=pack_array((2**63, 2**63))), "expected .* for float32 of shape"),
    "empty shape": (theta(b1=pack_array((0, 2**40), buffer=b"")), "positive lengths"),
    "many axes": (theta(b1=pack_array((1,) * 64, buffer=bytes(4))), "at most 4 positive lengths"),
    "shape of text": (theta(b1=pack_array(("8",))), "positive lengths"),
    "wrong shape": (theta(b1=pack_array((2, 4))), r"b1 has shape \(2, 4\), expected \(8,\)"),
    "nan": (theta(b1=pack_array(buffer=np.full(8, np.nan, "f4").tobytes())), "b1 has 8 NaN"),
    "extra array": (theta(b9=pack_array()), "unexpected b9"),
    "npz": (b"PK\x03\x04" + bytes(99), "zip archive"),
    "safetensors": (struct.pack("<Q", 2) + b"{}", "rename it"),
    "too large": (bytes(Weights.max_bytes + 1), "expected at most"),
}


@pytest.mark.parametrize(("data", "message"), HOSTILE_THETA.values(), ids=HOSTILE_THETA)
def test_hostile_upstream_file_is_refused(tmp_path, data, message):
    path = tmp_path / "theta.state"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as refusal:
        load_checkpoint(path)
    assert "theta.state" in str(refusal.value)


def ours(arrays: dict | None = None, **metadata: str | None) -> bytes:
    """A file of this package with some metadata replaced, or left out by None."""
    texts: dict[str, str | None] = {
        "format": "celo2-weights",
        "contract_version": str(CONTRACT_VERSION),
        "config": RuleConfig().to_json(),
        "provenance": "{}",
    }
    kept = {name: text for name, text in (texts | metadata).items() if text is not None}
    return safetensors.numpy.save(make_arrays() if arrays is None else arrays, kept)


HOSTILE_SAFETENSORS = {
    "empty": (b"", "expected a safetensors file"),
    "truncated": (ours()[:-8], "expected a safetensors file"),
    "trailing bytes": (ours() + bytes(8), "expected a safetensors file"),
    "huge header": (b"\xff" * 8 + b"{}", "expected a safetensors file"),
    "header of nothing": (struct.pack("<Q", 2) + b"{}", "not a weight file of celo2"),
    "another model": (ours(format="pt"), "expected the metadata format='celo2-weights' or .*, found .*'pt'"),
    "no metadata": (safetensors.numpy.save(make_arrays()), "not a weight file of celo2"),
    "newer contract": (ours(contract_version="2", config='{"new_option": 1}'), "upgrade celo2"),
    "older contract": (ours(contract_version="0"), "at least 1"),
    "bad version": (ours(contract_version="one"), "expected a whole number"),
    "long version": (ours(contract_version="9" * 9999), "expected a whole number"),
    "no config": (ours(config=None), "lack 'config'"),
    "no provenance": (ours(provenance=None), "lack 'provenance'"),
    "config no JSON": (ours(config="{"), "bad metadata"),
    "config deep": (ours(config="[" * 100_000), "bad metadata"),
    "config list": (ours(config="[]"), "bad metadata, config: options of celo2 must be a JSON object"),
    "unknown option": (ours(config='{"momentum": 1}'), "celo2 has no option 'momentum'"),
    "option out of range": (ours(config='{"ff_hidden_size": -1}'), "ff_hidden_size must be from 1 to 1024"),
    "overflowing option": (ours(config='{"rmsmult": 1' + "0" * 400 + "}"), "bad metadata"),
    "overflowing decay": (ours(config='{"initial_rms_decays": [1' + "0" * 400 + "]}"), "bad metadata"),
    "infinite option": (ours(config='{"rmsmult": Infinity}'), "bad metadata"),
    "step beyond float32": (ours(config='{"rmsmult": 1e300}'), "rmsmult must be a number within ±3.4e"),
    "negative step": (ours(config='{"rmsmult": -1.0}'), "rmsmult must be positive"),
    "step of nothing": (ours(config='{"rmsmult": 0.0}'), "rmsmult must be positive"),
    "epsilon below float32": (ours(config='{"ns_eps": 1e-60}'), "ns_eps must be positive, at least 1.18e-38"),
    "factor beyond float32": (ours(config='{"exp_mult": 1e39}'), "exp_mult must be a number within"),
    "coefficients beyond float32": (
        ours(config='{"ns_coeffs": [1, 1e39, 1]}'),
        "ns_coeffs must be finite in float32",
    ),
    "decay of one in float32": (
        ours(config='{"initial_rms_decays": [0.999999999]}'),
        r"decays in \[0, 1\), also as float32",
    ),
    "metadata of another name": (ours(sha257="0"), "unknown metadata 'sha257', expected only config"),
    "another digest": (
        ours(sha256="0" * 64),
        "the file is damaged: its content has the digest .*expected 0000",
    ),
    "a digest of many letters": (ours(sha256="a" * 9999), "expected a{64}, which it carries"),
    "many layers": (
        ours(config='{"ff_hidden_layers": 1000000000}'),
        "ff_hidden_layers must be from 0 to 16, got 1000000000",
    ),
    "provenance list": (ours(provenance="[]"), "provenance must be a JSON object"),
    "provenance numbers": (ours(provenance='{"seed": 1}'), "text to text"),
    "other variant's arrays": (ours(make_arrays(with_p=False)), "input groups"),
    "float64": (ours({n: a.astype(np.float64) for n, a in make_arrays().items()}), "dtype F64, expected F32"),
    "float16": (ours({n: a.astype(np.float16) for n, a in make_arrays().items()}), "dtype F16"),
    "bfloat16": (ours({n: a.astype(jnp.bfloat16) for n, a in make_arrays().items()}), "dtype BF16"),
    "nan": (ours(make_arrays() | {"b2": np.full(3, np.nan, np.float32)}), "b2 has 3 NaN"),
    "missing array": (ours({n: a for n, a in make_arrays().items() if n != "b2"}), "missing b2"),
    "extra array": (ours(make_arrays() | {"b9": np.zeros(8, np.float32)}), "unexpected b9"),
    "no arrays": (ours({}), "not weights of celo2: expected arrays named w0__0 … b2"),
    "too large": (bytes(Weights.max_bytes + 1), "expected at most"),
}


@pytest.mark.parametrize(("data", "message"), HOSTILE_SAFETENSORS.values(), ids=HOSTILE_SAFETENSORS)
def test_hostile_safetensors_are_refused(tmp_path, data, message):
    path = tmp_path / "w.safetensors"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as refusal:
        load_checkpoint(path)
    assert "w.safetensors" in str(refusal.value)


def test_folder_without_theta_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"folder without theta\.state"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("source", ["nothing.safetensors", "runs/theta.state", Path("owner/name"), "a/b/c"])
def test_nothing_there_is_not_found(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="no weights at"):
        load_checkpoint(source)


def test_device_is_not_read():
    with pytest.raises(ValueError, match="not a regular file"):
        load_checkpoint(Path("/dev/null"))


def test_unknown_option_is_refused_before_reading(tmp_path):
    with pytest.raises(TypeError, match="did you mean 'orthogonalize'"):
        load_checkpoint(tmp_path / "nothing.safetensors", orthogonalise=True)


@pytest.fixture(scope="module", params=["w.safetensors", "theta.state", "port.safetensors"])
def valid_file(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    path = folder / request.param
    if path.stem == "port":
        save_port(path, make_arrays())
    else:
        save_weights(path, make_weights())
    yield path, path.read_bytes()
    shutil.rmtree(folder)


def assert_loads_or_refuses(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    try:
        weights = load_checkpoint(path)
    except ValueError as error:
        refusal = str(error)
    else:
        assert all(np.isfinite(array).all() for array in weights.arrays.values())
        return
    assert path.name in refusal


@FUZZ
@given(data=st.data())
def test_truncated_file_is_refused(valid_file, data):
    path, content = valid_file
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(ValueError, match=path.name):
        load_checkpoint(path)


@FUZZ
@given(data=st.data())
def test_flipped_bytes_load_or_are_refused(valid_file, data):
    path, content = valid_file
    changed = bytearray(content)
    head = st.integers(0, 400)  # the structure is at the head; most other bytes are numbers
    place = st.one_of(head, st.integers(0, len(content) - 1))
    for index, value in data.draw(st.lists(st.tuples(place, st.integers(0, 255)), min_size=1, max_size=6)):
        changed[index] = value
    assert_loads_or_refuses(path, bytes(changed))


@FUZZ
@given(content=st.binary(max_size=64))
def test_random_bytes_are_refused(valid_file, content):
    path, _ = valid_file
    path.write_bytes(content)
    with pytest.raises(ValueError, match=path.name):
        load_checkpoint(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@FUZZ
@given(option=st.sampled_from(RuleConfig.option_names()), value=JSON, provenance=JSON)
def test_random_metadata_load_or_are_refused(tmp_path_factory, option, value, provenance):
    path = tmp_path_factory.getbasetemp() / "metadata.safetensors"
    config = json.dumps({option: value})
    assert_loads_or_refuses(path, ours(config=config, provenance=json.dumps(provenance)))


MSGPACK = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.binary(max_size=8)
    | st.text(max_size=5) | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=16)),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["ff_mod_stack", "~", "b0", "w1"]), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@FUZZ
@given(shape=MSGPACK, dtype=st.just("float32") | MSGPACK, buffer=MSGPACK, entry=MSGPACK)
def test_random_entries_load_or_are_refused(tmp_path_factory, shape, dtype, buffer, entry):
    path = tmp_path_factory.getbasetemp() / "theta.state"
    assert_loads_or_refuses(path, theta(b1=pack_array(shape, dtype, buffer)))
    assert_loads_or_refuses(path, theta(b1=entry))
