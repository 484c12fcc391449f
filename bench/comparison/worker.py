"""A worker under measurement: Celery's or celeriac's, started as a user would, with the defaults
of both."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import uuid
from pathlib import Path

from comparison import cpu
from harness import processes, workers
from harness.wait import wait_until

APPS = Path(__file__).resolve().parents[1] / "apps"
KINDS = ("celery", "celeriac")


class Worker:
    """One worker with everything below it."""

    def __init__(
        self, kind: str, app: str, options: tuple[str, ...], variables: dict[str, str],
        log_file: Path, broker_pid: int,
    ) -> None:  # fmt: skip
        self.kind = kind
        self.log_file = log_file
        self._broker_pid = broker_pid
        name, value = "BENCH_WORKER", uuid.uuid4().hex
        self._marker = f"{name}={value}"
        self._log = open(log_file, "ab")
        environment = workers.environment(**variables, **{name: value, "PYTHONPATH": str(APPS)})
        # The tests want it; users don't set it.
        del environment["PYTHONUNBUFFERED"]
        self.started = time.monotonic()
        self._process = subprocess.Popen(
            [*workers.command(kind), "-A", app, "worker", *options],
            env=environment,
            cwd=APPS,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            preexec_fn=processes.die_with_parent,
        )

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def log_tail(self) -> str:
        """What it last logged, without its banner."""
        lines = self.log_file.read_text(errors="replace").splitlines()
        return "\n".join([line for line in lines if "ERROR" in line or "WARN" in line][-15:])

    def tree(self) -> list[int]:
        """Its processes, the one that was started first."""
        return [self._process.pid, *processes.descendants(self._process.pid)]

    def mains(self) -> list[int]:
        """The processes that run no tasks."""
        if self.kind == "celery":
            return [self._process.pid]
        pids = [pid for pid in self.tree()[1:] if processes.name_of(pid) == "celeriac:main"]
        return [self._process.pid, *pids]

    def children(self) -> list[int]:
        """The processes that run tasks."""
        below = self.tree()[1:]
        if self.kind == "celery":
            return below
        return [pid for pid in below if processes.name_of(pid) == "celeriac:child"]

    def wait_for_children(self, count: int) -> None:
        wait_until(lambda: len(self.children()) == count, f"{count} children", 120, self.log_tail)

    def cpu(self) -> cpu.Cpu:
        return cpu.read(self.mains(), self.tree(), self._broker_pid)

    def memory_mib(self) -> float:
        """Of the whole tree."""
        return cpu.memory_mib(self.tree())

    def main_memory_mib(self) -> float:
        return cpu.memory_mib(self.mains())

    def end(self) -> None:
        """Kills it: what it had on its hands is thrown away with the database."""
        for pid in [self._process.pid, *processes.with_marker(self._marker)]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self._process.wait()
        wait_until(
            lambda: not processes.with_marker(self._marker), "the worker's processes are gone"
        )
        self._log.close()
