"""An app whose processes die at their start, and which hangs at its end, while a file is there."""

from __future__ import annotations

import os
import time
from pathlib import Path

from celery import Celery
from celery.signals import worker_process_init, worker_shutdown

app = Celery("crashing", broker=os.environ["INTEROP_BROKER"], backend=os.environ["INTEROP_BACKEND"])


@worker_process_init.connect
def die_at_start(**_):
    if Path(os.environ["INTEROP_FOLDER"], "die").exists():
        os._exit(1)


@worker_shutdown.connect
def hang(**_):
    while Path(os.environ["INTEROP_FOLDER"], "hang").exists():
        time.sleep(0.1)


@app.task
def add(x, y):
    return x + y
