"""The state of one parameter: flat names, fixed shapes and dtypes, and the check of a saved one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from celo2.config import RuleConfig
from celo2.torch import accumulators as accumulators_lib
from celo2.torch._sharing import local, match, zeros
from celo2.torch.accumulators import Accumulators
from celo2.torch.dimensions import Layout
from celo2.torch.leaves import working_dtype

__all__ = ["check_state", "check_state_dtype", "init_adamw", "init_rule", "rule_accumulators"]

State = dict[str, Tensor]
_MOMENTS = ("exp_avg", "exp_avg_sq")


def check_state_dtype(dtype: Any) -> torch.dtype | None:
    """The dtype of the large accumulators: None (the computation's own) or bfloat16."""
    if dtype not in (None, torch.bfloat16):
        raise ValueError(f"state_dtype must be None (float32) or torch.bfloat16, got {dtype!r}.")
    return dtype


def init_rule(
    param: Tensor, layout: Layout, config: RuleConfig, dtype: torch.dtype | None, *, on_device: bool
) -> State:
    """`step`, `momentum_0 …`, `rms_0 …` of the parameter's shape, `row_0 …` and `col_0 …` of the layout's.

    Args:
        param: Gives shape and device.
        layout: How the rule sees it.
        config: The decays.
        dtype: Of momentum and rms; None: the working dtype.
        on_device: Whether `step` is a tensor on the parameter's device rather than on the CPU.
    """
    working = working_dtype(param.dtype)

    full = dtype or working
    state = {"step": _init_step(param, on_device)}
    state |= {
        f"momentum_{i}": zeros(param.shape, full, param) for i in range(len(config.initial_momentum_decays))
    }
    state |= {f"rms_{i}": zeros(param.shape, full, param) for i in range(len(config.initial_rms_decays))}
    for name, shape in (
        ("row", accumulators_lib.row_shape(layout)),
        ("col", accumulators_lib.col_shape(layout)),
    ):
        if shape is not None:
            decays = config.initial_adafactor_decays
            whole = layout.axes is not None
            state |= {f"{name}_{i}": zeros(shape, working, param, whole=whole) for i in range(len(decays))}
    return state


def init_adamw(param: Tensor, *, on_device: bool) -> State:
    """`step`, `exp_avg` and `exp_avg_sq`, as in `torch.optim.AdamW`, in the working dtype."""
    working = working_dtype(param.dtype)
    moments = {name: torch.zeros_like(param, dtype=working) for name in _MOMENTS}
    return {"step": _init_step(param, on_device), **moments}


def rule_accumulators(state: Mapping[str, Tensor]) -> Accumulators:
    """The accumulators in a state of `init_rule`, what this process holds of them; they are not copied."""
    families: dict[str, list[Tensor]] = {"momentum": [], "rms": [], "row": [], "col": []}
    for name, tensor in state.items():
        family = name.rpartition("_")[0]
        if family in families:
            families[family].append(local(tensor))
    return Accumulators(*(tuple(family) for family in families.values()))


def check_state(name: str, saved: Mapping[str, Any], expected: Mapping[str, Tensor]) -> State:
    """A saved state with the dtypes and devices expected.

    Args:
        name: Of the parameter, for the message.
        saved: From a state dict.
        expected: A new state of that parameter.

    Raises:
        ValueError: Other entries or other shapes: the parameter was trained by another algorithm or
            along other axes.
    """
    same = saved.keys() == expected.keys() and all(
        _shape(saved[key]) == tensor.shape for key, tensor in expected.items()
    )
    if not same:
        shown = {key: tuple(_shape(value)) for key, value in saved.items()}
        wanted = {key: tuple(tensor.shape) for key, tensor in expected.items()}
        raise ValueError(
            f"the state of {name} was saved under another routing: it has {shown}, expected {wanted}; "
            "construct the optimizer with the arguments it was saved with."
        )
    return {
        key: match(saved[key], tensor).detach().to(tensor.device, tensor.dtype, copy=True)
        for key, tensor in expected.items()
    }


def _shape(value: Any) -> torch.Size:
    return value.shape if isinstance(value, Tensor) else torch.as_tensor(value).shape


def _init_step(param: Tensor, on_device: bool) -> Tensor:
    return torch.zeros((), dtype=torch.float32, device=param.device if on_device else "cpu")
