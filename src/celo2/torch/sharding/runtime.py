"""The rule on parameters that are divided among processes: all of them side by side.

The updates of `step` go on together in batches of `BATCH_SIZE` local elements. So a batch's
sums of one kind travel at once: Celo2-base has three all-reduces of vectors for each batch, each dtype
in it and each way of cutting, in every parameter group, and gathers nothing. Newton–Schulz, which
needs whole matrices, is `dealing`'s.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from celo2.config import RuleConfig
from celo2.torch.batching import Leaf, working_dtype
from celo2.torch.sharding import step
from celo2.torch.sharding.collectives import Asking, Matrices, Request, Sums, sum_all
from celo2.torch.sharding.newton_schulz import Rounds, orthogonalize_all
from celo2.torch.sharding.spec import Division
from celo2.torch.weights import Network

BATCH_SIZE = 1 << 24  # elements of a process whose intermediate results are kept at the same time


def update_shards(
    network: Network,
    leaves: Sequence[Leaf],
    divisions: Sequence[Division],
    rounds: Rounds,
    *,
    kernels: bool = True,
) -> list[Tensor]:
    """The un-negated step of every leaf, as far as this process holds it.

    Args:
        network: The weights and the options.
        leaves: As `step.update` takes them; the same parameters in the same order in every
            process.
        divisions: How each is divided.
        rounds: How their matrices were dealt out in the steps before; what is new is added.
        kernels: Whether compiled kernels may be used.
    """
    steps: list[Tensor] = []
    for batch in _batches(divisions):
        pairs = [(leaves[i], divisions[i]) for i in batch]
        updates = [step.update(network, *pair, kernels=kernels) for pair in pairs]
        steps += _run(network, updates, pairs, rounds)
    return steps


def _batches(divisions: Sequence[Division]) -> Iterator[range]:
    """Consecutive leaves of about `BATCH_SIZE`, the same in every process whatever it holds."""
    first, size = 0, 0
    for index, division in enumerate(divisions):
        share = math.prod(division.shape) // division.num_shards
        if index > first and size + share > BATCH_SIZE:
            yield range(first, index)
            first, size = index, 0
        size += share
    if divisions:
        yield range(first, len(divisions))


def _run(
    network: Network, running: Sequence[Asking], pairs: Sequence[tuple[Leaf, Division]], rounds: Rounds
) -> list[Tensor]:
    """Lets all updates go on from request to request, and answers these together."""
    answers: dict[int, Any] = dict.fromkeys(range(len(running)))
    results: dict[int, Tensor] = {}
    while answers:
        requests: dict[int, Request] = {}
        for index in sorted(answers):
            try:
                requests[index] = running[index].send(answers[index])
            except StopIteration as finished:
                results[index] = finished.value
        sums = {i: r.values for i, r in requests.items() if isinstance(r, Sums)}
        answers = sum_all({i: (pairs[i][1].groups, values) for i, values in sums.items()})
        answers |= _orthogonalize(requests, pairs, network.config, rounds)
    return [results[index] for index in range(len(running))]


def _orthogonalize(
    requests: Mapping[int, Request],
    pairs: Sequence[tuple[Leaf, Division]],
    config: RuleConfig,
    rounds: Rounds,
) -> dict[int, list[Tensor]]:
    """Answers the requests for orthogonalised matrices; those of the same processes together."""
    shared: dict[Hashable, dict[int, tuple[Division, list[Tensor]]]] = {}
    for index, request in requests.items():
        if isinstance(request, Matrices):
            leaf, division = pairs[index]
            key = id(division.processes), working_dtype(leaf.param.dtype), leaf.param.device
            shared.setdefault(key, {})[index] = division, request.parts
    answers: dict[int, list[Tensor]] = {}
    for asked in shared.values():
        param = pairs[next(iter(asked))][0].param
        like = param.new_empty(0, dtype=working_dtype(param.dtype))
        results = orthogonalize_all(list(asked.values()), config, like, rounds)
        answers.update(zip(asked, results, strict=True))
    return answers
