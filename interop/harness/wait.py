"""Waiting for a condition, with a deadline."""

from __future__ import annotations

import time
from typing import Callable, TypeVar

T = TypeVar("T")

#: Between two looks.
_PAUSE = 0.02


class TimedOut(AssertionError):
    """What was waited for did not happen."""


def wait_until(
    condition: Callable[[], T],
    what: str,
    timeout: float = 30,
    context: Callable[[], str] | None = None,
) -> T:
    """Waits until ``condition`` gives something true, and returns that."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            more = f"\n{context()}" if context else ""
            raise TimedOut(f"not within {timeout} s: {what}{more}")
        time.sleep(_PAUSE)


def stays(condition: Callable[[], bool], what: str, seconds: float) -> None:
    """Fails as soon as ``condition`` is no longer true within so many seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert condition(), f"no longer true: {what}"
        time.sleep(_PAUSE)
