"""The rule in JAX: `transform` updates whole trees, `step` one array."""

from celo2._utils.extras import require

require("jax", "jax", "optax")
