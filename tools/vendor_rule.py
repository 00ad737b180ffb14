"""Writes the rule and its weights as source text that does not depend on this package.

    python tools/vendor_rule.py               # updates the files in benchmarks/ that contain the rule
    python tools/vendor_rule.py --check FILE  # lists outdated files without changing them

Third-party benchmarks allow no optimizer libraries: their scripts must contain the whole rule. It is taken
from `examples/celo2_minimal.py` (JAX) or `examples/celo2_minimal_torch.py` (PyTorch), with the weights as
literals, and written between two lines of a file:

    # <rule torch celo2 without init update>
    # </rule>

The first names the framework, the weights, and the names in the minimal file to leave out.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from celo2._utils.files import write_atomic
from celo2.config import RuleConfig
from celo2.weights import Weights, load_checkpoint

ROOT = Path(__file__).resolve().parents[1]
SOURCES = {"jax": "examples/celo2_minimal.py", "torch": "examples/celo2_minimal_torch.py"}
READS_FILES = ("read_rule", "main")
WIDTH = 110
MARKED = re.compile(r"^(# <rule (?P<what>[^>\n]*)>\n).*?^(# </rule>\n)", re.MULTILINE | re.DOTALL)
ASKED = re.compile(r"(jax|torch) (\S+)(?: without (.+))?")
MARKER_HELP = "write it as `# <rule FRAMEWORK WEIGHTS>` or `# <rule FRAMEWORK WEIGHTS without NAME …>`"


def vendor(
    framework: Literal["jax", "torch"],
    weights: str | Weights = "celo2",
    *,
    without: Collection[str] = (),
    imports: bool = False,
) -> str:
    """Returns the rule as source text, with the weights in a constant `RULE`.

    Args:
        framework: The framework of the minimal file to use.
        weights: Weights of Celo2 or Celo2-base, as in `celo2.load_checkpoint`. The functions accept those of
            Celo2-base with `base=True`.
        without: Names of functions and constants to leave out.
        imports: Whether the text begins with the imports that it needs, and so is a complete module.

    Raises:
        ValueError: A name is unknown or still needed, or the minimal files lack an option of the weights.
    """
    path = SOURCES[framework]
    source = (ROOT / path).read_text("utf-8")
    parts = dict(_split(source))
    unknown = set(without) - parts.keys()
    if unknown:
        raise ValueError(f"{path} has no {', '.join(sorted(unknown))}; it has {', '.join(parts)}.")
    kept = {name: text for name, text in parts.items() if name not in {*READS_FILES, *without}}
    _check_complete(kept, parts.keys())
    numbers = _format_rule(framework, weights if isinstance(weights, Weights) else load_checkpoint(weights))
    title = f"# The rule, written by tools/vendor_rule.py from {path}: not to be edited."
    blocks = [text for name, text in kept.items() if name != "Rule"]
    first = next((i for i, block in enumerate(blocks) if not _is_constant(block)), len(blocks))
    head = "\n".join([title, *blocks[:first]])
    body = "\n\n\n".join([head, kept["Rule"], numbers, *blocks[first:]])
    return f"{_needed_imports(source, body)}\n\n{body}\n" if imports else f"{body}\n"


def fill(text: str) -> str:
    """Returns a file's text with the current rule between its markers.

    Raises:
        ValueError: There is no pair of markers, or the first does not say what to write.
    """
    if not MARKED.search(text):
        raise ValueError(f"no `# <rule …>` with a `# </rule>` below it; {MARKER_HELP}.")
    return MARKED.sub(lambda match: f"{match[1]}{_vendor_marked(match['what'])}{match[3]}", text)


def marked_files(folder: Path = ROOT / "benchmarks") -> list[Path]:
    """Returns the files in a folder and its subfolders that have markers."""
    return [path for path in sorted(folder.rglob("*.py")) if MARKED.search(path.read_text("utf-8"))]


def _vendor_marked(what: str) -> str:
    asked = ASKED.fullmatch(what)
    if asked is None:
        raise ValueError(f"`# <rule {what}>` does not say what to write; {MARKER_HELP}.")
    framework, weights, names = asked.groups(default="")
    return vendor("jax" if framework == "jax" else "torch", weights, without=names.split()) + "\n\n"


def _split(source: str) -> Iterator[tuple[str, str]]:
    """Yields the name and source of a module's functions, classes and constants, with comments above them."""
    lines, end = source.splitlines(), 0
    for node in ast.parse(source).body:
        start, end = end, node.end_lineno or 0
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, "\n".join(lines[start:end]).strip()
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            yield node.targets[0].id, "\n".join(lines[start:end]).strip()


def _is_constant(block: str) -> bool:
    return isinstance(ast.parse(block).body[0], ast.Assign)


def _names_in(text: str) -> set[str]:
    return {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}


def _check_complete(kept: dict[str, str], known: Collection[str]) -> None:
    for name, text in kept.items():
        missing = (_names_in(text) & set(known)) - kept.keys()
        if missing:
            raise ValueError(f"{name} needs {', '.join(sorted(missing))}: leave out both or none.")
    if "Rule" not in kept:
        raise ValueError("Rule cannot be left out: it holds the numbers.")


def _needed_imports(source: str, body: str) -> str:
    """Returns a module's import statements that a part of it needs: the standard library's, then others."""
    used, own, others = _names_in(body), [], []
    for node in ast.parse(source).body:
        if isinstance(node, ast.ImportFrom | ast.Import):
            node.names = [alias for alias in node.names if (alias.asname or alias.name) in used]
            module = getattr(node, "module", None) or (node.names[0].name if node.names else "")
            if node.names and module != "__future__":
                group = own if module.split(".")[0] in sys.stdlib_module_names else others
                group.append(ast.unparse(node))
    return "\n\n".join(["from __future__ import annotations", "\n".join(own), "\n".join(others)])


def _format_rule(framework: str, weights: Weights) -> str:
    """Returns the constant `RULE`."""
    config = weights.config
    momentum, rms, factored = (
        config.initial_momentum_decays,
        config.initial_rms_decays,
        config.initial_adafactor_decays,
    )
    same = RuleConfig(
        initial_momentum_decays=momentum,
        initial_rms_decays=rms,
        initial_adafactor_decays=factored,
        orthogonalize=config.orthogonalize,
    )
    if config != same or (len(momentum), len(rms), len(factored)) != (3, 1, 3):
        raise ValueError(f"the minimal files do not support these weights' options: {config}.")
    arrays = [
        line for name, array in weights.arrays.items() for line in _format_array(framework, name, array)
    ]
    decays = [f"    momentum={list(momentum)},", f"    rms={rms[0]},", f"    factored={list(factored)},"]
    lines = ["# fmt: off", "RULE = Rule(", "    weights={", *arrays, "    },", *decays, ")", "# fmt: on"]
    return "\n".join(lines)


def _format_array(framework: str, name: str, array: np.ndarray) -> list[str]:
    """Formats a float32 array as lines of text that read back exactly; an array of zeros takes one line."""
    if framework == "jax":
        zeros, dtype, make = f"np.zeros({array.shape}, np.float32)", "np.float32", "np.array"
    else:
        zeros, dtype, make = (
            f"torch.zeros({array.shape}, dtype=torch.float32)",
            "dtype=torch.float32",
            "torch.tensor",
        )
    if not array.any():
        return [f'        "{name}": {zeros},']
    rows = [_format_numbers(row) for row in np.atleast_2d(array)]
    if array.ndim == 1:
        return [f'        "{name}": {make}([', *_wrap(rows[0], 12), f"        ], {dtype}),"]
    lines = [line for row in rows for line in _wrap([f"[{row[0]}", *row[1:-1], f"{row[-1]}]"], 12)]
    return [f'        "{name}": {make}([', *lines, f"        ], {dtype}),"]


def _format_numbers(row: np.ndarray) -> list[str]:
    texts = [str(number) for number in row]
    return [
        text if np.float32(float(text)) == number else repr(float(number))
        for text, number in zip(texts, row, strict=True)
    ]


def _wrap(items: Sequence[str], indent: int) -> list[str]:
    """Joins items with commas into lines of at most `WIDTH` characters."""
    lines, line = [], " " * indent
    for item in items:
        if len(line) + len(item) + 1 > WIDTH:
            lines.append(line.rstrip())
            line = " " * indent
        line += f"{item}, "
    return [*lines, line.rstrip()]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", type=Path, help="by default all of benchmarks/ with markers")
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if a file is stale")
    options = parser.parse_args(arguments)
    stale = 0
    for path in options.files or marked_files():
        text = path.read_text("utf-8")
        filled = fill(text)
        if filled == text:
            continue
        stale += 1
        if options.check:
            print(f"{path} is out of date; run python tools/vendor_rule.py {path}")
        else:
            write_atomic(path, filled.encode())
            print(f"{path} written")
    return int(options.check and stale > 0)


if __name__ == "__main__":
    sys.exit(main())
