"""Routing of a module's parameters: those that the rule trains, and their matrix axes."""

from celo2.routing import Route, RoutingWarning
from celo2.torch.routing.labels import find_routes, routing_table

__all__ = ["Route", "RoutingWarning", "find_routes", "routing_table"]
