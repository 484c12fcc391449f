"""System calls for the processes of a worker."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Any

#: Opened once for all processes.
_LIBC = ctypes.CDLL(None, use_errno=True)
#: From ``<linux/prctl.h>``.
_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36

#: What a terminal or a supervisor may send to all of a worker's processes at once. Only the Rust
#: parent acts on them; it tells the others what to do.
SUPERVISOR_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP)


def set_name(name: str) -> None:
    """Sets the name that ``top`` and ``ps -e`` show: at most 15 bytes."""
    buffer = ctypes.create_string_buffer(name.encode()[:15])
    _prctl(_PR_SET_NAME, ctypes.addressof(buffer))


def become_subreaper() -> None:
    """Orphans of this process's descendants become its children."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent: int) -> None:
    """Has the kernel kill this process when ``parent`` ends; ends it if that has happened."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def outlive_parent() -> None:
    """Has the kernel leave this process alone when its parent ends: it has things to do then."""
    _prctl(_PR_SET_PDEATHSIG, 0)


def leave_death_to_us() -> None:
    """Has Celery not ask for what :func:`die_with_parent` has asked for already: billiard parses
    C for it where cffi is installed, which takes as long as all the rest of a child's start."""
    from celery import platforms

    platforms.set_pdeathsig = _do_nothing


def leave_signals_to_parent() -> None:
    """Makes the supervisor's signals do nothing here.

    A handler rather than SIG_IGN: programs that a task starts get the default action back.
    """
    for number in SUPERVISOR_SIGNALS:
        signal.signal(number, _do_nothing)


def kill_group(pid: int) -> None:
    """Kills every process of the group that ``pid`` leads."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


def flush_standard_streams() -> None:
    """Empties the buffers that a fork would copy."""
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            pass


def leave_terminal() -> None:
    """Gives up the standard streams, as a daemon does once its start is done."""
    flush_standard_streams()
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)


def _do_nothing(*_: Any) -> None:
    pass


def _prctl(option: int, value: int) -> None:
    if _LIBC.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
