"""The three passes of the rule as Pallas kernels, for GPUs."""
