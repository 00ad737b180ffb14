"""`celo2 probe`: trains held-out tasks with finished weights, to choose among them."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from celo2._files import write_atomic
from celo2.baselines import LEARNED, OPTIMIZERS
from celo2.config import RuleConfig
from celo2.jax.host_devices import num_cores, use_cpu_devices
from celo2.meta.choices import Variant
from celo2.meta.config import MetaConfig
from celo2.meta.probe import Probe, ProbeConfig, TaskRecord, compute_score, describe_task
from celo2.meta.start import BUILT_IN, make_start
from celo2.weights import SHIPPED, Weights, load_checkpoint

__all__ = ["ProbeCommand", "load_candidates", "main", "make_table", "measure"]

PLAIN_WIDTH = 160  # columns, where the output is no terminal
HAND_DESIGNED = tuple(name for name in OPTIMIZERS if name not in (*SHIPPED, *BUILT_IN))

_DESCRIPTION = f"""\
Trains held-out tasks with weights, as the probes of `celo2 meta-train --probe-every` do, and compares the
final training losses at each one's best learning rate. The score is the mean logarithm of the loss over
that of the first in the list: below zero is better than the first.

A candidate is a weight file; a run's folder, for all of its weights; celo2 or celo2-base, the shipped
ones; {" or ".join(BUILT_IN)}, where meta-training can start; or any other hand-designed optimizer that
`celo2 compare --help` lists, tuned over as many rates of its own.

examples:
  celo2 probe adam runs/celo2
  celo2 probe celo2 runs/celo2/best.safetensors adamw --tasks tiny-lm --steps 300 --seeds 3
  celo2 probe random runs/base --variant celo2-base --rates 3e-4 1e-3 3e-3 --json probe.json
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeCommand:
    """What `celo2 probe` takes."""

    candidates: tyro.conf.Positional[tuple[str, ...]]
    """Weights, runs or names; the first is what the others are compared with."""
    tasks: tuple[str, ...] = ProbeConfig().tasks
    """Tasks by names of celo2 compare."""
    rates: tuple[float, ...] = ProbeConfig().rates
    """Learning rates; each task's best counts."""
    seeds: int = ProbeConfig().seeds
    """Runs of each task and rate."""
    steps: int = ProbeConfig().steps
    """Steps of each run."""
    variant: Variant = "celo2"
    """Of the starts random and adam."""
    json: Path | None = None
    """Also write everything to this file."""
    devices: int = 0
    """Host devices that share the runs on a CPU; 0: one for each core."""

    @property
    def probe(self) -> ProbeConfig:
        """What is trained."""
        return ProbeConfig(tasks=self.tasks, rates=self.rates, seeds=self.seeds, steps=self.steps)


def main(argv: Sequence[str]) -> int:
    """Runs `celo2 probe`; returns the exit status: 0, or 2 if it cannot be run."""
    command = tyro.cli(ProbeCommand, prog="celo2 probe", description=_DESCRIPTION, args=list(argv))
    try:
        config = command.probe
        if not command.candidates:
            raise ValueError("name at least one candidate: a weight file, a run's folder, adam.")
        if command.json and not command.json.absolute().parent.is_dir():
            raise ValueError(f"there is no folder {command.json.parent} to write {command.json.name} into.")
        use_cpu_devices(command.devices or num_cores())
        candidates = load_candidates(command.candidates, command.variant)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    found = {}
    for name, tasks in measure(candidates, config):
        found[name] = tasks
        print(f"{name}: done in {sum(record['seconds'] for record in tasks.values()):.1f} s", file=sys.stderr)
    first = next(iter(found.values()))
    scores = {name: compute_score(tasks, first) for name, tasks in found.items()}
    console = Console() if sys.stdout.isatty() else Console(width=PLAIN_WIDTH)
    caption = f"final training loss at the best learning rate; {config.steps} steps, {config.seeds} seed(s)"
    console.print(make_table(found, scores, caption))
    if command.json:
        rows = [{"name": name, "score": scores[name], "tasks": found[name]} for name in found]
        text = json.dumps({"probe": dataclasses.asdict(config), "candidates": rows}, indent=2)
        write_atomic(command.json, f"{text}\n".encode())
    return 0


def load_candidates(names: Sequence[str], variant: Variant = "celo2") -> dict[str, Weights | None]:
    """Weights by name, those of a run each by its file; hand-designed optimizers have none.

    Args:
        names: What the command takes.
        variant: Of the starts that meta-training can make itself.

    Raises:
        OSError, ValueError, ImportError: See `load_checkpoint`.
    """
    return dict(_load(names, variant))


def _load(names: Sequence[str], variant: Variant) -> Iterator[tuple[str, Weights | None]]:
    for name in names:
        if name in HAND_DESIGNED:
            yield name, None
        elif name in BUILT_IN:
            start = make_start(MetaConfig(variant=variant, start=name))
            if not isinstance(start, Weights):
                raise ValueError(f"a probe tunes a learning rate, and {variant!r} has none.")
            yield name, start
        elif (Path(name) / "weights").is_dir():
            paths = sorted((Path(name) / "weights").glob("*.safetensors"))
            if not paths:
                raise FileNotFoundError(f"{name} has no weights yet; the first come with a checkpoint.")
            yield from ((str(path), load_checkpoint(path)) for path in paths)
        else:
            yield name, load_checkpoint(name)


def measure(
    candidates: Mapping[str, Weights | None], config: ProbeConfig, *, num_rates: int = 0
) -> Iterator[tuple[str, dict[str, TaskRecord]]]:
    """Each candidate's records by task; the programs of a variant are compiled once.

    Args:
        candidates: What `load_candidates` returns.
        config: What is trained.
        num_rates: How many rates a hand-designed optimizer is tuned over; 0: as many as weights.
    """
    probes: dict[RuleConfig, Probe] = {}
    for name, weights in candidates.items():
        if weights is None:
            yield name, _measure_hand_designed(name, config, num_rates or len(config.rates))
        else:
            yield name, _probe_of(weights, config, probes).measure(weights.arrays)


def _probe_of(weights: Weights, config: ProbeConfig, probes: dict[RuleConfig, Probe]) -> Probe:
    """The probe of a variant and size; weights with other options of the rule have a program of their own."""
    rule = weights.config
    usual = RuleConfig(
        orthogonalize=rule.orthogonalize,
        ff_hidden_size=rule.ff_hidden_size,
        ff_hidden_layers=rule.ff_hidden_layers,
    )
    if rule != usual:
        return Probe(config, lambda schedule, _: LEARNED[rule.variant](schedule, weights=weights))
    return probes.setdefault(rule, Probe.of_variant(config, rule.variant))


def _measure_hand_designed(name: str, config: ProbeConfig, num_rates: int) -> dict[str, TaskRecord]:
    spec = OPTIMIZERS[name]
    own = dataclasses.replace(config, rates=spec.learning_rates(num_rates))
    probe = Probe(own, lambda schedule, _: spec.make(schedule, 0.0), spec.schedule)
    return probe.measure({})


def make_table(
    found: Mapping[str, Mapping[str, TaskRecord]], scores: Mapping[str, float | None], caption: str
) -> Table:
    """The losses and scores of candidates, the best in bold."""
    table = Table(caption=caption, box=box.SIMPLE_HEAD)
    table.add_column("candidate", overflow="fold")
    for task in next(iter(found.values())):
        table.add_column(task, justify="right")
    table.add_column("score", justify="right")
    scored: dict[str, Any] = {name: score for name, score in scores.items() if score is not None}
    best = min(scored, key=scored.__getitem__, default=None)
    for name, tasks in found.items():
        score = "–" if scores[name] is None else f"{scores[name]:+.4f}"
        cells = (describe_task(record) for record in tasks.values())
        table.add_row(name, *cells, score, style="bold" if name == best else "")
    return table
