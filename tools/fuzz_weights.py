"""Damages weight files in many ways and counts the outcomes of loading them.

    python tools/fuzz_weights.py --mutants 20000

Each mutant is one of our safetensors files (of Celo2 or a predecessor), an upstream `theta.state`, or a file
of the public PyTorch port, with one kind of damage. It may be refused, with a ValueError that names the file;
load unchanged (if nothing depends on the damaged field); or load as something else, which none of our files
may do. Any error other than a ValueError ends the script. The printed table is in docs/reliability.md.
"""

from __future__ import annotations

import argparse
import collections
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from celo2.config import RuleConfig
from celo2.weights.checkpoint import AnyWeights, load_weights, make_weights, save_weights
from celo2.weights.port_format import port_name
from celo2.zoo.specs import PRESETS

OUTCOMES = ("refused", "loaded as written", "loaded as something else")
HEADER = 8  # bytes of a safetensors file before its JSON

Generator = np.random.Generator


def flip_a_bit(data: bytearray, rng: Generator) -> bytearray:
    data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    return data


def set_bytes(data: bytearray, rng: Generator) -> bytearray:
    for place in rng.integers(len(data), size=rng.integers(1, 9)):
        data[place] = rng.integers(256)
    return data


def cut_the_end(data: bytearray, rng: Generator) -> bytearray:
    return data[: rng.integers(len(data))]


def delete_a_range(data: bytearray, rng: Generator) -> bytearray:
    start, length = _range(data, rng)
    return data[:start] + data[start + length :]


def repeat_a_range(data: bytearray, rng: Generator) -> bytearray:
    start, length = _range(data, rng)
    return data[: start + length] + data[start:]


def swap_two_ranges(data: bytearray, rng: Generator) -> bytearray:
    a, length = _range(data, rng)
    b = int(rng.integers(len(data) - length + 1))
    data[a : a + length], data[b : b + length] = data[b : b + length], data[a : a + length]
    return data


def blank_a_block(data: bytearray, rng: Generator) -> bytearray:
    start, length = _range(data, rng)
    data[start : start + length] = bytes([int(rng.choice([0, 0x20, 0xFF]))]) * length
    return data


def change_a_number(data: bytearray, rng: Generator) -> bytearray:
    """Changes a float32 to another finite one in the last part of the file, where the arrays are."""
    place = len(data) - 4 * int(rng.integers(1, 300))
    data[place : place + 4] = rng.normal(size=1).astype("<f4").tobytes()
    return data


def change_a_digit(data: bytearray, rng: Generator) -> bytearray:
    """Changes a digit, mostly in the header: offsets, shapes, options, provenance, digest."""
    return _change(data, b"0123456789", rng)


def change_a_letter(data: bytearray, rng: Generator) -> bytearray:
    """Changes a letter in the names of arrays, options and metadata."""
    return _change(data, b"abcdefghijklmnopqrstuvwxyz", rng)


def switch_an_option(data: bytearray, rng: Generator) -> bytearray:
    """Swaps `true` and `false` while keeping the length: valid JSON with another meaning."""
    for old, new in rng.permutation([(b": true", b":false"), (b": false", b":true  ")]).tolist():
        places = [match.start() for match in re.finditer(old, data)]
        if places:
            place = int(rng.choice(places))
            data[place : place + len(old)] = new
            break
    return data


DAMAGES: tuple[Callable[[bytearray, Generator], bytearray], ...] = (
    flip_a_bit,
    set_bytes,
    cut_the_end,
    delete_a_range,
    repeat_a_range,
    swap_two_ranges,
    blank_a_block,
    change_a_number,
    change_a_digit,
    change_a_letter,
    switch_an_option,
)


def _range(data: bytearray, rng: Generator) -> tuple[int, int]:
    length = int(rng.integers(1, min(512, len(data))))
    return int(rng.integers(len(data) - length + 1)), length


def _change(data: bytearray, alphabet: bytes, rng: Generator) -> bytearray:
    places = [place for place, byte in enumerate(data) if byte in alphabet]
    data[rng.choice(places)] = rng.choice(list(alphabet))
    return data


def make_files(folder: Path) -> dict[str, Path]:
    """Writes weight files with made-up numbers; returns their paths by kind."""
    rng = np.random.default_rng(0)
    rule, member = RuleConfig(), PRESETS["adafac_mlp"]

    def arrays(config: Any) -> dict[str, np.ndarray]:
        return {n: rng.normal(size=shape).astype(np.float32) for n, shape in config.weight_shapes().items()}

    celo2 = make_weights(arrays(rule), rule, {"command": "a test", "seed": "0"})
    paths = {"Celo2, safetensors": folder / "w.safetensors", "theta.state": folder / "theta.state"}
    for path in paths.values():
        save_weights(path, celo2)
    paths["AdaFac-MLP, safetensors"] = folder / "zoo.safetensors"
    save_weights(paths["AdaFac-MLP, safetensors"], make_weights(arrays(member), member, {"seed": "0"}))
    paths["the port's safetensors"] = folder / "port.safetensors"
    port = {port_name(name): array for name, array in celo2.arrays.items()}
    safetensors.numpy.save_file(port, paths["the port's safetensors"], {"format": "pt"})
    return paths


def load(path: Path) -> tuple[Any, ...]:
    """Loads everything in a file, in a form that can be compared."""
    weights = load_weights(path, AnyWeights)
    numbers = {name: (array.shape, array.tobytes()) for name, array in weights.arrays.items()}
    provenance = {name: text for name, text in weights.provenance.items() if name != "source_sha256"}
    return numbers, weights.config, provenance


def fuzz(path: Path, mutants: int, seed: int = 0) -> Mapping[str, collections.Counter[str]]:
    """Counts the outcomes by damage of `mutants` mutants of a file, except equal ones; restores the file.

    Raises:
        AssertionError: A refusal does not name the file.
    """
    content, written = path.read_bytes(), load(path)
    counts: dict[str, collections.Counter[str]] = {d.__name__: collections.Counter() for d in DAMAGES}
    for index in range(mutants):
        damage = DAMAGES[index % len(DAMAGES)]
        data = damage(bytearray(content), np.random.default_rng([seed, index]))
        if data == content:
            continue
        path.write_bytes(data)
        counts[damage.__name__][_outcome(path, written)] += 1
    path.write_bytes(content)
    return counts


def _outcome(path: Path, written: tuple[Any, ...]) -> str:
    try:
        found = load(path)
    except ValueError as error:
        if path.name not in str(error):
            raise AssertionError(f"the refusal does not name {path.name}: {error}") from error
        return OUTCOMES[0]
    return OUTCOMES[1] if found == written else OUTCOMES[2]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mutants", type=int, default=20_000, help="of each file")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(f"| file | damage | {' | '.join(OUTCOMES)} |\n|---|---|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        for kind, path in make_files(Path(folder)).items():
            counts = fuzz(path, options.mutants, options.seed)
            for damage, found in counts.items():
                if not found:
                    continue  # this damage does not apply to the file
                cells = " | ".join(f"{found[outcome]:,}" for outcome in OUTCOMES)
                print(f"| {kind} | {damage.replace('_', ' ')} | {cells} |")
            total = sum(counts.values(), collections.Counter())
            cells = " | ".join(f"**{total[outcome]:,}**" for outcome in OUTCOMES)
            print(f"| {kind} | **all** | {cells} |")


if __name__ == "__main__":
    main()
