"""An app whose tasks take memory."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from celery import Celery

try:
    from celeriac.exceptions import SoftMemoryLimitExceeded
except ImportError:
    SoftMemoryLimitExceeded = MemoryError  # type: ignore[misc, assignment]

app = Celery("hungry", broker=os.environ["INTEROP_BROKER"], backend=os.environ["INTEROP_BACKEND"])
app.conf.update(eval(os.environ.get("INTEROP_SETTINGS", "{}")))

#: Bytes that are taken at once, and where a task gives up: the machine has others on it.
STEP = 8 << 20
ENOUGH = 6 << 30


def note(text):
    with Path(os.environ["INTEROP_FOLDER"], "notes").open("a") as notes:
        notes.write(f"{text}\n")


def take(limit=ENOUGH, pause=0.0):
    """Yields what is held, in MiB."""
    held = []
    while len(held) * STEP < limit:
        # Written to: what is only reserved is no memory.
        held.append(b"x" * STEP)
        yield len(held) * STEP >> 20
        time.sleep(pause)


def resident():
    """What this process has in RAM, in KiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() // 1024


@app.task
def take_without_end(limit):
    """Takes memory as fast as it can, and notes when it holds more than ``limit`` KiB. It was let
    if it has a second of a processor's time from then on, however busy the machine is."""
    crossed = None
    for _ in take():
        now = time.process_time()
        if crossed is None and resident() > limit:
            crossed = now
            note(f"crossed {os.getpid()}")
        if crossed is not None and now > crossed + 1:
            break
    note("it was let")


@app.task
def take_slowly_without_end():
    for _ in take(pause=0.02):
        pass
    note("it was let")


@app.task
def work(seconds):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(0.01)
    return os.getpid()


@app.task
def let_go():
    """Takes memory until it is told to stop, and returns what it held then."""
    held = 0
    try:
        for held in take(1 << 30, 0.01):  # noqa: B007
            pass
        time.sleep(30)
    except SoftMemoryLimitExceeded as exc:
        return [type(exc).__module__, type(exc).__name__, held]


@app.task
def do_not_let_go():
    for _ in take(1 << 30, 0.01):
        pass
    time.sleep(30)


@app.task
def have_it_taken():
    """A program takes the memory, in the same process group."""
    code = "import time\nheld = [b'x' * (1 << 20) for _ in range(600)]\ntime.sleep(60)"
    program = subprocess.Popen([sys.executable, "-c", code])
    note(f"program {program.pid}")
    program.wait()
    note("it was let")
