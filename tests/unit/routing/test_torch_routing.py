"""Routing of modules: every kind of layer, and the networks that people train."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from celo2.routing import RoutingWarning
from celo2.torch import Celo2, Celo2Base, DimensionNumbers, find_routes, routing_table
from celo2.torch.optimizer.groups import named_params

LINEAR = DimensionNumbers(1, 0)


def algorithms(module: nn.Module) -> dict[str, str]:
    return {name: route.algorithm for name, route in find_routes(module).items()}


def by_rule(module: nn.Module) -> set[str]:
    return {name for name, algorithm in algorithms(module).items() if algorithm == "celo2"}


class Attention(nn.Module):
    """Hand-written, with a fused projection."""

    def __init__(self, width: int):
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.attn, self.norm = Attention(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


class GPT(nn.Module):
    """The head is tied to the embedding or not, and registered before the blocks or after them."""

    def __init__(self, depth: int, *, tied: bool, head_first: bool = False, width: int = 8):
        super().__init__()
        if head_first:
            self.lm_head = nn.Linear(width, 32, bias=False)
        self.wte, self.wpe = nn.Embedding(32, width), nn.Embedding(16, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm = nn.RMSNorm(width)
        if not head_first:
            self.lm_head = nn.Linear(width, 32, bias=False)
        if tied:
            self.lm_head.weight = self.wte.weight


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("head_first", [False, True], ids=["head last", "head first"])
def test_language_model(depth: int, tied: bool, head_first: bool) -> None:
    model = GPT(depth, tied=tied, head_first=head_first)
    hidden = ("attn.qkv.weight", "attn.out.weight", "mlp.0.weight", "mlp.2.weight")
    assert by_rule(model) == {f"blocks.{i}.{name}" for i in range(depth) for name in hidden}
    routes = find_routes(model)
    fused = LINEAR._replace(output_splits=3)
    expected = {name: fused if "qkv" in name else LINEAR for name in by_rule(model)}
    assert {name: routes[name].numbers for name in expected} == expected
    if tied and head_first:
        assert routes["lm_head.weight"].reason == "tied to wte.weight"


class ViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 8))
        self.pos_embed = nn.Parameter(torch.zeros(1, 5, 8))
        self.patch_embed = nn.Sequential()
        self.patch_embed.proj = nn.Conv2d(3, 8, 4, 4)
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2, enable_nested_tensor=False
        )
        self.head = nn.Linear(8, 10)


def test_vision_transformer() -> None:
    model = ViT()
    hidden = ("self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight")
    blocks = {f"encoder.layers.{i}.{name}" for i in (0, 1) for name in hidden}
    assert by_rule(model) == blocks | {"patch_embed.proj.weight"}


@pytest.mark.parametrize("depth", [1, 2])
def test_an_encoder_without_a_head_has_no_head(depth: int) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    assert len(by_rule(nn.TransformerEncoder(layer, depth, enable_nested_tensor=False))) == 4 * depth


@pytest.mark.parametrize(
    ("sizes", "hidden"),
    [
        ((784, 128, 128, 10), {"0.weight", "1.weight"}),
        ((6, 16, 16, 16, 10), {"0.weight", "1.weight", "2.weight"}),
        ((32, 8, 32), {"0.weight"}),  # an autoencoder: its last layer gives its output
        ((8, 8), {"0.weight"}),  # a lone matrix
    ],
    ids=lambda value: str(value if isinstance(value, tuple) else sorted(value)),  # a set has no fixed order
)
def test_mlp(sizes: tuple[int, ...], hidden: set[str]) -> None:
    layers = [nn.Linear(*pair) for pair in itertools.pairwise(sizes)]
    assert by_rule(nn.Sequential(*layers)) == hidden


class Heads(nn.Module):
    """Policy and value on one body."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 64), nn.Tanh(), nn.Linear(64, 64))
        self.policy, self.value = nn.Linear(64, 6), nn.Linear(64, 1)


def test_two_heads() -> None:
    assert by_rule(Heads()) == {"body.0.weight", "body.2.weight"}


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3)
        self.norm = nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, groups=16)
        self.grouped = nn.Conv2d(16, 32, 3, groups=4)
        self.fc1, self.fc2 = nn.Linear(32 * 4 * 4, 64), nn.Linear(64, 10)


def test_convolutional_network() -> None:
    model = ConvNet()
    assert by_rule(model) == {"stem.weight", "grouped.weight", "fc1.weight"}
    routes = find_routes(model)
    assert routes["stem.weight"].numbers == DimensionNumbers((1, 2, 3), 0)
    assert routes["grouped.weight"].numbers == DimensionNumbers((1, 2, 3), 0, 4)


def test_a_linear_layer_beside_a_convolution_of_its_size_is_no_router() -> None:
    model = nn.Sequential(nn.Sequential(nn.Conv1d(8, 8, 3), nn.Linear(8, 8)), nn.Linear(8, 5))
    assert by_rule(model) == {"0.0.weight", "0.1.weight"}


class Generator(nn.Module):
    """Noise → a linear layer that is unflattened → transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Linear(10, 4 * 4 * 12)
        self.up = nn.ConvTranspose2d(12, 6, 4)
        self.last = nn.ConvTranspose2d(6, 3, 4)


def test_generator() -> None:
    model = Generator()
    assert by_rule(model) == {"start.weight", "up.weight"}
    assert find_routes(model)["up.weight"].numbers == DimensionNumbers((0, 2, 3), 1)


class Expert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up, self.down = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 8)


class Mixture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(8, 4, bias=False)
        self.experts = nn.ModuleList(Expert() for _ in range(4))
        self.out = nn.Linear(8, 8)


class StackedMixture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.choose = nn.Linear(8, 4, bias=False)
        self.up = nn.Parameter(torch.zeros(4, 8, 16))
        self.out = nn.Linear(16, 8)


def test_routers_of_experts() -> None:
    listed = find_routes(nn.Sequential(Mixture(), Mixture()))
    assert listed["0.gate.weight"].reason == "router of the 4 experts beside it"
    assert listed["0.experts.1.gate_proj.weight"].algorithm == "celo2"
    stacked = find_routes(nn.Sequential(StackedMixture(), StackedMixture()))
    assert stacked["1.choose.weight"].algorithm == "adamw"
    assert stacked["1.up"].algorithm == "celo2"


@pytest.mark.parametrize(
    ("layer", "name", "numbers"),
    [
        (nn.MultiheadAttention(8, 2), "in_proj_weight", DimensionNumbers(1, 0, 3)),
        (nn.MultiheadAttention(8, 2, kdim=4), "k_proj_weight", LINEAR),
        (nn.LSTM(4, 8), "weight_hh_l0", DimensionNumbers(1, 0, 4)),
        (nn.LSTM(4, 8, proj_size=3), "weight_hr_l0", LINEAR),
        (nn.GRUCell(4, 8), "weight_ih", DimensionNumbers(1, 0, 3)),
        (nn.RNN(4, 8), "weight_ih_l0", LINEAR),
        (nn.Bilinear(3, 4, 8), "weight", DimensionNumbers((1, 2), 0)),
        (nn.Conv1d(4, 8, 3), "weight", DimensionNumbers((1, 2), 0)),
        (nn.Conv3d(4, 8, 3), "weight", DimensionNumbers((1, 2, 3, 4), 0)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
def test_matrix_of_a_layer(layer: nn.Module, name: str, numbers: DimensionNumbers) -> None:
    route = find_routes(layer)[name]
    assert (route.algorithm, route.numbers) == ("celo2", numbers)


def test_heads_of_attention_on_request() -> None:
    routes = find_routes(nn.MultiheadAttention(8, 2), split_heads=True)
    assert routes["in_proj_weight"].numbers == DimensionNumbers(1, 0, 6)


class HandWritten(nn.Module):
    """Layers of no known type."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(4, 6)), nn.Parameter(torch.zeros(4))


@pytest.mark.parametrize(
    ("make", "algorithm", "numbers"),
    [
        (lambda: nn.ParameterDict({"w": torch.zeros(4, 6)}), "celo2", None),
        (lambda: HandWritten(), "celo2", LINEAR),
        (lambda: nn.ParameterDict({"pos_table": torch.zeros(4, 6)}), "adamw", None),
        (lambda: nn.ParameterDict({"mask_token": torch.zeros(4, 6)}), "adamw", None),
        (lambda: nn.ParameterDict({"anything": torch.zeros(1, 4, 6)}), "adamw", None),
        (lambda: nn.ParameterDict({"column": torch.zeros(4, 1)}), "adamw", None),
        (lambda: nn.LayerNorm([4, 6]), "adamw", None),
    ],
    ids=["matrix", "weight and bias", "position", "token", "leading one", "column", "norm of rank 2"],
)
def test_bare_parameters(make: Callable[[], nn.Module], algorithm: str, numbers: object) -> None:
    name, route = next(item for item in find_routes(make()).items() if not item[0].endswith("bias"))
    assert (route.algorithm, route.numbers) == (algorithm, numbers), name


def test_overrides_and_dimension_numbers() -> None:
    model = GPT(2, tied=False)
    by_head = DimensionNumbers(1, 0, 6)
    routes = find_routes(
        model, overrides={r"mlp\.0": "adamw", "mlp": "celo2"}, dimension_numbers={r"qkv\.weight": by_head}
    )
    assert routes["blocks.1.mlp.0.weight"] == ("adamw", "override", LINEAR, True)
    assert routes["blocks.1.mlp.2.weight"].algorithm == "celo2"
    assert routes["blocks.0.attn.qkv.weight"].numbers == by_head

    def choose(name: str, param: Tensor) -> str | None:
        return "adamw" if param.ndim > 1 and "blocks.0" in name else None

    called = find_routes(model, overrides=choose)
    assert called["blocks.0.attn.out.weight"].algorithm == "adamw"
    assert called["blocks.1.attn.out.weight"].algorithm == "celo2"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overrides": {"layer": "adamw"}}, "matches no parameter"),
        ({"overrides": {"weight": "adam"}}, "did you mean 'adamw'"),
        ({"dimension_numbers": {"weight": DimensionNumbers(0, 0)}}, "each axis of its matrix once"),
        ({"dimension_numbers": {"weight": DimensionNumbers(1, 0, 3)}}, "3 equal parts"),
        ({"dimension_numbers": {"weight": DimensionNumbers(2, 0)}}, "does not have"),
    ],
    ids=["no match", "algorithm", "twice", "splits", "range"],
)
def test_bad_routing_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_routes(nn.Linear(4, 4, bias=False), **options)


def test_base_gives_the_rule_to_every_parameter_along_the_same_axes() -> None:
    model = GPT(1, tied=False)
    routes, base = find_routes(model), find_routes(model, base=True)
    assert {route.algorithm for route in base.values()} == {"celo2"}
    assert {n: r.numbers for n, r in base.items()} == {n: r.numbers for n, r in routes.items()}


def test_print_shows_the_routing() -> None:
    model = GPT(1, tied=True)
    table = routing_table(model)
    assert table in repr(Celo2(model))
    assert "wte.weight" in table
    assert "celo2: 4 tensors" in table
    assert "adamw: 0 tensors" in repr(Celo2Base(model))


class Gated(nn.Module):
    """Gate and up in one matrix, under names that do not say so."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 48, bias=False), nn.Linear(24, 8, bias=False)


def test_the_table_points_at_what_is_read_in_parts() -> None:
    table = routing_table(nn.ModuleList([Gated(), Gated()]))
    (first, second) = table.splitlines()[1:3]
    assert "fused? see dimension_numbers" in first
    assert "fused?" not in second
    cut = routing_table(
        nn.ModuleList([Gated(), Gated()]), dimension_numbers={"first": DimensionNumbers(1, 0, 2)}
    )
    assert "2 of 24 × 8  1 → 0" in cut
    assert "fused?" not in cut


class Tied(nn.Module):
    """A shared table whose first place is a linear layer of no telling name."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 30, bias=False), nn.Embedding(30, 8)
        self.second.weight = self.first.weight
        self.body = nn.Linear(8, 8)


def test_a_table_in_two_places_has_one_route() -> None:
    routes = find_routes(Tied())
    assert set(routes) == {"first.weight", "body.weight", "body.bias"}
    assert routes["first.weight"].reason == "tied to second.weight"
    kept = find_routes(Tied(), overrides={"second": "celo2"})
    assert kept["first.weight"][:2] == ("celo2", "override")


def test_matrices_without_a_module_are_told_of_once_with_the_remedy() -> None:
    model = GPT(1, tied=False)
    with pytest.warns(RoutingWarning, match=r"came without the module.*Celo2\(model, lr=…\)") as record:
        optimizer = Celo2(model.parameters())
    assert len(record) == 1
    assert record[0].filename == __file__
    assert optimizer._route(model.wte.weight, optimizer.param_groups[0]).algorithm == "celo2"


def test_one_matrix_without_a_module_is_told_of_in_the_singular() -> None:
    with pytest.warns(
        RoutingWarning, match="^1 matrix came without the module that holds it, so it gets"
    ) as record:
        Celo2([nn.Parameter(torch.zeros(4, 4))])
    assert "matrices" not in str(record[0].message)
    assert " them" not in str(record[0].message)


def test_matrices_that_the_module_does_not_hold_are_told_of_once() -> None:
    model, head = nn.Sequential(nn.Conv1d(4, 4, 3), nn.Linear(4, 4)), nn.Linear(4, 30)
    average = copy.deepcopy(model)
    for factory in (Celo2, Celo2Base):
        with pytest.warns(RoutingWarning, match="does not hold 2 matrices.*copy of the model") as record:
            optimizer = factory([{"params": average.parameters()}, {"params": []}], module=model)
        assert [warning.filename for warning in record] == [__file__]
        bare = factory(average.parameters(), algorithm="celo2")
        for ours, theirs in zip(optimizer._places[0], bare._places[0], strict=True):
            assert ours == theirs
    with pytest.warns(RoutingWarning, match=r"does not hold 1 matrix \(group 0.4 \(30, 4\)\)"):
        optimizer = Celo2([*model.parameters(), *head.parameters()], module=model)
    assert optimizer._routes[model.get_parameter("0.weight")] == find_routes(model)["0.weight"]


@pytest.mark.parametrize(
    "make",
    [
        lambda model: Celo2(model),
        lambda model: Celo2(model.parameters(), module=model),
        lambda model: Celo2(model.parameters(), algorithm="celo2"),
        lambda model: Celo2([param for param in model.parameters() if param.ndim < 2]),
        lambda model: Celo2(model.parameters(), module=nn.Linear(3, 3), algorithm="celo2"),
        lambda model: Celo2(nn.LayerNorm(3).parameters(), module=model),
        lambda model: Celo2Base(model.parameters()),
    ],
    ids=[
        "module",
        "module beside groups",
        "algorithm given",
        "vectors",
        "strangers' algorithm",
        "strange vectors",
        "base",
    ],
)
def test_what_says_how_parameters_are_trained_needs_no_warning(make: Callable[[nn.Module], Celo2]) -> None:
    assert make(GPT(1, tied=False)).param_groups


@pytest.mark.filterwarnings("ignore::celo2.routing.routes.RoutingWarning")
def test_names_without_a_module_are_read() -> None:
    model = nn.ModuleDict({"lm_head": nn.Linear(8, 30), "conv": nn.Conv2d(3, 8, 3), "fc": nn.Linear(8, 8)})
    optimizer = Celo2(model.named_parameters())
    routes = {
        name: optimizer._route(param, group) for name, param, group in named_params(optimizer.param_groups)
    }
    assert routes["lm_head.weight"].algorithm == "adamw"
    assert routes["conv.weight"].numbers == DimensionNumbers((1, 2, 3), 0)
    assert routes["fc.weight"].numbers is None  # a matrix as stored: its state loads without a name, too


class Unclear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.thing, self.fc = nn.Parameter(torch.zeros(6, 8)), nn.Linear(8, 8)


@pytest.mark.parametrize("make", [find_routes, Celo2], ids=["find_routes", "Celo2"])
def test_what_is_undecided_is_said(make: Callable[[nn.Module], object]) -> None:
    with pytest.warns(RoutingWarning, match=r"1 of 3 parameters .*\n  thing  \(6, 8\)") as record:
        make(Unclear())
    assert record[0].filename == __file__
    assert "celo2 ?" in routing_table(Unclear())
    with pytest.raises(ValueError, match="thing"):
        find_routes(Unclear(), undecided="raise")
    assert find_routes(Unclear(), overrides={"thing": "adamw"}, undecided="raise")["thing"].decided


def test_frozen_parameters_are_shown_and_not_counted() -> None:
    model = GPT(12, tied=True)
    model.wte.requires_grad_(False)
    table = routing_table(model).splitlines()
    assert sum("attn.qkv.weight" in line for line in table) == 1
    assert table[1].startswith("wte.weight ")
    assert table[1].endswith("(frozen)")
    assert any(
        line.startswith("blocks.[0-11].attn.qkv.weight") and "3 of 8 × 8  1 → 0" in line for line in table
    )
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    counted = [int(line.split(", ")[1].split(" ")[0].replace(",", "")) for line in table[-2:]]
    assert sum(counted) == trained


def test_a_groups_algorithm_shows_and_wins() -> None:
    model = nn.Linear(4, 4, bias=False)
    optimizer = Celo2([{"params": model.parameters(), "algorithm": "adamw"}])
    assert "the group's algorithm" in repr(optimizer)
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    assert "exp_avg" in optimizer.state[model.weight]


@pytest.mark.parametrize(
    "attribute", ["module", "_orig_mod"], ids=["DistributedDataParallel", "torch.compile"]
)
def test_a_wrapped_module_is_routed_as_what_it_wraps(attribute: str) -> None:
    layers = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    names = {"module": "DistributedDataParallel", "_orig_mod": "OptimizedModule"}
    wrapper = type(names[attribute], (nn.Module,), {})()
    wrapper.add_module(attribute, layers)
    expected = {f"{attribute}.{name}": route for name, route in find_routes(layers).items()}
    assert find_routes(wrapper) == expected
    assert list(expected) == [name for name, _ in wrapper.named_parameters()]
    assert {route.algorithm for route in expected.values()} == {"celo2", "adamw"}
