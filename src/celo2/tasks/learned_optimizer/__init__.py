"""Meta-training as a task: its parameters are the weights of a small learned optimizer."""
