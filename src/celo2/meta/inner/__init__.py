"""Inner training, from whose losses meta-training learns: optimizer, unrolling, families, initial theta."""
