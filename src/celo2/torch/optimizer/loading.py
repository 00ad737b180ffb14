"""Saved state dicts: which saved state belongs to which parameter, and whether it fits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from celo2.torch.optimizer.state import State, check_state

Groups = Sequence[Mapping[str, Any]]
WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})


class Checked:
    """A checked state, which `torch.optim.Optimizer.load_state_dict` hands on as it is.

    Tensors it would cast to the parameter's dtype.

    Attributes:
        state: As given.
    """

    def __init__(self, state: State):
        self.state = state


def fit_state_dict(
    saved: Mapping[str, Any], groups: Groups, make_state: Callable[[Tensor, Mapping[str, Any]], State]
) -> dict[str, Any]:
    """A saved state dict in the order of an optimizer's parameters, each state checked and `Checked`.

    Where both have the same parameters' names they decide, whatever the order of parameters and of groups;
    what wrappers such as `DistributedDataParallel` add to names does not count. Otherwise the place does,
    as in PyTorch. Nothing is changed.

    Args:
        saved: What `state_dict` returned.
        groups: The optimizer's own parameter groups.
        make_state: What the state of a parameter in a group looks like.

    Raises:
        ValueError: The state of a parameter lacks entries, or has others' shapes.
    """
    saved_groups = _order_groups(saved["param_groups"], groups)
    state = dict(saved["state"])
    fitted = {**saved, "param_groups": saved_groups, "state": state}
    if [len(group["params"]) for group in saved_groups] != [len(group["params"]) for group in groups]:
        return fitted  # which PyTorch refuses, in its own words
    for number, (own, theirs) in enumerate(zip(groups, saved_groups, strict=True)):
        for place, (param, index) in enumerate(zip(own["params"], theirs["params"], strict=True)):
            if state.get(index):
                name = own["param_names"][place] if "param_names" in own else f"{number}.{place}"
                state[index] = Checked(check_state(name, state[index], make_state(param, own), param.device))
    return fitted


def _order_groups(saved: Groups, own: Groups) -> Groups:
    """The saved groups in the order of the optimizer's, as far as names can say it."""
    whole = [len(group.get("param_names", ())) == len(group["params"]) for group in (*saved, *own)]
    if len(saved) != len(own) or not all(whole):
        return saved
    if any(isinstance(index, str) for group in saved for index in group["params"]):
        # From `torch.distributed.checkpoint.state_dict`, in the optimizer's order but for the names.
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
