"""Ships the result of a search: the weights, their digest among the known ones, and the search's record.

    python tools/ship_search.py runs/search-celo2 --commit 1a2b3c4

The shipped weights are the last average that `celo2 search` wrote. `recipes/search/VARIANT.json` has the
search's settings; VARIANT.csv has a row per generation with the tasks' log ratios of the distribution's mean,
in per cent.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import hashlib
import json
from pathlib import Path

from known_weights import add_known, read_digest

from celo2 import load_checkpoint
from celo2._utils.files import read_lines
from celo2.weights.checkpoint import save_weights
from celo2.weights.digests import Known

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("search", type=Path, help="folder of the search")
    parser.add_argument("--commit", required=True, help="commit of the code that ran it")
    options = parser.parse_args()
    found = load_checkpoint(max(options.search.glob("weights/*-averaged.safetensors")))
    variant = found.config.variant
    shipped = ROOT / "src" / "celo2" / "pretrained" / f"{variant}.safetensors"
    save_weights(
        shipped, dataclasses.replace(found, provenance={**found.provenance, "commit": options.commit})
    )
    add_known({read_digest(str(shipped)): Known(f"{variant}, shipped with {found.provenance['made_by']}")})
    store_search(options.search, ROOT / "recipes" / "search" / variant)
    print(f"{shipped}: sha256 {hashlib.sha256(shipped.read_bytes()).hexdigest()}")
    print(found.provenance["mixture"])


def store_search(search: Path, name: Path) -> None:
    """Writes the settings of a search and the history of its mean."""
    name.parent.mkdir(parents=True, exist_ok=True)
    settings = json.loads((search / "config.json").read_text())
    name.with_suffix(".json").write_text(json.dumps(settings, indent=2) + "\n")
    records = read_lines(search / "generations.jsonl", lambda record: "mean" in record).records
    tasks = sorted({task for record in records for task in record["mean"]})
    with name.with_suffix(".csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["generation", *tasks, "spread", "seconds"])
        for record in records:
            ratios = [f"{100 * record['mean'][task]:.2f}" if task in record["mean"] else "" for task in tasks]
            table.writerow([record["generation"], *ratios, f"{record['spread']:.4f}", record["seconds"]])


if __name__ == "__main__":
    main()
