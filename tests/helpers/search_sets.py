"""A set of tasks that a search trains in seconds."""

TINY_SET = """
seeds = 1
first_seed = 5
[[tasks]]
name = "a"
task = "mlp"
steps = 6
options = { images = "digits", widths = [4], batch_size = 4 }
[[tasks]]
name = "b"
task = "autoencoder"
steps = 5
at_once = 5
options = { images = "digits", widths = [4, 2, 4], batch_size = 4 }
"""
