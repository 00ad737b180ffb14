"""Tests what the logs of `train.py` show, by the rules of the optimizer track.

    python significance.py logs/celo2-*.txt                          # does this entry reach the target?
    python significance.py logs/celo2-*.txt --against logs/muon-*.txt  # is it better than that one?

Each log is one seed of an entry. The loss is the validation loss at the stopping step, which must have been
fixed beforehand: all logs of an entry must have the same code, settings and stopping step, and other seeds.
Entries that are compared must have the same data, model, batches and validation, which the track fixes.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import re
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TARGET = 3.28  # validation loss
ONE_RUN_TARGET = 3.276  # of a single run
SIGMA = 0.0013  # standard deviation of the loss over seeds, as the track takes it
MARGIN = 0.004  # least value of both statistics: about 3 standard deviations
SLACK = 1e-9  # for rounding at the margin; logs have losses to 1e-5
LOSS_OF_100_STEPS = 0.0045  # what 100 more steps are worth near the target
# What an entry may choose, by which two of them can be told apart.
NAMED = ("optimizer", "lr", "decay", "rest", "warmup", "cooldown", "steps", "grad_scale")
# What the track fixes: losses of entries that differ in it say nothing about their optimizers.
FIXED = (
    "tiny",
    "val_tokens",
    "batch_sequences",
    "context",
    "vocabulary",
    "width",
    "layers",
    "head_width",
    "dtype",
)
RULER = "=" * 100  # of a log, between code, machine and results


@dataclasses.dataclass(frozen=True)
class Entry:
    """The runs of one entry: everything but the seed is the same."""

    step: int
    losses: tuple[float, ...]
    settings: dict[str, Any]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.losses)


def target_statistic(losses: Sequence[float], target: float = TARGET) -> float:
    """(target − mean) · √n; at least `MARGIN` for an entry of n runs."""
    return (target - statistics.fmean(losses)) * math.sqrt(len(losses))


def reaches_target(losses: Sequence[float]) -> bool:
    """One run must reach 3.276; the mean of n runs 3.28, by a margin that falls with √n.

    Raises:
        ValueError: There is no loss.
    """
    if not losses:
        raise ValueError("there are no runs; give at least one log.")
    if len(losses) == 1:
        return losses[0] <= ONE_RUN_TARGET
    return target_statistic(losses) >= MARGIN - SLACK


def difference_statistic(new: Entry, old: Entry) -> float:
    """(Δloss + 0.0045 · Δsteps / 100) / √(1/n₁ + 1/n₂), both differences old minus new."""
    gain = old.mean - new.mean + LOSS_OF_100_STEPS * (old.step - new.step) / 100
    return gain / math.sqrt(1 / len(new.losses) + 1 / len(old.losses))


def is_better(new: Entry, old: Entry) -> bool:
    return difference_statistic(new, old) >= MARGIN - SLACK


def chance(statistic: float) -> float:
    """The probability of at least this statistic by chance, if losses are normal with `SIGMA`."""
    return 0.5 * math.erfc(statistic / SIGMA / math.sqrt(2))


def read_log(path: Path) -> tuple[str, dict[str, Any], float]:
    """The digest of a log's code, its settings, and the validation loss at the stopping step.

    Raises:
        ValueError: It is no log of `train.py`, or of a run that has not finished.
    """
    code, _, results = path.read_text("utf-8").partition(f"\n{RULER}\n")
    found = re.search(r"^settings (\{.*\})$", results, re.MULTILINE)
    if found is None:
        raise ValueError(f"{path} has no settings: give logs that train.py has written.")
    settings = json.loads(found[1])
    stop = settings["stop_step"]
    loss = re.search(rf"^step:{stop}/\d+ val_loss:(\S+) ", results, re.MULTILINE)
    if loss is None or f"\nfinished at step {stop}\n" not in results:
        raise ValueError(f"{path} has not come to its stopping step {stop}: leave no run out, let it finish.")
    return hashlib.sha256(code.encode()).hexdigest(), settings, float(loss[1])


def read_entry(paths: Sequence[Path]) -> Entry:
    """Reads the logs of an entry, which must differ in their seeds alone.

    Raises:
        ValueError: They do not, or a seed is there twice.
    """
    logs = [read_log(path) for path in paths]
    codes = {code for code, _, _ in logs}
    seeds = [settings["seed"] for _, settings, _ in logs]
    if len(codes) > 1:
        raise ValueError(f"the logs have {len(codes)} versions of the code: an entry has one.")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"an entry has each seed once, and these logs have the seeds {sorted(seeds)}.")
    first = logs[0][1]
    for path, (_, settings, _) in zip(paths, logs, strict=True):
        other = [k for k in settings if k != "seed" and settings[k] != first[k]]
        if other:
            raise ValueError(f"{path} has another {', '.join(other)} than {paths[0]}: an entry has one.")
    losses = tuple(loss for _, _, loss in logs)
    return Entry(first["stop_step"], losses, {k: v for k, v in first.items() if k != "seed"})


def require_comparable(new: Entry, old: Entry) -> None:
    """Checks that two entries were trained and validated alike.

    Raises:
        ValueError: They differ in settings that the track fixes.
    """
    values = [(name, *(entry.settings.get(name) for entry in (new, old))) for name in FIXED]
    folders = [Path(entry.settings.get("data") or "").name for entry in (new, old)]
    values.append(("data", *folders))  # wherever it lies
    others = [f"{name} {first!r} and {second!r}" for name, first, second in values if first != second]
    if others:
        raise ValueError(
            f"the two entries differ in what the track fixes ({'; '.join(others)}): compare like with like."
        )


def describe(entry: Entry) -> str:
    count = len(entry.losses)
    seeds = f"{count} seed{'s' if count > 1 else ''}"
    spread = f", standard deviation {statistics.stdev(entry.losses):.5f}" if count > 1 else ""
    named = ", ".join(f"{name} {entry.settings[name]}" for name in NAMED)
    return f"{named}: mean {entry.mean:.5f} at step {entry.step} over {seeds}{spread}"


def judge(entry: Entry) -> str:
    """One line: whether an entry reaches the target."""
    verdict = f"target {TARGET}: {'reached' if reaches_target(entry.losses) else 'not reached'}"
    if len(entry.losses) == 1:
        return f"{verdict} ({entry.losses[0]:.5f}; one run needs {ONE_RUN_TARGET})"
    return f"{verdict} ({_explain(target_statistic(entry.losses))})"


def compare(new: Entry, old: Entry) -> str:
    """One line: whether an entry is better than another."""
    verdict = "better" if is_better(new, old) else "not shown to be better"
    return f"the first is {verdict} ({_explain(difference_statistic(new, old))})"


def _explain(statistic: float) -> str:
    return f"{statistic:.5f}, at least {MARGIN} is needed; by chance with probability {chance(statistic):.2g}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the tests; 0 where they are passed, 1 where not, 2 where the logs cannot be judged."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("logs", nargs="+", type=Path, help="one log for each seed of an entry")
    parser.add_argument("--against", nargs="+", type=Path, help="those of another entry")
    options = parser.parse_args(arguments)
    try:
        new = read_entry(options.logs)
        old = read_entry(options.against) if options.against else None
        if old is not None:
            require_comparable(new, old)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if new.settings["tiny"]:
        print(
            "These logs are of the tiny mode. The track's target and standard deviation do not hold for it:"
            " what follows only shows how the tests work."
        )
    print(describe(new))
    if old is None:
        print(judge(new))
        return int(not reaches_target(new.losses))
    print(describe(old))
    print(compare(new, old))
    return int(not is_better(new, old))


if __name__ == "__main__":
    sys.exit(main())
