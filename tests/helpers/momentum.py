"""Momentum as the inner optimizer, which compiles fast: for tests that are not about the rule."""

from __future__ import annotations

from collections.abc import Callable

import jax
import optax
import pytest

from celo2.meta.config import MetaConfig
from celo2.meta.inner import unroll
from celo2.meta.pes import Theta


def use_momentum(monkeypatch: pytest.MonkeyPatch, factor: Callable[[Theta], jax.Array]) -> None:
    """Inner runs step by momentum times this factor, which is all that theta decides."""

    def make(theta: Theta, config: MetaConfig, _: jax.Array) -> optax.GradientTransformation:
        by_theta = optax.stateless(lambda tree, _: jax.tree.map(lambda x: factor(theta) * x, tree))
        return optax.chain(optax.trace(0.9), by_theta, optax.scale(-config.inner_learning_rate))

    monkeypatch.setattr(unroll, "make_inner_optimizer", make)
