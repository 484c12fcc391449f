"""Tasks that write down when they begin and end."""

from __future__ import annotations

import os
import time

from celery import Celery

app = Celery("limited", broker=os.environ["INTEROP_BROKER"], backend=os.environ["INTEROP_BACKEND"])
app.conf.broker_transport_options = eval(os.environ.get("INTEROP_TRANSPORT_OPTIONS", "{}"))
app.conf.update(eval(os.environ.get("INTEROP_SETTINGS", "{}")))


def note(file: str, *words: object) -> None:
    """Appends a line to a file, whole: the moment, the process, and what happened."""
    line = " ".join(str(word) for word in (time.time(), os.getppid(), os.getpid(), *words))
    fd = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(fd, f"{line}\n".encode())
    finally:
        os.close(fd)


@app.task(acks_late=True, reject_on_worker_lost=True)
def work(file, text, seconds=0.0, user=None):
    note(file, "start", text)
    time.sleep(seconds)
    note(file, "end", text)


@app.task
def other(file, text):
    note(file, "other", text)


@app.task(bind=True, max_retries=1)
def again(self, file, text):
    note(file, "attempt", text)
    if self.request.retries == 0:
        raise self.retry(countdown=1)
    return text
