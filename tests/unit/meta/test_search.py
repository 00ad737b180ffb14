"""The search over mixtures: the fast rule is the public one, values and resumption are right."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from celo2 import Harness, Weights, load_checkpoint
from celo2.gradient_range import gradient_range
from celo2.jax.transform import celo2, celo2_base
from celo2.meta.search import mixture
from celo2.meta.search.objective import Objective, best_of_rates, soft_maximum
from celo2.meta.search.run import SearchConfig, search
from celo2.meta.task_sets import TASK_SETS, load_task_set
from celo2.training.protocol import cosine_schedule
from helpers.search_sets import TINY_SET

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture
def tiny_set(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(TINY_SET)
    return str(path)


def _params(key):
    shapes = {
        "hidden": (6, 10),
        "wide": (9, 4),
        "square": (5, 5),
        "bias": (10,),
        "conv": (3, 3, 2, 6),
        "query": (6, 2, 3),
        "head": (10, 7),
    }
    keys = jax.random.split(key, len(shapes))
    return {
        name: {"kernel": jax.random.normal(k, shape)}
        for k, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


REVIVAL = (0.1, -0.05, -0.1, -1.1)  # ρ = 0.4 and -0.2, τ = 0.67, λ = 0.6: some rows of these gradients pass


@pytest.mark.parametrize(
    "terms",
    [(), (-0.3, -0.3), (0.2, -0.4), REVIVAL, (0.2, -0.4, *REVIVAL)],
    ids=["sum", "clips", "favours", "revives", "favours-and-revives"],
)
@pytest.mark.parametrize("variant", ["celo2", "celo2-base"])
def test_mixture_trains_as_the_public_optimizer_with_its_weights(variant, terms):
    vector = mixture.to_vector() + 0.1 * np.random.default_rng(0).normal(size=22)
    vector = np.append(vector, terms)
    schedule = cosine_schedule(1e-2, 20)
    public = {"celo2": celo2, "celo2-base": celo2_base}[variant]
    weights = mixture.make_weights(vector, variant, {})
    one = mixture.make_optimizer(mixture.to_mixture(jnp.asarray(vector)), variant, schedule, 0.1)
    two = public(schedule, weights=weights, weight_decay=0.1)

    _assert_same_training(one, two)
    old = mixture.make_optimizer(
        mixture.to_mixture(jnp.asarray(vector)), variant, schedule, 0.1, stored_kernels=True
    )
    kernels = [_train(optimizer)["conv"]["kernel"] for optimizer in (one, old)]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-3


def test_mixture_in_the_eigenbasis_trains_as_the_public_optimizer_with_that_harness():
    vector = mixture.to_vector() + 0.1 * np.random.default_rng(0).normal(size=22)
    schedule = cosine_schedule(1e-2, 20)
    one = mixture.make_optimizer(
        mixture.to_mixture(jnp.asarray(vector)), "celo2", schedule, 0.1, adamw_lr_scale=5, eigenbasis_every=3
    )
    harness = Harness(adamw_lr_scale=5, eigenbasis_every=3)
    weights = mixture.make_weights(vector, "celo2", {})
    two = celo2(schedule, weights=weights, weight_decay=0.1, harness=harness)
    _assert_same_training(one, two)


def _assert_same_training(one, two):
    for mine, theirs in zip(jax.tree.leaves(_train(one)), jax.tree.leaves(_train(two)), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=2e-5)


def _train(optimizer) -> Any:
    """Trains for six steps, after which a basis that is renewed every three steps has been so twice."""
    params: Any = _params(jax.random.key(0))
    state = optimizer.init(params)
    update = jax.jit(optax.with_extra_args_support(optimizer).update)
    for count in range(6):
        grads = _params(jax.random.key(count + 1))
        updates, state = update(grads, state, params, step=jnp.asarray(count))
        params = optax.apply_updates(params, updates)
    return params


def test_start_vector_is_the_adam_like_start():
    weights = mixture.make_weights(mixture.to_vector(), "celo2", {})
    assert weights.config.initial_momentum_decays == (0.9, 0.99, 0.999)
    assert weights.arrays["w0__5"][0, 0] == pytest.approx(0.5)
    assert weights.arrays["w0__8"][0, 0] == pytest.approx(0.5)
    kept = load_checkpoint(Path(__file__).parents[3] / "recipes" / "search" / "celo2-start.safetensors")
    assert kept.config == weights.config
    for name, array in weights.arrays.items():
        np.testing.assert_array_equal(kept.arrays[name], array)


@pytest.mark.parametrize("name", ["celo2", "celo2-base"])
def test_the_shipped_weights_are_read_as_the_mixtures_that_they_are(name):
    weights = load_checkpoint(name)
    found = mixture.read_mixture(weights)
    assert np.abs(found.shares).sum() == pytest.approx(1.0)
    assert found.initial_rms_decays == weights.config.initial_rms_decays
    again = mixture.make_weights(mixture.encode(found), name, {})
    assert again.config == weights.config
    for array, expected in zip(again.arrays.values(), weights.arrays.values(), strict=True):
        np.testing.assert_allclose(array, expected, atol=1e-6)


def test_a_bent_mixture_is_read_as_it_was_made():
    vector = np.append(mixture.to_vector(), [-0.2, -0.25])
    weights = mixture.make_weights(vector, "celo2", {})
    gamma, tau = mixture.read_mixture(weights).bend or (0, 0)
    assert (gamma, tau) == (pytest.approx(-0.8), pytest.approx(np.exp(-1)))
    assert "γ -0.80, τ 0.37" in mixture.describe(vector)


def _first_step(grad, *terms):
    """The first update of one matrix by the Adam-like start in Celo2-base, with the numbers of its terms."""
    made = mixture.to_mixture(jnp.asarray([*mixture.to_vector(), *terms]))
    optimizer = mixture.make_optimizer(made, "celo2-base", cosine_schedule(1e-2, 20))
    grads, params = {"hidden": {"kernel": grad}}, {"hidden": {"kernel": jnp.zeros_like(grad)}}
    (update,) = jax.tree.leaves(optimizer.update(grads, optimizer.init(params), params)[0])
    return np.asarray(update)


def test_a_bend_changes_the_direction_only_beyond_its_threshold():
    grad = jnp.asarray([[0.1, -0.1, 0.1], [0.1, 5.0, -5.0]])

    plain, clipped, far = (np.abs(_first_step(grad, *bend)) for bend in ((), (-0.25, -0.05), (-0.25, 1.0)))
    np.testing.assert_allclose(plain, far)
    assert clipped[1, 1] / clipped[0, 0] < plain[1, 1] / plain[0, 0]
    assert clipped[0, 1] / clipped[0, 0] == pytest.approx(plain[0, 1] / plain[0, 0])


@pytest.mark.parametrize("bend", [(), (-0.2, -0.25)], ids=["plain", "bent"])
def test_a_mixture_that_revives_is_read_as_it_was_made(bend):
    vector = np.asarray([*mixture.to_vector(), *bend, 0.2, -0.1, 0.05, 0.1])
    found = mixture.read_mixture(mixture.make_weights(vector, "celo2", {}))
    assert found.revival == pytest.approx((0.8, -0.4, np.exp(0.2), 50 * np.exp(0.4)))
    np.testing.assert_allclose(mixture.encode(found), vector, atol=1e-6)
    assert "revival ρ +0.80 -0.40, τ 1.22, λ 75" in mixture.describe(vector)


def test_a_mixture_with_one_hidden_layer_is_read():
    config = load_checkpoint("celo2-base").config.replace(ff_hidden_layers=1)
    zeros = {name: np.zeros(shape, np.float32) for name, shape in config.weight_shapes().items()}
    zeros["w0__0"][0, :2] = zeros["w1"][:2, 0] = 1.0, -1.0
    found = mixture.read_mixture(Weights(zeros, config))
    assert (found.shares.sum(), found.bend, found.revival) == (1.0, None, None)


@pytest.mark.parametrize("axis", [0, 1], ids=["row", "column"])
@pytest.mark.parametrize("num_dead", [1, 5])
def test_a_revival_pushes_only_the_weights_of_dead_units(axis, num_dead):
    dead = np.zeros((8, 7), bool)
    dead[tuple(slice(num_dead) if axis == one else slice(None) for one in (0, 1))] = True
    drawn = jax.random.normal(jax.random.key(0), (8, 7))
    living = drawn + jnp.sign(drawn)  # no living row is nearly dead
    grad = jnp.where(dead, 0.0, living)

    plain, revived = _first_step(grad), _first_step(grad, 0.1, 0.1, 0.0, 0.0)
    np.testing.assert_array_equal(plain[dead], 0)
    assert revived[dead].min() > 0  # the weights of the unit grow
    np.testing.assert_allclose(revived[dead], revived[dead][0], rtol=1e-5)
    ratios = revived[~dead] / plain[~dead]
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-5)  # only the common normalisation differs


@pytest.mark.parametrize(("scale", "is_pushed"), [(1.0, False), (1e-2, False), (1e-3, True)])
def test_living_rows_are_pushed_where_gradients_are_small(scale, is_pushed):
    sizes = jnp.asarray([1, 1, 2, 2, 3, 3, 4, 4])[:, None]  # no dead row
    grad = scale * sizes * jnp.sign(jax.random.normal(jax.random.key(0), (8, 7)))

    ratios = _first_step(grad, 0.0, 0.1, 0.0, 0.0) / _first_step(grad)
    assert (np.ptp(ratios) > 1e-3) == is_pushed


def test_other_networks_are_refused_as_mixtures():
    weights = load_checkpoint("celo2")
    arrays = {name: np.array(array) for name, array in weights.arrays.items()}
    arrays["b0"][2] = 0.1
    with pytest.raises(ValueError, match="no mixture"):
        mixture.read_mixture(Weights(arrays, weights.config))


def test_decays_stay_in_their_bounds():
    vector = mixture.to_vector()
    vector[-7:] = [10, -10, 0, 10, -10, 0, 10]
    decays = mixture.make_weights(vector, "celo2-base", {}).config
    assert decays.initial_momentum_decays == (0.0, 0.9999, 0.999)


def test_soft_maximum_lets_no_gain_pay_for_a_loss():
    weights = [0.5, 0.5]
    assert soft_maximum(np.array([-0.1, 0.05]), weights) > 0 > np.mean([-0.1, 0.05])
    assert soft_maximum(np.array([-0.1, 0.05]), weights, 1e-6) == pytest.approx(-0.025, abs=1e-4)


@pytest.mark.parametrize(
    ("losses", "best"),
    [
        pytest.param([1.0, 0.99, 1.0], 0.99, id="vertex-at-the-middle"),
        pytest.param([1.0, 0.98, 0.99], 0.97958, id="vertex-between"),
        pytest.param([3.0, 2.0, 1.0], 1.0, id="at-the-edge"),
        pytest.param([1.0, 2.0, 1.5], 1.0, id="no-minimum"),
        pytest.param([2.0, 1.0, 1.1], 0.98, id="correction-is-limited"),
    ],
)
def test_best_of_rates(losses, best):
    assert best_of_rates(np.array(losses)) == pytest.approx(best, abs=1e-4)


@pytest.mark.parametrize("name", TASK_SETS)
def test_shipped_task_sets_can_be_built(name):
    task_set = load_task_set(name)
    for entry in task_set.tasks:
        assert entry.make().initial_loss > 0
    assert sum(task_set.kind_weights) == pytest.approx(1)


def test_shipped_task_sets_share_no_seed():
    seeds = [set(load_task_set(name).seed_range) for name in TASK_SETS]
    assert not set.intersection(*seeds)
    assert len(set().union(*seeds)) == sum(map(len, seeds))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("sedes = 3", "unknown key 'sedes'", id="unknown-key"),
        pytest.param("", "needs tasks", id="empty"),
        pytest.param('[[tasks]]\nname="a"\ntask="mpl"', "did you mean 'mlp'", id="unknown-task"),
        pytest.param('[[tasks]]\nname="a"\ntask="mlp"\nsteps=1', "steps must be at least 5", id="steps"),
        pytest.param('[[tasks]]\nname="a"\ntask="mlp"\nstep=9', "step", id="unknown-field"),
    ],
)
def test_task_set_refuses(tmp_path, text, message):
    path = tmp_path / "set.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_task_set(path)


def test_unknown_task_set_names_those_there_are():
    with pytest.raises(FileNotFoundError, match="did you mean 'judging'"):
        load_task_set("juding")


def test_search_resumes_to_the_same_record(tmp_path, tiny_set):
    config = SearchConfig(task_set=tiny_set, tasks_per_generation=1, population=4, seed=3)
    whole = search(config, tmp_path / "whole", generations=4)
    search(config, tmp_path / "parts", generations=2)
    with (tmp_path / "parts" / "generations.jsonl").open("a") as file:
        file.write('{"generation": 2, "val')  # what a killed run leaves
    parts = search(config, tmp_path / "parts", generations=4)
    np.testing.assert_array_equal(whole, parts)

    def read(name):
        lines = (tmp_path / name / "generations.jsonl").read_text().splitlines()
        return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]

    assert read("whole") == read("parts")
    assert {task for record in read("whole")[:2] for task in record["tasks"]} == {"a", "b"}
    names = sorted(path.name for path in (tmp_path / "parts" / "weights").iterdir())
    assert names == [f"celo2-00000{ending}.safetensors" for ending in ("2-averaged", "2", "4-averaged", "4")]
    first, second = (load_checkpoint(tmp_path / "parts" / "weights" / name) for name in names[2:])
    assert first.config != second.config  # decays are searched, and averaged
    low, high = gradient_range(first)
    assert 0 < low < high < 10


def test_gradients_factor_is_drawn_within_its_range_and_the_same_for_all(tiny_set):
    task_set = load_task_set(tiny_set)
    vectors = np.stack([mixture.to_vector()] * 2)
    plain, scaled, wide = (
        Objective(task_set, "celo2", gradient_scales=scales) for scales in [(1, 1), (4, 4), (1e-4, 1e-3)]
    )
    ratio = scaled.sample_gradient_rms(vectors[0], 0)[:1] / plain.sample_gradient_rms(vectors[0], 0)[:1]
    np.testing.assert_allclose(ratio, 4, rtol=1e-5)  # before the first step the networks are the same
    name = task_set.tasks[1].name
    first, second = wide.measure(name, vectors, [0])
    assert first == second
    assert first != plain.measure(name, vectors, [0])[0]  # small gradients feel the rule's epsilons


@pytest.mark.parametrize("options", [{"adamw_lr_scale": 5}, {"eigenbasis_every": 3}], ids=["share", "basis"])
def test_the_harness_changes_the_losses(tiny_set, options):
    task_set = load_task_set(tiny_set)
    vectors = mixture.to_vector()[None]
    other, usual = (Objective(task_set, "celo2", **given) for given in (options, {}))
    name = task_set.tasks[1].name
    assert other.measure(name, vectors, [0]) != usual.measure(name, vectors, [0])


def test_bent_search_begins_at_the_adam_like_start(tmp_path, tiny_set):
    lines = []
    config = SearchConfig(task_set=tiny_set, population=4, bends=True, gradient_scales=(0.1, 10))
    found = search(config, tmp_path, generations=1, on_generation=lines.append)
    assert found.shape == (24,)
    np.testing.assert_array_equal(lines[0].vector, mixture.to_vector(bends=True))
    assert SearchConfig.from_json(config.to_json()) == config


def test_a_search_over_terms_alone_keeps_the_weights_and_decays_of_its_start(tmp_path, tiny_set):
    start = mixture.to_vector() + 0.01
    config = SearchConfig(
        task_set=tiny_set, population=4, revives=True, only_terms=True, start=tuple(start.tolist())
    )
    lines = []
    found = search(config, tmp_path, generations=2, on_generation=lines.append)
    np.testing.assert_array_equal(found[:22], start)
    assert np.all(found[22:] != 0)
    np.testing.assert_array_equal(lines[0].vector, [*start, 0, 0, 0, 0])
    np.testing.assert_array_equal(search(config, tmp_path, generations=2), found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradient_scales": (2, 1)}, "0 < low ≤ high"),
        ({"gradient_scales": (0, 1)}, "0 < low ≤ high"),
        ({"gradient_scales": (1, float("inf"))}, "finite"),
        ({"adamw_lr_scale": 0}, "finite and positive"),
        ({"adamw_lr_scale": float("inf")}, "finite and positive"),
        ({"eigenbasis_every": -1}, "0 or a number of steps"),
        ({"bends": True, "start": (0.0,) * 23}, "24 finite numbers"),
        ({"bends": True, "revives": True, "start": (0.0,) * 24}, "28 finite numbers"),
        ({"only_terms": True}, "nothing to search"),
        ({"revives": True, "eigenbasis_every": 10}, "not the rows or columns of an eigenbasis"),
    ],
    ids=[
        "order",
        "zero",
        "infinite",
        "share",
        "infinite-share",
        "basis",
        "start",
        "terms",
        "nothing",
        "no-units",
    ],
)
def test_search_config_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        SearchConfig(**options)


def test_search_refuses_a_folder_with_other_settings(tmp_path, tiny_set):
    search(SearchConfig(task_set=tiny_set, population=4), tmp_path / "out", generations=1)
    with pytest.raises(ValueError, match="population"):
        search(SearchConfig(task_set=tiny_set, population=5), tmp_path / "out", generations=1)


@pytest.mark.parametrize(
    ("text", "message"),
    [('{"generation": 0}\n{}\n', "line 1"), ('{"generation": 3, "values": []}\n', "the order")],
    ids=["damaged", "order"],
)
def test_search_refuses_a_damaged_record(tmp_path, tiny_set, text, message):
    out = tmp_path / "out"
    out.mkdir()
    (out / "generations.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        search(SearchConfig(task_set=tiny_set, population=4), out, generations=1)
    assert (out / "generations.jsonl").read_text() == text


def test_a_search_goes_on_with_its_own_task_set_only(tmp_path, tiny_set):
    config = SearchConfig(task_set=tiny_set, tasks_per_generation=1, population=4)
    out = tmp_path / "out"
    search(config, out, generations=1)
    begun = SearchConfig.load(out / "config.json")
    (tmp_path / "tiny.toml").write_text(TINY_SET.replace("first_seed = ", "first_seed = 1"))
    with pytest.raises(ValueError, match=r"other settings \(set_digest\)"):
        search(config, out, generations=2)
    with pytest.raises(ValueError, match="has changed since this search"):
        search(begun, tmp_path / "again", generations=1)
    assert not (tmp_path / "again").exists()


def test_a_folder_from_before_kernels_were_matrices_is_not_continued_with_them(tmp_path, tiny_set):
    config = SearchConfig(task_set=tiny_set, tasks_per_generation=1, population=4)
    search(config, tmp_path, generations=1)
    known = json.loads((tmp_path / "config.json").read_text())
    for missing in ("stored_kernels", "set_digest", "revives", "only_terms"):
        del known[missing]
    (tmp_path / "config.json").write_text(json.dumps(known))
    with pytest.raises(ValueError, match=r"other settings \(revives, stored_kernels\)"):
        search(dataclasses.replace(config, revives=True), tmp_path, generations=1)
    with pytest.raises(ValueError, match=r"other settings \(stored_kernels\)"):
        search(config, tmp_path, generations=1)
    search(dataclasses.replace(config, stored_kernels=True), tmp_path, generations=1)


def test_weights_that_a_killed_run_did_not_save_are_saved_by_the_next(tmp_path, tiny_set):
    config = SearchConfig(task_set=tiny_set, tasks_per_generation=1, population=4)
    search(config, tmp_path, generations=2, save_every=1)
    path = tmp_path / "weights" / "celo2-000001.safetensors"
    whole = path.read_bytes()
    path.unlink()
    search(config, tmp_path, generations=2, save_every=1)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("seed", [-1, 50_000])
def test_a_seed_whose_runs_have_none_is_refused_before_anything_is_written(tmp_path, tiny_set, seed):
    with pytest.raises(ValueError, match="seeds must be whole numbers"):
        search(SearchConfig(task_set=tiny_set, seed=seed), tmp_path / "out", generations=1)
    assert not (tmp_path / "out").exists()
