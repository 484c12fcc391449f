"""Lines of the ledger: what was published and what ran, written where no broker can lose it.

Times are seconds of ``CLOCK_MONOTONIC``, which all processes of a machine share and nobody can set.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Published:
    """A message that a producer sent."""

    task: str
    #: How many times the task runs until it is done: it retries all but the last time.
    attempts: int
    #: Whether the broker said that it has it. Otherwise nobody knows.
    is_confirmed: bool
    #: When that was known.
    at: float = 0.0


@dataclass(frozen=True)
class Mark:
    """The start or the end of a task in a process."""

    verb: str
    task: str
    #: Which attempt, from 0.
    attempt: int
    at: float
    pid: int
    #: The start of a worker that it belongs to: the name of the file that it stands in.
    worker: str


class Book:
    """A file that lines are added to, each on the disk before the next thing is done."""

    def __init__(self, file: Path) -> None:
        self._fd = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def add(self, *lines: str) -> None:
        """Returns when the disk has them."""
        os.write(self._fd, "".join(f"{line}\n" for line in lines).encode())
        os.fsync(self._fd)

    def mark(self, verb: str, task: str, attempt: int) -> None:
        self.add(f"{verb} {task} {attempt} {time.monotonic():.6f} {os.getpid()}")


def published(task: str, attempts: int, is_confirmed: bool) -> str:
    verb = "confirmed" if is_confirmed else "unconfirmed"
    return f"{verb} {task} {attempts} {time.monotonic():.6f}"


def read_published(file: Path) -> list[Published]:
    lines = (line.split() for line in file.read_text().splitlines())
    return [
        Published(task, int(attempts), verb == "confirmed", float(at))
        for verb, task, attempts, at in lines
    ]


def read_marks(file: Path) -> list[Mark]:
    lines = (line.split() for line in file.read_text().splitlines())
    return [
        Mark(verb, task, int(attempt), float(at), int(pid), file.name)
        for verb, task, attempt, at, pid in lines
    ]
