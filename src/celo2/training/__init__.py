"""The training engine: one task, many runs at once, over a grid of learning rates and seeds."""
