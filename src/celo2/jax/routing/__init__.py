"""Routing of the leaves of a parameter tree to the rule or to AdamW."""

from celo2.jax.routing.labels import find_dimension_numbers, label_table, param_labels

__all__ = ["find_dimension_numbers", "label_table", "param_labels"]
