"""Ships a checkpoint of a meta-training run: writes its weights and curve, and prints the facts about it.

The weights go into the package, the curve into the docs, and the digest into
src/celo2/pretrained/known.json. The recipe, which `celo2 meta-train --config recipes/VARIANT.json` repeats,
and its metrics VARIANT.csv (`run_metrics.py`) go into `recipes/`.

    python tools/ship_weights.py runs/celo2 runs/celo2/weights/celo2-003600.safetensors --commit 1a2b3c4

The printed table goes into the model card, src/celo2/pretrained/VARIANT.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from gradient_range import with_gradient_range
from known_weights import add_known, read_digest
from run_metrics import store_run

from celo2 import load_checkpoint
from celo2.gradient_range import FIELD
from celo2.meta.run.metrics import read_metrics
from celo2.weights.checkpoint import save_weights
from celo2.weights.digests import Known

ROOT = Path(__file__).resolve().parents[1]
SMOOTHING = 100  # iterations in the running mean that is drawn and printed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("weights", type=Path, help="the checkpoint's weights")
    parser.add_argument("--commit", required=True, help="commit of the code that trained them")
    options = parser.parse_args()
    weights = load_checkpoint(options.weights)
    steps = int(weights.provenance["outer_steps"])
    records = [record for record in read_metrics(options.run) if record["step"] <= steps]
    variant = weights.config.variant
    shipped = ROOT / "src" / "celo2" / "pretrained" / f"{variant}.safetensors"
    weights = with_gradient_range(weights)
    provenance = {**weights.provenance, "commit": options.commit}
    save_weights(shipped, dataclasses.replace(weights, provenance=provenance))
    add_known({read_digest(str(shipped)): Known(f"{variant}, shipped with {provenance['made_by']}")})
    _draw(records, variant, ROOT / "docs" / "assets" / f"{variant}-meta-training.png")
    store_run(options.run, records, ROOT / "recipes" / variant)
    print(_facts(records, provenance, hashlib.sha256(shipped.read_bytes()).hexdigest()))


def _smooth(values: list[float | None]) -> np.ndarray:
    """Computes the running mean of the measured losses; iterations without a valid loss have none."""
    known = [value for value in values if value is not None]
    width = min(SMOOTHING, len(known))
    return np.convolve(known, np.ones(width) / width, mode="valid")


def _total_seconds(records: list[dict]) -> float:
    """Sums the time of all sessions of the run: the clock restarts when a run is resumed."""
    seconds = [record["seconds"] for record in records]
    ends = [before for before, after in zip(seconds, [*seconds[1:], 0.0], strict=True) if after < before]
    return sum(ends)


def _draw(records: list[dict], variant: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    for name in records[0]["loss_per_task"]:
        axes.plot(_smooth([record["loss_per_task"][name] for record in records]), label=name, linewidth=1)
    axes.plot(_smooth([record["meta_loss"] for record in records]), label="all", color="black")
    axes.set(
        xlabel="outer iteration",
        ylabel=f"meta-loss, mean of {SMOOTHING}",
        title=f"Meta-training of {variant}",
    )
    axes.legend(frameon=False, ncols=3, fontsize="small")
    figure.savefig(path, dpi=120)


def _facts(records: list[dict], provenance: dict[str, str], digest: str) -> str:
    smooth = _smooth([record["meta_loss"] for record in records])
    rows = {
        "command": f"`{provenance['command']}`",
        "outer iterations of these weights": provenance["outer_steps"],
        "code": f"{provenance['made_by']}, commit {provenance['commit']}",
        "data": provenance["data"],
        "seed": provenance["seed"],
        "wall-clock, compilation included": f"{_total_seconds(records) / 60:.0f} min",
        f"meta-loss, mean of {SMOOTHING} iterations": f"{smooth[0]:.3f} first, {smooth[-1]:.3f} last",
        "inner losses that were not finite": f"{100 * np.mean([r['diverged'] for r in records]):.2g} %",
        "meta-gradients skipped": str(sum(record["skipped"] for record in records)),
        "rms of the gradients met, 10 % to 99 %": "{} to {}".format(*json.loads(provenance[FIELD])),
        "sha256": f"`{digest}`",
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


if __name__ == "__main__":
    main()
