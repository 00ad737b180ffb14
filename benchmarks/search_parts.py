"""Takes apart the result of a search, and averages the results of several searches.

    python benchmarks/search_parts.py --out runs/parts --average celo2 runs/search-*/weights/*-averaged*
    celo2 probe start:adam celo2 runs/parts/*.safetensors --set choosing --out runs/choosing

A search changes the weights of the channels and the decays of the accumulators. `channels.safetensors` has
the shipped channel weights with the decays of the Adam-like start, `decays.safetensors` the start's channel
weights with the shipped decays. `average.safetensors` is the mean of the given weights: of the channel
weights, scaled so that their magnitudes sum to 1, and of log(1 - β) for each decay β.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from celo2 import load_checkpoint
from celo2.meta.search.mixture import Mixture, make_weights, read_mixture, to_vector, weights_of_mixture
from celo2.weights.checkpoint import Weights, save_weights

DECAYS = ("initial_momentum_decays", "initial_rms_decays", "initial_adafactor_decays")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights")
    parser.add_argument("--variant", choices=("celo2", "celo2-base"), default="celo2")
    parser.add_argument("--average", nargs="+", default=[], help="weights that searches found")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    parts = take_apart(load_checkpoint(options.variant))
    if options.average:
        found = [load_checkpoint(path) for path in options.average]
        parts["average"] = average(found)
        print("cosines between channel weights:", *(f"{cosine:.2f}" for cosine in cosines(found)))
    for name, weights in parts.items():
        path = options.out / f"{name}.safetensors"
        save_weights(path, weights)
        print(path, weights.provenance["made_by"])


def take_apart(weights: Weights) -> dict[str, Weights]:
    """Makes two rules, one with the weights' channels and one with their decays; the start gives the rest."""
    variant = weights.config.variant
    found = _read_plain(weights)
    start = read_mixture(make_weights(to_vector(), variant, {}))
    channels, decays = start._replace(shares=found.shares), found._replace(shares=start.shares)
    return {
        "channels": weights_of_mixture(channels, variant, {"made_by": f"{variant}, the start's decays"}),
        "decays": weights_of_mixture(decays, variant, {"made_by": f"{variant}, the start's channels"}),
    }


def average(weights: Sequence[Weights]) -> Weights:
    """Averages mixtures: their channel weights and the logarithms of 1 - β."""
    if len({one.config.variant for one in weights}) > 1:
        raise ValueError(f"expected one variant, got {[one.config.variant for one in weights]}.")
    mixtures = [_read_plain(one) for one in weights]

    def mean_decays(name: str) -> tuple[float, ...]:
        return tuple(
            1.0 - np.exp(np.mean(np.log1p([-np.asarray(getattr(m, name)) for m in mixtures]), axis=0))
        )

    shares = np.mean([m.shares / np.abs(m.shares).sum() for m in mixtures], axis=0)
    mean = Mixture(shares, **{name: mean_decays(name) for name in DECAYS})
    return weights_of_mixture(
        mean, weights[0].config.variant, {"made_by": f"the mean of {len(weights)} searches"}
    )


def cosines(weights: Sequence[Weights]) -> list[float]:
    """Computes the cosine between the channel weights of each pair of mixtures."""
    directions = [shares / np.linalg.norm(shares) for shares in (read_mixture(one).shares for one in weights)]
    return [float(one @ other) for one, other in itertools.combinations(directions, 2)]


def _read_plain(weights: Weights) -> Mixture:
    mixture = read_mixture(weights)
    if mixture.bend is not None or mixture.revival is not None:
        raise ValueError("mixtures that are bent or revive units have no such parts, and no average.")
    return mixture


if __name__ == "__main__":
    main()
