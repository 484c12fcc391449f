"""An app whose tasks end in every way, for what result backends hold of them."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from celery import Celery
from celery.exceptions import Ignore, Reject

app = Celery("outcomes", broker=os.environ["INTEROP_BROKER"], backend=os.environ["INTEROP_BACKEND"])
app.conf.broker_transport_options = eval(os.environ.get("INTEROP_TRANSPORT_OPTIONS", "{}"))
app.conf.update(eval(os.environ.get("INTEROP_SETTINGS", "{}")))


def note(text):
    """Appends a line to the file of the notes."""
    with Path(os.environ["INTEROP_FOLDER"], "notes").open("a") as notes:
        notes.write(f"{text}\n")


@app.task
def add(x, y):
    return x + y


@app.task
def total(numbers):
    return sum(numbers)


@app.task
def fail(*_):
    raise ValueError("no", 42)


class Odd(Exception):
    """An exception that cannot be made again from its arguments."""

    def __init__(self, a, b):
        super().__init__(f"{a}-{b}")


@app.task
def fail_oddly():
    raise Odd(1, 2)


@app.task
def unserialisable():
    return lambda: None


@app.task(bind=True, max_retries=1)
def retry(self, countdown):
    raise self.retry(countdown=countdown, exc=KeyError("again"))


@app.task(ignore_result=True)
def ignored():
    return "not stored"


@app.task(ignore_result=True)
def fail_ignored():
    raise ValueError("not stored")


@app.task(ignore_result=True, store_errors_even_if_ignored=True)
def fail_stored():
    raise ValueError("stored")


@app.task
def ignore():
    raise Ignore()


@app.task(bind=True)
def progress(self):
    self.update_state(state="PROGRESS", meta={"done": 1, "of": 3})
    raise Ignore()


@app.task(acks_late=True)
def reject():
    raise Reject("unwanted", requeue=False)


@app.task(track_started=True)
def tracked(seconds):
    time.sleep(seconds)
    return "done"


@app.task(soft_time_limit=0.5)
def over_soft_limit():
    time.sleep(60)


@app.task(time_limit=0.5)
def over_hard_limit():
    time.sleep(60)


@app.task
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


@app.task
def leave():
    sys.exit(3)


@app.task
def errback(request, exc, traceback):
    note(f"errback {request.id} {exc!r}")


@app.task
def old_errback(task_id):
    note(f"old_errback {task_id}")
