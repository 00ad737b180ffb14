"""Routing of parameters to the rule (hidden matrices, with their axes) or AdamW, shared by all backends.

`celo2.jax.routing` reads trees of arrays and `celo2.torch.routing` reads modules; both describe each
parameter by a `Param`. This package has the rest: names, evidence in order of precedence, routes and
their table.
"""

from celo2.routing.choices import ALGORITHMS, check_algorithm, choose
from celo2.routing.params import Kind, Matrix, Param, make_names
from celo2.routing.routes import Route, RoutingWarning, Undecided, make_routes, tell
from celo2.routing.table import Row, format_table

__all__ = [
    "ALGORITHMS",
    "Kind",
    "Matrix",
    "Param",
    "Route",
    "RoutingWarning",
    "Row",
    "Undecided",
    "check_algorithm",
    "choose",
    "format_table",
    "make_names",
    "make_routes",
    "tell",
]
