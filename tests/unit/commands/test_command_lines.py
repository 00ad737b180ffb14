"""Command lines that cannot be carried out: message and status of each, before any work, leaving nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from celo2 import cli
from celo2.commands import bench, compare, evaluate
from celo2.evaluate.suite.store import RunStore
from celo2.meta import train
from celo2.meta.config import MetaConfig
from helpers.run_results import make_random_run

BIG = str(2**64)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a file, a run, a suite and odd suites in it, where no command may begin its work."""

    def work(*_: object, **__: object) -> None:
        raise AssertionError("there was work")

    for module, name in (
        (bench, "bench_tree"),
        (compare, "run_and_report"),
        (evaluate, "run_locally"),
        (train, "load_datasets"),
    ):
        monkeypatch.setattr(module, name, work)
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    Path("run").mkdir()
    Path("run/config.json").write_text(MetaConfig(sigma=0.02).to_json())
    RunStore(Path("suite")).add([make_random_run(task="quadratic")])
    for name, text in SUITES.items():
        Path(f"{name}.{'json' if text[:1] in '[{n' else 'toml'}").write_text(text)
    return tmp_path


SUITES = {
    "text-seeds": 'tasks = ["quadratic"]\noptimizers = ["adamw"]\nseeds = "3"',
    "half-steps": 'tasks = ["quadratic"]\noptimizers = ["adamw"]\nsteps = 2.5',
    "true-seeds": 'tasks = ["quadratic"]\noptimizers = ["adamw"]\nseeds = true',
    "one-task": 'tasks = "quadratic"\noptimizers = ["adamw"]',
    "number-task": 'tasks = [1]\noptimizers = ["adamw"]',
    "text-decay": 'tasks = ["quadratic"]\noptimizers = ["adamw"]\nweight_decays = ["a"]',
    "text-rate": 'tasks = ["quadratic"]\noptimizers = ["adamw"]\n[rates_of]\nadamw = ["1e-3"]',
    "list-rates": 'tasks = ["quadratic"]\noptimizers = ["adamw"]\nrates_of = [1]',
    "big-rate": 'tasks = ["quadratic"]\noptimizers = ["adamw"]\n[rates_of]\nadamw = [1e300]',
    "text-steps": 'tasks = ["quadratic"]\noptimizers = ["adamw"]\n[steps_of]\nquadratic = "many"',
    "no-tasks": 'optimizers = ["adamw"]',
    "unknown": 'tasks = ["quadratic"]\noptimizers = ["adamw"]\nseed = 3',
    "old-rates": 'tasks = ["quadratic"]\noptimizers = ["adamw"]\nlearning_rates = 3',
    "big-seed": f'tasks = ["quadratic"]\noptimizers = ["adamw"]\nfirst_seed = {BIG}',
    "list": "[1]",
    "null": "null",
    "torn": '{"tasks": [',
    "deep": "[" * 100_000,
}

META = "meta-train --devices 1 --out"
COMPARE = "compare --optimizers adamw"
EVALUATE = "evaluate --out out"
LINES = {
    f"{META} file": ("cannot be a folder, because .*file is a file", 2),
    f"{META} file/below/it": ("cannot be a folder, because .*file is a file", 2),
    f"{META} run": ("already holds a run; continue it with --resume", 2),
    f"{META} out --resume": ("nothing to resume: .*config.json does not exist", 2),
    f"{META} out --seed {BIG}": (r"seeds must be whole numbers in \[0, 2³²\), got 18446744073709551616", 2),
    f"{META} out --seed -1": (r"seeds must be whole numbers in \[0, 2³²\), got -1", 2),
    f"{META} out --rate-spread 1 --inner-learning-rate 1e-60": (
        "inner_learning_rate must be positive and finite in float32",
        2,
    ),
    f"{META} out --sigma 0.02": ("sigma has no flag: .* recipe file, .* --config FILE", 2),
    f"{META} out --batch-size=8": ("batch_size has no flag", 2),
    f"{META} out --outer-learning-rate inf": ("outer_learning_rate must be positive and finite", 2),
    f"{META} out --outer-learning-rate nan": ("outer_learning_rate must be positive and finite", 2),
    f"{META} out --outer-steps 0": ("outer_steps must be a whole number from 1", 2),
    f"{META} out --outer-steps {BIG}": ("outer_steps must be a whole number from 1", 2),
    f"{META} out --max-unroll {BIG}": ("max_unroll must be a whole number from 0", 2),
    f"{META} out --probe-every 5 --probe-seeds -1": ("seeds must not be negative", 2),
    f"{META} out --probe-every 5 --rule-options ff_hidden_size=16": (
        "probe_every must be 0 with rule_opt",
        2,
    ),
    f"{META} out --sinks tensorboad": ("tensorboad", 2),
    "meta-train --out out --devices -1": ("devices must be from 1 to 1024, or 0 for all, got -1", 2),
    "meta-train --out out --devices 1000000": ("devices must be from 1 to 1024", 2),
    f"{COMPARE} --out file": ("cannot be a folder, because .*file is a file", 2),
    f"{COMPARE} --learning-rates adamw=-1": ("the learning rates of adamw must be .*positive", 2),
    f"{COMPARE} --learning-rates adamw=0": ("the learning rates of adamw must be", 2),
    f"{COMPARE} --learning-rates adamw=nan": ("the learning rates of adamw must be", 2),
    f"{COMPARE} --learning-rates adamw=1e-60": ("the learning rates of adamw must be", 2),
    f"{COMPARE} --learning-rates adamw=1e-3,1e-3": ("one or more different positive", 2),
    f"{COMPARE} --weight-decay -1": ("weight_decay must be finite and not negative", 2),
    f"{COMPARE} --first-seed {BIG}": ("seeds must be whole numbers in", 2),
    f"{COMPARE} --steps 1": ("steps must be a whole number from 2", 2),
    f"{COMPARE} --devices -2": ("devices must be from 1", 2),
    f"{COMPARE} --max-memory 0": ("max_memory must be positive and finite", 2),
    f"{COMPARE} --max-memory nan": ("max_memory must be positive and finite", 2),
    "compare --optimizers celo2:file": ("file", 2),
    "compare --optimizers celo2:nowhere.safetensors": ("no weights at 'nowhere.safetensors'", 2),
    "evaluate --out file": ("cannot be a folder, because .*file is a file", 2),
    f"{EVALUATE} --devices -1": ("devices must be from 1", 2),
    f"{EVALUATE} --max-memory inf": ("max_memory must be positive and finite", 2),
    f"{EVALUATE} --max-memory -1": ("max_memory must be positive and finite", 2),
    f"{EVALUATE} --baseline adam-w": ("unknown optimizer 'adam-w'; did you mean 'adamw'", 2),
    f"{EVALUATE} --weight-decays -1": ("weight decays must be finite and not negative", 2),
    f"{EVALUATE} --steps {BIG}": ("steps must be a whole number from 2", 2),
    f"{EVALUATE} --optimizers celo2:nowhere.safetensors": ("no weights at 'nowhere.safetensors'", 2),
    f"{EVALUATE} --suite nowhere.toml": ("no suite 'nowhere.toml'", 2),
    "evaluate --out suite --tasks quadratic --optimizers adamw --steps 30": ("use another folder", 2),
    f"{EVALUATE} --suite text-seeds.toml": ("text-seeds.toml: seeds must be a whole number, got '3'", 2),
    f"{EVALUATE} --suite half-steps.toml": ("steps must be a whole number, got 2.5", 2),
    f"{EVALUATE} --suite true-seeds.toml": ("seeds must be a whole number, got True", 2),
    f"{EVALUATE} --suite one-task.toml": ("tasks must be a list of texts, got 'quadratic'", 2),
    f"{EVALUATE} --suite number-task.toml": (r"tasks must be a list of texts, got \[1\]", 2),
    f"{EVALUATE} --suite text-decay.toml": ("weight_decays must be a list of numbers", 2),
    f"{EVALUATE} --suite text-rate.toml": ("rates_of must be a table of lists of numbers", 2),
    f"{EVALUATE} --suite list-rates.toml": ("rates_of must be a table of lists of numbers", 2),
    f"{EVALUATE} --suite big-rate.toml": ("big-rate.toml: rates_of 'adamw' must be .* float32", 2),
    f"{EVALUATE} --suite text-steps.toml": ("steps_of must be a table of whole numbers", 2),
    f"{EVALUATE} --suite no-tasks.toml": ("no-tasks.toml: .*'tasks'", 2),
    f"{EVALUATE} --suite unknown.toml": ("unknown field 'seed'; did you mean 'seeds'", 2),
    f"{EVALUATE} --suite big-seed.toml": ("seeds must be whole numbers in", 2),
    f"{EVALUATE} --learning-rates 5": (
        "takes rates, .* how many of each default grid: --num-learning-rates 5",
        2,
    ),
    f"{EVALUATE} --learning-rates muom=0.1": ("rates_of has rates for 'muom'", 2),
    f"{EVALUATE} --learning-rates adamw=-1": ("rates_of 'adamw' must be", 2),
    f"{EVALUATE} --learning-rates adamw=fast": ("expected learning rates such as", 2),
    f"{EVALUATE} --suite old-rates.toml": ("learning_rates is now num_learning_rates", 2),
    f"{EVALUATE} --suite list.json": ("list.json cannot be read as TOML", 2),
    f"{EVALUATE} --suite null.json": ("null.json cannot be read as TOML", 2),
    f"{EVALUATE} --suite torn.json": ("torn.json cannot be read as TOML", 2),
    f"{EVALUATE} --suite deep.json": ("deep.json cannot be read as TOML", 2),
    "bench --json nowhere/b.json": ("there is no folder nowhere to write b.json into", 2),
    "bench --json run": ("run is a folder; name a file in it", 2),
    "bench --optimizers celo2:nowhere.safetensors": ("no weights at 'nowhere.safetensors'", 2),
    "bench --seconds 0": ("seconds must be positive", 2),
    "bench --tree gpt5": ("unknown tree 'gpt5'", 2),
    "report run": ("has neither suite.json nor metrics.jsonl", 2),
    "report nowhere": ("is not a folder", 2),
    "report suite --baseline muom": ("there are no runs of 'muom'", 2),
    "report suite --out file": ("cannot be a folder, because .*file is a file", 2),
    "report suite --pack nowhere/x.npz": ("there is no folder nowhere to write x.npz into", 2),
    "report suite --pack x.zip": ("packed runs need a name that ends in .npz", 2),
    "weights verify nowhere.state": ("no weights at 'nowhere.state'", 1),
    "weights inspect file": ("file", 1),
    "weights fetch owner/name --set rms_mult=1": ("did you mean 'rmsmult'", 2),
    "weights unknown": ("unknown", 2),
    "compair": ("did you mean 'compare'", 2),
}


@pytest.mark.parametrize(("line", "expected"), LINES.items(), ids=LINES)
def test_a_bad_command_line_is_refused(
    here: Path, capsys: pytest.CaptureFixture, line: str, expected: tuple[str, int]
) -> None:
    message, status = expected
    before = _files(here)
    try:
        found = cli.main(line.split())
    except SystemExit as stop:  # the parsers' own
        found = stop.code
    printed = capsys.readouterr()
    text = " ".join((printed.out + printed.err).replace("│", " ").split())
    assert found == status, text
    assert re.search(message, text), text
    assert "Traceback" not in text
    assert _files(here) == before


def _files(folder: Path) -> set[Path]:
    """All but the lock of a folder that was there before."""
    return {path for path in folder.rglob("*") if path.name != ".lock"}
