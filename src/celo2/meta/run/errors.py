"""Errors of a meta-training run: non-finite meta-gradients, their limit, and failed writes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from celo2.meta.run import distributed


class MetaGradientError(RuntimeError):
    """Too many meta-gradients were not finite."""


class RunWriteError(OSError):
    """A file of a run cannot be written."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Re-raises errors in writing a file with its path and a remedy.

    Raises:
        RunWriteError: In place of the original error.
    """
    try:
        yield
    except Exception as error:
        if distributed.is_loss(error):
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else _shorten(str(error))
        raise RunWriteError(
            f"{path} cannot be written: {reason}. Make room on that disk, or see who may write there, and "
            "continue with --resume; the last checkpoint is intact."
        ) from error


def _shorten(text: str, most: int = 240) -> str:
    """Shortens a message to one line: TensorStore's can fill pages with repeated paths and causes."""
    text = " ".join(text.split()).rstrip(".")
    return text if len(text) <= most else f"{text[: most // 2]} … {text[-most // 2 :]}"


class SkipLimit:
    """Limits the share of skipped meta-gradients among the last iterations.

    Args:
        max_share: Maximum share of skipped ones in the window, in [0, 1].
        window: Number of recent iterations considered; the share of a shorter run is of a whole window too.
        history: Records of the earlier iterations, oldest first.
    """

    def __init__(self, max_share: float, window: int, history: Iterable[Mapping[str, Any]] = ()) -> None:
        self._max_share = max_share
        self._recent = deque((bool(record.get("skipped")) for record in history), maxlen=window)

    def check(self, records: Iterable[Mapping[str, Any]]) -> str:
        """Adds records with `step` and `skipped`; returns a message once the limit is exceeded."""
        found = [self._check_one(record) for record in records]
        return next(filter(None, found), "")

    def _check_one(self, record: Mapping[str, Any]) -> str:
        self._recent.append(bool(record["skipped"]))
        window, count = self._recent.maxlen or 0, sum(self._recent)
        if not record["skipped"] or count <= self._max_share * window:
            return ""
        return (
            f"stopped: at iteration {record['step']}, {count} of the last {window} meta-gradients were not "
            f"finite and were skipped, more than {100 * self._max_share:g} %; they left theta alone. "
            "Look for diverged runs in metrics.jsonl, lower the outer or inner learning rate or sigma, or "
            "allow more with max_skipped."
        )
