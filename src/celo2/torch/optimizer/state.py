"""Initialises the state of one parameter, under flat names, and checks a saved state."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from celo2.config import RuleConfig
from celo2.torch import accumulators as accumulators_lib
from celo2.torch.accumulators import Accumulators
from celo2.torch.batching import working_dtype
from celo2.torch.dimensions import Layout
from celo2.torch.quantization import Quantized, row_shape
from celo2.torch.sharding.dtensor import is_dtensor, local, match, zeros
from celo2.torch.sharding.spec import is_shard

State = dict[str, Tensor]
_MOMENTS = ("exp_avg", "exp_avg_sq")


def check_state_dtype(dtype: Any) -> torch.dtype | None:
    """Returns the dtype of momentum and rms: None (the working dtype), bfloat16, or int8 (momentum only)."""
    if dtype not in (None, torch.bfloat16, torch.int8):
        raise ValueError(f"state_dtype must be None (float32), torch.bfloat16 or torch.int8, got {dtype!r}.")
    return dtype


def init_rule(
    param: Tensor,
    layout: Layout,
    config: RuleConfig,
    dtype: torch.dtype | None,
    *,
    on_device: bool,
    fused: bool = False,
) -> State:
    """Makes `step`, `momentum_0 …`, `rms_0 …` of the parameter's shape, `row_0 …`, `col_0 …` of the layout's.

    With int8 there are also `momentum_scale_0 …`, of the parameter's rows, and rms is bfloat16.

    Args:
        param: The parameter, of which only shape, dtype and device matter.
        layout: Its layout.
        config: The decays.
        dtype: The dtype of momentum and rms; None: the working dtype; int8: for momentum only.
        on_device: Whether `step` is a tensor on the parameter's device rather than on the CPU.
        fused: Whether kernels were requested; their `step` is float32 whatever the default dtype.

    Raises:
        ValueError: The dtype is int8 and processes share rows of the parameter.
    """
    working = working_dtype(param.dtype)

    full = dtype or working
    momenta = range(len(config.initial_momentum_decays))
    state = {"step": _init_step(param, on_device, fused)}
    if full == torch.int8:
        _check_rows(param)
        state |= {f"momentum_{i}": zeros(param.shape, full, param) for i in momenta}
        scales, full = row_shape(tuple(param.shape)), torch.bfloat16
        state |= {f"momentum_scale_{i}": zeros(scales, torch.float32, param) for i in momenta}
    else:
        state |= {f"momentum_{i}": zeros(param.shape, full, param) for i in momenta}
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


def init_adamw(param: Tensor, *, on_device: bool, fused: bool = False) -> State:
    """Makes `step`, `exp_avg` and `exp_avg_sq`, as in `torch.optim.AdamW`, in the working dtype."""
    working = adamw_dtype(param.dtype)
    moments = {name: torch.zeros_like(param, dtype=working) for name in _MOMENTS}
    return {"step": _init_step(param, on_device, fused), **moments}


def adamw_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns AdamW's working dtype: the rule's, or complex64 or complex128 for complex parameters."""
    if dtype.is_complex:
        return torch.promote_types(dtype, torch.complex64)
    return working_dtype(dtype)


def rule_accumulators(state: Mapping[str, Tensor]) -> Accumulators:
    """Returns the local accumulators in a state of `init_rule`, without copies; int8 as `Quantized`."""
    families: dict[str, list[Any]] = {"momentum": [], "rms": [], "row": [], "col": []}
    for name, tensor in state.items():
        family, _, number = name.rpartition("_")
        if family in families and number.isdigit():
            scale = state.get(f"{family}_scale_{number}")
            own = local(tensor)
            families[family].append(own if scale is None else Quantized(own, local(scale)))
    return Accumulators(*(tuple(family) for family in families.values()))


def check_state(
    name: str, saved: Mapping[str, Any], expected: Mapping[str, Tensor], device: torch.device
) -> State:
    """Converts a saved state to the expected dtypes and devices, and copies its other entries.

    Args:
        name: The parameter's name, for the error message.
        saved: The state in a state dict. Other entries, such as those of a wrapper that averages
            parameters, are copied.
        expected: A new state of that parameter.
        device: The parameter's device.

    Raises:
        ValueError: Entries are missing or have the wrong shapes: the parameter was trained by another
            algorithm or along other axes. Or momenta are codes where numbers are expected, or vice versa.
    """
    foreign = {key: value for key, value in saved.items() if key not in expected}
    missing = [key for key in expected if key not in saved]
    reshaped = [
        f"{key} has shape {tuple(_shape(saved[key]))}, expected {tuple(tensor.shape)}"
        for key, tensor in expected.items()
        if key in saved and _shape(saved[key]) != tensor.shape
    ]
    recoded = [
        f"{key} is {saved[key].dtype}, expected {tensor.dtype}"
        for key, tensor in expected.items()
        if key in saved and _is_coded(saved[key]) != _is_coded(tensor)
    ]
    if missing or reshaped or recoded:
        lacking = [f"it lacks {', '.join(missing)}"] if missing else []
        having = [f"it has {', '.join(map(str, foreign))} instead"] if missing and foreign else []
        raise ValueError(
            f"the state of {name} was saved by another optimizer or under another routing: "
            f"{'; '.join(lacking + having + reshaped + recoded)}. Construct the optimizer with the arguments "
            "that it was saved with, or leave the state out."
        )
    return {key: _copy(value, device) for key, value in foreign.items()} | {
        key: match(saved[key], tensor).detach().to(tensor.device, tensor.dtype, copy=True)
        for key, tensor in expected.items()
    }


def _copy(value: Any, device: torch.device) -> Any:
    return value.detach().to(device, copy=True) if isinstance(value, Tensor) else copy.deepcopy(value)


def _is_coded(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.int8


def _shape(value: Any) -> torch.Size:
    return value.shape if isinstance(value, Tensor) else torch.as_tensor(value).shape


def _check_rows(param: Any) -> None:
    """Rejects a parameter whose rows, which have one scale each, are shared among processes."""
    if not is_dtensor(param):
        return
    shares = zip(param.placements, param.device_mesh.shape, strict=True)
    if any(is_shard(own) and own.dim == param.ndim - 1 and size > 1 for own, size in shares):
        raise ValueError(
            "state_dtype=torch.int8 needs whole rows in one process; the last axis of a parameter of shape "
            f"{tuple(param.shape)} is sharded: use torch.bfloat16, or shard another axis."
        )


def _init_step(param: Tensor, on_device: bool, fused: bool) -> Tensor:
    """Makes `step` as PyTorch does: float64 if that is the default dtype, except for fused kernels."""
    on_device = on_device and param.device.type != "meta"  # meta tensors have no value
    double = torch.get_default_dtype() == torch.float64 and not fused
    dtype = torch.float64 if double else torch.float32
    return torch.zeros((), dtype=dtype, device=param.device if on_device else "cpu")
