"""Measures what `celo2 bench` measures on every tree, and writes the tables into docs/performance.md.

    make bench

Each table stands between `<!-- NAME -->` and `<!-- end -->` in the page and is replaced; `--only` takes
some of them.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from celo2.evaluate.bench import COLUMNS, BenchRow, bench_tree, bench_whole_step
from celo2.evaluate.bench_trees import TREES
from celo2.evaluate.environment import describe_environment
from celo2.jax.runtime import compiler_options

PAGE = Path(__file__).resolve().parents[1] / "docs" / "performance.md"
OPTIMIZERS = ("adamw", "muon", "celo2-base", "celo2")
WHOLE_STEP = "whole-step"
NAMES = ("mlp", "vit-s", "gpt2-15m", "gpt2-124m", "gpt3-xl", WHOLE_STEP)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", choices=NAMES, default=NAMES, help="the tables to measure")
    parser.add_argument("--seconds", type=float, default=20.0, help="timing of one table")
    options = parser.parse_args()
    machine = describe_environment()
    for name in options.only:
        print(f"{name}:")
        if name == WHOLE_STEP:
            rows = bench_whole_step(
                OPTIMIZERS, budget=options.seconds, options=compiler_options(), on_progress=print
            )
        else:
            spec = TREES[name]
            rows = bench_tree(
                spec.make(),
                OPTIMIZERS,
                timed=spec.timed,
                budget=options.seconds,
                options=compiler_options(),
                on_progress=print,
            )
        table = _markdown(rows) + _footnote(machine)
        print(table)
        _replace(name, table)


def _markdown(rows: list[BenchRow]) -> str:
    lines = ["| " + " | ".join(COLUMNS) + " |\n", "|---|" + "---:|" * (len(COLUMNS) - 1) + "\n"]
    lines += ["| " + " | ".join(row.cells()) + " |\n" for row in rows]
    return "".join(lines)


def _footnote(machine: dict[str, str]) -> str:
    shown = ("commit", "jax", "optax", "processor", "cores", "devices")
    return "\n" + ", ".join(f"{key} {machine[key]}" for key in shown) + ".\n"


def _replace(name: str, table: str) -> None:
    page = PAGE.read_text(encoding="utf-8")
    pattern = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not pattern.search(page):
        raise SystemExit(f"{PAGE} has no place for {name!r}: it needs <!-- {name} --> and <!-- end -->.")
    PAGE.write_text(pattern.sub(lambda match: match[1] + table + match[2], page), encoding="utf-8")


if __name__ == "__main__":
    main()
