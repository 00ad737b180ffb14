"""Judging optimizers: train one task many ways, compare, report."""
