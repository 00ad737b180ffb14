"""`celo2 compare`: several optimizers on one task, each at its best learning rate."""
