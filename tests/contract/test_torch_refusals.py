"""What the PyTorch optimizers refuse, and how parameters, groups and modules are taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from celo2.torch import Celo2, Celo2Base
from helpers.torch_contract_table import make_model, train


@pytest.mark.parametrize("factory", [Celo2, Celo2Base])
@pytest.mark.parametrize(
    ("param", "remedy"),
    [
        (torch.zeros(3, dtype=torch.int32), "convert"),
        (torch.zeros(3, 3).to_sparse(), "to_dense"),
        (torch.zeros(3).to(torch.float8_e4m3fn), "convert"),
    ],
    ids=["integer", "sparse", "float8"],
)
def test_unfit_parameters_are_refused_with_the_remedy(factory: Any, param: Any, remedy: str) -> None:
    with pytest.raises(TypeError, match=remedy):
        factory([param])
    optimizer = factory([torch.zeros(3)])
    with pytest.raises(TypeError, match=remedy):
        optimizer.add_param_group({"params": [param]})
    assert len(optimizer.param_groups) == 1


def test_flattened_parameters_are_refused_with_the_remedy() -> None:
    wrapper = type("FullyShardedDataParallel", (nn.Sequential,), {})
    with pytest.raises(TypeError, match="fully_shard"):
        Celo2(wrapper(nn.Linear(3, 2)))


def test_parameters_put_in_the_places_of_others_keep_their_routes() -> None:
    """Accelerate shards a model after the optimizer was made, and swaps its parameters."""
    model, twin = make_model(), make_model()
    optimizer, expected = Celo2(model, 0.01), Celo2(twin, 0.01)
    other = make_model()
    for group in optimizer.param_groups:
        group["params"] = [other.get_parameter(name) for name in group["param_names"]]
    assert train(other, optimizer) == train(twin, expected)
    assert repr(optimizer) == repr(expected)
    stranger = nn.Parameter(torch.zeros(3, 2))
    stranger.grad = torch.ones(3, 2)
    optimizer.param_groups[0]["params"] = [stranger]
    with pytest.raises(ValueError, match="construct the optimizer anew"):
        optimizer.step()


def test_sparse_gradients_are_refused_with_the_remedy() -> None:
    embedding = nn.Embedding(5, 3, sparse=True)
    optimizer = Celo2(embedding)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse=False"):
        optimizer.step()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr must be finite and not negative"),
        ({"lr": float("nan")}, "lr must be finite"),
        ({"weight_decay": -0.1}, "weight_decay must be"),
        ({"adamw_lr_scale": float("inf")}, "adamw_lr_scale must be"),
        ({"adamw_betas": (0.9, 1.0)}, "adamw_betas must be"),
        ({"adamw_betas": (0.9, torch.tensor(1.0))}, "adamw_betas must be"),
        ({"weight_decay": torch.tensor(-1.0)}, "weight_decay must be"),
        ({"algorithm": "adam"}, "did you mean 'adamw'"),
        ({"state_dtype": torch.float16}, "torch.bfloat16"),
        ({"foreach": True, "fused": True}, "cannot both be True"),
        ({"weights": "celo2-base"}, "wrong variant"),
        ({"overrides": {"up": "adamw"}}, "need the module"),
    ],
    ids=lambda value: str(value)[:20] if isinstance(value, dict) else "",
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Celo2([torch.zeros(3)], **options)


TEXT = r"got '1e-3' \(str\); YAML reads 1e-3 as text: write 1.0e-3"


@pytest.mark.parametrize("place", ["defaults", "group", "later group"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": "1e-3"}, f"lr must be a number, .*{TEXT}"),
        ({"weight_decay": "1e-3"}, f"weight_decay must be a number, .*{TEXT}"),
        ({"weight_decay": None}, r"weight_decay must be a number, .*got None \(NoneType\)"),
        ({"adamw_lr_scale": "1e-3"}, f"adamw_lr_scale must be a number, .*{TEXT}"),
        ({"betas": 0.9}, r"betas or adamw_betas must be two decays in \[0, 1\), got 0.9 \(float\)"),
        ({"adamw_betas": "0.9, 0.95"}, r"betas or adamw_betas must be .*got '0.9, 0.95' \(str\)"),
        ({"betas": (0.9, "1e-3")}, f"betas or adamw_betas must be two decays in .*{TEXT}"),
    ],
    ids=["lr", "decay", "no decay", "scale", "one beta", "text for betas", "text in betas"],
)
def test_options_of_another_type_are_refused_at_construction(
    options: dict[str, Any], message: str, place: str
) -> None:
    group = {"params": [torch.zeros(3)]}
    make: dict[str, Callable[[], Any]] = {
        "defaults": lambda: Celo2([group], **options),
        "group": lambda: Celo2([{**group, **options}]),
        "later group": lambda: Celo2([torch.zeros(3)]).add_param_group({**group, **options}),
    }
    with pytest.raises(TypeError, match=message):
        make[place]()


@pytest.mark.parametrize("lr", [1, np.float32(1e-3), torch.tensor(1e-3)], ids=["int", "numpy", "tensor"])
def test_numbers_of_every_kind_are_taken(lr: Any) -> None:
    param = nn.Parameter(torch.ones(3, 2))
    param.grad = torch.ones(3, 2)
    Celo2([param], lr, betas=[0.9, 0.95], algorithm="celo2").step()  # type: ignore[arg-type]
    assert (param != 1).all()


def test_a_module_that_is_none_or_another_one_is_refused() -> None:
    model = make_model()
    wrong: Any = model.state_dict()
    with pytest.raises(
        TypeError, match=r"module must be the nn\.Module that holds the parameters, got Ordered"
    ):
        Celo2(model.parameters(), module=wrong)
    with pytest.raises(ValueError, match="pass the model alone"):
        Celo2(model, module=make_model())
    assert repr(Celo2(model, module=model)) == repr(Celo2(model))


def test_a_state_of_another_routing_is_refused() -> None:
    model = make_model()
    optimizer = Celo2Base(model)
    train(model, optimizer, 1)
    with pytest.raises(ValueError, match="another routing"):
        Celo2(model).load_state_dict(optimizer.state_dict())


def test_an_empty_list_is_refused_as_torch_does() -> None:
    with pytest.raises(ValueError, match="empty parameter list"):
        Celo2([])


def test_bfloat16_state_takes_eight_bytes_a_parameter() -> None:
    layer = nn.Linear(256, 256, bias=False)
    optimizer = Celo2(layer, state_dtype=torch.bfloat16, algorithm="celo2")
    layer(torch.ones(1, 256)).sum().backward()
    optimizer.step()
    assert sum(value.nbytes for value in optimizer.state[layer.weight].values()) < 8.2 * 256 * 256


def test_frozen_quantised_parameters_of_a_module_are_left_out() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[0].weight = nn.Parameter(torch.zeros(4, 3, dtype=torch.int8), requires_grad=False)
    optimizer = Celo2(model)
    assert len(optimizer.param_groups[0]["params"]) == 3


@pytest.mark.filterwarnings("ignore::celo2.routing.routes.RoutingWarning")  # no module, on purpose
def test_groups_are_routed_by_a_module_given_beside_them() -> None:
    model = make_model()
    decay = [param for param in model.parameters() if param.ndim > 1]
    rest = [param for param in model.parameters() if param.ndim < 2]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.1}]
    grouped, whole, twin = Celo2(groups, module=model, lr=0.01), make_model(), make_model()
    assert "embedding" in repr(grouped)
    train(model, grouped, 2)
    train(whole, Celo2(whole, lr=0.01, weight_decay=0.1), 2)
    train(twin, Celo2(list(twin.parameters()), lr=0.01, weight_decay=0.1), 2)
    assert torch.allclose(model.up.weight, whole.up.weight, atol=1e-3)
    assert not torch.allclose(model.tokens.weight, twin.tokens.weight, atol=1e-3)
