"""The learning rate's schedules."""

from __future__ import annotations

import numpy as np
import pytest

from celo2.training.protocol import constant_schedule, cosine_schedule


def test_cosine_schedule_warms_up_and_ends_at_zero():
    schedule = cosine_schedule(2.0, 100)
    values = np.array([float(np.asarray(schedule(count))) for count in range(101)])
    np.testing.assert_allclose(values[:6], [0.4, 0.8, 1.2, 1.6, 2.0, 2.0], rtol=1e-6)
    assert values[100] == pytest.approx(0.0, abs=1e-6)
    assert (np.diff(values[5:]) < 0).all()


def test_constant_schedule_has_the_same_warm_up_and_stays():
    constant, cosine = constant_schedule(2.0, 100), cosine_schedule(2.0, 100)
    values = [float(np.asarray(constant(count))) for count in range(101)]
    np.testing.assert_allclose(
        values[:5], [float(np.asarray(cosine(count))) for count in range(5)], rtol=1e-6
    )
    np.testing.assert_allclose(values[5:], 2.0)
