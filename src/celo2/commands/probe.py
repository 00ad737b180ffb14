"""`celo2 probe`: compares weights and hand-designed optimizers in pairs, on a declared set of tasks."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from celo2._utils.checks import check_devices, check_out_file
from celo2._utils.files import read_object, write_atomic
from celo2._utils.locks import check_owner
from celo2._utils.registry import REFERENCE
from celo2._utils.signals import exit_status
from celo2.baselines import (
    LEARNED,
    OPTIMIZERS,
    check_optimizer_name,
    find_optimizer,
    qualified_name,
    sets_own_rate,
)
from celo2.commands._arguments import make_registry, take_part
from celo2.config import RuleConfig
from celo2.jax.runtime import num_cores, use_cpu_devices
from celo2.meta.config import MetaConfig, Variant
from celo2.meta.inner.theta import BUILT_IN, make_start
from celo2.meta.probe import (
    Comparison,
    Probe,
    ProbeConfig,
    TaskRecord,
    compare,
    compute_score,
    describe_task,
)
from celo2.meta.probe.paired import LEAST_SEEDS
from celo2.meta.task_sets import TASK_SETS
from celo2.report.kit import cell, markdown_cell, shorten
from celo2.weights.checkpoint import SHIPPED, Weights, compute_checksum, load_checkpoint
from celo2.weights.sources import OURS, UPSTREAM

TITLES = {"train": "training loss", "valid": "validation loss"}
PLAIN_WIDTH = 200  # columns if the output is not a terminal
START = "start:"  # optional prefix of a start's name

_DESCRIPTION = f"""\
Trains the tasks of a declared set with each candidate and compares them in pairs: the same seeds, starts
and batches for all, each at its own best learning rate, searched for on a grid of factor √2. The table shows
the log ratio of the losses at the end of the runs to the first candidate's, with its 95 % interval over the
seeds; the interval of the mean over tasks accounts for seeds and tasks. Below zero is better than the first.

A candidate is a weight file, or a hub repository of weights; a run's folder, for all of its weights;
celo2 or celo2-base, the shipped ones; celo2-plus or celo2-eigenbasis, celo2 in these harnesses, also with a
file (celo2-eigenbasis:PATH); {" or ".join(START + name for name in BUILT_IN)}, where meta-training can
start ("{START}" may be left out); or any hand-designed optimizer that `celo2 compare --help` lists, tuned
in the same way around the middle of its own range. Claims need at least {LEAST_SEEDS} seeds.

The sets of the package are {", ".join(TASK_SETS)}. `choosing` may select weights and recipes;
`judging` is only for weights that are about to be shipped, and never to choose among them.

examples:
  celo2 probe start:adam runs/search/weights/celo2-000100.safetensors --seeds 4
  celo2 probe start:adam celo2 muon adamw --set judging --out runs/judging
  celo2 probe celo2 amoudgl/celo2 DiamondXL/elo-celo2 --set judging --out runs/judging
  celo2 probe start:random runs/base --variant celo2-base --tasks gpt stdlib-transformer --json probe.json
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _ProbeFlags(ProbeConfig):
    """Settings of a probe, as flags."""

    task_set: Annotated[str, tyro.conf.arg(name="set")] = ProbeConfig.task_set


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeCommand:
    """Arguments of `celo2 probe`.

    Attributes:
        candidates: Weights, runs or names; the others are compared with the first.
        variant: Variant of the starts.
        out: Folder that stores every finished task of every candidate, so that nothing is trained twice.
        json: Also write everything to this file.
        markdown: Also write the tables to this file.
        plot: Also plot the tables to this PNG file; needs celo2[eval].
        devices: Number of host devices that share the runs on a CPU; 0: one per core.
    """

    candidates: tyro.conf.Positional[tuple[str, ...]]
    settings: Annotated[_ProbeFlags, tyro.conf.arg(name="")] = dataclasses.field(default_factory=_ProbeFlags)
    variant: Variant = "celo2"
    out: Path | None = None
    json: Path | None = None
    markdown: Path | None = None
    plot: Path | None = None
    devices: int = 0


def main(argv: Sequence[str]) -> int:
    """Runs `celo2 probe`; returns the exit status: 0, 2 if it cannot run, 130 and more after a signal."""
    try:
        command = tyro.cli(
            ProbeCommand,
            prog="celo2 probe",
            description=_DESCRIPTION,
            args=list(argv),
            registry=make_registry(),
        )
        config = take_part(command.settings, ProbeConfig)
        if not command.candidates:
            raise ValueError("name at least one candidate: a weight file, a run's folder, start:adam.")
        for path in (command.json, command.markdown, command.plot):
            if path:
                check_out_file(path)
        check_devices(command.devices)
        use_cpu_devices(command.devices or num_cores())
        candidates = load_candidates(command.candidates, command.variant)
        store = RecordStore(command.out, config)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    found: dict[str, dict[str, TaskRecord]] = {}
    status = 0
    try:
        for name, task, record in measure(candidates, config, store.load, store.save):
            found.setdefault(name, {})[task] = record
            print(f"{name}, {task}: {describe_task(record)}; {record['seconds']:.1f} s", file=sys.stderr)
    except KeyboardInterrupt as stop:
        print("interrupted; what is finished follows.", file=sys.stderr)
        status = exit_status(stop)
    _show(command, config, found)
    return status


def _show(command: ProbeCommand, config: ProbeConfig, found: Mapping[str, Mapping[str, TaskRecord]]) -> None:
    """Prints and writes the tables of the tasks that all candidates have finished."""
    common = [task for task in next(iter(found.values()), {}) if all(task in done for done in found.values())]
    if not common:
        return
    whole = {name: {task: done[task] for task in common} for name, done in found.items()}
    first, *_ = whole.values()
    labelled = dict(zip(_label(list(whole)), whole.values(), strict=True))
    console = Console() if sys.stdout.isatty() else Console(width=PLAIN_WIDTH)
    texts = []
    for measure_name, title in TITLES.items():
        rows = {label: compare(done, first, measure_name) for label, done in labelled.items()}
        console.print(_make_table(rows, labelled, measure_name))
        texts.append(_make_markdown(rows, title))
    seeds = config.load().seeds
    if seeds < LEAST_SEEDS:
        console.print(f"{seeds} seed(s): too few for a claim, which needs {LEAST_SEEDS}.")
    edges = [
        f"{label} on {task}" for label, done in labelled.items() for task in common if done[task]["at_edge"]
    ]
    if edges:
        console.print(cell(f"The best rate is at the end of those tried: {', '.join(edges)}."))
    if command.plot and len(whole) > 1:
        _draw(command.plot, labelled)
    if command.markdown:
        write_atomic(command.markdown, "\n".join(texts).encode())
    if command.json:
        rows = [
            {"name": name, "score": compute_score(done, first), "tasks": done}
            | {title: _as_dict(compare(done, first, measure_name)) for measure_name, title in TITLES.items()}
            for name, done in whole.items()
        ]
        text = json.dumps({"probe": json.loads(config.to_json()), "candidates": rows}, indent=2)
        write_atomic(command.json, f"{text}\n".encode())


def _draw(path: Path, found: Mapping[str, Mapping[str, TaskRecord]]) -> None:
    """Plots every candidate except the first, which is the line at zero."""
    from celo2.meta.probe.figure import draw_comparisons
    from celo2.report.plots import save_png

    (reference, first), *others = found.items()
    measures = {
        title: {label: compare(done, first, measure_name) for label, done in others}
        for measure_name, title in TITLES.items()
    }
    save_png(draw_comparisons(measures, reference), path)


def _as_dict(comparison: Comparison) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(comparison)).replace("NaN", "null"))


def _make_table(
    rows: Mapping[str, Comparison], found: Mapping[str, Mapping[str, TaskRecord]], measure_name: str
) -> Table:
    """Builds the table, with a row per task, a column per candidate, and the mean last."""
    title = f"{TITLES[measure_name]}, log ratio to {next(iter(rows))}"
    table = Table(title=cell(title), box=box.SIMPLE_HEAD)
    table.add_column("task", overflow="fold")
    for label in rows:
        table.add_column(cell(label), justify="right", overflow="fold")
    reference, others = next(iter(found.values())), list(rows.values())[1:]
    for number, (task, record) in enumerate(reference.items()):
        loss = describe_task(record) if measure_name == "train" else f"{record['valid_loss'] or math.nan:.4f}"
        table.add_row(cell(task), loss, *(comparison.rows[number].format() for comparison in others))
    table.add_section()
    table.add_row("mean (seeds and tasks)", "0", *(row.mean.format() for row in others))
    table.add_row("error from seeds alone", "", *(_percent(row.seeds_error) for row in others))
    table.add_row("could have seen", "", *(_percent(row.mean.seen) for row in others))
    table.add_row("better on", "", *(f"{row.wins} of {len(row.rows)}" for row in others))
    return table


def _percent(value: float) -> str:
    """Formats a share as a percentage, or as a dash if there are too few seeds or tasks."""
    return "–" if math.isnan(value) else f"{100 * value:.1f} %"


def _make_markdown(rows: Mapping[str, Comparison], title: str) -> str:
    """Formats a Markdown row per candidate: the mean, each task, and the number of tasks won."""
    tasks = [row.name for row in next(iter(rows.values())).rows]
    head = ["", f"mean {title}", *tasks, "better on"]
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    for number, (label, comparison) in enumerate(rows.items()):
        cells = [f"{100 * row.mean:+.1f} ±{100 * row.error:.1f}" for row in comparison.rows]
        text = [comparison.mean.format(), *cells, f"{comparison.wins} of {len(cells)}"]
        shown = text if number else [*["0"] * (len(text) - 1), "–"]
        lines.append(f"| {' | '.join([markdown_cell(label), *shown])} |")
    return "\n".join(lines) + "\n"


def _label(names: Sequence[str]) -> list[str]:
    """Returns names for tables: the last part of a path, or all of it if the last part is not unique."""
    short = [_short(name) for name in names]
    return [
        label if short.count(label) == 1 else shorten(name) for label, name in zip(short, names, strict=True)
    ]


def _short(name: str) -> str:
    """Returns the last part of a weight file's path, or another name whole, shortened for tables."""
    path = Path(name)
    is_file = "/" in name and path.suffix in (OURS, UPSTREAM)
    return shorten(path.name.removesuffix(OURS) if is_file else name)


class RecordStore:
    """Folder with the records of finished tasks, one file per candidate.

    Args:
        folder: The folder, created if it does not exist; None: nothing is stored.
        config: The settings of the probe; a folder stores records of one setting only.

    Raises:
        ValueError: The folder has records of other settings.
    """

    def __init__(self, folder: Path | None, config: ProbeConfig) -> None:
        self._folder = folder
        if folder is None:
            return
        check_owner(folder, "celo2 probe")
        folder.mkdir(parents=True, exist_ok=True)
        settings = json.loads(dataclasses.replace(config, tasks=()).to_json())
        path = folder / "probe.json"
        if path.exists() and read_object(path) != settings:
            raise ValueError(f"{folder} has records of other settings ({path}); name another folder.")
        write_atomic(path, (json.dumps(settings, indent=2) + "\n").encode())

    def load(self, name: str, weights: Weights | None) -> dict[str, TaskRecord]:
        """Loads a candidate's records by task; records of other weights with the same name are ignored."""
        path = self._path(name, weights)
        return read_object(path) if path and path.exists() else {}

    def save(self, name: str, weights: Weights | None, tasks: Mapping[str, TaskRecord]) -> None:
        """Writes the records of a candidate."""
        path = self._path(name, weights)
        if path:
            write_atomic(path, (json.dumps(tasks, indent=1) + "\n").encode())

    def _path(self, name: str, weights: Weights | None) -> Path | None:
        if self._folder is None:
            return None
        if weights:
            checksum = compute_checksum(weights.arrays, weights.config)
        else:  # a hand-designed optimizer has no weights
            checksum = find_optimizer(name).weights
        stem = _short(name).removeprefix(START)  # one name for a start's records, with or without the prefix
        stem = re.sub(r"[^A-Za-z0-9_.-]", "_", stem)[:60]
        return self._folder / f"{stem}-{checksum[:12] or 'optimizer'}.json"


def _is_optimizer(name: str) -> bool:
    """Returns whether a candidate is an optimizer other than Celo2, rather than weights or a start."""
    kind = name.partition(":")[0]
    if name in BUILT_IN or kind in (*SHIPPED, START.rstrip(":")):
        return False
    return kind in OPTIMIZERS or (REFERENCE.fullmatch(name) is not None and not Path(name).exists())


def load_candidates(names: Sequence[str], variant: Variant = "celo2") -> dict[str, Weights | None]:
    """Loads weights by name, each file of a run separately; hand-designed optimizers map to None.

    Args:
        names: The candidates of the command.
        variant: The variant of the built-in starts.

    Raises:
        OSError, ValueError, ImportError: See `load_checkpoint`.
    """
    return dict(_load(names, variant))


def _load(names: Sequence[str], variant: Variant) -> Iterator[tuple[str, Weights | None]]:
    for name in names:
        _refuse_own_rate(name)
        if _is_optimizer(name):
            check_optimizer_name(name)
            yield name, None
        elif name.removeprefix(START) in BUILT_IN:
            start = make_start(MetaConfig(variant=variant, start=name.removeprefix(START)))
            if not isinstance(start, Weights):
                raise ValueError(f"a probe tunes a learning rate, and {variant!r} has none.")
            yield name, start
        elif name.partition(":")[0] in SHIPPED and ":" in name:
            shipped, _, source = name.partition(":")
            yield name, load_checkpoint(source, orthogonalize=shipped == "celo2")
        elif (Path(name) / "weights").is_dir():
            paths = sorted((Path(name) / "weights").glob("*.safetensors"))
            if not paths:
                raise FileNotFoundError(f"{name} has no weights yet; the first come with a checkpoint.")
            yield from ((str(path), load_checkpoint(path)) for path in paths)
        else:
            _refuse_own_rate(qualified_name(name))
            yield name, load_checkpoint(name)


def _refuse_own_rate(name: str) -> None:
    """Raises a ValueError for an optimizer, by its full name, that has no learning rate to tune."""
    if sets_own_rate(name):
        raise ValueError(
            f"{name} sets its own step sizes, and a probe tunes a learning rate; compare it by celo2 compare "
            "or celo2 evaluate."
        )


def measure(
    candidates: Mapping[str, Weights | None],
    config: ProbeConfig,
    load: Callable[[str, Weights | None], dict[str, TaskRecord]] = lambda *_: {},
    save: Callable[[str, Weights | None, Mapping[str, TaskRecord]], Any] = lambda *_: None,
) -> Iterator[tuple[str, str, TaskRecord]]:
    """Yields each candidate's record of each task as soon as it is finished; compiles each variant once.

    Args:
        candidates: The result of `load_candidates`.
        config: The settings of the probe.
        load: Returns a candidate's stored records by task.
        save: Stores all records of a candidate; called whenever one is finished.
    """
    probes: dict[RuleConfig, Probe] = {}
    wanted = [entry.name for entry in config.load().tasks]
    for name, weights in candidates.items():
        known = load(name, weights)
        yield from ((name, task, known[task]) for task in wanted if task in known)
        missing = tuple(task for task in wanted if task not in known)
        if not missing:
            continue
        rest = dataclasses.replace(config, tasks=missing)
        if weights is None:
            probe, arrays = Probe.of_spec(rest, find_optimizer(name)), {}
        else:
            probe, arrays = _probe_of(weights, rest, probes), weights.arrays
        for task, record in probe.measure_each(arrays):
            known[task] = record
            save(name, weights, known)
            yield name, task, record


def _probe_of(weights: Weights, config: ProbeConfig, probes: dict[RuleConfig, Probe]) -> Probe:
    """Returns the probe for a variant, size and decays; weights with other options get their own program."""
    rule = weights.config
    usual = RuleConfig(
        orthogonalize=rule.orthogonalize,
        ff_hidden_size=rule.ff_hidden_size,
        ff_hidden_layers=rule.ff_hidden_layers,
    )
    if rule != usual:
        return Probe(config, _make_fixed(weights))
    if rule not in probes or probes[rule].config != config:
        probes[rule] = Probe.of_variant(config, rule.variant)
    return probes[rule]


def _make_fixed(weights: Weights) -> Callable[..., Any]:
    transform = LEARNED[weights.config.variant]

    def make(schedule: Any, weight_decay: float, theta: Mapping[str, np.ndarray]) -> Any:
        del theta  # the weights are constants of the program
        return transform(schedule, weights=weights, weight_decay=weight_decay)

    return make
