"""Writes the report of a comparison or suite: an HTML page, CSV tables, figures, and Markdown."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from plotly.offline import get_plotlyjs

from celo2._utils.files import write_atomic
from celo2.baselines import LEARNED, OPTIMIZERS, sets_own_rate
from celo2.evaluate.analysis.caveats import (
    caveats,
    defeats,
    describe_divergence,
    describe_ranking,
    join,
    verdict,
)
from celo2.evaluate.analysis.standings import BASELINE, Standings, TaskRuns, arrange, is_ours
from celo2.evaluate.analysis.summary import (
    OptimizerRow,
    TaskRow,
    rank_optimizers,
    rank_tasks,
)
from celo2.evaluate.report.csv import as_csv, run_records, table_records
from celo2.evaluate.report.curves import figure_data
from celo2.evaluate.report.figures import draw_curves, draw_scores
from celo2.evaluate.report.tables import (
    brief_task_table,
    overview_table,
    split_task_table,
    summary_table,
)
from celo2.evaluate.suite.results import RankBy, RunResult
from celo2.report.kit import render_page
from celo2.report.plots import save_png
from celo2.report.table import as_markdown_table
from celo2.training.protocol import DIVERGENCE_MARGIN, VALID_BATCHES


def write_report(
    results: Iterable[RunResult],
    folder: Path,
    *,
    baseline: str = BASELINE,
    rank_by: RankBy = "validation",
) -> dict[str, Path]:
    """Writes the report of runs into a folder.

    Args:
        results: Finished runs, in any order; grids may be incomplete.
        folder: The output folder, created if needed. Files with the same names are replaced.
        baseline: The name of the optimizer that scores and speed-ups are relative to.
        rank_by: The loss that optimizers are tuned and ranked by, as in `arrange`.

    Returns:
        The paths by kind: `report`, `tasks`, `runs`, `curves`; for several tasks also `summary` and `scores`.

    Raises:
        ValueError: There are no runs, or one appears twice.
    """
    standings = arrange(results, baseline, rank_by)
    rows, task_rows = rank_optimizers(standings), rank_tasks(standings)
    folder.mkdir(parents=True, exist_ok=True)
    names = {
        "report": "report.html",
        "tasks": "tasks.csv",
        "runs": "runs.csv",
        "curves": "curves.png",
    }
    if len(standings.tasks) > 1:
        names |= {"summary": "summary.csv", "scores": "scores.png"}
    paths = {kind: folder / name for kind, name in names.items()}
    write_atomic(paths["tasks"], as_csv(table_records(task_rows)).encode())
    write_atomic(paths["runs"], as_csv(run_records(standings)).encode())
    save_png(draw_curves(standings), paths["curves"])
    if "scores" in paths:
        write_atomic(paths["summary"], as_csv(table_records(rows)).encode())
        save_png(draw_scores(standings, rows), paths["scores"])
    write_atomic(paths["report"], render_report(standings, rows, task_rows).encode())
    return paths


def render_report(standings: Standings, rows: Sequence[OptimizerRow], task_rows: Sequence[TaskRow]) -> str:
    """Renders the page from the results of `arrange`, `rank_optimizers` and `rank_tasks`."""
    tasks = [
        {
            "label": task.label,
            "facts": _describe_task(task),
            "tables": split_task_table([row for row in task_rows if row.task == task.label]),
        }
        for task in standings.tasks
    ]
    return render_page(
        "evaluate/report/report.html.j2",
        title=_title(standings),
        runs=len(standings.runs),
        created=max(run.created for run in standings.runs),
        verdict=verdict(standings, rows),
        caveats=caveats(standings),
        baseline=standings.baseline,
        ranking=describe_ranking(standings),
        summary=summary_table(rows, standings.baseline),
        overview=overview_table(task_rows, standings.optimizers),
        tasks=tasks,
        ours=any(map(is_ours, standings.optimizers)),
        defeats=defeats(standings),
        diverged=[f"{run.spec.task}: {describe_divergence(run)}" for run in standings.runs if run.diverged],
        data_sets=_data_sets(standings),
        settings=_settings(standings),
        environments=_environments(standings.runs),
        figures=figure_data(standings, rows),
        plotly=Markup(get_plotlyjs()),
    )


def as_markdown(
    results: Iterable[RunResult], *, baseline: str = BASELINE, rank_by: RankBy = "validation"
) -> str:
    """Formats the tables, the verdict, and Celo2's defeats as Markdown for the documentation.

    The arguments and errors are those of `write_report`.
    """
    standings = arrange(results, baseline, rank_by)
    rows, task_rows = rank_optimizers(standings), rank_tasks(standings)
    lines = [verdict(standings, rows), ""]
    if len(standings.tasks) == 1:
        lines += [*as_markdown_table(brief_task_table(task_rows)), ""]
    else:
        lines += [*as_markdown_table(summary_table(rows, baseline)), ""]
        lines += [f"Final {describe_ranking(standings)}, mean ± standard deviation over the seeds:", ""]
        lines += [*as_markdown_table(overview_table(task_rows, standings.optimizers)), ""]
    for title, sentences in (("Where Celo2 loses", defeats(standings)), ("Caveats", caveats(standings))):
        lines += [f"{title}:", "", *(f"- {sentence}" for sentence in sentences or ["none"]), ""]
    settings = _settings(standings)
    lines.append("; ".join(f"{name}: {settings[name]}" for name in ("steps", "seeds", "weight decay")) + ".")
    return "\n".join(lines) + "\n"


def _title(standings: Standings) -> str:
    if len(standings.tasks) == 1:
        task = standings.tasks[0]
        return f"{task.label} on {task.facts.dataset}"
    return f"{_count(standings.tasks, 'task')}, {_count(standings.optimizers, 'optimizer')}"


def _describe_task(task: TaskRuns) -> str:
    facts = task.facts
    tokens = "" if facts.tokens_per_batch is None else f" ({facts.tokens_per_batch:,} tokens)"
    initial = "" if facts.initial_loss is None else f"; untrained: {facts.initial_loss:.4g} {facts.unit}"
    return (
        f"{facts.num_parameters:,} parameters, {task.steps:,} steps, batches of {facts.batch_size:,}"
        f"{tokens}; data: {facts.dataset}{initial}"
    )


def _data_sets(standings: Standings) -> list[dict[str, str]]:
    """Lists each data set once, with the tasks that used it."""
    sets: dict[tuple[str, str, str], list[str]] = {}
    for task in standings.tasks:
        facts = task.facts
        examples = f"{facts.train_examples:,} ({facts.valid_examples:,})" if facts.train_examples else "–"
        name = facts.dataset + (f", in place of {facts.stands_in_for}" if facts.stands_in_for else "")
        sets.setdefault((name, examples, facts.origin), []).append(task.label)
    return [
        {"name": name, "examples": examples, "origin": origin, "tasks": join(tasks, most=30)}
        for (name, examples, origin), tasks in sets.items()
    ]


def _environments(runs: Sequence[RunResult]) -> list[tuple[dict[str, Any], int]]:
    """Lists each combination of software and machine with its number of runs, the most frequent first."""
    counts: dict[str, int] = {}
    for run in runs:
        text = json.dumps(dict(run.environment), sort_keys=False, default=str)
        counts[text] = counts.get(text, 0) + 1
    return sorted(((json.loads(text), count) for text, count in counts.items()), key=lambda pair: -pair[1])


def _settings(standings: Standings) -> dict[str, str]:
    runs = standings.runs
    return {
        "steps": join((f"{n:,}" for n in sorted({run.spec.steps for run in runs})), most=30),
        "seeds": join(map(str, sorted({run.spec.seed for run in runs})), most=30),
        "weight decay": join((f"{wd:g}" for wd in sorted({run.spec.weight_decay for run in runs})), most=30),
        "schedule": _describe_schedules(runs),
        "optimizers": "; ".join(
            f"{name}: {_describe(name)}{_describe_weights(name, runs)}" for name in standings.optimizers
        ),
        "pairing": "runs of one seed share initial parameters and batches, whatever the optimizer",
        "best setting": f"lowest final {describe_ranking(standings)}, mean over the seeds, over learning "
        "rates and weight decays, of the runs that are reported; one with a diverged seed cannot be the best",
        "final validation loss": f"after the last step, over {VALID_BATCHES} batches, the same for every run",
        "final training loss": "mean batch objective over the last 5 % of the steps",
        "best validation loss": "the lowest of the validations",
        "score": f"{standings.baseline}'s final loss, mean over its seeds, over the run's; of "
        "returns the inverse, 0 if negative; a diverged run has 0",
        "intervals": "95 %, percentile bootstrap of the IQM: seeds resampled within each task; over tasks: "
        "the tasks, too",
        "P(better)": "share of pairs of seeds in which the run ends lower, equal ones half, mean over the "
        "tasks; a diverged run is the worst",
        "speed-up": f"{standings.baseline}'s whole run over the first point of the mean training curve at or "
        "below its final training loss; never reached: 0",
        "diverged": f"a loss that is not finite, or ends above {DIVERGENCE_MARGIN} × an untrained network's",
    }


def _describe_schedules(runs: Sequence[RunResult]) -> str:
    """Describes the learning-rate schedules and the optimizers that use them."""
    names: dict[str, set[str]] = {}
    for run in runs:
        names.setdefault(run.spec.schedule, set()).add(run.spec.optimizer)
    own = sorted({name for name in {run.spec.optimizer for run in runs} if sets_own_rate(name)})
    parts = [f"{schedule} ({join(sorted(who), most=30)})" for schedule, who in sorted(names.items())]
    parts += [f"{', '.join(own)}: step sizes of their own, one run a seed"] if own else []
    return "linear warm-up over 5 % of the steps, then " + "; ".join(parts) + "; float32"


def _describe(optimizer: str) -> str:
    if optimizer not in OPTIMIZERS and (optimizer.partition(":")[0] in LEARNED or sets_own_rate(optimizer)):
        return "weights from a file"
    if optimizer in OPTIMIZERS or optimizer.partition(":")[0] in sys.modules:  # a report imports nothing
        return OPTIMIZERS.find(optimizer).description
    return "not of this package"


def _describe_weights(optimizer: str, runs: Sequence[RunResult]) -> str:
    """Describes a learned optimizer's weights by their checksum, as `celo2 weights inspect` prints it."""
    found = sorted({run.weights[:16] for run in runs if run.spec.optimizer == optimizer and run.weights})
    return f" (weights {', '.join(found)}…)" if found else ""


def _count(things: Sequence[object], name: str) -> str:
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"
