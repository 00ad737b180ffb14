"""PyTorch optimizers of the rule, `Celo2` and `Celo2Base`, for `torch.nn` modules or any parameters."""

from celo2._utils.extras import require

require("torch", "torch")

from celo2.harness import Harness  # noqa: E402
from celo2.torch.dimensions import DimensionNumbers  # noqa: E402
from celo2.torch.gradient_scale import GradientNormalizer, share_outside  # noqa: E402
from celo2.torch.optimizer import Celo2, Celo2Base  # noqa: E402
from celo2.torch.routing import Route, RoutingWarning, find_routes, routing_table  # noqa: E402

__all__ = [
    "Celo2",
    "Celo2Base",
    "DimensionNumbers",
    "GradientNormalizer",
    "Harness",
    "Route",
    "RoutingWarning",
    "find_routes",
    "routing_table",
    "share_outside",
]
