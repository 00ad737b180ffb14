"""Writes AlgoPerf submissions from the package: one plain file each, with its settings beside it.

    python benchmarks/algoperf/generate.py           # updates submissions/
    python benchmarks/algoperf/generate.py --check   # lists outdated files without changing them
    python benchmarks/algoperf/generate.py celo --weights celo.theta.state --out DIR

The first two are for celo2 and celo2-base, whose weights ship with the package. The third writes a submission
of one of their predecessors (`celo`, `celo_adam`, `velo`) with weights of other authors, which do not belong
in this repository.
"""

from __future__ import annotations

import argparse
import json
import re
import runpy
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TEMPLATES, SUBMISSIONS = HERE / "templates", HERE / "submissions"
RULESETS = ("external", "self")
VENDOR = SimpleNamespace(**runpy.run_path(str(ROOT / "tools" / "vendor_rule.py"), run_name="vendor_rule"))
FLATTEN = SimpleNamespace(**runpy.run_path(str(HERE / "flatten.py"), run_name="flatten"))
QUANTILES = (0.1, 0.3, 0.5, 0.7, 0.9)  # of our best learning rates, for five trials
# Each trial has one of these. Weight decays are from our suites; the others are customary, not our results.
REGULARIZED = {"weight_decay": 0.1, "label_smoothing": 0.1, "dropout_rate": 0.1}
PLAIN = {"weight_decay": 0.0, "label_smoothing": 0.0, "dropout_rate": 0.0}
SCHEDULE = {"warmup_factor": 0.05, "horizon": 0.75}
DEFAULTS = {**PLAIN, **SCHEDULE, "horizon": 1.0}  # self-tuning runs take 1.5 times as long


class Optimizer(NamedTuple):
    """An optimizer whose weights ship.

    Attributes:
        weights: Name of the weights, as in `celo2.load_checkpoint`.
        title: The optimizer's name in texts.
        results: The folder of its judged runs under `results/`; the file has the name and a digest.
        frameworks: The frameworks with templates.
    """

    weights: str
    title: str
    results: str
    frameworks: tuple[str, ...]


OPTIMIZERS = {
    "celo2": Optimizer("celo2", "Celo2", "judging", ("jax", "pytorch")),
    "celo2_base": Optimizer("celo2-base", "Celo2-base", "judging-base", ("jax",)),
}
ABOUT = {
    "celo2": "A learned rule of 347 numbers with Newton–Schulz for hidden matrices, AdamW for the rest "
    "(arXiv 2602.19142).",
    "celo2_base": "A learned rule of 347 numbers for every parameter (arXiv 2602.19142).",
}
PREDECESSORS = {"celo": "Celo", "celo_adam": "Celo-Adam", "velo": "VeLO"}
FRAMEWORKS = {"jax": "JAX", "pytorch": "PyTorch"}


def find_rates(optimizer: Optimizer) -> list[float]:
    """Returns five learning rates: quantiles of the judged tasks' best rates for the validation loss."""
    folder, name = (
        ROOT / "results" / optimizer.results,
        re.compile(f"{optimizer.weights}-[0-9a-f]{{12}}.json"),
    )
    files = [path for path in folder.iterdir() if name.fullmatch(path.name)]
    if len(files) != 1:
        raise ValueError(f"expected one file of runs of {optimizer.weights} in {folder}, found {len(files)}.")
    tasks = json.loads(files[0].read_text("utf-8"))
    logs = np.log([task["valid_rate"] for task in tasks.values()])
    return [float(f"{rate:.2g}") for rate in np.exp(np.quantile(logs, QUANTILES))]


def make_trials(optimizer: Optimizer) -> list[dict[str, float]]:
    """Returns the five points of external tuning: the rates, alternating with and without regularization."""
    kinds = (REGULARIZED, PLAIN, REGULARIZED, PLAIN, REGULARIZED)
    rates = find_rates(optimizer)
    return [{"learning_rate": rate, **kind, **SCHEDULE} for rate, kind in zip(rates, kinds, strict=True)]


def make_defaults(optimizer: Optimizer) -> dict[str, float]:
    """Returns the settings of self-tuning: the middle rate, with regularization."""
    median = find_rates(optimizer)[len(QUANTILES) // 2]
    return {**DEFAULTS, **REGULARIZED, "learning_rate": median}


def write_source(template: str, values: Mapping[str, str]) -> str:
    """Returns a template's text with its includes, `@name@` replaced, and the rule filled in."""
    text = read_template(template)
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    return VENDOR.fill(text) if "# <rule " in text else text


def read_template(name: str) -> str:
    """Returns a template with the templates that it includes."""
    lines = []
    for line in (TEMPLATES / f"{name}.py.in").read_text("utf-8").splitlines():
        included = line.startswith("# <include ")
        lines.append(read_template(line.split()[2].rstrip(">")).rstrip() if included else line)
    return "\n".join(lines) + "\n"


def format_dict(values: Mapping[str, Any]) -> str:
    """Formats a dict as source, one entry per line."""
    return "\n".join(["{", *(f'    "{name}": {value!r},' for name, value in sorted(values.items())), "}"])


def format_info(name: str, title: str, ruleset: str, framework: str, about: str) -> str:
    """Returns `submission_info.yml`, with the fields that the repository of submissions requires."""
    folder = f"submissions/{ruleset}_tuning/{name}"
    fields = {
        "submission_name": title,
        "submission_folder": folder,
        "authors": "The celo2 developers",
        "affiliations": "",
        "ruleset": f"{ruleset}-tuning",
        "framework": FRAMEWORKS[framework],
        "description": about,
    }
    return "".join(f"{field}: {json.dumps(text, ensure_ascii=False)}\n" for field, text in fields.items())


def write_shipped() -> Iterator[tuple[Path, str]]:
    """Yields every committed file as its path under `submissions/` and its text."""
    for name, optimizer in OPTIMIZERS.items():
        for framework in optimizer.frameworks:
            values = {
                "title": optimizer.title,
                "about": ABOUT[name],
                "base": str(name == "celo2_base"),
                "weights": optimizer.weights,
                "defaults": format_dict(make_defaults(optimizer)),
            }
            source = write_source(f"celo2_{framework}", values)
            for ruleset in RULESETS:
                folder = Path(f"{ruleset}_tuning", f"{name}_{framework}")
                info = format_info(folder.name, optimizer.title, ruleset, framework, ABOUT[name])
                yield folder / "submission.py", source
                yield folder / "submission_info.yml", info
                if ruleset == "external":
                    yield (
                        folder / "tuning_search_space.json",
                        json.dumps(make_trials(optimizer), indent=2) + "\n",
                    )


def update_shipped(*, check: bool) -> int:
    """Writes outdated committed files, or only names them; returns their number."""
    stale = 0
    for path, text in write_shipped():
        target = SUBMISSIONS / path
        if target.exists() and target.read_text("utf-8") == text:
            continue
        stale += 1
        print(f"{path} {'is not up to date' if check else 'written'}")
        if not check:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, "utf-8")
    return stale


def write_predecessor(kind: str, weights: Path, out: Path, ruleset: str) -> None:
    """Writes a folder with a submission of Celo, Celo-Adam or VeLO and its weights.

    Args:
        kind: A key of `PREDECESSORS`.
        weights: The weight file, as in `celo2.zoo.load_weights`.
        out: The folder.
        ruleset: "external" or "self".
    """
    from celo2 import zoo

    loaded = zoo.load_weights(weights)
    if loaded.kind != kind:
        raise ValueError(f"{weights} has weights of {loaded.kind!r}, asked for {kind!r}.")
    title = PREDECESSORS[kind]
    about = f"{title}, a learned optimizer that sets its own step sizes (docs/zoo.md of the celo2 package)."
    options = {name: getattr(loaded.config, name) for name in loaded.config.option_names()}
    values = {"title": title, "about": about, "module": kind, "options": repr(options)}
    template = write_source("zoo_jax", {**values, "defaults": format_dict(DEFAULTS)})
    out.mkdir(parents=True, exist_ok=True)
    (out / "submission.py").write_text(FLATTEN.flatten(template, ROOT / "src"), "utf-8")
    (out / "submission_info.yml").write_text(format_info(out.name, title, ruleset, "jax", about), "utf-8")
    arrays: dict[str, Any] = dict(loaded.arrays)
    np.savez(out / "theta.npz", **arrays)
    if ruleset == "external":  # only the length and the customary settings can be tuned
        settings = [(each, share) for each in (PLAIN, REGULARIZED) for share in (0.75, 1.0)]
        settings.append((PLAIN, 0.5))
        trials = [{**each, **SCHEDULE, "horizon": share} for each, share in settings]
        (out / "tuning_search_space.json").write_text(json.dumps(trials, indent=2) + "\n", "utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("predecessor", nargs="?", choices=PREDECESSORS, help="an optimizer before Celo2")
    parser.add_argument("--weights", type=Path, help="its weights: a theta.state or safetensors file")
    parser.add_argument("--out", type=Path, help="the folder to write")
    parser.add_argument("--ruleset", choices=RULESETS, default="self")
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if a file is stale")
    options = parser.parse_args(arguments)
    if options.predecessor:
        if options.weights is None or options.out is None:
            parser.error(f"{options.predecessor} needs --weights FILE and --out DIR")
        write_predecessor(options.predecessor, options.weights, options.out, options.ruleset)
        return 0
    return int(update_shipped(check=options.check) > 0 and options.check)


if __name__ == "__main__":
    sys.exit(main())
