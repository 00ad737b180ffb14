"""Submissions to AlgoPerf: their files, their routing, and that they train as the package does."""

from __future__ import annotations

import functools
import json
import runpy
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import yaml

import celo2
from celo2.torch import Celo2
from helpers import algoperf_stand_in
from helpers.algoperf_stand_in import jax_workloads, spec, torch_workloads
from helpers.tolerances import relative_error, tolerance

pytestmark = pytest.mark.usefixtures("promotion_of_a_users_program")

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "algoperf"
SUBMISSIONS = FOLDER / "submissions"
EXTERNAL, SELF = SUBMISSIONS / "external_tuning", SUBMISSIONS / "self_tuning"
GENERATE = SimpleNamespace(**runpy.run_path(str(FOLDER / "generate.py"), run_name="generate"))
FILES = sorted(path.relative_to(SUBMISSIONS) for path in SUBMISSIONS.rglob("submission.py"))
WORKLOADS = ("transformer", "convolution")
STEPS, PERIOD = 12, 4  # batches repeat with this period
SETTINGS = {
    "learning_rate": 5e-3,
    "weight_decay": 0.1,
    "warmup_factor": 0.1,
    "horizon": 1.0,
    "dropout_rate": 0.1,
    "label_smoothing": 0.1,
}
TRIAL = namedtuple("TRIAL", SETTINGS)(**SETTINGS)
Tree = dict[str, Any]


@functools.cache
def load(folder: Path, framework: str) -> Any:
    with algoperf_stand_in.install(framework):
        return algoperf_stand_in.load_submission(folder)


def start(name: str, workload: str) -> jax_workloads.Run:
    run = jax_workloads.Run(load(EXTERNAL / name, "jax"), jax_workloads.WORKLOADS[workload](), TRIAL)
    run.workload.attach_metrics_logger(spec.Logger())
    return run


# Files.


def test_the_committed_files_are_those_of_the_package_now() -> None:
    expected = {str(path): text for path, text in GENERATE.write_shipped()}
    found = {
        str(p.relative_to(SUBMISSIONS)): p for p in SUBMISSIONS.rglob("*.*") if "__pycache__" not in p.parts
    }
    assert found.keys() == expected.keys()
    stale = [name for name, text in expected.items() if found[name].read_text("utf-8") != text]
    assert not stale, "run python benchmarks/algoperf/generate.py"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_submission_describes_itself(path: Path) -> None:
    folder = SUBMISSIONS / path.parent
    info = yaml.safe_load((folder / "submission_info.yml").read_text("utf-8"))
    assert all(info[field] for field in ("submission_name", "submission_folder", "authors", "description"))
    assert info["submission_folder"] == f"submissions/{path.parent}"
    assert info["ruleset"] == path.parts[0].replace("_", "-")
    assert info["framework"].lower() == path.parts[1].rpartition("_")[2]
    assert (folder / "tuning_search_space.json").exists() == (path.parts[0] == "external_tuning")


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_submission_is_one_plain_file(path: Path) -> None:
    """Neither a kernel nor the package nor an optimizer library."""
    text = (SUBMISSIONS / path).read_text("utf-8")
    for word in ("pallas", "triton", "numba", "cuda", "custom_call", "import celo2", "from celo2", "optax"):
        assert word not in text, word


@pytest.mark.parametrize("path", sorted(EXTERNAL.glob("*/*.json")), ids=lambda path: path.parent.name)
def test_five_trials_set_what_the_submission_reads(path: Path) -> None:
    trials, framework = json.loads(path.read_text("utf-8")), path.parent.name.rpartition("_")[2]
    assert len(trials) == 5
    assert len({tuple(sorted(trial)) for trial in trials}) == 1
    assert trials[0].keys() <= load(path.parent, framework).DEFAULTS.keys()
    rates = [trial["learning_rate"] for trial in trials]
    assert rates == sorted(set(rates))
    assert 1e-4 < rates[0] < rates[-1] < 2e-2


@pytest.mark.parametrize("name", ["celo2_jax", "celo2_pytorch"])
def test_batch_sizes_of_variants_are_those_of_their_workload(name: str) -> None:
    sizes = load(SELF / name, name.rpartition("_")[2]).get_batch_size
    assert sizes("imagenet_resnet_gelu") == 512
    assert sizes("librispeech_conformer_layernorm") == 256
    with pytest.raises(ValueError, match=r"no batch size for workload 'chess'.*wmt"):
        sizes("chess")


# Routing, on shapes and names of AlgoPerf's workloads.

JAX_PARAMS: dict[str, tuple[str, tuple[int, ...], Any]] = {  # path → type, shape, view (None: AdamW)
    "encoder/attention/query/kernel": ("ATTENTION_Q", (16, 4, 8), ((0,), (1, 2), 1)),
    "encoder/attention/out/kernel": ("ATTENTION_OUT", (4, 8, 16), ((0, 1), (2,), 1)),
    "encoder/attention/value/bias": ("ATTENTION_BIAS", (4, 8), None),
    "blocks_0/CausalAttn_0/key/kernel": ("WEIGHT", (16, 4, 8), ((0,), (1, 2), 1)),
    "blocks_0/Mlp_0/Dense_0/kernel": ("WEIGHT", (16, 64), ((0,), (1,), 1)),
    "ConvolutionBlock_0/Dense_0/kernel": ("CONV_WEIGHT", (16, 32), ((0,), (1,), 1)),
    "ConvolutionBlock_0/Conv_0/kernel": ("CONV_WEIGHT", (5, 1, 16), None),
    "Conv_0/kernel": ("CONV_WEIGHT", (3, 3, 8, 16), ((0, 1, 2), (3,), 1)),
    "head/kernel": ("WEIGHT", (16, 1000), None),
    "Dense_7/kernel": ("WEIGHT", (16, 8), None),
    "embedding_table": ("EMBEDDING", (400, 16), None),
    "CudnnLSTM_0/weights": ("WEIGHT", (4096,), None),
    "MAPHead_0/probe": ("WEIGHT", (1, 1, 16), None),
    "LayerNorm_0/scale": ("LAYER_NORM_SCALE", (16,), None),
}
TORCH_PARAMS: dict[str, tuple[str, tuple[int, ...], Any]] = {
    "block/attention/in_proj_weight": ("ATTENTION_QKV", (48, 16), ((1,), (0,), 3)),
    "block/attention/kv_proj/weight": ("ATTENTION_KV", (32, 16), ((1,), (0,), 2)),
    "layers/0/attn/w_qkv/weight": ("WEIGHT", (48, 16), ((1,), (0,), 3)),
    "lstm/weight_ih_l0": ("WEIGHT", (64, 16), ((1,), (0,), 4)),
    "lstm/weight_hh_l0_reverse": ("WEIGHT", (1000, 16), ((1,), (0,), 4)),
    "conv1/weight": ("CONV_WEIGHT", (16, 8, 3, 3), ((1, 2, 3), (0,), 1)),
    "up_transpose_convs/0/layers/0/weight": ("CONV_WEIGHT", (16, 8, 2, 2), ((0, 2, 3), (1,), 1)),
    "depthwise_conv/weight": ("CONV_WEIGHT", (16, 1, 5), None),
    "fc/weight": ("WEIGHT", (1000, 16), None),
    "embedding/weight": ("EMBEDDING", (400, 16), None),
}


class Asked(spec.Workload):
    _num_classes = 1000

    def is_output_params(self, param_key: str) -> bool:
        return param_key == "Dense_7"


@pytest.mark.parametrize(
    ("framework", "path"),
    [*(("jax", path) for path in JAX_PARAMS), *(("pytorch", path) for path in TORCH_PARAMS)],
)
def test_a_parameter_is_routed_by_its_type_and_shape(framework: str, path: str) -> None:
    kind, shape, expected = (JAX_PARAMS if framework == "jax" else TORCH_PARAMS)[path]
    submission = load(SELF / f"celo2_{framework}", framework)
    described = [(path.split("/"), spec.ParameterType[kind], shape)]
    (entry,) = submission.make_entries(Asked(), described, outputs_first=framework == "pytorch")
    assert entry.hidden == (expected is not None)
    if expected is not None:
        assert tuple(entry.view) == expected


def test_a_table_that_is_too_large_for_the_rule_is_adamws_in_celo2_base() -> None:
    submission = load(SELF / "celo2_base_jax", "jax")
    kind = spec.ParameterType.EMBEDDING
    tables = [(["small"], kind, (1 << 10, 128)), (["criteo"], kind, (1 << 22, 128))]
    small, large = submission.make_entries(Asked(), tables, outputs_first=False)
    assert (small.hidden, large.hidden) == (True, False)


# Training with JAX.


def make_package(run: jax_workloads.Run, tx: Any) -> Any:
    """One step of the package's optimizer on the loss of a run: that loss, the updates, and the state."""

    def mean_loss(params: Tree, model_state: Any, batch: Tree, rng: jax.Array) -> Any:
        about = (spec.ForwardPassMode.TRAIN, rng, True, TRIAL.dropout_rate)
        logits, _ = run.workload.model_fn(params, batch, model_state, *about)  # type: ignore[attr-defined]
        found = run.workload.loss_fn(batch["targets"], logits, batch.get("weights"), TRIAL.label_smoothing)
        return found["summed"] / found["n_valid_examples"]

    @jax.jit
    def step(params: Tree, model_state: Any, state: Any, batch: Tree, rng: jax.Array) -> Any:
        loss, grads = jax.value_and_grad(mean_loss)(params, model_state, batch, rng)
        return loss, *tx.update(grads, state, params)

    return step


def largest_error(old: Tree, new: Tree, updates: Tree) -> float:
    """The largest relative error of a float32 parameter's change; one in bfloat16 is right up to rounding.

    The gradient of keys' biases is but rounding.
    """
    leaves = jax.tree_util.tree_leaves_with_path((old, new, updates))
    paths = [jax.tree_util.keystr(path) for path, _ in leaves[: len(leaves) // 3]]
    trees = [[np.asarray(leaf) for leaf in jax.tree.leaves(tree)] for tree in (old, new, updates)]
    errors = []
    for path, o, n, u in zip(paths, *trees, strict=True):
        assert n.dtype == o.dtype, path
        if o.dtype == jnp.bfloat16:
            assert abs(float(n) - float(o) - float(u)) <= float(jnp.finfo(o.dtype).eps) * abs(float(o)), path
        elif not path.endswith("['key']['bias']"):
            errors.append(relative_error(n - o, u))
    return max(errors)


CASES = [("celo2_jax", "transformer"), ("celo2_jax", "convolution"), ("celo2_base_jax", "convolution")]


@pytest.mark.parametrize(("name", "workload"), CASES)
def test_a_jax_submission_takes_the_packages_steps_and_learns(name: str, workload: str) -> None:
    run = start(name, workload)
    submission = run.submission
    entries = submission.make_plan(run.workload, run.params).entries
    decayed = [entry.hidden and entry.view is not None for entry in entries]
    mask = jax.tree.unflatten(jax.tree.structure(run.params), decayed)
    rate = functools.partial(submission.learning_rate, TRIAL, submission.make_schedule(run.workload, TRIAL))
    make = celo2.celo2_base if "base" in name else celo2.celo2
    tx = make(rate, weight_decay=TRIAL.weight_decay, mask=mask)
    step, state, batches = make_package(run, tx), tx.init(run.params), type(run.workload).queue()
    losses, errors, trained, traces = [], [], [], run.count_traces()
    for count in range(STEPS):
        old, rng = jax.tree.map(np.array, run.params), jax.random.fold_in(run.rng, count)
        loss, updates, state = step(old, jax.device_get(run.model_state), state, next(batches), rng)
        trained.append(float(loss))
        losses.append(run.step())
        errors.append(largest_error(old, run.params, updates))
    assert max(errors) < tolerance("algoperf, jax"), errors
    assert np.mean(losses[-PERIOD:]) < 0.9 * np.mean(losses[:PERIOD])
    logged = run.workload.metrics_logger.metrics[0]
    assert logged["loss"] == pytest.approx(trained[0], rel=1e-4)
    assert logged["grad_norm"] > 0
    check_resume(run)
    assert len(traces) == 1


def check_resume(run: jax_workloads.Run) -> None:
    """A run goes on to the same numbers from a state that was plain arrays."""
    run.prepare_for_eval()
    state, update = run.optimizer_state
    saved = jax.tree.map(np.array, (state, run.params, run.model_state))
    run.step()
    expected = jax.tree.map(np.array, run.params)
    (state, run.params, run.model_state), run.optimizer_state = saved, (saved[0], update)
    run.global_step -= 1
    run.batches = type(run.workload).queue()
    for _ in range(run.global_step):
        next(run.batches)
    run.step()
    jax.tree.map(np.testing.assert_array_equal, run.params, expected)


@pytest.mark.parametrize("workload", WORKLOADS)
def test_the_routing_by_type_is_the_packages_by_name(workload: str) -> None:
    made = jax_workloads.WORKLOADS[workload]()
    params, _ = made.init_model_fn(jax.random.PRNGKey(1))
    plan = load(EXTERNAL / "celo2_jax", "jax").make_plan(made, params)
    labels = jax.tree.leaves(celo2.param_labels(params))
    assert [entry.hidden for entry in plan.entries] == [label == "celo2" for label in labels]


# Memory.


OF_MATRICES, OF_SIDES, OF_VECTORS, OF_ADAMW = 4, 3, 10, 2  # numbers for an element, a row or column, …


def test_the_readme_says_how_many_numbers_the_state_has() -> None:
    text = " ".join((FOLDER / "README.md").read_text("utf-8").split())
    assert f"keeps {OF_MATRICES} numbers for each element of a matrix" in text
    assert f"and {OF_SIDES} for each of its rows and columns" in text
    assert f"keeps {OF_VECTORS} for each element of a vector" in text
    assert f"AdamW keeps {OF_ADAMW} for each parameter" in text


def count_numbers(entry: Any, shape: tuple[int, ...]) -> int:
    """The numbers that the state has for a parameter, by the README's section on memory."""
    size = int(np.prod(shape))
    if not entry.hidden:
        return OF_ADAMW * size
    if entry.view is None:
        assert len(shape) < 2
        return OF_VECTORS * size
    rows = int(np.prod([shape[axis] for axis in entry.view.reduction]))
    splits = entry.view.splits
    return OF_MATRICES * size + OF_SIDES * (splits * rows + size // rows)


@pytest.mark.parametrize(("name", "workload"), CASES)
def test_the_jax_state_has_as_many_numbers_as_the_readme_says(name: str, workload: str) -> None:
    run = start(name, workload)
    entries = run.submission.make_plan(run.workload, run.params).entries
    shapes = [leaf.shape for leaf in jax.tree.leaves(run.params)]
    state = run.optimizer_state[0]
    found = sum(leaf.size for leaf in jax.tree.leaves((state["rule"], state["adamw"])))
    assert found == sum(map(count_numbers, entries, shapes))
    vectors = [entry for entry in entries if entry.hidden and entry.view is None]
    assert bool(vectors) == ("base" in name)


@pytest.mark.parametrize("workload", WORKLOADS)
def test_the_pytorch_state_has_as_many_numbers_as_the_readme_says(workload: str) -> None:
    run = start_torch(EXTERNAL / "celo2_pytorch", workload)
    run.step()
    optimizer = run.optimizer_state["optimizer"]
    assert len(optimizer.state) == len(optimizer.entries)
    for param, state in optimizer.state.items():
        found = sum(tensor.numel() for tensor in jax.tree.leaves(dict(state)))
        assert found == count_numbers(optimizer.entries[param], tuple(param.shape))


# Training with PyTorch.


def start_torch(folder: Path, workload: str, trial: Any = TRIAL) -> torch_workloads.Run:
    return torch_workloads.Run(load(folder, "pytorch"), torch_workloads.WORKLOADS[workload](), trial)


def make_torch_package(run: torch_workloads.Run) -> Celo2:
    """The package's optimizer, with weight decay for the rule's matrices alone."""
    entries = run.optimizer_state["optimizer"].entries
    groups = [
        {
            "params": [param for param, entry in entries.items() if entry.hidden is hidden],
            "weight_decay": TRIAL.weight_decay * hidden,
        }
        for hidden in (True, False)
    ]
    return Celo2(groups, lr=1.0, module=run.params)


def differentiate(run: torch_workloads.Run) -> float:
    """Puts gradients of the next batch's regularized mean loss into the parameters; returns that loss."""
    batch = {name: torch.from_numpy(array.copy()) for name, array in next(run.batches).items()}
    about = (None, spec.ForwardPassMode.TRAIN, None, True, TRIAL.dropout_rate)
    logits, _ = run.workload.model_fn(run.params, batch, *about)
    found = run.workload.loss_fn(batch["targets"], logits, batch.get("weights"), TRIAL.label_smoothing)
    loss = found["summed"] / found["n_valid_examples"]
    run.params.zero_grad()
    loss.backward()
    return loss.item()


@pytest.mark.parametrize("workload", WORKLOADS)
def test_the_pytorch_submission_takes_the_packages_steps_and_learns(workload: str) -> None:
    run, twin = (start_torch(EXTERNAL / "celo2_pytorch", workload) for _ in range(2))
    run.workload.attach_metrics_logger(spec.Logger())
    optimizer, schedule = make_torch_package(twin), run.submission.make_schedule(run.workload, TRIAL)
    losses, errors, trained = [], [], []
    for count in range(STEPS):
        twin.params.load_state_dict(run.params.state_dict())
        old = {name: param.detach().clone() for name, param in run.params.named_parameters()}
        torch.manual_seed(count)
        losses.append(run.step())
        torch.manual_seed(count)
        trained.append(differentiate(twin))
        for group in optimizer.param_groups:
            group["lr"] = run.submission.learning_rate(TRIAL.learning_rate, schedule, count)
        optimizer.step()
        for (name, param), expected in zip(
            run.params.named_parameters(), twin.params.parameters(), strict=True
        ):
            changes = [end.detach() - old[name] for end in (param, expected)]
            errors.append(relative_error(*changes))
    assert max(errors) < tolerance("algoperf, torch")
    assert np.mean(losses[-PERIOD:]) < 0.9 * np.mean(losses[:PERIOD])
    assert run.workload.metrics_logger.metrics[0]["loss"] == pytest.approx(trained[0], rel=1e-5)


@pytest.mark.parametrize("element", [float("inf"), 1e30], ids=["infinite", "with an infinite square"])
def test_one_huge_gradient_of_a_hidden_matrix_leaves_the_pytorch_model_finite(element: float) -> None:
    """The rule clips gradients, so that only what is done before it could spread the infinity."""
    run = start_torch(SELF / "celo2_pytorch", "transformer", None)
    logger = spec.Logger()
    run.workload.attach_metrics_logger(logger)
    matrix = run.params.get_parameter("block.linear1.weight")
    before = matrix.detach().clone()
    matrix.register_hook(
        lambda grad: grad.index_put((torch.tensor(0), torch.tensor(0)), torch.tensor(element))
    )
    run.step()
    assert all(torch.isfinite(param).all() for param in run.params.parameters())
    assert not torch.equal(matrix, before)
    assert logger.metrics[0]["grad_norm"] == float("inf")


def test_a_pytorch_run_goes_on_from_its_state_dicts() -> None:
    whole, parts = (start_torch(SELF / "celo2_pytorch", "transformer", None) for _ in range(2))
    for run in (whole, parts):
        torch.manual_seed(0)  # dropout's
        for _ in range(4):
            run.step()
    resumed = start_torch(SELF / "celo2_pytorch", "transformer", None)
    resumed.params.load_state_dict(parts.params.state_dict())
    resumed.optimizer_state["optimizer"].load_state_dict(parts.optimizer_state["optimizer"].state_dict())
    resumed.global_step, resumed.batches = parts.global_step, parts.batches
    for run in (whole, resumed):
        torch.manual_seed(1)
        for _ in range(3):
            run.step()
    for name, param in whole.params.named_parameters():
        assert torch.equal(param, dict(resumed.params.named_parameters())[name]), name
