"""Draining a backlog: how fast, and with how much CPU a task.

The workers are warm and the backlog is complete before it is released. The measured time begins
:data:`SETTLING` after the first task, or when a tenth of the backlog has run if that is earlier. It
ends after the given time, or with the last task if that is earlier. Both workers get the same
backlog.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from comparison.cpu import Cpu
from comparison.place import Place
from comparison.worker import Worker

#: Caches fill and pipelines start.
SETTLING = 0.5
_FIRST = 60.0
_PAUSE = 0.01


@dataclass(frozen=True)
class Drain:
    #: Tasks a second.
    rate: float
    #: Tasks that the CPU time was used for.
    tasks: int
    used: Cpu

    def micros(self, seconds: float) -> float:
        """Microseconds a task."""
        return seconds / self.tasks * 1e6


def drain(place: Place, worker: Worker, count: int, seconds: float) -> Drain:
    """Releases the staged backlog of ``count`` messages, and measures.

    Raises:
        AssertionError: when nothing runs, or nothing any more.
    """
    completions = place.completions
    before = completions.count()
    end_count = before + count
    place.backlog.release()
    completions.wait_for(before + 1, _FIRST, worker.is_alive, pause=0.001)
    settled = time.monotonic() + SETTLING
    while time.monotonic() < settled and completions.count() < before + count / 10:
        time.sleep(_PAUSE)
    began, began_count, began_cpu = time.monotonic(), completions.count(), worker.cpu()
    deadline = began + seconds
    while (now := time.monotonic()) < deadline and completions.count() < end_count:
        time.sleep(min(_PAUSE, deadline - now))
    ended, ended_count, ended_cpu = time.monotonic(), completions.count(), worker.cpu()
    stamps = completions.stamps()
    if ended_count >= end_count:
        ended = stamps[-1]
    ran = sum(began <= stamp <= ended for stamp in stamps)
    assert ended_count > began_count, "no task ran in the measured time"
    silence = ended - stamps[-1]
    # A rate over it would look like that of a slow worker.
    assert silence < seconds / 2, f"no task ran for {silence:.1f} s, with more on the queue"
    return Drain(ran / (ended - began), ended_count - began_count, ended_cpu - began_cpu)
