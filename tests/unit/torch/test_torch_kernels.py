"""The Triton kernels, in Triton's interpreter on the CPU and, where there is a GPU, on it.

`conftest` chooses the interpreter, whose time is the number of blocks.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from celo2.torch import Celo2Base
from celo2.torch.kernels import dispatch
from helpers.torch_examples import (
    OPTIONS,
    OTHER_SIZES,
    largest_error,
    make_leaf,
    make_network,
    update,
)

pytest.importorskip("triton", reason="Triton is not installed; it is for Linux")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Sums in another order, in float32: 8.0e-7 in the interpreter; a bound, not measured, on a GPU.
TOLERANCE = 2.4e-6 if DEVICE == "cpu" else 6e-6
needs_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="no GPU")


@pytest.mark.parametrize("shape", [(20, 70), (20, 9), (2, 9, 20), (80,)], ids=str)
def test_kernels_equal_the_plain_program(shape: tuple[int, ...]) -> None:
    results = (update(name, shape, device=DEVICE) for name in ("triton", "plain"))
    assert largest_error(*results) <= TOLERANCE


@pytest.mark.parametrize("options", ["features off", "no vectors"])
def test_kernels_equal_the_plain_program_for_options(options: str) -> None:
    results = (update(name, (9, 20), device=DEVICE, **OPTIONS[options]) for name in ("triton", "plain"))
    assert largest_error(*results) <= TOLERANCE


def test_bfloat16_is_read_as_it_is_and_a_state_of_it_is_rounded() -> None:
    def run(name: str, state: torch.dtype | None) -> list[torch.Tensor]:
        return update(name, (9, 20), torch.bfloat16, device=DEVICE, state_dtype=state)

    exact, rounded = run("triton", None), run("triton", torch.bfloat16)
    assert largest_error(exact, run("plain", None)) <= TOLERANCE
    one_bit = 2**-7  # of eight, twice rounded: after each of two updates
    assert rounded[2].dtype == torch.bfloat16
    for actual, expected in zip(rounded[2:], exact[2:], strict=True):
        torch.testing.assert_close(actual.float(), expected, rtol=2 * one_bit, atol=0)


@pytest.mark.parametrize("options", OTHER_SIZES.values(), ids=OTHER_SIZES)
def test_networks_of_other_sizes_take_the_passes_on_whole_tensors(options: dict[str, Any]) -> None:
    network = make_network(**options)
    leaf = make_leaf((64, 64), network, torch.float32)
    with dispatch.use("triton"):
        assert dispatch.choose(network, leaf.param, leaf.layout) == "passes"


def test_nan_is_passed_on() -> None:
    leaf = make_leaf((4, 5), make_network(), torch.float32, DEVICE)
    leaf.grad[3, 4] = float("nan")
    param = torch.nn.Parameter(leaf.param)
    param.grad = leaf.grad
    with dispatch.use("triton"):
        Celo2Base([param]).step()
    assert torch.isnan(param[3, 4])


@needs_gpu
def test_a_large_matrix_on_a_gpu_takes_the_kernels() -> None:
    network = make_network()
    leaf = make_leaf((256, 512), network, torch.float32, DEVICE)
    assert dispatch.choose(network, leaf.param, leaf.layout) == "triton"


@needs_gpu
def test_a_step_can_be_captured_in_a_graph() -> None:
    params = [make_leaf((256, 512), make_network(), torch.float32, DEVICE, seed).param for seed in (1, 1)]
    captured, plain = (torch.nn.Parameter(param) for param in params)
    optimizers = [Celo2Base([param], capturable=True) for param in (captured, plain)]
    for param in (captured, plain):
        param.grad = torch.full_like(param, 1e-3).cumsum(1)
    for _ in range(2):
        for optimizer in optimizers:
            optimizer.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizers[0].step()
    for _ in range(2):
        graph.replay()
        optimizers[1].step()
    torch.testing.assert_close(captured, plain, rtol=0, atol=0)
