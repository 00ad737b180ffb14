"""Inner training, the runs that meta-training learns from: optimizer, unrolling, families, initial theta."""
