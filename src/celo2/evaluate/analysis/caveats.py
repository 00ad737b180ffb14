"""Writes a report's sentences: the verdict, warnings, divergences, and Celo2's defeats."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence

import numpy as np

from celo2.evaluate.analysis.cells import Setting
from celo2.evaluate.analysis.standings import Standings, TaskRuns, is_ours
from celo2.evaluate.analysis.summary import OptimizerRow
from celo2.evaluate.suite.results import RunResult
from celo2.zoo.specs import sets_own_rate

PARITY = 1.05  # largest speed-up of the baseline over itself that needs no comment


def verdict(standings: Standings, rows: Sequence[OptimizerRow]) -> str:
    """Returns the result as a sentence: the order by final loss for one task, by score for several.

    Args:
        standings: The runs.
        rows: The result of `rank_optimizers`.
    """
    if len(standings.tasks) == 1:
        return _verdict_on(standings.tasks[0])
    counts = sorted({row.tasks for row in rows if row.score is not None}, reverse=True)
    if not counts:
        return f"No scores: {standings.baseline} has no usable run."

    def tell(count: int) -> str:
        return ", ".join(f"{row.optimizer} {row.score:.3f}" for row in rows if row.tasks == count)

    text = f"Score, {standings.baseline} = 1, highest first: {tell(counts[0])}."
    for count in counts[1:]:
        text += f" On {count} of these {counts[0]} tasks, so not comparable: {tell(count)}."
    return text


def caveats(standings: Standings) -> list[str]:
    """Returns warnings that qualify the tables, the most serious first."""
    parts = (_missing, _unscored, _data, _seeds, _settings, _edges, _lost, _parity, _timing)
    return [note for part in parts for note in part(standings)]


def defeats(standings: Standings) -> list[str]:
    """Returns a sentence for each task on which Celo2 or Celo2-base ends above another optimizer."""
    return [sentence for task in standings.tasks for sentence in _defeats_on(task)]


def describe_ranking(standings: Standings) -> str:
    """Returns the name of the loss used for ranking, with the rule if tasks differ."""
    names = {task.loss_name for task in standings.tasks}
    if len(names) == 1:
        return names.pop()
    kinds = {task.rank_by for task in standings.tasks}
    if len(kinds) == 1:
        return f"{kinds.pop()} loss or return"
    return "validation loss (training loss or return where a task has no validation data)"


def describe_loss(task: TaskRuns, loss: float) -> str:
    """Formats a final loss with four digits; returns have their original sign."""
    if not math.isfinite(loss):
        return "diverged"
    return f"{-loss if task.returns else loss:.4g}"


def describe_divergence(run: RunResult) -> str:
    """Describes a diverged run and the step at which it diverged."""
    when = (
        "ended above an untrained network's loss"
        if run.diverged_at >= run.spec.steps
        else f"not finite from step {run.diverged_at} on"
    )
    return f"{run.spec.optimizer}, learning rate {Setting.of(run.spec)}, seed {run.spec.seed}: {when}"


def join(names: Iterable[str], most: int = 6) -> str:
    """Joins names with commas; only the first few if there are many."""
    found = list(names)
    rest = f" and {len(found) - most} more" if len(found) > most else ""
    return ", ".join(found[:most]) + rest


def _verdict_on(task: TaskRuns) -> str:
    ranked = sorted((cell.mean_loss, name) for name, cell in task.cells.items())
    best, winner = ranked[0]
    if not math.isfinite(best):
        return "No optimizer had a setting at which all its runs ended well."
    told = [_distance(task, winner, name) for _, name in ranked[1:]]
    end = "highest" if task.returns else "lowest"
    return (
        f"{winner} ends {end} on {task.label}: {task.loss_name} {describe_loss(task, best)}"
        f"{''.join(f', {words}' for words in told)}. {_describe_tuning(task)}"
    )


def _distance(task: TaskRuns, winner: str, name: str) -> str:
    """Describes the winner's lead over another optimizer, and whether it may be chance."""
    best, loss = task.cells[winner].mean_loss, task.cells[name].mean_loss
    if not math.isfinite(loss):
        return f"{name} diverged"
    if loss == best:
        return f"level with {name}"
    share = f"{_percent((loss - best) / abs(loss))} " if loss * best > 0 else ""
    chance = (
        "" if _is_clear(task.cells[winner].losses, task.cells[name].losses) else ", within the seeds' spread"
    )
    return f"{share}{'above' if task.returns else 'below'} {name} ({describe_loss(task, loss)}{chance})"


def _is_clear(losses: np.ndarray, others: np.ndarray) -> bool:
    """Returns whether losses differ by two standard errors, paired by seed; True for one seed."""
    if len(losses) != len(others) or len(losses) < 2:
        return True
    differences = others - losses
    return float(differences.mean()) > 2 * float(differences.std(ddof=1)) / math.sqrt(len(differences))


def _describe_tuning(task: TaskRuns) -> str:
    tuned_cells = {name: cell for name, cell in task.cells.items() if not sets_own_rate(name)}
    counts = {len({setting.learning_rate for setting in cell.complete}) for cell in tuned_cells.values()}
    each = "Each optimizer" if len(tuned_cells) == len(task.cells) else "Each tuned optimizer"
    seeds = {cell.num_seeds for cell in task.cells.values()}
    tuned = f"the best of {max(counts)} learning rates" if len(counts) == 1 else "its best learning rate"
    if counts <= {1}:
        tuned = "one learning rate"
    runs = f", mean of {min(seeds)} seeds" if len(seeds) == 1 and min(seeds) > 1 else ""
    return f"{each} has {tuned}{runs}."


def _percent(share: float) -> str:
    """Formats a share with two digits."""
    return f"{100 * share:{'.0f' if share >= 0.1 else '.2g'}} %"


def _defeats_on(task: TaskRuns) -> Iterator[str]:
    others = [name for name in task.cells if not is_ours(name)]
    best = min(others, key=lambda name: task.cells[name].mean_loss, default=None)
    if best is None or not math.isfinite(lowest := task.cells[best].mean_loss):
        return
    behind = []
    for name in (name for name in task.cells if is_ours(name)):
        loss = task.cells[name].mean_loss
        if loss > lowest:
            behind.append(f"{name} ({_behind(task, loss, lowest)})")
    if behind:
        yield f"{task.label}: {best} ({describe_loss(task, lowest)}) is better than {' and '.join(behind)}."


def _behind(task: TaskRuns, loss: float, best: float) -> str:
    """Formats the loss, with its ratio to the best if that is meaningful."""
    text = describe_loss(task, loss)
    if not math.isfinite(loss) or best == 0 or (best < 0) != task.returns:
        return text
    share = _percent((loss - best) / abs(best))
    return f"{text}, {share} {'lower' if task.returns else 'higher'}"


def _missing(standings: Standings) -> Iterator[str]:
    """Yields a warning for each optimizer without a task, then for each incomplete grid."""
    for name in standings.optimizers:
        without = [task.label for task in standings.tasks if name not in task.cells]
        if without:
            yield (
                f"{name} was not run on {join(without)}: its line of the summary is over other tasks than "
                "those of the others."
            )
    for task in standings.tasks:
        seeds = {run.spec.seed for cell in task.cells.values() for run in cell.runs}
        for name, cell in task.cells.items():
            expected = len(cell.settings) * len(seeds)
            if len(cell.runs) < expected:
                yield f"{task.label}: {name} has {len(cell.runs)} of {expected} runs."


def _unscored(standings: Standings) -> Iterator[str]:
    """Yields warnings about tasks without scores."""
    if standings.baseline not in standings.optimizers:
        yield f"There is no run of {standings.baseline}, the baseline: no scores and no speed-ups."
        return
    without = [task.label for task in standings.tasks if task.baseline_loss is None]
    if without:
        yield (
            f"No scores on {join(without)}: {standings.baseline} diverged or was not run, or its loss is no "
            "positive number. Ranks and wins count these tasks."
        )


def _data(standings: Standings) -> Iterator[str]:
    pairs = {(task.facts.dataset, task.facts.stands_in_for) for task in standings.tasks}
    names = [f"{name} in place of {published}" for name, published in sorted(pairs) if published]
    if names:
        yield f"Not the published data: {join(names, most=20)}."
    for size in ("tiny", "small"):
        count = sum(task.label.partition(",")[0].endswith(f"@{size}") for task in standings.tasks)
        if count == len(standings.tasks) == 1:
            yield f"The task has the size {size}, not the published one."
        elif count:
            yield f"{count} of {len(standings.tasks)} tasks have the size {size}, not the published one."


def _seeds(standings: Standings) -> Iterator[str]:
    numbers = {cell.num_seeds for task in standings.tasks for cell in task.cells.values()}
    if numbers == {1}:
        yield "There is one seed: differences of a few per cent may be chance."
    elif 1 in numbers:
        yield "Some settings have one seed: differences of a few per cent may be chance."


def _settings(standings: Standings) -> Iterator[str]:
    """Yields warnings about optimizers that were not tuned, or were tuned over more or fewer settings."""
    for name in filter(sets_own_rate, standings.optimizers):
        yield f"{name} sets its own step sizes: nothing of it was tuned."

    def numbers(task: TaskRuns) -> tuple[tuple[str, int], ...]:
        tuned = {name: cell for name, cell in task.cells.items() if not sets_own_rate(name)}
        return tuple((name, len(cell.complete)) for name, cell in tuned.items())

    for counts, tasks in _group(standings.tasks, numbers):
        if len({count for _, count in counts}) > 1:
            told = join((f"{name} {count}" for name, count in counts), most=30)
            yield f"Not tuned over equally many settings ({told}) on {join(tasks)}."
        elif counts and counts[0][1] == 1:
            yield f"Not tuned: one setting for each optimizer on {join(tasks)}."


def _edges(standings: Standings) -> Iterator[str]:
    """Yields warnings about best learning rates and weight decays at the edge of the grid."""
    for name in standings.optimizers:
        tasks = [task for task in standings.tasks if name in task.cells]
        for edge, other in (("highest", "higher"), ("lowest", "lower")):
            at = [task for task in tasks if task.cells[name].edge == edge]
            if at:
                rates = join(f"{task.label} ({task.cells[name].shown.learning_rate:g})" for task in at)
                yield f"{name}: the best rate is the {edge} tried on {rates}; a {other} one may be better."
        at = [task.label for task in tasks if task.cells[name].decay_at_edge]
        if at:
            yield f"{name}: the best weight decay is the highest tried on {join(at)}."


def _lost(standings: Standings) -> Iterator[str]:
    for name in standings.optimizers:
        tasks = [t.label for t in standings.tasks if name in t.cells and t.cells[name].best is None]
        if tasks:
            yield f"{name} diverged with a seed of every setting on {join(tasks)}: its scores there are 0."


def _parity(standings: Standings) -> Iterator[str]:
    """Yields a note on the baseline's speed-up over itself if it could be mistaken for an advantage."""
    name = standings.baseline
    found = [task.speed_up(name) for task in standings.tasks if name in task.cells]
    known = [value for value in found if value is not None]
    over = " (median over the tasks)" if len(known) > 1 else ""
    if known and (own := statistics.median_low(known)) > PARITY:
        yield (
            f"{name} itself reaches its final loss before the end of its runs, at a speed-up of {own:.2f}× "
            f"in steps{over}: as much of another optimizer is no advantage."
        )


def _timing(standings: Standings) -> Iterator[str]:
    if any(run.timing != "alone" for run in standings.runs):
        yield "Some times per step are shares of runs trained side by side, not of a run by itself."
    machines = {(run.environment.get("processor"), run.environment.get("devices")) for run in standings.runs}
    if len(machines) > 1:
        yield f"The runs come from {len(machines)} kinds of machine: times per step are not comparable."


def _group(tasks: Iterable[TaskRuns], key: Callable[[TaskRuns], Hashable]) -> list:
    groups: dict = {}
    for task in tasks:
        groups.setdefault(key(task), []).append(task.label)
    return list(groups.items())
