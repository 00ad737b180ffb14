"""Meta-training as a task: the weights of a small learned optimizer are the parameters."""
