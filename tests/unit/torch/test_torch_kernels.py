"""The Triton kernels, in Triton's interpreter on the CPU and, where there is a GPU, on it.

`conftest` chooses the interpreter, whose time is the number of blocks.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from celo2.torch import Celo2Base
from celo2.torch.dimensions import make_layout
from celo2.torch.kernels import dispatch
from celo2.weights.sources import SHIPPED
from helpers.torch_examples import (
    OPTIONS,
    OTHER_SIZES,
    SMALL_NETWORKS,
    largest_error,
    make_leaf,
    make_network,
    make_shipped_network,
    update,
    update_leaves,
)

triton = pytest.importorskip("triton", reason="Triton is not installed; it is for Linux")
tl = pytest.importorskip("triton.language")
gpu_triton = pytest.importorskip("celo2.torch.kernels.gpu_triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Sums in another order, in float32: 8.0e-7 in the interpreter; a bound, not measured, on a GPU.
TOLERANCE = 2.4e-6 if DEVICE == "cpu" else 6e-6
needs_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="no GPU")


@pytest.mark.parametrize("shape", [(20, 70), (20, 9), (2, 9, 20), (80,)], ids=str)
def test_kernels_equal_the_plain_program(shape: tuple[int, ...]) -> None:
    results = (update(name, shape, device=DEVICE) for name in ("triton", "plain"))
    assert largest_error(*results) <= TOLERANCE


@pytest.mark.parametrize(
    "options",
    [*(OPTIONS[name] for name in ("features off", "no vectors")), *SMALL_NETWORKS.values()],
    ids=["features off", "no vectors", *SMALL_NETWORKS],
)
def test_kernels_equal_the_plain_program_for_options(options: dict[str, Any]) -> None:
    network = make_network(**options)
    with dispatch.use("triton"):
        assert dispatch.choose(network, torch.ones(9, 20), make_layout((9, 20))) == "triton"
    for shape in (9, 20), (20,):
        results = (update(name, shape, device=DEVICE, network=network) for name in ("triton", "plain"))
        assert largest_error(*results) <= TOLERANCE


@pytest.mark.parametrize("weights", SHIPPED)
def test_shipped_weights_equal_the_whole_network(weights: str) -> None:
    network, whole = (make_shipped_network(weights, simplified=own) for own in (True, False))
    for shape in (9, 20), (20,):
        actual = update("triton", shape, device=DEVICE, network=network)
        assert largest_error(actual, update("plain", shape, device=DEVICE, network=whole)) <= TOLERANCE


def test_a_parameter_that_is_no_feature_is_not_read() -> None:
    network, steps = make_shipped_network(SHIPPED[0]), []
    for value in (1.0, float("nan")):
        leaf = make_leaf((9, 20), network, torch.float32, DEVICE)
        with dispatch.use("triton"):
            steps += update_leaves(network, [leaf._replace(param=torch.full_like(leaf.param, value))])
    assert largest_error(steps[:1], steps[1:]) == 0


@triton.jit
def _store_offsets(out, rows, cols, R: tl.constexpr, C: tl.constexpr):  # pyright: ignore
    i, j, at, _ = gpu_triton._place(rows, cols, R, C)
    tl.store(out + i * C + j, at, mask=tl.program_id(0) == tl.num_programs(0) - 1)


def test_offsets_of_more_elements_than_int32_counts_are_right() -> None:
    side, matrices, block = 1 << 16, 3, (2, 4)
    out = torch.zeros(block, dtype=torch.int64, device=DEVICE)
    _store_offsets[(matrices, 1, 1)](out, side, side, *block)
    expected = (torch.arange(2)[:, None] * side + torch.arange(4)) + (matrices - 1) * side**2
    assert int(expected.min()) >= 2**33
    assert torch.equal(out.cpu(), expected)


COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from celo2.torch.kernels import gpu_triton, interface
from helpers.torch_examples import make_network, make_shipped_network

for network in (make_shipped_network("celo2"), make_network()):
    places = interface.find_places(network.config, factored=True)
    on = tuple(channel in places for channel in range(interface.NUM_CHANNELS))
    constants = {
        "W": tuple(interface.pack_weights(network, factored=True).flatten().tolist()), "ON": on,
        "UNITS": interface.count_units(network.config), "VECTORS": interface.has_vectors(network.config),
        "R": 16, "C": 64,
    }
    kinds = dict.fromkeys(constants, "constexpr") | {"rows": "i32", "cols": "i32"}
    for kernel in (gpu_triton._square_sums_kernel, gpu_triton._accumulate_kernel, gpu_triton._direct_kernel):
        names = kernel.arg_names
        kinds |= {name: "fp32" for name in names if name.startswith("weight_")}
        own = {(names.index(name),): value for name, value in constants.items() if name in names}
        source = ASTSource(kernel, {name: kinds.get(name, "*fp32") for name in names}, constexprs=own)
        ptx = compile(source, target=GPUTarget("cuda", 80, 32)).asm["ptx"]
        uses = ptx.count(f"{kernel.__name__}_param_1]")
        print(kernel.__name__, interface.count_units(network.config), uses)
"""


def test_kernels_compile_for_a_gpu_and_leave_the_parameter_out(tmp_path: Path) -> None:
    """The interpreter takes more of Python than the compiler does; compiling needs no GPU."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(
        [sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    reads = {(name, int(units)): int(uses) for name, units, uses in lines}
    kernels = ("_accumulate_kernel", "_direct_kernel")
    assert [reads[name, 2] for name in kernels] == [0, 0]
    assert all(reads[name, 8] for name in kernels)


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
