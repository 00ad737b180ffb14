"""Routing of a module's parameters: which ones the rule trains, and along which axes."""

from celo2.routing import Route, RoutingWarning
from celo2.torch.routing.labels import find_routes, routing_table

__all__ = ["Route", "RoutingWarning", "find_routes", "routing_table"]
