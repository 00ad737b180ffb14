"""Commands in processes of their own: run to their end, or killed."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable
from typing import NamedTuple

MAX_WAIT = 900.0  # seconds; far more than any of these commands takes, on a busy machine too


class Printed(NamedTuple):
    """What a command has printed."""

    out: str
    err: str


def run(command: list[str], environment: dict[str, str], *, status: int = 0) -> Printed:
    """What a command prints that ends by itself, with this status."""
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=MAX_WAIT
    )
    assert done.returncode == status, done.stdout + done.stderr
    return Printed(done.stdout, done.stderr)


def kill_when(condition: Callable[[], object], command: list[str], environment: dict[str, str]) -> None:
    """Starts a command and ends it, as `kill -9` does, once the condition holds."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + MAX_WAIT
            while not condition():
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise AssertionError(f"it ended, or waited {MAX_WAIT} s, without: {log.read()}")
                time.sleep(0.01)
        finally:
            process.kill()
            process.wait()
