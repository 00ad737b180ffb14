"""The rule in JAX: one array at a time in `step`, whole trees in `transform`."""

from celo2._utils.extras import require

require("jax", "jax", "optax")
