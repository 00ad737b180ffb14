"""Matches a saved state dict to an optimizer's parameters, and checks each state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from celo2.torch.optimizer.state import State, check_state

Groups = Sequence[Mapping[str, Any]]
WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})


class Checked:
    """A checked state, which `torch.optim.Optimizer.load_state_dict` passes through unchanged.

    That method would cast bare tensors to the parameter's dtype.

    Attributes:
        state: As given.
    """

    def __init__(self, state: State):
        self.state = state


def fit_state_dict(
    saved: Mapping[str, Any], groups: Groups, make_state: Callable[[Tensor, Mapping[str, Any]], State]
) -> dict[str, Any]:
    """Orders a saved state dict like the optimizer's parameters, and wraps each checked state in `Checked`.

    Parameters are matched by name if both have the same names, whatever the order of parameters and groups
    and whatever wrappers such as `DistributedDataParallel` add to the names. Otherwise they are matched by
    position, as in PyTorch. The arguments are not changed.

    Args:
        saved: A result of `state_dict`.
        groups: The optimizer's own parameter groups.
        make_state: Makes the initial state of a parameter in a group.

    Raises:
        ValueError: The state of a parameter lacks entries, or has entries of the wrong shape.
    """
    saved_groups = _order_groups(saved["param_groups"], groups)
    state = dict(saved["state"])
    fitted = {**saved, "param_groups": saved_groups, "state": state}
    if [len(group["params"]) for group in saved_groups] != [len(group["params"]) for group in groups]:
        return fitted  # PyTorch raises its own error
    for number, (own, theirs) in enumerate(zip(groups, saved_groups, strict=True)):
        for place, (param, index) in enumerate(zip(own["params"], theirs["params"], strict=True)):
            if state.get(index):
                name = own["param_names"][place] if "param_names" in own else f"{number}.{place}"
                state[index] = Checked(check_state(name, state[index], make_state(param, own), param.device))
    return fitted


def _order_groups(saved: Groups, own: Groups) -> Groups:
    """Returns the saved groups in the optimizer's order, as far as names determine it."""
    whole = [len(group.get("param_names", ())) == len(group["params"]) for group in (*saved, *own)]
    if len(saved) != len(own) or not all(whole):
        return saved
    if any(isinstance(index, str) for group in saved for index in group["params"]):
        # From `torch.distributed.checkpoint.state_dict`, in the optimizer's order except for the names.
        return [{**group, "param_names": mine["param_names"]} for group, mine in zip(saved, own, strict=True)]
    ids = [
        (_plain_name(name), index)
        for group in saved
        for name, index in zip(group["param_names"], group["params"], strict=True)
    ]
    named, wanted = dict(ids), [[_plain_name(name) for name in group["param_names"]] for group in own]
    every = [name for names in wanted for name in names]
    if not len(ids) == len(named) == len(every) or named.keys() != set(every):
        return saved
    by_names = {frozenset(map(_plain_name, group["param_names"])): group for group in saved}
    return [
        {
            **by_names.get(frozenset(names), saved[number]),
            "params": [named[name] for name in names],
            "param_names": list(own[number]["param_names"]),
        }
        for number, names in enumerate(wanted)
    ]


def _plain_name(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)
