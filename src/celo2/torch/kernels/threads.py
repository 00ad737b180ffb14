"""Runs independent pieces of work on a pool of threads whose PyTorch operations are single-threaded.

On a CPU, an operation on a block that fits in the cache is too short to be parallelised: its threads would
wait for each other a hundred times per block. Whole blocks are long enough, since PyTorch releases the GIL
while an operation runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import torch

_pools: dict[int, ThreadPoolExecutor] = {}


def run(make_worker: Callable[[], Callable[[int], None]], count: int) -> None:
    """Calls workers with 0, 1, …, `count` - 1, on as many threads as `torch.get_num_threads()`.

    Args:
        make_worker: Makes a worker with its own memory; called once per thread. The result must not depend
            on which worker gets which number.
        count: The number of pieces.
    """
    threads = min(torch.get_num_threads(), count)
    if threads < 2:
        _work(make_worker, range(count))
        return
    numbers = iter(range(count))  # `next` is atomic
    futures = [_pool(threads).submit(_work, make_worker, numbers) for _ in range(threads)]
    for future in futures:
        future.result()


def _work(make_worker: Callable[[], Callable[[int], None]], numbers: Iterable[int]) -> None:
    with torch.no_grad():  # which is thread-local
        worker = make_worker()
        for number in numbers:
            worker(number)


def _pool(threads: int) -> ThreadPoolExecutor:
    if threads not in _pools:
        before = torch.get_num_threads()
        pool = ThreadPoolExecutor(threads, "celo2", initializer=_use_one_thread)
        for future in [pool.submit(_wait) for _ in range(threads)]:
            future.result()
        torch.set_num_threads(before)  # for later threads: each thread has its own setting
        _pools[threads] = pool
    return _pools[threads]


def _use_one_thread() -> None:
    torch.get_num_threads()  # sets the thread up; if called later, it would undo the next line
    torch.set_num_threads(1)


def _wait() -> None:
    """Keeps a thread busy until the pool has started the next one."""
    import time

    time.sleep(0.01)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pools.clear)  # threads do not survive a fork
