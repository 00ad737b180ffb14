"""`benchmarks/nanogpt_track/train.py` trains, logs and resumes in its tiny mode; its parts are right."""

from __future__ import annotations

import ast
import copy
import dataclasses
import importlib.util
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from celo2.torch import Celo2, find_routes
from helpers.tolerances import relative_error, tolerance

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "nanogpt_track"
OPTIMIZERS = ["celo2", "muon", "adamw"]
SMALL = {"width": 32, "context": 32, "val_tokens": 1 << 12, "steps": 24, "val_every": 8}


@pytest.fixture(scope="module")
def track() -> Iterator[ModuleType]:
    """The script as a module, with a smaller tiny mode."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # of a process that is one of several: two threads would wait for each other
    spec = importlib.util.spec_from_file_location("nanogpt_track", FOLDER / "train.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.TINY.update(SMALL)
    yield module
    del sys.modules[spec.name]
    torch.set_num_threads(threads)


@pytest.fixture
def train(track: ModuleType, tmp_path: Path) -> Callable[..., Any]:
    """The script's `main` in the tiny mode, with more arguments."""

    def run(*arguments: object) -> Any:
        fixed = () if "--resume" in arguments else ("--tiny", "--folder", tmp_path)
        return track.main(["--device", "cpu", *map(str, (*fixed, *arguments))])

    return run


def only(folder: Path, pattern: str) -> Path:
    (path,) = folder.glob(pattern)
    return path


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_loss_falls(train, optimizer: str) -> None:
    losses = train("--optimizer", optimizer).losses
    assert list(losses) == [0, 8, 16, 24]
    assert losses[0] == pytest.approx(np.log(256), abs=1e-5)  # the head begins at zero
    assert losses[24] < 0.8 * losses[0]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_real_dtype_and_the_roles_of_the_rest_train(
    train, track: ModuleType, monkeypatch, optimizer
) -> None:
    """The embedding's AdamW in bfloat16, as on GPUs."""
    monkeypatch.setitem(track.TINY, "dtype", "bfloat16")
    losses = train("--optimizer", optimizer, "--rest", "roles", "--steps", 16).losses
    assert losses[16] < 0.9 * losses[0]


def test_the_log_has_code_versions_settings_and_results(train, track: ModuleType, tmp_path: Path) -> None:
    losses = train("--seed", 3, "--lr", 2e-3).losses
    path = only(tmp_path, "celo2-seed3-*.txt")
    text = path.read_text("utf-8")
    code, machine, results = text.split(f"\n{'=' * 100}\n")
    assert code == (FOLDER / "train.py").read_text("utf-8")
    assert f"PyTorch {torch.__version__}, NumPy {np.__version__}" in machine
    assert "nvidia-smi" in machine.lower()
    settings = json.loads(re.findall(r"^settings (.*)$", results, re.MULTILINE)[0])
    assert (settings["seed"], settings["lr"], settings["width"]) == (3, 2e-3, 32)
    lines = re.findall(
        r"^step:(\d+)/24 val_loss:(\S+) train_time:\S+s step_avg:\S+ms$", results, re.MULTILINE
    )
    assert {int(step): float(loss) for step, loss in lines} == pytest.approx(losses, abs=1e-5)
    digest, read, loss = runpy.run_path(str(FOLDER / "significance.py"))["read_log"](path)
    assert read == settings
    assert loss == pytest.approx(losses[24], abs=1e-5)
    assert len(digest) == 64


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_resumed_run_goes_on_to_the_same_numbers(train, optimizer: str, tmp_path: Path) -> None:
    whole = train("--optimizer", optimizer, "--folder", tmp_path / "whole").losses
    paused = train("--optimizer", optimizer, "--pause-after", 11)
    assert (paused.step, list(paused.losses)) == (11, [0, 8])
    resumed = train("--resume", only(tmp_path, "*.pt"))
    assert resumed.losses == whole
    assert "resumed after step 11" in only(tmp_path, "*.txt").read_text("utf-8")


def test_an_interrupted_run_can_be_resumed(train, track: ModuleType, tmp_path: Path, monkeypatch) -> None:
    whole, step = train("--folder", tmp_path / "whole").losses, track.Trainer.step

    def interrupted(trainer: Any, number: int) -> None:
        step(trainer, number)
        if number == 4:
            signal.raise_signal(signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(track.Trainer, "step", interrupted)
        assert train().step == 5
    assert signal.getsignal(signal.SIGINT) is handler
    assert train("--resume", only(tmp_path, "*.pt")).losses == whole


def test_the_training_time_has_no_validation_and_no_checkpoints(
    train, track: ModuleType, tmp_path: Path, monkeypatch
) -> None:
    """By a clock that stands still in all but one kind of work at a time."""
    now, own = [0.0], {name: getattr(track.Trainer, name) for name in ("step", "validate")}
    own["save"] = track.save
    monkeypatch.setattr(track, "time", SimpleNamespace(perf_counter=lambda: now[0], strftime=time.strftime))

    def measure(name: str) -> float:
        def slow(*arguments: Any) -> Any:
            now[0] += 1.0
            return own[name](*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(track if name == "save" else track.Trainer, name, slow)
            often = ("--val-every", 2, "--save-every", 3)
            return train("--steps", 6, *often, "--folder", tmp_path / name).seconds

    assert {name: measure(name) for name in own} == {"step": 6.0, "validate": 0.0, "save": 0.0}


def test_checkpoints_of_another_code_are_refused(
    train, track: ModuleType, tmp_path: Path, monkeypatch
) -> None:
    train("--pause-after", 1)
    monkeypatch.setattr(track, "CODE", f"{track.CODE}\n# changed")
    with pytest.raises(ValueError, match="another version of this file"):
        train("--resume", only(tmp_path, "*.pt"))


def test_a_resumed_run_takes_no_settings(train, tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit):
        train("--resume", tmp_path / "run.pt", "--lr", 1e-3)
    assert "leave out lr" in capsys.readouterr().err


def test_a_run_stops_before_the_end_of_its_schedule(train) -> None:
    whole, stopped = train().losses, train("--stop-step", 17).losses
    assert list(stopped) == [0, 8, 16, 17]
    assert {step: whole[step] for step in (0, 8, 16)} == {step: stopped[step] for step in (0, 8, 16)}


def test_a_run_that_diverges_ends(train, track: ModuleType, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(track.Trainer, "validate", lambda _: float("nan"))
    assert list(train().losses) == [0]
    assert "the loss is not finite" in only(tmp_path, "*.txt").read_text("utf-8")


def make_two_processes(track: ModuleType, monkeypatch: pytest.MonkeyPatch, damage_other: Any = None) -> Any:
    """The first of two processes, whose collectives see the same numbers, or damaged ones, in the other."""

    def gather(outputs: list[Tensor], own: Tensor) -> None:
        for rank, output in enumerate(outputs):
            output.copy_(own)
            if rank == 1 and damage_other is not None:
                damage_other(output)

    collectives = SimpleNamespace(all_reduce=lambda tensor: tensor.mul_(2), all_gather=gather)
    monkeypatch.setattr(track, "dist", collectives)
    world = track.World(0, 2, torch.device("cpu"))
    return track.Trainer(track.make_settings({"tiny": True}), world, micro=8, compiled=False)


def start(track: ModuleType, trainer: Any, folder: Path) -> Any:
    return track.run(trainer, track.Progress(), track.Log(folder / "run.txt", trainer.world), None, 500)


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
def test_a_run_in_several_processes_that_diverges_ends(
    track: ModuleType, tmp_path: Path, monkeypatch, value: float
) -> None:
    trainer, step = make_two_processes(track, monkeypatch), track.Trainer.step

    def diverge(trainer: Any, number: int) -> None:
        step(trainer, number)
        with torch.no_grad():
            trainer.model.head.weight[0, 0] = value

    monkeypatch.setattr(track.Trainer, "step", diverge)
    losses = start(track, trainer, tmp_path).losses
    assert list(losses) == [0, 8]
    assert not np.isfinite(losses[8])
    log = (tmp_path / "run.txt").read_text("utf-8")
    assert "stopped at step 8: the loss is not finite; try a lower learning rate" in log


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e-6], ids=str)
def test_processes_with_different_parameters_are_refused(
    track: ModuleType, tmp_path: Path, monkeypatch, value: float
) -> None:
    """Be they finite or not: a process whose numbers alone are not finite is one that computes otherwise."""
    trainer = make_two_processes(track, monkeypatch, lambda sums: sums[0].add_(value))
    with pytest.raises(RuntimeError, match="the processes' parameters differ"):
        start(track, trainer, tmp_path)


def test_every_setting_is_the_tracks_or_may_differ_between_entries(track: ModuleType) -> None:
    """A setting that is new in the script must be put into one of the two."""
    rules = runpy.run_path(str(FOLDER / "significance.py"))
    free = {*rules["NAMED"], "stop_step", "seed", "eps", "val_every", "data"}  # the last by its folder's name
    assert not free & set(rules["FIXED"])
    assert free | set(rules["FIXED"]) == {field.name for field in dataclasses.fields(track.Settings)}


def draw_grads(model: nn.Module, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scales = (0.03, 1e-3, 3.0)
    return [
        scales[seed % 3] * torch.randn(p.shape, generator=generator, dtype=torch.float64)
        for p in model.parameters()
    ]


def test_the_rule_inside_takes_the_steps_of_the_package(track: ModuleType) -> None:
    """The hidden matrices' steps and AdamW's share, by the package's own routing of the same model."""
    settings = track.make_settings({"tiny": True, "lr": 1e-2, "decay": 0.0})
    model = track.GPT(settings).double()
    twin = copy.deepcopy(model)
    start = [p.detach().clone() for p in model.parameters()]
    routes = find_routes(twin)
    hidden = {name for name, p in model.blocks.named_parameters(prefix="blocks") if p.ndim == 2}
    assert {name for name, route in routes.items() if route.algorithm == "celo2"} == hidden
    ours, theirs = track.make_optimizers(model, settings), Celo2(twin, 1e-2)
    for seed in range(3):
        for own in (model, twin):
            for p, grad in zip(own.parameters(), draw_grads(own, seed), strict=True):
                p.grad = grad
        for optimizer in ours:
            optimizer.step()
        theirs.step()
    for (name, p), other, old in zip(model.named_parameters(), twin.parameters(), start, strict=True):
        error = relative_error((p - old).detach(), (other - old).detach())
        assert error < tolerance("track, torch float64"), name


def test_stacks_are_no_higher_than_a_side(track: ModuleType, monkeypatch) -> None:
    monkeypatch.setattr(track, "STACK_ELEMENTS", 100)
    params = [torch.empty(4, 6) for _ in range(7)] + [torch.empty(20, 10) for _ in range(2)]
    stacks = [[tuple(p.shape) for p in stack] for stack in track.make_stacks(params)]
    assert stacks == [[(4, 6)] * 4, [(4, 6)] * 3, [(20, 10)], [(20, 10)]]


def test_decay_and_grad_scale_act_on_hidden_matrices(track: ModuleType) -> None:
    """A gradient of zero leaves the decay alone; a factor on the gradient is one on the loss."""
    p = nn.Parameter(torch.ones(4, 4))
    p.grad = torch.zeros(4, 4)
    track.Celo2([p], 0.1, 0.5).step()
    assert torch.allclose(p, torch.full((4, 4), 0.95))
    grad = torch.linspace(-1, 1, 16).reshape(4, 4)
    twins = [nn.Parameter(torch.zeros(4, 4)) for _ in range(2)]
    twins[0].grad, twins[1].grad = grad, grad / 8
    track.Celo2([twins[0]], 0.1, 0.0).step()
    track.Celo2([twins[1]], 0.1, 0.0, grad_scale=8.0).step()
    assert torch.equal(*twins)
    assert twins[0].detach().abs().max() > 0.01


def test_muon_takes_an_orthogonal_step(track: ModuleType) -> None:
    """Singular values near √(outputs / inputs) where there are more outputs, near 1 otherwise."""
    for shape, size in (((12, 3), 2.0), ((3, 12), 1.0)):
        p = nn.Parameter(torch.zeros(shape))
        p.grad = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        track.Muon([p], 1.0, 0.0).step()
        values = torch.linalg.svdvals(p.detach()) / size
        assert torch.all((values > 0.6) & (values < 1.3)), values


def test_the_schedule_is_warm_up_constant_and_linear(track: ModuleType) -> None:
    settings = track.make_settings({"steps": 100, "warmup": 4, "cooldown": 0.5})
    factors = [track.schedule(step, settings) for step in (0, 1, 3, 50, 75, 99)]
    assert factors == pytest.approx([0.25, 0.5, 1.0, 1.0, 0.5, 0.02])


def test_the_real_settings_are_those_of_the_track(track: ModuleType, monkeypatch) -> None:
    """524,288 tokens a batch, 10,485,760 of validation; 124 million parameters but for the head."""
    settings = track.make_settings({})
    assert (settings.batch_tokens, settings.val_tokens) == (524_288, 10_485_760)
    monkeypatch.setattr(track.GPT, "init_parameters", lambda *_: None)
    with torch.device("meta"):
        model = track.GPT(settings)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    assert round(sum(n for name, n in sizes.items() if not name.startswith("head")) / 1e6) == 124
    assert sizes["blocks.11.up.weight"] == 4 * 768**2
    assert model.embed.weight.dtype == torch.bfloat16
    assert model.blocks[0].attention.query.weight.dtype == torch.float32


def make_model(track: ModuleType) -> Any:
    """A model whose every parameter acts."""
    model = track.GPT(track.make_settings({"tiny": True}))
    for p in model.parameters():
        nn.init.normal_(p, std=0.3, generator=torch.Generator().manual_seed(p.numel()))
    return model


def test_the_model_sees_no_later_token(track: ModuleType) -> None:
    model, tokens = make_model(track), torch.arange(32).view(1, -1)
    targets = torch.where(torch.arange(32) < 20, tokens + 1, -100)  # -100 is left out of the loss
    losses = [model(torch.where(torch.arange(32) == i, 99, tokens), targets).item() for i in (20, 31, 19)]
    losses.append(model(tokens, targets).item())
    assert losses[0] == losses[1] == losses[3] != losses[2]


def test_the_logits_are_capped(track: ModuleType) -> None:
    model = make_model(track)
    with torch.no_grad():
        model.head.weight.mul_(1e6)
        loss = model(torch.arange(32).view(1, -1), torch.arange(32).view(1, -1)) / 32
    assert loss < 30 + np.log(256)


def test_rotation_keeps_norms_and_depends_on_distance(track: ModuleType) -> None:
    query, key = torch.randn(2, 64, generator=torch.Generator().manual_seed(0)).expand(9, 2, 64).unbind(1)
    rotation = track.make_rotation(9, 64)
    query, key = track.rotate(query, rotation), track.rotate(key, rotation)
    assert torch.allclose(query.norm(dim=-1), query[0].norm())
    products = query @ key.mT
    assert torch.allclose(products[2:, :-2].diagonal(), products[2, 0], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(products[0, 0], products[8, 0], rtol=1e-2)


def write_shard(
    path: Path, tokens: Sequence[int], *, magic: int = 20240520, count: int | None = None
) -> None:
    header = np.zeros(256, np.int32)
    header[:3] = magic, 1, len(tokens) if count is None else count
    path.write_bytes(header.tobytes() + np.asarray(tokens, np.uint16).tobytes())


def make_batches(track: ModuleType, folder: Path) -> Any:
    options = {"data": str(folder), "context": 4, "batch_sequences": 2, "vocabulary": 100}
    return track.Batches(track.make_settings({"tiny": True, **options}), "train")


def test_batches_follow_each_other_through_the_shards(track: ModuleType, tmp_path: Path) -> None:
    """Eight tokens a batch; what a shard has left over is not read."""
    write_shard(tmp_path / "x_train_000001.bin", range(20))
    write_shard(tmp_path / "x_train_000002.bin", range(50, 60))
    batches = make_batches(track, tmp_path)
    inputs, targets = batches.rows(1, 0, 2)
    assert inputs.tolist() == [[8, 9, 10, 11], [12, 13, 14, 15]]
    assert torch.equal(targets, inputs + 1)
    assert batches.rows(2, 1, 2)[0].tolist() == [[54, 55, 56, 57]]
    batches.require(3)
    with pytest.raises(
        ValueError, match="4 batches of 8 train tokens are needed, and there are 3 in 2 shards"
    ):
        batches.require(4)


@pytest.mark.parametrize(
    ("tokens", "options", "message"),
    [
        (None, {}, "no files \\*_train_\\*.bin"),
        (range(20), {"magic": 1}, "no shard of tokens"),
        (range(20), {"count": 30}, "has 20 tokens and says 30"),
        (range(90, 110), {}, "not in the vocabulary of 100"),
    ],
    ids=["nothing there", "another file", "cut off", "other tokens"],
)
def test_unusable_data_is_refused(track: ModuleType, tmp_path: Path, tokens, options, message: str) -> None:
    if tokens is not None:
        write_shard(tmp_path / "x_train_000001.bin", tokens, **options)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        make_batches(track, tmp_path).rows(1, 0, 2)


def test_shards_are_trained_on(train, tmp_path: Path) -> None:
    text = np.tile(np.arange(256), 200)
    write_shard(tmp_path / "x_train_000001.bin", text.tolist())
    write_shard(tmp_path / "x_val_000000.bin", text.tolist())
    assert train("--data", tmp_path).losses[24] < 4.0


def test_the_file_imports_pytorch_and_numpy_only() -> None:
    for name in ("train.py", "significance.py"):
        tree = ast.parse((FOLDER / name).read_text("utf-8"))
        nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
        modules = {
            (node.module or "" if isinstance(node, ast.ImportFrom) else alias.name).split(".")[0]
            for node in nodes
            for alias in node.names
        }
        assert modules - {"torch", "numpy"} <= sys.stdlib_module_names, name


def test_two_processes_take_the_steps_of_one(track: ModuleType, train, tmp_path: Path) -> None:
    """The script as users start it, without the package on the path."""
    arguments = [
        "--tiny",
        "--steps",
        "3",
        "--device",
        "cpu",
        "--micro",
        "8",
        "--folder",
        str(tmp_path / "two"),
    ]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    script = [str(FOLDER / "train.py"), *arguments]
    done = subprocess.run([*command, *script], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    found = [float(loss) for loss in re.findall(r"val_loss:(\S+)", done.stdout)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(track, "TINY", {**runpy.run_path(str(FOLDER / "train.py"))["TINY"]})
        expected = list(train("--steps", 3).losses.values())
    assert len(found) == 2
    assert found == pytest.approx(expected, abs=2e-5)
    assert "2 processes on cpu" in only(tmp_path / "two", "*.txt").read_text("utf-8")
