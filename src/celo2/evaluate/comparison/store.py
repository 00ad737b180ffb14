"""Writes the result of a comparison: results.json, curves.npz, curves.png, report.html.

`results.json` has everything except the curves, and a schema number; `curves.npz` has the curves, each
under `OPTIMIZER/NAME`.
"""

from __future__ import annotations

import io
import json
import math
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from celo2._utils.files import write_atomic
from celo2.evaluate.comparison.compare import CompareConfig, CompareResult, Entry
from celo2.evaluate.comparison.figure import draw_figure
from celo2.evaluate.comparison.report import render_report
from celo2.evaluate.comparison.summary import caveats
from celo2.report.plots import figure_svg, save_png
from celo2.training.protocol import SELECTION

SCHEMA = "celo2-compare/1"


def save_result(result: CompareResult, folder: Path) -> dict[str, Path]:
    """Writes the four files.

    Args:
        result: The result to write.
        folder: The output folder, made if needed. Files of the same names are replaced.

    Returns:
        The paths by kind: `report`, `figure`, `results`, `curves`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = {
        "report": "report.html",
        "figure": "curves.png",
        "results": "results.json",
        "curves": "curves.npz",
    }
    paths = {kind: folder / name for kind, name in names.items()}
    text = json.dumps(as_json(result), indent=1, allow_nan=False, ensure_ascii=False)
    write_atomic(paths["results"], f"{text}\n".encode())
    arrays = {
        f"{entry.name}/{name}": array for entry in result.entries for name, array in _curves(entry).items()
    }
    stream = io.BytesIO()
    np.savez_compressed(stream, allow_pickle=False, **arrays)
    write_atomic(paths["curves"], stream.getvalue())
    figure = draw_figure(result)
    save_png(figure, paths["figure"])
    write_atomic(paths["report"], render_report(result, figure_svg(figure)).encode())
    return paths


def as_json(result: CompareResult) -> dict[str, Any]:
    """Converts the result without its curves to JSON types; a number that is not finite is null."""
    return {
        "schema": SCHEMA,
        "created": result.created,
        "seconds": round(result.seconds, 3),
        "settings": {field.name: getattr(result.config, field.name) for field in fields(CompareConfig)},
        "selection": SELECTION,
        "task": asdict(result.task),
        "optimizers": [_entry_as_json(entry, result.task.num_parameters) for entry in result.entries],
        "unfinished": list(result.unfinished),
        "caveats": caveats(result),
        "environment": dict(result.environment),
    }


def _entry_as_json(entry: Entry, num_parameters: int) -> dict[str, Any]:
    grid = entry.grid
    return {
        "name": entry.name,
        "description": entry.description,
        "learning_rates": _plain(grid.learning_rates),
        "seeds": _plain(grid.seeds),
        "best_learning_rate": None if grid.best is None else float(grid.learning_rates[grid.best]),
        "best_at_edge": grid.best_at_edge,
        "final_train_loss": _plain(grid.final_train_loss),
        "best_train_loss": _plain(grid.best_train_loss),
        "final_valid_loss": _plain(grid.final_valid_loss),
        "best_valid_loss": _plain(grid.best_valid_loss),
        "final_valid_accuracy": None if grid.valid_accuracy is None else _plain(grid.final_valid_accuracy),
        "diverged_at": _plain(grid.diverged_at),
        "seconds_per_step": entry.cost.seconds,
        "state_bytes": entry.cost.state_bytes,
        "state_bytes_per_parameter": entry.cost.state_bytes / num_parameters,
    }


def _curves(entry: Entry) -> dict[str, np.ndarray]:
    grid = entry.grid
    train_steps, train_loss = grid.curve()
    curves = {
        "learning_rates": grid.learning_rates,
        "seeds": grid.seeds,
        "train_steps": train_steps,
        "train_loss": train_loss,
        "valid_steps": grid.valid_steps,
        "valid_loss": grid.valid_loss,
    }
    return curves if grid.valid_accuracy is None else {**curves, "valid_accuracy": grid.valid_accuracy}


def _plain(values: Any) -> Any:
    """Converts an array to nested lists of numbers, None where one is not finite."""
    if isinstance(values, np.ndarray):
        return [_plain(value) for value in values]
    number = values.item()
    return number if math.isfinite(number) else None
