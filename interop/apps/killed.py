"""An app whose worker is killed at every step it takes."""

from __future__ import annotations

import os

from celery import Celery
from celery.exceptions import Reject

app = Celery("killed", broker=os.environ["INTEROP_BROKER"], backend=os.environ["INTEROP_BACKEND"])
app.conf.broker_transport_options = eval(os.environ["INTEROP_TRANSPORT_OPTIONS"])
app.conf.update(eval(os.environ["INTEROP_SETTINGS"]))


def note(text):
    file = os.path.join(os.environ["INTEROP_FOLDER"], "notes")
    fd = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(fd, f"{text}\n".encode())
    finally:
        os.close(fd)


@app.task
def work(name):
    note(f"end {name}")
    return name


@app.task(bind=True, max_retries=1)
def again(self, name):
    if self.request.retries == 0:
        note("end retrying")
        raise self.retry(countdown=2.5)
    note(f"end {name}")
    return name


@app.task
def refuse(name):
    note(f"end {name}")
    raise Reject(name, requeue=False)
