"""Repeats the paper's ablations (arXiv 2602.19142) at one equal budget: meta-trains, probes, writes a table.

    python benchmarks/ablations.py --out runs/ablations                 # resumes where it was stopped
    python benchmarks/ablations.py --out runs/ablations --only hidden-4 hidden-16 --seeds 0
    python benchmarks/ablations.py --out runs/ablations --table         # only reads what is done

Every setting changes one thing in the same recipe (momenta and factored moments count as one: the rule pairs
them) and is meta-trained with every seed. Each finished rule then trains the probe tasks, each at its own
best learning rate. A setting's score on a task is the log ratio of its loss to that of the unchanged recipe
with the same seed. The table has the mean over the seeds, with tasks weighted equally, Student's 95 %
interval of that mean, and the same log ratio of the paper's losses on LM-30M. The table is written to
`docs/ablations.md`, and every loss to `docs/assets/ablations.json`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from pages import replace_table

from celo2._utils.files import write_atomic
from celo2.commands.probe import measure
from celo2.evaluate.environment import describe_environment
from celo2.jax.runtime import num_cores, use_cpu_devices
from celo2.meta.config import MetaConfig
from celo2.meta.probe import ProbeConfig, Row, TaskRecord, compute_score
from celo2.meta.train import TrainOptions, meta_train
from celo2.weights.checkpoint import load_checkpoint

ROOT = Path(__file__).resolve().parents[1]
PAGE, RECORDS = ROOT / "docs" / "ablations.md", ROOT / "docs" / "assets" / "ablations.json"
REFERENCE = "recipe"
RECIPE = MetaConfig(
    variant="celo2-base",
    start="adam",
    outer_learning_rate=1e-3,
    outer_warmup=20,
    rate_units="network",
    inner_learning_rate=1e-2,
    rate_spread=3.0,
    scale_range=(1e-2, 1e2),
    inner_schedule="cosine",
    max_unroll=400,
)
PUBLISHED_RECIPE = 3.812  # the paper's validation loss on LM-30M with the unchanged recipe


class Ablation(NamedTuple):
    """One change to the recipe: in words, as options of `MetaConfig`, and the paper's result.

    `published` is the paper's validation loss on LM-30M, or None if it does not report the change.
    """

    what: str
    options: dict[str, Any]
    published: float | None = None


def _rule(*options: str) -> dict[str, Any]:
    return {"rule_options": options}


ABLATIONS = {
    REFERENCE: Ablation("hidden 8, rms decay 0.95, three momenta, augmented, normalised, direction only", {}),
    "hidden-4": Ablation("hidden layers of 4 units", _rule("ff_hidden_size=4"), 4.128),
    "hidden-16": Ablation("hidden layers of 16 units", _rule("ff_hidden_size=16"), 3.857),
    "rms-0.999": Ablation("rms decay 0.999", _rule("initial_rms_decays=[0.999]"), 3.893),
    "no-augmentation": Ablation("no reparametrisation", {"level": "none"}, 4.417),
    "no-input-normalization": Ablation("channels not normalised", _rule("normalize_input=false")),
    "no-output-normalization": Ablation("steps not normalised", _rule("normalize_output=false"), 3.961),
    "no-normalization": Ablation(
        "neither channels nor steps normalised",
        _rule("normalize_input=false", "normalize_output=false"),
    ),
    "magnitude": Ablation(
        "direction · exp(0.001 · magnitude), then normalised", _rule("exp_mult=0.001"), 3.900
    ),
    "momentum-0.9": Ablation(
        "one momentum and one factored moment, 0.9",
        _rule("initial_momentum_decays=[0.9]", "initial_adafactor_decays=[0.9]"),
    ),
    "momenta-faster": Ablation(
        "momenta and factored moments 0.5, 0.9, 0.99",
        _rule("initial_momentum_decays=[0.5,0.9,0.99]", "initial_adafactor_decays=[0.5,0.9,0.99]"),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--only", nargs="*", choices=list(ABLATIONS), default=list(ABLATIONS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2], help="of meta-training")
    parser.add_argument("--outer-steps", type=int, default=600, help="the budget of every run")
    parser.add_argument("--tasks", nargs="*", default=["patches-perceptron", "mnist-convolution"])
    parser.add_argument("--probe-seeds", type=int, default=8, help="of the tasks of the set `choosing`")
    parser.add_argument("--table", action="store_true", help="train nothing")
    options = parser.parse_args()
    use_cpu_devices(num_cores())
    probe = ProbeConfig(tasks=tuple(options.tasks), seeds=options.probe_seeds)
    if not options.table:
        for seed in options.seeds:  # every setting of one seed before the next
            for name in dict.fromkeys([REFERENCE, *options.only]):
                _run(options.out / f"{name}-{seed}", name, seed, options.outer_steps, probe)
    _write(options.out, options.outer_steps, probe)


def _config(name: str, seed: int, outer_steps: int) -> MetaConfig:
    """Returns the recipe of one cell."""
    return dataclasses.replace(RECIPE, seed=seed, outer_decay_steps=outer_steps, **ABLATIONS[name].options)


def _run(folder: Path, name: str, seed: int, outer_steps: int, probe: ProbeConfig) -> None:
    """Meta-trains and probes one cell, unless it is finished."""
    config, record = _config(name, seed, outer_steps), folder / "probe.json"
    if (folder / "config.json").exists() and MetaConfig.load(folder / "config.json") != config:
        raise SystemExit(f"{folder} is a run of another recipe; use another folder, or remove it.")
    if record.exists():
        return
    print(f"{folder.name}:", flush=True)
    train = TrainOptions(
        out=folder, outer_steps=outer_steps, resume=(folder / "config.json").exists(), checkpoint_every=200
    )
    weights = meta_train(config, train)
    if weights.stem.rpartition("-")[2] != f"{outer_steps:06d}":
        raise SystemExit(f"stopped at {weights.name}; the same command goes on.")
    tasks = {task: record for _, task, record in measure({name: load_checkpoint(weights)}, probe)}
    facts = {"name": name, "seed": seed, "outer_steps": outer_steps, "probe": json.loads(probe.to_json())}
    text = json.dumps({**facts, "environment": describe_environment(), "tasks": tasks}, indent=2)
    write_atomic(record, f"{text}\n".encode())
    jax.clear_caches()  # a cell's programs keep its tasks' data in memory


def _load(out: Path, outer_steps: int, probe: ProbeConfig) -> list[dict[str, Any]]:
    """Loads the folder's records of these settings and of the current recipe."""
    wanted = json.loads(probe.to_json())
    records = []
    for path in sorted(out.glob("*/probe.json")):
        one = json.loads(path.read_text())
        if (one["outer_steps"], one["probe"]) != (outer_steps, wanted):
            continue
        if MetaConfig.load(path.with_name("config.json")) == _config(one["name"], one["seed"], outer_steps):
            records.append(one)
    return records


def _write(out: Path, outer_steps: int, probe: ProbeConfig) -> None:
    """Replaces the page's table with the finished cells of these settings."""
    records = _load(out, outer_steps, probe)
    cells: dict[str, dict[int, dict[str, TaskRecord]]] = {}
    for one in records:
        cells.setdefault(one["name"], {})[one["seed"]] = one["tasks"]
    if REFERENCE not in cells:
        raise SystemExit(f"{out} has no finished run of the unchanged recipe with these settings.")
    table = "".join(f"{line}\n" for line in _table(cells, probe.tasks))
    machines = {
        ", ".join(f"{key} {one['environment'][key]}" for key in ("commit", "jax", "processor", "cores"))
        for one in records
    }
    note = (
        f"{outer_steps} outer iterations each; probes with {probe.load().seeds} seeds at each best rate. "
        f"{'; '.join(sorted(machines))}.\n"
    )
    print(table + note)
    replace_table(PAGE, "ablations", f"{table}\n{note}")
    RECORDS.write_text(json.dumps(records, separators=(",", ":")) + "\n", encoding="utf-8")


def _table(cells: dict[str, dict[int, dict[str, TaskRecord]]], tasks: Sequence[str]) -> list[str]:
    lines = [
        "| setting | change | seeds | " + " | ".join(tasks) + " | score | 95 % interval | the paper's |",
        "|---|---|---:|" + "---:|" * (len(tasks) + 3),
    ]
    for name in [name for name in ABLATIONS if name in cells]:
        seeds = cells[name]
        losses = [_mean_loss(seeds, task) for task in tasks]
        if name == REFERENCE:
            ending = ["0", ""]
        else:
            paired = [seed for seed in seeds if seed in cells[REFERENCE]]
            ending = _score([compute_score(seeds[seed], cells[REFERENCE][seed]) for seed in paired])
        row = [f"`{name}`", ABLATIONS[name].what, str(len(seeds)), *losses, *ending, _published(name)]
        lines.append(f"| {' | '.join(row)} |")
    return lines


def _published(name: str) -> str:
    """Formats the paper's score of a setting: its loss on LM-30M relative to the unchanged recipe."""
    loss = ABLATIONS[name].published
    return "" if loss is None else f"{np.log(loss / PUBLISHED_RECIPE):+.3f}"


def _mean_loss(seeds: dict[int, dict[str, TaskRecord]], task: str) -> str:
    losses = [tasks[task]["loss"] for tasks in seeds.values()]
    return "diverged" if None in losses else f"{np.mean(losses):.4f}"


def _score(scores: Sequence[float | None]) -> list[str]:
    """Formats the mean of the logarithms and Student's interval, with a dash for what is undefined."""
    known = [score for score in scores if score is not None]
    if not known or len(known) < len(scores):
        return ["diverged" if scores else "–", "–"]
    if len(known) < 2:
        return [f"{known[0]:+.3f}", "–"]
    row = Row.of("score", known)
    return [f"{row.mean:+.3f}", f"{row.low:+.3f} to {row.high:+.3f}"]


if __name__ == "__main__":
    main()
