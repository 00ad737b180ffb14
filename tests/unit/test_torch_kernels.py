"""The Triton kernels, in Triton's interpreter on the CPU and, where there is a GPU, on it.

`make test-kernels` installs Triton, which PyTorch for CPUs does not bring; `conftest` chooses the
interpreter.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch_examples import OPTIONS, OTHER_SIZES, largest_error, make_leaf, make_network, update

from celo2.torch import Celo2Base, implementation

pytest.importorskip("triton", reason="Triton is not installed: make test-kernels")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Sums in another order, in float32: 8.0e-7 in the interpreter; a bound, not measured, on a GPU.
TOLERANCE = 2.4e-6 if DEVICE == "cpu" else 6e-6
needs_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="no GPU")


@pytest.mark.parametrize("shape", [(20, 70), (70, 20), (33, 33), (2, 9, 20)], ids=str)
def test_kernels_equal_the_plain_program(shape: tuple[int, ...]) -> None:
    results = (update(name, shape, device=DEVICE) for name in ("triton", "plain"))
    assert largest_error(*results) <= TOLERANCE


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_kernels_equal_the_plain_program_for_options(options: dict[str, Any]) -> None:
    results = (update(name, (20, 31), device=DEVICE, **options) for name in ("triton", "plain"))
    # On a GPU Newton–Schulz is in bfloat16, which amplifies what rounding does to a direction.
    assert largest_error(*results) <= (
        0.05 if options.get("orthogonalize") and DEVICE == "cuda" else TOLERANCE
    )


def test_gradients_and_parameters_of_bfloat16_are_read_as_they_are() -> None:
    results = (update(name, (20, 31), torch.bfloat16, device=DEVICE) for name in ("triton", "plain"))
    assert largest_error(*results) <= TOLERANCE


@pytest.mark.parametrize("options", OTHER_SIZES.values(), ids=OTHER_SIZES)
def test_networks_of_other_sizes_take_the_passes_on_whole_tensors(options: dict[str, Any]) -> None:
    network = make_network(**options)
    leaf = make_leaf((64, 64), network, torch.float32)
    with implementation.use("triton"):
        assert implementation.choose(network, leaf.param, leaf.layout) == "passes"


def test_nan_is_passed_on() -> None:
    leaf = make_leaf((20, 12), make_network(), torch.float32, DEVICE)
    leaf.grad[3, 4] = float("nan")
    param = torch.nn.Parameter(leaf.param)
    param.grad = leaf.grad
    with implementation.use("triton"):
        Celo2Base([param]).step()
    assert torch.isnan(param[3, 4])


@needs_gpu
def test_a_large_matrix_on_a_gpu_takes_the_kernels() -> None:
    network = make_network()
    leaf = make_leaf((256, 512), network, torch.float32, DEVICE)
    assert implementation.choose(network, leaf.param, leaf.layout) == "triton"


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
