"""The app of the comparison: tasks that do next to nothing but say when they ran."""

from __future__ import annotations

import os
import struct
import time

from celery import Celery

app = Celery("small", broker=os.environ["BENCH_BROKER"], backend=os.environ["BENCH_BACKEND"])

_STAMP = struct.Struct("<q")
_completions: int | None = None


def _completed() -> None:
    """Writes when this task ran: one small write, which the kernel appends whole."""
    global _completions
    if _completions is None:
        # Opened by the process that runs tasks, so that no worker has to keep it over a fork.
        _completions = os.open(os.environ["BENCH_COMPLETIONS"], os.O_WRONLY | os.O_APPEND)
    os.write(_completions, _STAMP.pack(time.monotonic_ns()))


@app.task(name="ignored", ignore_result=True)
def ignored(*_args: object) -> None:
    _completed()


@app.task(name="stored")
def stored() -> int:
    _completed()
    return 42


@app.task(name="pause", ignore_result=True)
def pause(seconds: float) -> None:
    time.sleep(seconds)
    _completed()


@app.task(name="compute", ignore_result=True)
def compute(seconds: float) -> None:
    """Says that it has begun, and leaves no processor to others."""
    _completed()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


@app.task(name="event", ignore_result=True, rate_limit="5/s")
def event() -> None:
    _completed()
