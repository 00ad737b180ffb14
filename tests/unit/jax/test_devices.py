"""What a traced program knows of its devices; the tests have two."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, Mesh, PartitionSpec

from celo2.jax.runtime import inside_shard_map, on_one_device


def make_mesh() -> Mesh:
    return jax.make_mesh((2, 1), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def record(found: list[bool], ask: Callable[[], bool], array: jax.Array) -> jax.Array:
    found.append(ask())
    return array


def test_arrays_may_be_sharded_where_there_are_several_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert jax.device_count() > 1
    found: list[bool] = []
    jax.jit(lambda x: record(found, on_one_device, x))(jnp.ones(2))
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    jax.jit(lambda x: record(found, on_one_device, x))(jnp.ones(2))
    assert found == [False, True]


@pytest.mark.parametrize(("axes", "expected"), [({"data", "model"}, True), ({"data"}, False)])
def test_inside_shard_map_devices_work_by_themselves(axes: set[str], expected: bool) -> None:
    """But along an axis that is left to the compiler they do not."""
    found: list[bool] = []
    mapped = jax.shard_map(
        lambda x: record(found, inside_shard_map, x),
        mesh=make_mesh(),
        in_specs=PartitionSpec("data"),
        out_specs=PartitionSpec("data"),
        axis_names=axes,
    )
    jax.jit(mapped)(jnp.ones(2))
    assert found
    assert set(found) == {expected}
