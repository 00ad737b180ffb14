"""The zoo's front door: names, options, weight files."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
import safetensors.numpy

import celo2
from celo2 import zoo
from celo2.baselines import find_optimizer, make_optimizer
from celo2.commands import bench as bench_command
from celo2.commands import compare as compare_command
from celo2.commands import weights as command
from celo2.evaluate import CompareConfig
from celo2.weights.schema import as_tree, find_kind, read_shapes
from celo2.zoo.specs import MEMBERS, Velo
from celo2.zoo.weights import fitting_presets

SMALL: dict[str, dict[str, Any]] = {
    "celo": {"lstm_size": 3},
    "celo_adam": {"lstm_size": 3},
    "adafac_mlp": {},
    "rnn_mlp": {"lstm_size": 3},
    "nn_adam": {"lstm_size": 3},
    "velo": {"lstm_size": 3, "num_mlps": 2},
}


def make_weights(name: str, **options: Any) -> zoo.ZooWeights:
    config = MEMBERS[name](**{**SMALL[name], **options})
    rng = np.random.default_rng(0)
    arrays = {n: np.asarray(rng.normal(size=s), np.float32) for n, s in config.weight_shapes().items()}
    return zoo.ZooWeights(arrays, config, {"command": "a test"}, frozenset(vars(config)))


@pytest.mark.parametrize("suffix", ["safetensors", "state"])
@pytest.mark.parametrize("name", MEMBERS)
def test_files_come_back_as_they_were(tmp_path: Path, name: str, suffix: str) -> None:
    weights = make_weights(name)
    zoo.save_weights(tmp_path / f"w.{suffix}", weights)
    loaded = zoo.load_weights(tmp_path / f"w.{suffix}")
    assert loaded.config == weights.config
    for array, expected in weights.arrays.items():
        np.testing.assert_array_equal(loaded.arrays[array], expected)
    own = suffix == "safetensors"
    assert loaded.provenance.get("command" if own else "source") == ("a test" if own else "w.state")


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda w: pickle.loads(pickle.dumps(w))])
def test_weights_can_be_copied_and_pickled(duplicate: Any) -> None:
    weights = make_weights("nn_adam")
    again = duplicate(weights)
    for field in ("config", "provenance", "stated"):
        assert getattr(again, field) == getattr(weights, field)
    for name, array in weights.arrays.items():
        np.testing.assert_array_equal(again.arrays[name], array)


@pytest.mark.parametrize("name", MEMBERS)
def test_trees_are_told_apart_by_their_arrays(name: str) -> None:
    weights = make_weights(name)
    tree = as_tree(weights.arrays)
    assert all("/" not in key for key in tree)
    assert find_kind(read_shapes(weights.arrays)) == name
    tx = zoo.make(name, weights=tree, num_steps=5)
    params = {"w": jnp.ones(2)}
    state: Any = tx.init(params)
    assert state.accumulators.momentum[0]["w"].shape == (2,)


def test_celo2_files_are_no_ones_of_the_zoo() -> None:
    assert find_kind(read_shapes(celo2.load_checkpoint("celo2").arrays)) is None
    with pytest.raises(
        ValueError, match=r"not weights of celo, celo_adam.*load them with celo2\.load_checkpoint"
    ):
        zoo.load_weights("celo2")


@pytest.mark.parametrize("suffix", ["safetensors", "state"])
def test_celo2s_loader_says_whose_weights_they_are(tmp_path: Path, suffix: str) -> None:
    zoo.save_weights(tmp_path / f"w.{suffix}", make_weights("rnn_mlp"))
    with pytest.raises(ValueError, match="weights of 'rnn_mlp'"):
        celo2.load_checkpoint(tmp_path / f"w.{suffix}")


@pytest.mark.parametrize("suffix", ["safetensors", "state"])
def test_options_that_the_arrays_contradict_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"w.{suffix}"
    zoo.save_weights(path, make_weights("velo"))
    with pytest.raises(ValueError, match=rf"w\.{suffix}: .*have lstm_size=3, .*5"):
        zoo.load_weights(path, lstm_size=5)


def test_celos_phase_may_always_be_chosen(tmp_path: Path) -> None:
    zoo.save_weights(tmp_path / "w.safetensors", make_weights("celo"))
    for options, phase in (({}, 2), ({"phase": 1}, 1)):
        config: Any = zoo.load_weights(tmp_path / "w.safetensors", **options).config
        assert config.phase == phase


def broken(change: Any) -> bytes:
    weights = make_weights("celo_adam")
    arrays = {name: array.copy() for name, array in weights.arrays.items()}
    metadata = {
        "format": "celo2-zoo-weights",
        "optimizer": "celo_adam",
        "options": json.dumps({"lstm_size": 3}),
        "provenance": "{}",
        "version": "1",
    }
    change(arrays, metadata)
    return safetensors.numpy.save(arrays, metadata)


DAMAGED: dict[str, tuple[bytes, str]] = {
    "missing": (
        broken(lambda a, _: a.pop("rnn_params/step_size/w")),
        "missing rnn_params/step_size/w, unexpected none",
    ),
    "unexpected": (broken(lambda a, _: a.update(x=a["lstm_init_state/cell"])), "unexpected x"),
    "shape": (
        broken(lambda a, _: a.update({"lstm_init_state/cell": np.zeros((1, 4), np.float32)})),
        r"lstm_init_state/cell has shape \(1, 4\), expected \(1, 3\)",
    ),
    "NaN": (broken(lambda a, _: a["lstm_init_state/cell"].fill(np.nan)), "3 NaN or infinite"),
    "optimizer": (broken(lambda _, m: m.update(optimizer="adam")), "weights of 'adam', expected one of celo"),
    "options": (
        broken(lambda _, m: m.update(options='{"x": 1}')),
        "celo_adam has no option 'x'. It has lstm_size",
    ),
    "size": (broken(lambda _, m: m.update(options='{"lstm_size": -1}')), "lstm_size must be"),
    "no JSON": (broken(lambda _, m: m.update(options="[")), "bad metadata, options"),
    "version": (
        broken(lambda _, m: m.update(version="2")),
        "contract version 2 is newer than 1",
    ),
    "no version": (broken(lambda _, m: m.pop("version")), "expected a whole number as version, found ''"),
    "no options": (broken(lambda _, m: m.pop("options")), "the metadata lack 'options'"),
    "options list": (
        broken(lambda _, m: m.update(options="[]")),
        "options of celo_adam must be a JSON object",
    ),
    "deep options": (broken(lambda _, m: m.update(options="[" * 100_000)), "bad metadata, options"),
    "Celo2's name": (broken(lambda _, m: m.update(optimizer="celo2")), "weights of 'celo2', expected one of"),
    "other format": (broken(lambda _, m: m.update(format="pt")), "expected the metadata format=.*found 'pt'"),
    "other field": (
        broken(lambda _, m: m.update(contract_version="1")),
        "unknown metadata 'contract_version'",
    ),
    "provenance": (broken(lambda _, m: m.update(provenance='{"seed": 1}')), "must map text to text"),
    "provenance list": (broken(lambda _, m: m.update(provenance="[]")), "provenance must be a JSON object"),
    "digest": (broken(lambda _, m: m.update(sha256="0" * 64)), "the file is damaged"),
    "cut": (broken(lambda *_: None)[:-10], "expected a safetensors file"),
    "a pickle": (pickle.dumps({}), "expected a safetensors file"),
}


@pytest.mark.parametrize(("data", "message"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_file_is_refused_with_what_was_expected(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as refusal:
        zoo.load_weights(path)
    assert "w.safetensors" in str(refusal.value)


def test_damaged_upstream_file_is_still_recognised(tmp_path: Path, capsys: Any) -> None:
    tree = as_tree(make_weights("nn_adam").arrays)
    packed = msgpack.ExtType(1, msgpack.packb(((2, 2), "float32", bytes(16))))
    data = msgpack.unpackb(_state_bytes(tmp_path, tree), strict_map_key=False)
    data["rnn_params"]["rnn/linear"]["b"] = packed
    (tmp_path / "theta.state").write_bytes(cast(bytes, msgpack.packb(data)))
    assert command.main(["inspect", str(tmp_path / "theta.state")]) == 1
    message = capsys.readouterr().err
    assert "weights of nn_adam: rnn_params/rnn/linear/b has shape (2, 2), expected (12,)" in message


def _state_bytes(folder: Path, tree: Any) -> bytes:
    from celo2.weights.theta_state import encode_theta

    return encode_theta(tree)


def test_command_inspects_converts_and_fetches(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    zoo.save_weights("theta.state", make_weights("velo"))
    monkeypatch.setattr(
        "celo2.weights.sources.download", lambda _repo_id, _max_bytes: tmp_path / "theta.state"
    )
    assert command.main(["fetch", "owner/velo", "--set", "ff_mult=100"]) == 0
    fetched = zoo.load_weights("velo.safetensors")
    assert fetched.config == Velo(lstm_size=3, num_mlps=2, ff_mult=100.0)
    assert fetched.provenance["hub"] == "owner/velo"
    assert command.main(["inspect", "velo.safetensors"]) == 0
    out = capsys.readouterr().out
    for expected in ("velo, a predecessor", "the length of the run", "rnn_params/rnn/linear/w", "owner/velo"):
        assert expected in out
    assert "celo2.zoo.make            velo, with the options above" in out  # 'velo' itself has ff_mult=1
    assert command.main(["convert", "velo.safetensors", "back.state"]) == 0
    assert "--set ff_mult=100.0" in capsys.readouterr().out
    assert command.main(["verify", "back.state", "velo.safetensors"]) == 0


def test_what_an_upstream_file_does_not_say_is_not_written(
    tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    zoo.save_weights("theta.state", make_weights("velo"))
    assert command.main(["convert", "theta.state", "velo.safetensors"]) == 0
    assert "options assumed: ff_mult=1.0, bugged_loss_features=false" in capsys.readouterr().out
    weights = zoo.load_weights("velo.safetensors")
    assert weights.stated == {"lstm_size", "num_mlps"}
    zoo.make("velo", weights=weights, num_steps=5, ff_mult=100.0)
    assert zoo.load_weights("velo.safetensors", ff_mult=100).config == Velo(
        lstm_size=3, num_mlps=2, ff_mult=100.0
    )


@pytest.mark.parametrize(
    ("name", "options", "fitting"),
    [
        ("celo", {}, ["celo", "celo_phase1"]),
        ("celo", {"num_mlps": 2}, ["celo"]),
        ("nn_adam", {"decay_strength": 0.5}, []),
        ("velo", {"lstm_size": 64, "num_mlps": 32}, ["velo", "velo_s"]),
        ("velo", {"ff_mult": 100.0}, []),
    ],
    ids=str,
)
def test_presets_that_fit_are_those_that_make_takes(
    name: str, options: dict[str, Any], fitting: list[str]
) -> None:
    weights = make_weights(name, **options)
    assert fitting_presets(weights) == fitting
    for preset in zoo.PRESETS:
        if preset in fitting:
            zoo.make(preset, weights=weights, num_steps=5)
        else:
            with pytest.raises(ValueError, match=r"weights|one network"):
                zoo.make(preset, weights=weights, num_steps=5)


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("velo", "bugged_lstm_state", "false"),
        ("velo", "ff_mult", True),
        ("velo", "num_mlps", 2.0),
        ("nn_adam", "decay_strength", "0.5"),
        ("celo", "phase", True),
    ],
)
def test_option_of_another_type_is_refused(name: str, option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{option} must be .*, got {value!r}"):
        MEMBERS[name](**{option: value})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("celoo", {}, "did you mean 'celo'"),
        ("celo", {}, r"celo has no weights in this package.*amoudgl/celo.*init_theta\('celo', key\)"),
        ("celo", {"weights": "celo_adam"}, "these are weights of 'celo_adam', asked for 'celo'"),
        ("celo", {"weights": "celo"}, "celo needs the length of the run: num_steps=1000"),
        ("celo", {"weights": "celo", "num_steps": 0}, "num_steps must be at least 1, got 0"),
        ("velo_s", {"weights": "velo", "num_steps": 5}, "have lstm_size=3, 'velo_s' has 64"),
        ("velo", {"weights": "velo", "num_steps": 5, "ff_mult": 2.0}, "have ff_mult=1.0, 'velo' has 2.0"),
    ],
    ids=["name", "no weights", "other weights", "no steps", "zero steps", "other size", "other option"],
)
def test_make_refuses_with_a_remedy(name: str, options: dict[str, Any], message: str) -> None:
    if "weights" in options:
        options = options | {"weights": make_weights(options["weights"])}
    with pytest.raises(ValueError, match=message):
        zoo.make(name, **options)


def test_unknown_option_is_refused() -> None:
    with pytest.raises(TypeError, match="did you mean 'ff_mult'"):
        zoo.make("velo", ffmult=2.0)
    with pytest.raises(TypeError, match="weights must be"):
        zoo.make("adafac_mlp", weights=cast(Any, 3))


def test_missing_loss_is_explained() -> None:
    tx, params = zoo.make("celo_adam", weights=make_weights("celo_adam"), num_steps=5), {"w": jnp.ones(2)}
    with pytest.raises(ValueError, match=r"needs the loss.*value=loss"):
        tx.update(params, tx.init(params), params)


@pytest.mark.parametrize(
    ("name", "extra", "error", "message"),
    [
        (
            "rnn_mlp",
            {"value": np.ones(1)},
            ValueError,
            r"value must be the loss as a scalar, got shape \(1,\)",
        ),
        ("nn_adam", {"is_valid": True}, ValueError, "nn_adam takes no validation losses"),
        (
            "rnn_mlp",
            {"value": 1.0, "is_valid": jnp.ones((), bool)},
            TypeError,
            "must be True or False itself",
        ),
    ],
    ids=["loss of one entry", "validation loss", "traced"],
)
def test_extra_argument_without_meaning_is_refused(
    name: str, extra: dict[str, Any], error: type[Exception], message: str
) -> None:
    tx, params = zoo.make(name, weights=make_weights(name)), {"w": jnp.ones(2)}
    with pytest.raises(error, match=message):
        tx.update(params, tx.init(params), params, **extra)


@pytest.mark.parametrize("name", ["celo_adam", "rnn_mlp"])
def test_donated_state_leaves_the_weights_alone(name: str) -> None:
    """One tensor: its row of an LSTM has the shape of the weights that it starts from."""
    tx = zoo.make(name, weights=zoo.init_theta(name, jax.random.key(0), **SMALL[name]), num_steps=5)
    params = {"w": jnp.ones(2)}
    step = jax.jit(lambda state: tx.update(params, state, params, value=1.0)[1], donate_argnums=0)
    for _ in range(2):
        state = step(step(tx.init(params)))
        assert state.accumulators.count == 2


def test_initialised_theta_has_the_specified_scale() -> None:
    theta = zoo.init_theta("velo_s", jax.random.key(0))
    scaled = np.asarray(theta["rnn_params/rnn/linear/w"]) * np.sqrt(128)
    assert scaled.std() == pytest.approx(0.88, abs=0.01)  # of a normal truncated at ±2
    assert np.abs(scaled).max() <= 2.0
    assert np.abs(theta["ff_mod_stack/~/w0__0"]).max() <= 2.0 / np.sqrt(30)
    assert not np.any(theta["rnn_params/rnn/linear/b"])
    adam = zoo.init_theta("nn_adam", jax.random.key(0))
    assert float(adam["per_layer_lr"]) == pytest.approx(0.1 * np.log(1e-4))
    assert not np.any(adam["rnn_to_controls_params/rnn_to_controls/w"])


def test_large_weights_are_on_the_device_once() -> None:
    """A step may not carry weights from the host: only what is small becomes a number of the program."""
    weights = make_weights("velo", lstm_size=20)
    tx, params = zoo.make("velo", weights=weights, num_steps=5), {"w": jnp.ones(3)}
    jaxpr = jax.make_jaxpr(lambda p: tx.update(p, tx.init(p), p, value=1.0))(params)
    assert all(c.size <= 256 for c in jaxpr.consts if isinstance(c, np.ndarray))
    assert any(c.size > 256 for c in jaxpr.consts)


def test_comparison_takes_predecessors_by_path(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    zoo.save_weights(path, make_weights("celo_adam"))
    name = f"celo_adam:{path}"
    spec = find_optimizer(name, num_steps=10)
    assert spec.learning_rates(7) == (1.0,)
    [group, _] = CompareConfig(optimizers=(name, "adamw")).suite().groups("fashion-mlp")
    assert group.learning_rates == (1.0,)
    tx, params = make_optimizer(name, 1.0, num_steps=10), {"w": jnp.ones(2)}
    updates, _ = tx.update(params, tx.init(params), params, value=jnp.asarray(1.0))  # type: ignore[call-arg]
    assert np.all(np.asarray(updates["w"]) < 0.0)
    with pytest.raises(ValueError, match="needs the length of the run"):
        find_optimizer(name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizers": ("celo",)}, "'celo' has no weights in this package"),
        ({"optimizers": ("celo:x",), "learning_rates": {"celo:x": (0.1,)}}, "sets its own step sizes"),
        ({"optimizers": ("celo:x",), "weight_decay": 0.1}, "weight decay is measured by the learning rate"),
    ],
    ids=["no weights", "learning rate", "weight decay"],
)
def test_comparison_refuses_what_has_no_meaning(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CompareConfig(**options)


@pytest.mark.parametrize("module", [bench_command, compare_command], ids=["bench", "compare"])
def test_commands_say_which_extra_a_repository_needs(module: Any, monkeypatch: Any, capsys: Any) -> None:
    def missing(_name: str, **_options: Any) -> None:
        raise ImportError("needs celo2[hub]")

    monkeypatch.setattr(module, "find_optimizer", missing)
    assert module.main(["--optimizers", "celo:owner/name"]) == 2
    assert capsys.readouterr().err == "error: needs celo2[hub]\n"
