"""Adds weight files to the package's list of known digests, src/celo2/pretrained/known.json.

    python tools/known_weights.py theta.state --variant celo2 --as "Celo2 as its authors released it"

Once a file is in the list, `celo2 weights verify` identifies it even if it carries no digest, and upstream
files can be loaded without naming their variant.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

from celo2._utils.files import write_atomic
from celo2.weights.checkpoint import AnyWeights, read_integrity
from celo2.weights.digests import KNOWN_FILE, Known, known_digests
from celo2.weights.sources import SHIPPED, find_file

KNOWN = Path(__file__).resolve().parents[1] / "src" / "celo2" / "pretrained" / KNOWN_FILE


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", help="weight files, or names of shipped weights")
    parser.add_argument("--as", dest="what", required=True, help="what they are, in a few words")
    parser.add_argument(
        "--variant",
        default="",
        choices=SHIPPED,
        help="of files that do not say it, with the published options",
    )
    options = parser.parse_args()
    add_known({read_digest(file): Known(options.what, options.variant) for file in options.files})


def read_digest(file: str) -> str:
    return read_integrity(find_file(file, AnyWeights.max_bytes)).digest


def add_known(added: Mapping[str, Known]) -> None:
    known = {**known_digests(), **added}
    fields = {
        digest: {name: value for name, value in one._asdict().items() if value}
        for digest, one in known.items()
    }
    text = json.dumps(fields, indent=1, ensure_ascii=False)
    write_atomic(KNOWN, f"{text}\n".encode())


if __name__ == "__main__":
    main()
