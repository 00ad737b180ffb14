"""Runs the updates of sharded parameters concurrently and batches their collective requests.

The updates of `step` advance together, in batches of `BATCH_SIZE` local elements, so that all sums of one
kind in a batch share one all-reduce. In every parameter group, Celo2-base has three all-reduces of vectors
per batch, dtype and set of sharded mesh axes, and gathers nothing. Newton–Schulz, which needs whole
matrices, is in `newton_schulz`.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from celo2.config import RuleConfig
from celo2.torch.batching import Leaf, working_dtype
from celo2.torch.sharding.collectives import AllReduce, Orthogonalize, Request, UpdateTask, all_reduce
from celo2.torch.sharding.newton_schulz import Buckets, orthogonalize_all
from celo2.torch.sharding.spec import ShardingSpec
from celo2.torch.weights import Network

BATCH_SIZE = 1 << 24  # local elements whose intermediate results exist at the same time


def run_tasks(
    network: Network,
    tasks: Sequence[UpdateTask],
    leaves: Sequence[Leaf],
    specs: Sequence[ShardingSpec],
    buckets: Buckets,
) -> list[Any]:
    """Runs updates such as `step.update` and returns the result of each.

    Args:
        network: The weights and the options.
        tasks: The updates, none of which has started.
        leaves: The leaf of each, with the same parameters in the same order in every process.
        specs: The sharding spec of each.
        buckets: The owner assignments of earlier steps; new ones are added.
    """
    results: list[Any] = []
    for batch in _batches(specs):
        pairs = [(leaves[i], specs[i]) for i in batch]
        results += _run(network, [tasks[i] for i in batch], pairs, buckets)
    return results


def run_alone(task: UpdateTask) -> Any:
    """Runs the update of a parameter that this process holds in full: the sum over shards is the summand."""
    answer: Any = None
    while True:
        try:
            request = task.send(answer)
        except StopIteration as finished:
            return finished.value
        if not isinstance(request, AllReduce):
            raise TypeError(f"only sums can be answered by one process, got {type(request).__name__}.")
        answer = request.values


def _batches(specs: Sequence[ShardingSpec]) -> Iterator[range]:
    """Yields ranges of consecutive leaves of about `BATCH_SIZE` elements, the same in every process."""
    first, size = 0, 0
    for index, spec in enumerate(specs):
        share = math.prod(spec.shape) // spec.num_shards
        if index > first and size + share > BATCH_SIZE:
            yield range(first, index)
            first, size = index, 0
        size += share
    if specs:
        yield range(first, len(specs))


def _run(
    network: Network,
    running: Sequence[UpdateTask],
    pairs: Sequence[tuple[Leaf, ShardingSpec]],
    buckets: Buckets,
) -> list[Any]:
    """Advances all updates from request to request and answers their requests together."""
    answers: dict[int, Any] = dict.fromkeys(range(len(running)))
    results: dict[int, Any] = {}
    while answers:
        requests: dict[int, Request] = {}
        for index in sorted(answers):
            try:
                requests[index] = running[index].send(answers[index])
            except StopIteration as finished:
                results[index] = finished.value
        sums = {i: r.values for i, r in requests.items() if isinstance(r, AllReduce)}
        answers = all_reduce({i: (pairs[i][1].groups, values) for i, values in sums.items()})
        answers |= _orthogonalize(requests, pairs, network.config, buckets)
    return [results[index] for index in range(len(running))]


def _orthogonalize(
    requests: Mapping[int, Request],
    pairs: Sequence[tuple[Leaf, ShardingSpec]],
    config: RuleConfig,
    buckets: Buckets,
) -> dict[int, list[Tensor]]:
    """Answers the `Orthogonalize` requests, those with equal processes, dtype and device together."""
    shared: dict[Hashable, dict[int, tuple[ShardingSpec, list[Tensor]]]] = {}
    for index, request in requests.items():
        if isinstance(request, Orthogonalize):
            leaf, spec = pairs[index]
            key = id(spec.processes), working_dtype(leaf.param.dtype), leaf.param.device
            shared.setdefault(key, {})[index] = spec, request.blocks
    answers: dict[int, list[Tensor]] = {}
    for grouped in shared.values():
        param = pairs[next(iter(grouped))][0].param
        like = param.new_empty(0, dtype=working_dtype(param.dtype))
        results = orthogonalize_all(list(grouped.values()), config, like, buckets)
        answers.update(zip(grouped, results, strict=True))
    return answers
