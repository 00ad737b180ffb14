"""How a program with the rule in it is best compiled."""

from __future__ import annotations

import jax

__all__ = ["compiler_options"]

# The processor adds up sums in the order they are written in unless it may choose: one number at a time,
# where a vector register takes sixteen. What is not finite keeps its meaning.
_CPU = {
    "xla_cpu_enable_fast_math": True,
    "xla_cpu_fast_math_honor_nans": True,
    "xla_cpu_fast_math_honor_infs": True,
    "xla_cpu_fast_math_honor_division": True,
    "xla_cpu_fast_math_honor_functions": True,
    "xla_cpu_prefer_vector_width": "512",  # bits
}


def compiler_options(platform: str | None = None) -> dict[str, bool | str] | None:
    """XLA's options for a program that trains with the rule.

    To be given to JAX: `jax.jit(train_step, compiler_options=celo2.compiler_options())`. On a CPU, XLA may
    then add the numbers of a sum in any order, which lets vector registers sum the squares that every
    channel of the rule is normalised by. Results differ from those of the default order by rounding; NaN
    and infinity keep their meaning, division and functions their precision.

    Args:
        platform: JAX's name of where the program will run, "cpu" or "gpu" say; none: its default backend.

    Returns:
        The options; none where the compiler's own are best, that is, everywhere but on a CPU.
    """
    return dict(_CPU) if (platform or jax.default_backend()) == "cpu" else None
