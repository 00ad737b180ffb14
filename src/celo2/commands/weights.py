"""`celo2 weights`: lists, inspects, verifies, converts, fetches or publishes weights.

Only the hub needs an extra.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from celo2.config import RuleConfig
from celo2.weights.checkpoint import (
    SHIPPED,
    AnyWeights,
    Weights,
    ZooWeights,
    compute_checksum,
    decode_weights,
    load_checkpoint,
    read_integrity,
    save_weights,
)
from celo2.weights.digests import Integrity
from celo2.weights.publish import prepare_repository, upload
from celo2.weights.sources import OURS, fetch_file, find_file, shipped_file
from celo2.zoo.specs import MEMBERS
from celo2.zoo.weights import fitting_presets

VARIANT_OPTION = "orthogonalize"  # of the rule: on for Celo2, off for Celo2-base

_EXAMPLES = """\
examples:
  celo2 weights list
  celo2 weights inspect celo2
  celo2 weights verify theta.state --set orthogonalize=false
  celo2 weights convert theta.state mine.safetensors --set orthogonalize=true
  celo2 weights convert celo2-base theta.state
  celo2 weights fetch amoudgl/celo2
  celo2 weights fetch DiamondXL/elo-celo2 --out weights
  celo2 weights fetch amoudgl/celo
  celo2 weights fetch owner/name --set orthogonalize=true
  celo2 weights publish runs/celo2/best.safetensors me/my-celo2 --push

SOURCE is celo2 or celo2-base (shipped), a *.safetensors file of this package or of the public
PyTorch port of Celo2 and ELO-Celo2, an upstream theta.state file or the folder that holds it,
or a Hugging Face repository owner/name.
An upstream file carries no options of the rule: name those that it was trained with by --set.
Those of the files that Celo2's authors and the port released are known. Files of the predecessors
(celo2.zoo) are recognised by their arrays.
"""


def main(argv: Sequence[str]) -> int:
    """Runs `celo2 weights` with these arguments.

    Args:
        argv: The arguments after `celo2 weights`, such as `["inspect", "celo2"]`.

    Returns:
        0, or 1 if a file was refused, with the reason on standard error.

    Raises:
        SystemExit: argparse exits, for `--help` or wrong usage.
    """
    arguments = _parser().parse_args(argv)
    run: Callable[[argparse.Namespace], int] = arguments.run
    try:
        return run(arguments)
    except (OSError, ImportError, TypeError, ValueError) as error:
        print(f"error: {_printable(str(error))}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="celo2 weights",
        description="The weights of the learned rule: what is shipped, what is in a file, and other formats.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    _add(commands, "list", _list, "the shipped weights: variant, size, checksum, provenance")

    inspect = _add(
        commands, "inspect", _inspect, "options, arrays, norms and provenance of one set of weights"
    )
    inspect.add_argument("source", metavar="SOURCE")
    _add_set(inspect)

    verify = _add(
        commands, "verify", _verify, "check weights; exit code 1 with the reason where one is refused"
    )
    verify.add_argument("sources", metavar="SOURCE", nargs="+")
    _add_set(verify)

    convert = _add(commands, "convert", _convert, "between *.safetensors and upstream's theta.state")
    convert.add_argument("source", metavar="SOURCE")
    convert.add_argument("destination", metavar="DESTINATION", type=Path, help="*.safetensors or *.state")
    _add_set(convert)

    fetch = _add(commands, "fetch", _fetch, "download from the Hugging Face hub into a *.safetensors file")
    fetch.add_argument("repo_id", metavar="OWNER/NAME")
    fetch.add_argument("--out", metavar="DIR", type=Path, default=Path(), help="default: the current folder")
    _add_set(fetch)

    publish = _add(
        commands, "publish", _publish, "prepare a Hugging Face repository of weights, and upload it"
    )
    publish.add_argument("source", metavar="SOURCE")
    publish.add_argument("repo_id", metavar="OWNER/NAME")
    publish.add_argument("--out", metavar="DIR", type=Path, help="default: hub/NAME in the current folder")
    publish.add_argument("--license", metavar="ID", default="mit", help="of the weights, as the hub names it")
    publish.add_argument(
        "--push", action="store_true", help="upload; needs celo2[hub], a network and a token"
    )
    publish.add_argument("--private", action="store_true", help="make a new repository private")
    _add_set(publish)
    return parser


def _add(commands: Any, name: str, run: Callable[..., int], help_text: str) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name,
        help=help_text,
        description=help_text,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=run)
    return command


def _add_set(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--set",
        metavar="OPTION=VALUE",
        dest="options",
        type=_parse_option,
        action="append",
        default=[],
        help="an option of the rule that the file does not carry; repeatable; lists as [0.9,0.99]",
    )


def _parse_option(text: str) -> tuple[str, Any]:
    """Parses `"name=value"` into a pair; the value is parsed as JSON if possible, and is otherwise text."""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"expected OPTION=VALUE, got {text!r}")
    try:
        if not any(name in member.option_names() for member in MEMBERS.values()):
            RuleConfig.check_option_names([name])
    except TypeError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    try:
        return name, json.loads(value.lower())
    except ValueError:
        return name, value


def _list(arguments: argparse.Namespace) -> int:  # noqa: ARG001 (all commands have one signature)
    missing = 0
    for name in SHIPPED:
        try:
            weights = load_checkpoint(name)
            digest = hashlib.sha256(shipped_file(name).read_bytes()).hexdigest()
        except (OSError, ValueError) as error:
            missing += 1
            print(f"{name}\n  error       {_printable(str(error))}")
            continue
        origin = "; ".join(f"{field}: {text}" for field, text in weights.provenance.items())
        print(f"{name}\n  variant     {_variant(weights)}")
        print(f"  sha256      {digest} of the file\n  provenance  {_printable(origin) or 'none'}")
    return 1 if missing else 0


def _inspect(arguments: argparse.Namespace) -> int:
    weights, integrity = _read(arguments.source, arguments.options)
    print(f"{_printable(arguments.source)}: {_variant(weights)}, contract version {weights.contract_version}")
    print("\noptions (* not the default, ? assumed: the file does not carry it)")
    defaults = _defaults(weights)
    for name, default in defaults.items():
        value = getattr(weights.config, name)
        changed = "*" if value != default else " "
        assumed = " " if name in weights.stated else "?"
        note = f"  (default {_text(default)})" if value != default else ""
        print(f"{changed}{assumed} {name:26}{_text(value)}{note}")
    if not defaults:
        print("   none")
    if isinstance(weights, ZooWeights):
        _print_use(weights)
    _print_contents(weights, integrity)
    return 0


def _print_use(weights: ZooWeights) -> None:
    """Prints the inputs that a zoo optimizer needs, and the presets that fit the weights."""
    needs = {"loss": "the loss at each step", "num_steps": "the length of the run"}
    needed = [needs[name] for name in sorted(weights.config.needs)]
    print(f"   needs                     {' and '.join(needed) or 'gradients and parameters only'}")
    names = ", ".join(fitting_presets(weights)) or f"{weights.kind}, with the options above"
    print(f"   celo2.zoo.make            {names}")


def _print_contents(weights: AnyWeights[Any], integrity: Integrity) -> None:
    width = max(map(len, weights.arrays)) + 4
    print(f"\n{'array':{width}}{'shape':>10}{'norm':>12}{'rms':>12}{'largest':>12}")
    for name, array in weights.arrays.items():
        exact = array.astype(np.float64)
        norm, rms = np.linalg.norm(exact), np.sqrt(np.mean(exact**2))
        shape = "×".join(map(str, array.shape)) or "()"
        print(f"{name:{width}}{shape:>10}{norm:>12.4g}{rms:>12.4g}{np.abs(exact).max():>12.4g}")
    print("\nprovenance")
    for field, text in weights.provenance.items() or [("none", "")]:
        print(f"   {_printable(field):26}{_printable(text)}")
    print(f"\ndigest of the content\n   {integrity.digest}\n   {integrity}")
    if isinstance(weights, ZooWeights) or VARIANT_OPTION in weights.stated:
        checksum = compute_checksum(weights.arrays, weights.config)
        print(f"\nchecksum of arrays and options, by which results name these weights\n   {checksum}")


def _verify(arguments: argparse.Namespace) -> int:
    refused = 0
    for source in arguments.sources:
        try:
            weights, integrity = _read(source, arguments.options)
        except (OSError, ImportError, ValueError) as error:
            refused += 1
            print(f"REFUSED {_printable(str(error))}")
        else:
            print(f"OK {_printable(source)}: {_variant(weights)}; {integrity}; digest {integrity.digest}")
    return 1 if refused else 0


def _convert(arguments: argparse.Namespace) -> int:
    weights, _ = _read(arguments.source, arguments.options)
    _save(arguments.destination, weights, arguments.source)
    if arguments.destination.suffix != ".safetensors":
        flags = _set_flags(weights)
        if flags:
            print(f"this format carries no options; load it with {flags}")
    return 0


def _fetch(arguments: argparse.Namespace) -> int:
    file = fetch_file(arguments.repo_id, AnyWeights.max_bytes)
    weights = decode_weights(file, AnyWeights, **dict(arguments.options))
    path = arguments.out / f"{arguments.repo_id.rpartition('/')[2]}{OURS}"
    _check_variant(path, weights, file.name)
    arguments.out.mkdir(parents=True, exist_ok=True)
    _save(path, weights, file.name)
    return 0


def _publish(arguments: argparse.Namespace) -> int:
    weights, _ = _read(arguments.source, arguments.options)
    out = arguments.out or Path("hub") / arguments.repo_id.rpartition("/")[2]
    files = prepare_repository(
        weights, arguments.repo_id, out, source=arguments.source, licence=arguments.license
    )
    for file in files:
        print(f"wrote {file}")
    if arguments.push:
        print(f"uploaded: {upload(arguments.repo_id, files, private=arguments.private)}")
    else:
        print("nothing was uploaded; --push does")
    return 0


def _read(source: str, options: Sequence[tuple[str, Any]]) -> tuple[AnyWeights[Any], Integrity]:
    """Reads the weights in a source, of Celo2 or of an optimizer in `celo2.zoo`."""
    file = find_file(source, AnyWeights.max_bytes)
    return decode_weights(file, AnyWeights, **dict(options)), read_integrity(file)


def _check_variant(path: Path, weights: AnyWeights[Any], source: str) -> None:
    """Raises a ValueError that says what to set if the variant of a file to be written is unknown."""
    if path.suffix == OURS and isinstance(weights, Weights) and VARIANT_OPTION not in weights.stated:
        raise ValueError(
            f"{source} does not say which variant of Celo2 its arrays are, and is not a file that this "
            f"release knows: name it, --set {VARIANT_OPTION}=true (Celo2, with Newton–Schulz) or --set "
            f"{VARIANT_OPTION}=false (Celo2-base); likewise any other option that is not the published one, "
            "such as --set initial_rms_decays=[0.999]."
        )


def _save(path: Path, weights: AnyWeights[Any], source: str) -> None:
    _check_variant(path, weights, source)
    save_weights(path, weights)
    print(f"wrote {path}: {_variant(weights)}")
    assumed = [name for name in weights.config.option_names() if name not in weights.stated]
    if assumed and isinstance(weights, ZooWeights):  # files of the rule state every option
        options = ", ".join(f"{name}={_text(getattr(weights.config, name))}" for name in assumed)
        print(f"options assumed: {options}. The file does not carry them; set others with --set.")


def _variant(weights: AnyWeights[Any]) -> str:
    numbers = f"{weights.config.num_parameters} numbers"
    if isinstance(weights, ZooWeights):
        return f"{weights.kind}, a predecessor of Celo2, {numbers}"
    known = weights.config.variant if VARIANT_OPTION in weights.stated else "celo2 or celo2-base"
    return f"{known}, {numbers}"


def _set_flags(weights: AnyWeights[Any]) -> str:
    """Formats the `--set` flags for the variant and for changed options that the arrays do not reveal."""
    config, defaults = weights.config, _defaults(weights)
    told = config.sizes_of(config.weight_shapes())
    named = [
        name
        for name, default in defaults.items()
        if name == VARIANT_OPTION or (name not in told and getattr(config, name) != default)
    ]
    return " ".join(f"--set {shlex.quote(f'{name}={_text(getattr(config, name))}')}" for name in named)


def _defaults(weights: AnyWeights[Any]) -> dict[str, Any]:
    return dataclasses.asdict(type(weights.config)())


def _text(value: Any) -> str:
    """Formats an option's value for `--set`."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _printable(text: str) -> str:
    """Escapes control characters in text from a file, which could manipulate the terminal."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
