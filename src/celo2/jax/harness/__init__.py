"""Optax transforms that stand around a direction: what `celo2.Harness` turns on, for any optimizer."""
