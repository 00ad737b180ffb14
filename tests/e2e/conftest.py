"""What the tests of whole commands share."""

from __future__ import annotations

import pytest

from helpers import quick


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Processes of a module share what they compile, quickly."""
    return quick.environment(tmp_path_factory.mktemp("compiled"))
