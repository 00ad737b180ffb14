"""Meta-training: persistent evolution strategies over short pieces of inner training."""
