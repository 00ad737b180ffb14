"""Inner training, whose losses meta-training learns from: optimizer, unrolling, families, initial theta."""
