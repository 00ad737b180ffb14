"""The compiler options: known to the compiler, faithful to the rule and to what is not finite."""

import os
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import celo2
from helpers import quick
from helpers.weights_examples import make_weights


def test_none_off_the_processor():
    assert celo2.compiler_options("gpu") is None
    assert celo2.compiler_options("tpu") is None


def test_a_copy_is_returned():
    options = celo2.compiler_options("cpu")
    assert options
    options.clear()
    assert celo2.compiler_options("cpu")


def test_programs_run_depth_first():
    """The one of the two options that the installed XLA knows."""
    options = celo2.compiler_options("cpu") or {}
    assert "xla_cpu_scheduler_type" in options or "xla_cpu_enable_concurrency_optimized_scheduler" in options


def test_updates_differ_by_rounding_only():
    params = {"kernel": jax.random.normal(jax.random.key(0), (48, 33))}
    grads = {"kernel": 1e-3 * jax.random.normal(jax.random.key(1), (48, 33))}
    transform = celo2.scale_by_celo2(orthogonalize=False)
    state = transform.init(params)
    lowered = jax.jit(transform.update).lower(grads, state, params)
    plain, _ = lowered.compile()(grads, state, params)
    chosen, _ = lowered.compile(celo2.compiler_options("cpu"))(grads, state, params)
    np.testing.assert_allclose(chosen["kernel"], plain["kernel"], rtol=0, atol=2e-6)  # of values around one


def test_what_is_not_finite_stays_so():
    def describe(x):
        return jnp.isnan(x), jnp.isinf(x), x.sum(), jnp.where(jnp.isfinite(x), x, 0.0).sum()

    x = jnp.asarray([1.0, jnp.nan, jnp.inf, -2.0] * 16)
    compiled = jax.jit(describe).lower(x).compile(celo2.compiler_options("cpu"))
    nan, inf, total, finite = compiled(x)
    np.testing.assert_array_equal(nan, np.isnan(x))
    np.testing.assert_array_equal(inf, np.isinf(x))
    assert np.isnan(total)
    assert finite == -16.0


def test_steps_outside_jit_are_compiled_once(caplog: pytest.LogCaptureFixture) -> None:
    """Small equal arrays were compiled at each step, and matrices took thousands of operations."""
    params = {name: jnp.full((4, 3), float(number)) for number, name in enumerate("abc")}
    transform = celo2.scale_by_celo2(make_weights(**quick.SMALL_RULE))
    state = transform.init(params)
    jitted, _ = jax.jit(transform.update)(params, state, params)
    updates: Any
    updates, state = transform.update(params, state, params)
    for name in params:
        np.testing.assert_allclose(updates[name], jitted[name], rtol=1e-5, atol=1e-6)
    with jax.log_compiles():
        transform.update(params, state, params)
    assert "Compiling" not in caplog.text


EVERY_PART = celo2.Harness(
    eigenbasis_every=1, row_decay=0.9, min_update_ratio=1.0, cautious_decay=True, preserve_norms=True
)


@pytest.mark.usefixtures("standard_promotion")  # Optax needs it
@pytest.mark.parametrize("harness", ["paper", EVERY_PART], ids=["paper", "every-part"])
def test_steps_of_a_complete_optimizer_outside_jit_are_compiled_once(
    harness: str | celo2.Harness, caplog: pytest.LogCaptureFixture
) -> None:
    """Its transform was made anew at each step, and so compiled anew."""
    params = {"fc": {"kernel": jnp.full((4, 3), 0.1), "bias": jnp.ones(3)}}
    optimizer = celo2.celo2(1e-3, weights=make_weights(**quick.SMALL_RULE), harness=harness)
    state = optimizer.init(params)
    for _ in range(2):  # the first step of an eigenbasis only initialises it
        _, state = optimizer.update(params, state, params)
    with jax.log_compiles():
        optimizer.update(params, state, params)
    assert "Compiling" not in caplog.text


LARGE_NETWORK = """
import resource
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))  # what went wrong took all memory there is
import jax, numpy as np, celo2
from celo2.config import RuleConfig

config = RuleConfig(ff_hidden_size=16, orthogonalize=False)
rng = np.random.default_rng(0)
arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in config.weight_shapes().items()}
biases = {"bias": rng.normal(size=(2, 10)).astype(np.float32)}

def step(weights, *arguments):
    return jax.vmap(celo2.scale_by_celo2(weights, orthogonalize=False).update)(*arguments)

weights, options = celo2.Weights(arrays, config), celo2.compiler_options("cpu")
arguments = biases, jax.vmap(celo2.scale_by_celo2(weights, orthogonalize=False).init)(biases), biases
finished, _ = jax.jit(lambda *arguments: step(weights, *arguments), compiler_options=options)(*arguments)
traced, _ = jax.jit(step, compiler_options=options)(arrays, *arguments)
np.testing.assert_allclose(finished["bias"], traced["bias"], rtol=0, atol=2e-6)  # of values around one
"""


def test_finished_weights_of_a_large_network_compile_in_little_memory():
    as_users_do = {**os.environ, "XLA_FLAGS": "", quick.DISABLE: "false"}
    command = [sys.executable, "-c", LARGE_NETWORK]
    done = subprocess.run(command, env=as_users_do, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
