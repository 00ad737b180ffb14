"""The arrays of a learned optimizer's meta-parameters: names, shapes, and how each is initialised.

Names are those of the public implementations' trees, joined by "/". No JAX here.
"""

from __future__ import annotations

from typing import NamedTuple

from celo2.config import RuleConfig

__all__ = ["MLP12", "MLP14", "ArraySpec", "Arrays", "linear", "lstm", "mixing", "mlp_stack"]

# The per-parameter network of Celo and VeLO has the features and the layers of Celo2's, with other sizes.
MLP14 = RuleConfig(ff_hidden_size=4, initial_rms_decays=(0.999,), exp_mult=0.001, orthogonalize=False)
# AdaFac-MLP's has twelve of the fourteen groups, in the same order, as one array.
MLP12 = MLP14.replace(with_grad_clip_feat=False, with_rms_only_norm_g=False)


class ArraySpec(NamedTuple):
    """One array: its shape, and how it is initialised.

    Attributes:
        shape: The shape.
        scale: What a standard normal truncated at ±2 is multiplied by; 0: the array is constant.
        value: The constant.
    """

    shape: tuple[int, ...]
    scale: float = 0.0
    value: float = 0.0


Arrays = dict[str, ArraySpec]


def linear(name: str, inputs: int, outputs: int, scale: float | None = None) -> Arrays:
    """A layer `x @ w + b`; by default the weights' scale is 1/√inputs."""
    size = inputs**-0.5 if scale is None else scale
    return {f"{name}/b": ArraySpec((outputs,)), f"{name}/w": ArraySpec((inputs, outputs), size)}


def lstm(inputs: int, size: int) -> Arrays:
    """A cell whose four gates see `inputs` numbers and its own output, and its learned start."""
    start = {f"lstm_init_state/{name}": ArraySpec((1, size)) for name in ("cell", "hidden")}
    return start | linear("rnn_params/rnn/linear", inputs + size, 4 * size)


def mixing(inputs: int, size: int) -> Arrays:
    """The mixing block and its LSTM; `linear` is in the tree though nothing reads it."""
    names = ("linear", "linear_1", "linear_2")
    layers = [linear(f"rnn_params/{name}", inputs, size) for name in names]
    return lstm(size, size) | layers[0] | layers[1] | layers[2]


def mlp_stack(count: int) -> Arrays:
    """`count` networks in one array each; a first-layer weight's fan-in is all 30 channels."""
    shapes = MLP14.weight_shapes()
    first = sum(shape[0] for name, shape in shapes.items() if name.startswith("w0__"))

    def scale(name: str) -> float:
        fan_in = first if name.startswith("w0__") else shapes[name][0]
        return 0.0 if name.startswith("b") else fan_in**-0.5

    return {
        f"ff_mod_stack/~/{name}": ArraySpec((count, *shape), scale(name)) for name, shape in shapes.items()
    }
