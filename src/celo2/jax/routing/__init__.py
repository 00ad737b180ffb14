"""Routing of a tree of arrays: which leaves the rule trains, and along which axes."""

from celo2.jax.routing.labels import find_dimension_numbers, label_table, param_labels

__all__ = ["find_dimension_numbers", "label_table", "param_labels"]
