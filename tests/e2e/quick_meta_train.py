"""`celo2 meta-train` with a problem in place of the inner runs that compiles in a second.

A script of its own, since a process that is killed cannot be the test's; `test_meta_interruptions.py` runs
it. The inner state is a random walk that the losses depend on: a run that lost it would go another way.
"""

from __future__ import annotations

import os
import resource
import sys

import jax
import jax.numpy as jnp

FILE_BYTES = "QUICK_FILE_BYTES"  # the variable that says how large a file may become: a full disk


def init_pairs(pair_keys: jax.Array, theta, config, *, family):
    from celo2.meta.inner.unroll import InnerState

    zeros = jnp.zeros((config.num_pairs,), jnp.int32)
    walk = jax.vmap(jax.random.normal)(pair_keys)
    return InnerState({"walk": walk}, {}, {}, {}, zeros, zeros)


def unroll(thetas, state, pair_keys, set_index, data, config, *, family):
    from celo2.meta.inner.unroll import Losses

    walk = 0.9 * state.params["walk"] + 0.1 * jax.vmap(jax.random.normal)(pair_keys)
    squares = [jnp.mean((x - 0.1) ** 2, axis=tuple(range(2, x.ndim))) for x in thetas.values()]
    loss = sum(squares[1:], squares[0]) * (1.0 + walk[:, None] ** 2)  # (pairs, 2)
    steps = jnp.broadcast_to(loss, (config.truncation_length, *loss.shape))
    zeros = jnp.zeros((len(steps), len(loss)), jnp.int32)
    never = zeros > 0
    weight = jnp.full(zeros.shape, 1.0 / len(zeros))
    losses = Losses(steps[..., 0], steps[..., 1], never, zeros, ~never, never, weight)
    return state._replace(params={"walk": walk}), losses


def main(argv: list[str]) -> int:
    from celo2.cli import main as celo2_main
    from celo2.meta.inner import families

    if FILE_BYTES in os.environ:
        jax.config.update("jax_enable_compilation_cache", False)  # its files are not the run's
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(os.environ[FILE_BYTES]), resource.RLIM_INFINITY))
    families.init_pairs, families.unroll = init_pairs, unroll
    sys.argv = ["celo2", "meta-train", *argv]
    return celo2_main()  # as a process of its own


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
