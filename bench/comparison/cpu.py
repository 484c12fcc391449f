"""CPU time of a worker, read from ``/proc``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from harness import processes

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Cpu:
    """Seconds of CPU time, user and system."""

    #: Celery's main process; celeriac's Rust parent together with its Python main.
    main: float
    #: All that is below, with those that have ended; celeriac's zygote is one of them.
    children: float
    #: The server.
    broker: float

    def __sub__(self, earlier: Cpu) -> Cpu:
        return Cpu(
            self.main - earlier.main,
            self.children - earlier.children,
            self.broker - earlier.broker,
        )

    @property
    def total(self) -> float:
        """What the worker used."""
        return self.main + self.children


def read(mains: list[int], tree: list[int], broker: int) -> Cpu:
    """The CPU time so far of ``mains``, of the other processes of ``tree``, and of the broker."""
    main = children = 0.0
    for pid in tree:
        own, dead = _times(pid)
        if pid in mains:
            main += own
        else:
            children += own
        children += dead
    return Cpu(main, children, _times(broker)[0])


def _times(pid: int) -> tuple[float, float]:
    """What a process used itself, and what its children did that have ended and were reaped."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0.0, 0.0
    user, system, dead_user, dead_system = map(int, stat.rpartition(")")[2].split()[11:15])
    return (user + system) / _TICKS, (dead_user + dead_system) / _TICKS


def memory_mib(pids: list[int]) -> float:
    """PSS: private memory, and of what is shared each process's share."""
    return sum(map(processes.pss_kib, pids)) / 1024
