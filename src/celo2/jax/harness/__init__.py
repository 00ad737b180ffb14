"""Optax transforms around a direction, which `celo2.Harness` enables and any optimizer can use."""
