"""Renders the report of a comparison as a self-contained HTML page."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from celo2.baselines import OPTIMIZERS, sets_own_rate
from celo2.evaluate.comparison.compare import CompareResult, Entry
from celo2.evaluate.comparison.summary import MeanStd, caveats, summarize
from celo2.evaluate.comparison.tables import COLUMNS, make_rows
from celo2.report.kit import render_page, shorten
from celo2.training.protocol import DIVERGENCE_MARGIN, SELECTION, VALID_BATCHES


def render_report(result: CompareResult, figure_svg: str) -> str:
    """Renders the page.

    Args:
        result: The result of the comparison.
        figure_svg: The figure as an `<svg>` element (`celo2.report.plots.figure_svg`).
    """
    return render_page(
        "evaluate/comparison/report.html.j2",
        title=f"{result.task.name}: {', '.join(shorten(entry.name) for entry in result.entries)}",
        result=result,
        verdict=_verdict(result),
        caveats=caveats(result),
        columns=COLUMNS,
        rows=make_rows(result),
        figure=Markup(figure_svg),
        grids=[(entry.name, entry.description, _grid_rows(entry)) for entry in result.entries],
        settings=_settings(result),
        diverged=[(entry.name, run) for entry in result.entries for run in _diverged_runs(entry)],
    )


def _verdict(result: CompareResult) -> str:
    """Formats the optimizers in the order of their final training loss as a sentence."""
    summaries = summarize(result)
    ranked = sorted((s.final_train_loss.mean, s.name) for s in summaries if s.final_train_loss)
    if not ranked:
        return "No optimizer had a learning rate at which all its runs ended well."
    losses = ", ".join(f"{name} {loss:.4f}" for loss, name in ranked)
    return f"Final training loss at the best learning rate, lowest first: {losses}."


def _grid_rows(entry: Entry) -> list[tuple[str, str, str, str, bool]]:
    """Returns rows of learning rate, training and validation loss, divergences, and whether it is best."""
    grid, rows = entry.grid, []
    for index, rate in enumerate(grid.learning_rates):
        alive = ~grid.diverged[index]
        rows.append(
            (
                f"{rate:g}",
                str(MeanStd.over(grid.final_train_loss[index, alive]) or "–"),
                str(MeanStd.over(grid.final_valid_loss[index, alive]) or "–"),
                f"{int((~alive).sum())}/{alive.size}",
                index == grid.best,
            )
        )
    return rows


def _diverged_runs(entry: Entry) -> list[str]:
    grid, runs = entry.grid, []
    for rate, steps in zip(grid.learning_rates, grid.diverged_at, strict=True):
        for seed, step in zip(grid.seeds, steps, strict=True):
            if step == grid.steps:
                runs.append(f"learning rate {rate:g}, seed {seed}: ended above an untrained network's loss")
            elif step >= 0:
                runs.append(f"learning rate {rate:g}, seed {seed}: not finite from step {step} on")
    return runs


def _describe_schedule(result: CompareResult) -> str:
    """Describes the learning-rate schedule, and the optimizers with another one or none."""
    names = [entry.name for entry in result.entries]
    constant = [name for name in names if name in OPTIMIZERS and OPTIMIZERS[name].schedule == "constant"]
    own = [name for name in names if sets_own_rate(name)]
    exceptions = [f"a constant rate for {', '.join(constant)}"] if constant else []
    exceptions += [f"step sizes of their own for {', '.join(own)}"] if own else []
    decay = "a cosine to zero" + (f" ({'; '.join(exceptions)})" if exceptions else "")
    return f"linear warm-up over 5 % of the steps, then {decay}; float32"


def _settings(result: CompareResult) -> dict[str, Any]:
    config, task = result.config, result.task
    return {
        "task": f"{task.name}, {task.num_parameters:,} parameters, batches of {task.batch_size}",
        "steps": config.steps,
        "seeds": ", ".join(map(str, config.seed_range)),
        "weight decay": f"{config.weight_decay:g}",
        "schedule": _describe_schedule(result),
        "pairing": "runs of one seed share initial parameters and batches, whatever the optimizer",
        "best learning rate": SELECTION,
        "final training loss": "mean batch loss over the last 5 % of the steps",
        "best training loss": "lowest mean batch loss over any 5 % of consecutive steps",
        "validation": f"{VALID_BATCHES} batches of held-out examples, drawn once: the same for every run",
        "diverged": _describe_divergence(task.initial_loss),
        "time per step": "loss, gradient and update of one run alone, median of interleaved rounds",
        "took": f"{result.seconds:.0f} s, compilation included",
    }


def _describe_divergence(initial_loss: float | None) -> str:
    if initial_loss is None:
        return "a loss that is not finite"
    limit = f"{DIVERGENCE_MARGIN} × an untrained network's ({initial_loss:.4g})"
    return f"a loss that is not finite, or ends above {limit}"
