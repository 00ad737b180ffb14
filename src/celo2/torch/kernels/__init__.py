"""The three passes of the rule as compiled programs: Numba and blocked programs on CPUs, Triton on GPUs."""
