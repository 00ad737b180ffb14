"""Comparison of several optimizers on one task, each at its best learning rate (`celo2 compare`)."""
