"""The app ``basic`` after its next deployment: it has one task more."""

from __future__ import annotations

import os

from celery import Celery

app = Celery("newer", broker=os.environ["INTEROP_BROKER"], backend=os.environ["INTEROP_BACKEND"])
app.conf.update(eval(os.environ.get("INTEROP_SETTINGS", "{}")))


@app.task(name="newer.greet")
def greet(whom):
    return f"hello {whom}"
