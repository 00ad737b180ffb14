"""Measures the gain from each part of the harness and writes the tables of docs/harness.md.

    python benchmarks/harness.py --out results/judging --train      # trains only what is missing
    python benchmarks/harness.py --out results/judging
    python benchmarks/harness.py --out results/judging --reference start+eigenbasis

Every row trains the tasks of a declared set with the same seeds, starts and batches, each at its own best
learning rate, and its losses are divided by Muon's. Step times are ratios to celo2's, measured with
interleaved steps in one process. `--train` only trains what is missing, which takes about 20 minutes per row
on one core; `--rates` makes the table of learning rates that carry over from AdamW.

With `PYTHONPATH=benchmarks`, a single part can be used like any optimizer, as `harness:rows`.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optax
from pages import DOCS, format_machine, format_table, replace_table

import celo2
from celo2 import Harness
from celo2.baselines import OptimizerSpec, find_optimizer, muon, register_optimizer
from celo2.baselines.matrix_optimizer import UNIT_STEP_RANGE, axes_of_all, on_matrices
from celo2.baselines.spec import decoupled
from celo2.commands.probe import RecordStore, load_candidates, measure
from celo2.constants import ADAMW_LR_SCALE
from celo2.evaluate.bench import bench_tree
from celo2.evaluate.bench_trees import TREES
from celo2.evaluate.environment import describe_environment
from celo2.harness import PRESETS
from celo2.jax.runtime import compiler_options, num_cores, use_cpu_devices
from celo2.meta.probe.measure import ProbeConfig, TaskRecord
from celo2.meta.probe.paired import Comparison, compare
from celo2.report.kit import markdown_cell
from celo2.weights.checkpoint import compute_checksum

PAGE = DOCS / "harness.md"
REFERENCE = "muon"
OTHERS = ("celo2-eigenbasis", "celo2-plus", "celo2", "normuon", "soap", "adamw", "schedule-free-adamw")
AVERAGE_DECAY = 0.99
WEIGHTS = find_optimizer("celo2").weights  # the weights that records belong to

Records = Mapping[str, TaskRecord]  # by task


def _spec(name: str, description: str, **options: Any) -> OptimizerSpec:
    def make(learning_rate: optax.ScalarOrSchedule, weight_decay: float) -> optax.GradientTransformation:
        return celo2.celo2(learning_rate, weight_decay=weight_decay, **options)

    return OptimizerSpec(name, description, make, UNIT_STEP_RANGE, weights=WEIGHTS)


def _part(name: str, description: str, **harness: Any) -> OptimizerSpec:
    return _spec(name, description, harness=Harness(**harness))


def _averaged(learning_rate: optax.ScalarOrSchedule, weight_decay: float) -> optax.GradientTransformation:
    trained = celo2.celo2(learning_rate, weight_decay=weight_decay)
    return optax.chain(trained, celo2.average_params(AVERAGE_DECAY))


eigenbasis = _part("celo2+eigenbasis", "in SOAP's eigenbasis, renewed every 10 steps", eigenbasis_every=10)
polar_express = _part("celo2+polar-express", "Polar Express", orthogonalizer="polar-express")
rows = _part("celo2+rows", "NorMuon's rows", row_decay=0.95)
floor = _part("celo2+floor", "steps of at least 10 times the weights' norm", min_update_ratio=10.0)
cautious = _part("celo2+cautious", "cautious weight decay", cautious_decay=True)
norms = _part("celo2+norms", "constant norms, and the floor", preserve_norms=True, min_update_ratio=10.0)
average = OptimizerSpec(
    "celo2+average",
    f"validated at an average of the weights, decay {AVERAGE_DECAY}",
    _averaged,
    UNIT_STEP_RANGE,
    eval_params=lambda state, params: celo2.averaged_params(state),  # noqa: ARG005
    weights=WEIGHTS,
)
matched = _spec("celo2+match", 'match="adamw"', match="adamw")
small_state = _spec("celo2+int8", "momenta in one byte each", state_dtype="int8")
# The start of the search for the shipped weights, `celo2.meta.search.mixture.to_vector` as a file.
START = celo2.load_checkpoint(DOCS.parent / "recipes" / "search" / "celo2-start.safetensors")
unlearned = OptimizerSpec(
    "start+eigenbasis",
    'the preset "eigenbasis" with the Adam-like start in place of the learned weights',
    lambda rate, decay: celo2.celo2(rate, weights=START, weight_decay=decay, harness="eigenbasis"),
    UNIT_STEP_RANGE,
    weights=compute_checksum(START.arrays, START.config),
)
PARTS = (unlearned, rows, floor, cautious, norms, polar_express, eigenbasis, average, small_state)


UNIT: dict[str, Any] = {"muon_weight_dimension_numbers": axes_of_all, "consistent_rms": 1.0}  # step RMS 1


def _floored(learning_rate: optax.ScalarOrSchedule, weight_decay: float) -> optax.GradientTransformation:
    direction = optax.chain(
        optax.contrib.muon(1.0, beta=muon.BETA, **UNIT),
        optax.scale(-1.0),
        celo2.floor_update_ratio(10.0, dimension_numbers=axes_of_all),
    )
    matrices = decoupled(direction, learning_rate, weight_decay)
    return on_matrices(matrices, learning_rate, weight_decay, adamw_lr_scale=ADAMW_LR_SCALE)


def _shared(learning_rate: optax.ScalarOrSchedule, weight_decay: float) -> optax.GradientTransformation:
    matrices = optax.contrib.muon(learning_rate, beta=muon.BETA, weight_decay=weight_decay, **UNIT)
    share = PRESETS["plus"].adamw_lr_scale
    return on_matrices(matrices, learning_rate, weight_decay, adamw_lr_scale=share)


CONTROLS = (  # what Muon gains from the same parts
    OptimizerSpec("muon+share", "Muon with the preset's share of AdamW", _shared, UNIT_STEP_RANGE),
    OptimizerSpec("muon+floor", "Muon with the floor", _floored, UNIT_STEP_RANGE),
)
ROWS = [REFERENCE, *OTHERS, *(spec.name for spec in (*CONTROLS, *PARTS))]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--set", default="judging", help="the set of tasks")
    parser.add_argument("--tasks", nargs="*", default=(), help="some of its tasks")
    parser.add_argument("--out", type=Path, required=True, help="the folder that keeps finished tasks")
    parser.add_argument("--train", nargs="*", help="only train these rows; without names: all")
    parser.add_argument("--rates", action="store_true", help="the table of learning rates instead")
    parser.add_argument(
        "--reference",
        default=REFERENCE,
        choices=ROWS,
        help="compare with another row, and leave the page alone",
    )
    parser.add_argument("--dry", action="store_true", help="print the tables, and leave the page alone")
    parser.add_argument("--seconds", type=float, default=60.0, help="timing of steps")
    options = parser.parse_args()
    use_cpu_devices(num_cores())
    for spec in (*PARTS, *CONTROLS, matched):
        register_optimizer(spec.name, spec)
    config = ProbeConfig(task_set=options.set, tasks=tuple(options.tasks))
    store = RecordStore(options.out, config)
    names = ["adamw", matched.name] if options.rates else ROWS
    if options.train is not None:
        train(options.train or names, config, store)
        return
    records = load_complete(names, config, store)
    tables = {"rates": rate_table(records)} if options.rates else loss_tables(records, options)
    machine = format_machine(describe_environment())  # before the page, and with it the commit, changes
    for name, table in tables.items():
        text = table + machine
        print(f"{name}:\n{text}")
        if not options.dry and options.reference == REFERENCE:
            replace_table(PAGE, name, text)


def train(names: list[str], config: ProbeConfig, store: RecordStore) -> None:
    """Trains the rows' tasks that are missing in the store."""
    if cautious.name in names:
        copy_undecayed(config, store)
    for name, task, record in measure(load_candidates(names), config, store.load, store.save):
        _say(f"{name}, {task}: {record['seconds']:.0f} s")


def copy_undecayed(config: ProbeConfig, store: RecordStore) -> None:
    """Copies celo2's records of tasks without weight decay to cautious decay, which does the same there."""
    [(name, weights)] = load_candidates(["celo2"]).items()
    known, own = store.load(name, weights), store.load(cautious.name, None)
    tasks = [entry.name for entry in config.load().tasks if not entry.weight_decay and entry.name in known]
    store.save(cautious.name, None, {**{task: known[task] for task in tasks}, **own})


def load_complete(names: list[str], config: ProbeConfig, store: RecordStore) -> dict[str, Records]:
    """Returns the records of the rows that have every task; reports what is missing in the others."""
    tasks, found = [entry.name for entry in config.load().tasks], {}
    for name, weights in load_candidates(names).items():
        known = store.load(name, weights)
        missing = [task for task in tasks if task not in known]
        if missing:
            _say(f"{name} is left out: it lacks {', '.join(missing)}.")
        else:
            found[name] = {task: known[task] for task in tasks}
    return found


def loss_tables(records: Mapping[str, Records], options: argparse.Namespace) -> dict[str, str]:
    """Makes the table of means, which includes the cost of a step, and the table of tasks."""
    reference, costs = records[options.reference], measure_costs(list(records), options.seconds)
    means, tasks = [], []
    for name, record in records.items():
        train, valid = (compare(record, reference, kind) for kind in ("train", "valid"))
        worst = max((*train.rows, *valid.rows), key=lambda row: row.mean)
        better = f"{train.wins}, {valid.wins} of {len(train.rows)}"
        shown = [*(found.mean.format() for found in (train, valid)), _percent(worst.mean), worst.name, better]
        shown = ["0", "0", "–", "–", "–"] if name == options.reference else shown
        means.append([markdown_cell(name), *shown, *costs[name]])
        tasks.append([markdown_cell(name), *(_both(train, valid, index) for index in range(len(train.rows)))])
    head = ["", "training", "validation", "worst", "on", "lower on", "step × celo2's", "state, B/param"]
    return {"parts": format_table(head, means), "tasks": format_table(["", *reference], tasks)}


def _percent(ratio: float) -> str:
    return f"{100 * ratio:+.1f} %"


def _both(train: Comparison, valid: Comparison, index: int) -> str:
    return ", ".join(f"{100 * found.rows[index].mean:+.1f}" for found in (train, valid))


def measure_costs(names: list[str], seconds: float) -> dict[str, list[str]]:
    """Measures each row's step time relative to celo2's, and its bytes of state, on gpt2-15m."""
    tree = TREES["gpt2-15m"].make()
    timed = bench_tree(tree, names, budget=seconds, options=compiler_options(), on_progress=_say)
    own = next(row for row in timed if row.optimizer == "celo2")
    return {
        row.optimizer: [f"{row.seconds / own.seconds:.2f}", f"{row.state_bytes / row.num_parameters:.2f}"]
        for row in timed
        if row.seconds and own.seconds
    }


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def rate_table(records: Mapping[str, Records]) -> str:
    """Makes the table of best rates of AdamW and of matched celo2, and of what AdamW's rates cost celo2."""
    rows = []
    for task, theirs in records["adamw"].items():
        own, rate = records[matched.name][task], theirs["valid_rate"]
        kept = _loss_at(own, rate)
        ratios = [kept and math.log(kept / one["valid_loss"]) for one in (own, theirs)]
        losses = ["–" if ratio is None else _percent(ratio) for ratio in ratios]
        shown = [f"{rate:.2g}", f"{own['valid_rate']:.2g}", f"{own['valid_rate'] / rate:.2g}"]
        rows.append([task, *shown, *losses])
    head = ["", "AdamW's rate", "celo2's", "ratio", "celo2 at AdamW's, to its best", "to AdamW's best"]
    return format_table(head, rows)


def _loss_at(record: TaskRecord, rate: float) -> float | None:
    """Returns the mean validation loss at a rate, interpolated between those tried; None outside them."""
    pairs = sorted(
        (math.log(tried), sum(losses) / len(losses))
        for tried, losses in zip(record["rates"], record["valid_losses"], strict=True)
        if None not in losses
    )
    rates, losses = zip(*pairs, strict=True)
    inside = rates[0] <= math.log(rate) <= rates[-1]
    return float(np.interp(math.log(rate), rates, losses)) if inside else None


if __name__ == "__main__":
    main()
