"""The app of ``io_pools.py``: tasks that wait, as for a server, and say when they ran."""

from __future__ import annotations

import asyncio
import os
import struct
import time

from celery import Celery

app = Celery("waiting", broker=os.environ["BENCH_BROKER"], backend=os.environ["BENCH_BACKEND"])

_STAMP = struct.Struct("<q")
_completions: int | None = None


def _completed() -> None:
    """Writes when this task ran: one small write, which the kernel appends whole."""
    global _completions
    if _completions is None:
        # Opened by the process that runs tasks, so that no worker has to keep it over a fork.
        _completions = os.open(os.environ["BENCH_COMPLETIONS"], os.O_WRONLY | os.O_APPEND)
    os.write(_completions, _STAMP.pack(time.monotonic_ns()))


@app.task(name="wait")
def wait(seconds: float) -> None:
    time.sleep(seconds)
    _completed()


@app.task(name="wait_async")
async def wait_async(seconds: float) -> None:
    await asyncio.sleep(seconds)
    _completed()
