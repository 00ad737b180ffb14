"""Helpers without knowledge of optimizers: files, locks, signals, streams, checks, optional dependencies."""
