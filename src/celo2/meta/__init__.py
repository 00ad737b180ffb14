"""Meta-training: persistent evolution strategies over short pieces of inner training."""

from celo2._extras import require

require("meta", "jax", "optax", "orbax", "rich", "tyro")
