"""The file in which tasks write when they ran: eight bytes each, nanoseconds of the monotonic
clock, which all processes of a machine share."""

from __future__ import annotations

import array
import time
from pathlib import Path
from typing import Callable

from harness.wait import TimedOut

_BYTES = 8
#: Between two looks. Long enough that looking costs the workers nothing worth mentioning.
_PAUSE = 0.01


class Completions:
    def __init__(self, file: Path) -> None:
        self.file = file
        file.write_bytes(b"")

    def count(self) -> int:
        return self.file.stat().st_size // _BYTES

    def stamps(self) -> list[float]:
        """When each task ran, in seconds, earliest first."""
        stamps = array.array("q")
        data = self.file.read_bytes()
        stamps.frombytes(data[: len(data) // _BYTES * _BYTES])
        return sorted(stamp / 1e9 for stamp in stamps)

    def last(self) -> float:
        return self.stamps()[-1]

    def wait_for(
        self, count: int, timeout: float, is_alive: Callable[[], bool], pause: float = _PAUSE
    ) -> None:
        """Waits until so many tasks have run.

        Raises:
            TimedOut: when they don't in time, or the worker is gone.
        """
        deadline = time.monotonic() + timeout
        while self.count() < count:
            if time.monotonic() > deadline:
                raise TimedOut(f"{self.count()} of {count} tasks ran within {timeout:g} s")
            if not is_alive():
                raise TimedOut(f"the worker ended after {self.count()} of {count} tasks")
            time.sleep(pause)
