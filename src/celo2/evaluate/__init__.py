"""Judging optimizers: train one task many ways, compare, report."""

from celo2._utils.extras import require

require("jax", "jax", "optax")
