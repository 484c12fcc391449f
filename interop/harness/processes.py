"""Looking at processes through ``/proc``."""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """For ``preexec_fn``: no server or worker outlives the test run."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def start_in_the_foreground() -> None:
    """For ``preexec_fn`` of what is sent signals: a shell has its background ignore SIGINT and
    SIGQUIT, and what inherits that does not end by them."""
    die_with_parent()
    for number in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)


def parent_of(pid: int) -> int | None:
    stat = _read(pid, "stat")
    return int(stat.rpartition(")")[2].split()[1]) if stat else None


def is_running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    stat = _read(pid, "stat")
    return bool(stat) and stat.rpartition(")")[2].split()[0] not in ("Z", "X")


def is_zombie(pid: int) -> bool:
    """Whether a process has ended and nobody has asked how."""
    stat = _read(pid, "stat")
    return bool(stat) and stat.rpartition(")")[2].split()[0] == "Z"


def descendants(pid: int) -> list[int]:
    """All processes below ``pid``, nearest first."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            parent = parent_of(int(entry.name))
            if parent is not None:
                children.setdefault(parent, []).append(int(entry.name))
    found = list(children.get(pid, ()))
    for child in found:
        found.extend(children.get(child, ()))
    return found


def name_of(pid: int) -> str:
    return _read(pid, "comm").strip()


def command_of(pid: int) -> str:
    return _read(pid, "cmdline").replace("\0", " ")


def environment_of(pid: int) -> str:
    return _read(pid, "environ")


def with_marker(marker: str) -> list[int]:
    """All running processes that have ``marker`` in their environment."""
    own = os.getpid()
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return [pid for pid in pids if pid != own and marker in environment_of(pid) and is_running(pid)]


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has used."""
    fields = _read(pid, "stat").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if fields else 0.0


def pss_kib(pid: int) -> int:
    """Memory of a process, with its share of what it shares."""
    for line in _read(pid, "smaps_rollup").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    return 0


def rss_kib(pid: int) -> int:
    """Memory of a process, with all of what it shares."""
    for line in _read(pid, "status").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    return 0


def open_files(pid: int) -> int:
    """How many descriptors a process has."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    except OSError:
        return ""
