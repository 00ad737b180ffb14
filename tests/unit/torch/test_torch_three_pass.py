"""The three passes of the PyTorch rule (whole, on blocks, by Numba's kernels) against the plain program."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import nn

from celo2.torch import Celo2Base
from celo2.torch.dimensions import make_layout
from celo2.torch.kernels import cpu_blocked, dispatch, threads
from celo2.weights.sources import SHIPPED
from helpers.torch_examples import (
    OPTIONS,
    OTHER_SIZES,
    SMALL_NETWORKS,
    UNCOVERED,
    largest_error,
    make_leaf,
    make_network,
    make_shipped_network,
    update,
    update_leaves,
)

TOLERANCE = 1.5e-6  # sums in another order, in float32 (4.7e-7)
EXACT = 3e-15  # in float64 (1.0e-15)
BLOCK_SIZE = cpu_blocked.BLOCK_SIZE
SHAPES = [(40, 24), (24, 40), (17, 17), (3, 9, 20), (2, 2, 20, 9), (31,), ()]
needs_numba = pytest.mark.skipif(find_spec("numba") is None, reason="Numba is not installed: celo2[cpu]")
every_way = pytest.mark.parametrize("name", ["passes", "blocks", pytest.param("numba", marks=needs_numba)])


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks a matrix, the last of them smaller."""
    monkeypatch.setattr(cpu_blocked, "BLOCK_SIZE", 150)
    if find_spec("numba"):
        monkeypatch.setattr("celo2.torch.kernels.cpu_numba.PIECE_SIZE", 150)


@every_way
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_passes_equal_the_plain_program(name: str, shape: tuple[int, ...]) -> None:
    assert largest_error(update(name, shape), update("plain", shape)) <= TOLERANCE
    double = (update(n, shape, torch.float64) for n in (name, "plain"))
    assert largest_error(*double) <= EXACT


@every_way
@pytest.mark.parametrize("options", [*OPTIONS.values(), *OTHER_SIZES.values()], ids=[*OPTIONS, *OTHER_SIZES])
def test_passes_equal_the_plain_program_for_options(name: str, options: dict[str, Any]) -> None:
    dtype, tolerance = (torch.float32, TOLERANCE) if name == "numba" else (torch.float64, EXACT)
    for shape in (20, 31), (31,):
        results = (update(n, shape, dtype, **options) for n in (name, "plain"))
        assert largest_error(*results) <= tolerance


@every_way
@pytest.mark.parametrize("options", SMALL_NETWORKS.values(), ids=SMALL_NETWORKS)
def test_passes_equal_the_plain_program_for_small_networks(name: str, options: dict[str, Any]) -> None:
    with dispatch.use(name):  # type: ignore[arg-type]
        assert dispatch.choose(make_network(**options), torch.ones(9, 7), make_layout((9, 7))) == name
    for shape in (20, 31), (31,):
        results = (update(n, shape, **options) for n in (name, "plain"))
        assert largest_error(*results) <= TOLERANCE


@every_way
@pytest.mark.parametrize("weights", SHIPPED)
def test_shipped_weights_equal_the_whole_network(name: str, weights: str) -> None:
    network, whole = (make_shipped_network(weights, simplified=own) for own in (True, False))
    assert (network.config.ff_hidden_size, whole.config.ff_hidden_size) == (2, 8)
    for shape in (40, 24), (3, 9, 20), (31,):
        for dtype, tolerance in (torch.float32, TOLERANCE), (torch.float64, EXACT):
            expected = update("plain", shape, dtype, network=whole)
            for program in ("plain", name):
                assert largest_error(update(program, shape, dtype, network=network), expected) <= tolerance


@needs_numba
def test_kernels_do_not_read_a_parameter_that_is_no_feature() -> None:
    network = make_shipped_network("celo2-base")
    leaf = make_leaf((20, 12), network, torch.float32)
    with dispatch.use("numba"):
        [expected] = update_leaves(network, [leaf])
        again = make_leaf((20, 12), network, torch.float32)
        [step] = update_leaves(network, [again._replace(param=torch.full_like(leaf.param, torch.nan))])
    assert largest_error([step], [expected]) == 0


@pytest.mark.parametrize("options", UNCOVERED.values(), ids=UNCOVERED)
def test_other_options_take_the_plain_program(options: dict[str, Any]) -> None:
    network = make_network(**options)
    leaf = make_leaf((100, 100), network, torch.float32)
    with dispatch.use("blocks"):
        assert dispatch.choose(network, leaf.param, leaf.layout) == "plain"
    assert largest_error(update("blocks", (9, 7), **options), update("plain", (9, 7), **options)) == 0


@pytest.mark.parametrize(
    ("shape", "kernels", "blocks"),
    [
        ((96, 96), "numba", "blocks"),
        ((2, 64, 64), "numba", "blocks"),
        ((64, 64), "numba", "plain"),
        ((8, 8), "numba", "plain"),
        ((5000,), "numba", "plain"),
        ((64, 64, 3), "plain", "plain"),
        ((0, 3), "plain", "plain"),
    ],
    ids=str,
)
def test_what_is_installed_serves_what_it_is_good_for(
    shape: tuple[int, ...], kernels: str, blocks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, tensor, layout = make_network(), torch.empty(shape), make_layout(shape)
    monkeypatch.setattr(dispatch, "_works", lambda *_: True)
    monkeypatch.setattr(dispatch, "_is_installed", lambda _: True)
    assert dispatch.choose(network, tensor, layout) == kernels
    assert dispatch.choose(network, tensor.double(), layout) == blocks
    assert dispatch.choose(network, tensor, layout, kernels=False) == blocks
    monkeypatch.setattr(dispatch, "_is_installed", lambda _: False)
    assert dispatch.choose(network, tensor, layout) == blocks


@needs_numba
@pytest.mark.parametrize(
    ("options", "kernels"), [({}, 1), ({"fused": True}, 1), ({"fused": False}, 0), ({"foreach": True}, 0)]
)
def test_fused_and_foreach_choose_the_rules_path(
    options: dict[str, Any], kernels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from celo2.torch.kernels import cpu_numba

    calls: list[Any] = []
    monkeypatch.setattr(cpu_numba, "_run", lambda *arguments: calls.append(arguments))
    param = nn.Parameter(torch.ones(70, 70))
    param.grad = torch.ones(70, 70)
    Celo2Base([param], **options).step()
    assert bool(calls) == kernels


def test_fused_without_kernels_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_is_installed", lambda _: False)
    with pytest.raises(RuntimeError, match=r"celo2\[cpu\]"):
        Celo2Base([torch.zeros(3)], fused=True)


def test_rows_longer_than_a_block_take_the_passes_on_whole_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_blocked, "BLOCK_SIZE", BLOCK_SIZE)
    monkeypatch.setattr(dispatch, "_is_installed", lambda _: False)
    network, matrix = make_network(), torch.empty(2, BLOCK_SIZE + 1)
    assert dispatch.choose(network, matrix, make_layout((2, BLOCK_SIZE + 1))) == "passes"
    assert dispatch.choose(network, matrix, make_layout((BLOCK_SIZE + 1, 2))) == "blocks"
    assert dispatch.choose(network, matrix[:, 1:], make_layout((2, BLOCK_SIZE))) == "blocks"
    with dispatch.use("blocks"):
        assert dispatch.choose(network, matrix, make_layout((2, BLOCK_SIZE + 1))) == "passes"


@every_way
def test_any_number_of_threads_gives_the_same_bits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    once = update(name, (40, 24))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert largest_error(update(name, (40, 24)), once) == 0


def test_an_error_in_a_thread_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)

    def fail(number: int) -> None:
        raise ValueError(f"block {number}")

    with pytest.raises(ValueError, match="block"):
        threads.run(lambda: fail, 4)


def test_threads_leave_the_number_of_threads_alone() -> None:
    before = torch.get_num_threads()
    threads._pool(2).submit(int).result()
    assert torch.get_num_threads() == before


@every_way
def test_nan_is_passed_on(name: str) -> None:
    network = make_network()
    leaf = make_leaf((20, 12), network, torch.float32)
    leaf.grad[3, 4] = float("nan")
    with dispatch.use(name):  # type: ignore[arg-type]
        param = nn.Parameter(leaf.param)
        param.grad = leaf.grad
        Celo2Base([param]).step()
    assert torch.isnan(param[3, 4])


def test_an_unknown_implementation_is_refused() -> None:
    with pytest.raises(ValueError, match="'blocks'"), dispatch.use("cuda"):  # type: ignore[arg-type]
        pass
