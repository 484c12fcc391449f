"""An app for remote control and events: its workers are watched, asked and told what to do."""

from __future__ import annotations

import atexit
import os
import signal
import time

from celery import Celery
from celery.exceptions import Ignore, Reject
from celery.worker.control import control_command, inspect_command

app = Celery(
    "controlled", broker=os.environ["INTEROP_BROKER"], backend=os.environ["INTEROP_BACKEND"]
)
app.conf.broker_transport_options = eval(os.environ.get("INTEROP_TRANSPORT_OPTIONS", "{}"))
app.conf.update(eval(os.environ.get("INTEROP_SETTINGS", "{}")))


def note(file, text):
    """Appends a line to a file, durably and whole."""
    fd = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(fd, f"{text}\n".encode())
    finally:
        os.close(fd)


@app.task
def add(x, y=0):
    return x + y


@app.task
def total(numbers):
    return sum(numbers)


@app.task
def sleep(seconds, file=None, text="done"):
    if file:
        note(file, f"start {text}")
    time.sleep(seconds)
    if file:
        note(file, f"end {text}")
    return text


@app.task(acks_late=True)
def sleep_late(seconds):
    time.sleep(seconds)


@app.task(rate_limit="100/s", max_retries=7)
def limited(file, text):
    note(file, text)


@app.task(time_limit=600, soft_time_limit=300)
def has_limits(seconds):
    time.sleep(seconds)


@app.task(track_started=True)
def started():
    return "started"


@app.task
def fail(text):
    raise ValueError(text)


@app.task(bind=True, default_retry_delay=0)
def retry(self):
    if not self.request.retries:
        raise self.retry(exc=KeyError("again"))
    return "at last"


@app.task(bind=True, acks_late=True)
def reject(self, requeue):
    if self.request.delivery_info["redelivered"]:
        return "second time"
    raise Reject("unwanted", requeue=requeue)


@app.task
def ignore():
    raise Ignore()


@app.task(time_limit=1)
def over_the_hard_limit():
    time.sleep(60)


@app.task(soft_time_limit=1)
def over_the_soft_limit():
    time.sleep(60)


@app.task
def die():
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


@app.task(send_events=False)
def silent():
    return "unseen"


@app.task(bind=True)
def tells(self):
    self.send_event("task-progress", done=50, of="all")
    return "told"


@app.task
def sends(task_id):
    add.apply_async((1, 1), task_id=task_id)


@app.task
def long_result():
    return "x" * 5000


@control_command(args=[("text", str), ("times", int)], signature="<text> [times=1]")
def take_note(state, text, times=1):
    """Write something down."""
    for _ in range(times):
        note(os.path.join(os.environ["INTEROP_FOLDER"], "taken"), text)
    return {"ok": f"{text} noted {times} times"}


@inspect_command(alias="whereabouts", variadic="names", signature="[name1 [name2 [...]]]")
def where(state, names=None, **kwargs):
    """Tell what is at hand in a command."""
    return {
        "app": state.app.main,
        "hostname": state.hostname,
        "names": names,
        "tasks": "controlled.add" in state.app.tasks,
    }


@control_command(args=[("text", str)])
def note_at_exit(state, text):
    atexit.register(note, os.path.join(os.environ["INTEROP_FOLDER"], "taken"), text)


@inspect_command(default_timeout=30.0, args=[("seconds", float)])
def doze(state, seconds=10.0, text=None):
    if text:
        take_note(state, text)
    time.sleep(seconds)
    return {"ok": "awake"}


@inspect_command()
def knows(state):
    """Name the other workers that this one has heard of."""
    return sorted(worker.hostname for worker in state.consumer.gossip.state.alive_workers())


@inspect_command()
def breaks(state):
    raise LookupError("nothing there")


@inspect_command()
def unsayable(state):
    return {"what": object()}
