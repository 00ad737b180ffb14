"""Searches for good rules among a few numbers, by an evolution strategy on the loss at the end of training.

`mixture` says which numbers and what rule they make; `objective` trains networks with candidates; `run` is
the loop.
"""
