"""Searches for rules with few parameters, by an evolution strategy on the loss at the end of training.

`mixture` defines the parameters and the rule they make; `objective` trains networks with candidates; `run`
contains the loop.
"""
