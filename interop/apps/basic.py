"""A Celery app with a task for everything that can happen to one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from celery import Celery, Task
from celery.contrib.abortable import AbortableTask
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded
from celery.utils.log import get_task_logger

app = Celery("basic", broker=os.environ["INTEROP_BROKER"], backend=os.environ["INTEROP_BACKEND"])
app.conf.broker_transport_options = eval(os.environ.get("INTEROP_TRANSPORT_OPTIONS", "{}"))
app.conf.update(eval(os.environ.get("INTEROP_SETTINGS", "{}")))

logger = get_task_logger(__name__)


def note(file: str, text: str) -> None:
    """Appends a line to a file, durably and whole."""
    fd = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(fd, f"{text}\n".encode())
    finally:
        os.close(fd)


@app.task
def add(x, y):
    return x + y


@app.task
def echo(*args, **kwargs):
    return [list(args), kwargs]


@app.task
def nothing():
    pass


@app.task(bind=True)
def about(self):
    """What the task sees of its own request."""
    request = self.request
    names = (
        "id task args kwargs retries eta expires timelimit group root_id parent_id origin hostname "
        "delivery_info correlation_id reply_to headers is_eager called_directly lang shadow "
        "argsrepr kwargsrepr stamps stamped_headers replaced_task_nesting ignore_result "
        "periodic_task_name"
    ).split()
    found = {name: getattr(request, name, None) for name in names}
    found["properties"] = request.properties
    found["pid"] = os.getpid()
    return found


@app.task
def fail(text="boom"):
    raise ValueError(text, 42)


class NotPicklable(Exception):
    def __init__(self, a, b):
        super().__init__(f"{a}-{b}")
        self.thing = lambda: None


@app.task
def fail_strangely():
    raise NotPicklable(1, 2)


@app.task(bind=True, max_retries=5)
def retry_until(self, file, attempts):
    note(file, f"{self.request.retries} {time.time()}")
    if self.request.retries + 1 < attempts:
        raise self.retry(countdown=0.1)
    return self.request.retries


@app.task(autoretry_for=(KeyError,), retry_backoff=1, retry_jitter=False, max_retries=2)
def retry_with_backoff(file):
    note(file, str(time.time()))
    raise KeyError("again")


@app.task
def ignore():
    raise Ignore()


@app.task(bind=True, acks_late=True)
def reject(self, file, requeue):
    redelivered = self.request.delivery_info["redelivered"]
    note(file, f"run redelivered={redelivered}")
    if requeue and redelivered:
        return "at last"
    raise Reject("no", requeue=requeue)


@app.task
def sleep(seconds, file=None, text="done"):
    if file:
        note(file, f"start {text}")
    time.sleep(seconds)
    if file:
        note(file, f"end {text}")
    return text


@app.task(acks_late=True)
def sleep_late(seconds, file, text):
    note(file, f"start {text}")
    time.sleep(seconds)
    note(file, f"end {text}")
    return text


@app.task(acks_late=True, reject_on_worker_lost=True)
def sleep_safe(seconds, file, text):
    note(file, f"start {text}")
    time.sleep(seconds)
    note(file, f"end {text}")
    return text


@app.task
def spin(seconds, file, text):
    """Leaves no processor to others."""
    note(file, f"start {text}")
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
    note(file, f"end {text}")


@app.task(bind=True, acks_late=True)
def stopped_once(self, file, text):
    """Runs until it is stopped; the second time it ends at once."""
    note(file, f"start {text}")
    if not self.request.delivery_info["redelivered"]:
        time.sleep(300)
    return text


@app.task
def sleep_and_clean_up(file):
    note(file, "start cleaned")
    try:
        time.sleep(300)
    finally:
        note(file, "cleaned up")


@app.task
def signals_of_a_program():
    """The signals that a program started by a task ignores."""
    status = subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True).stdout
    (ignored,) = [line.split()[1] for line in status.splitlines() if line.startswith("SigIgn")]
    mask = int(ignored, 16)
    return [number.name for number in signal.Signals if mask >> (number - 1) & 1]


@app.task(bind=True, soft_time_limit=1)
def soft_limited(self, seconds):
    try:
        time.sleep(seconds)
    except SoftTimeLimitExceeded:
        return "soft"
    return "done"


@app.task(time_limit=1)
def hard_limited(seconds):
    time.sleep(seconds)
    return "done"


@app.task(acks_late=True, acks_on_timeout=False, time_limit=1, bind=True)
def hard_limited_again(self, file):
    redelivered = self.request.delivery_info["redelivered"]
    note(file, f"run redelivered={redelivered}")
    if not redelivered:
        time.sleep(60)
    return "second"


@app.task
def die(number=signal.SIGKILL):
    os.kill(os.getpid(), number)
    time.sleep(60)


@app.task(bind=True, acks_late=True, reject_on_worker_lost=True)
def die_once(self, file):
    note(file, f"run redelivered={self.request.delivery_info['redelivered']}")
    if not self.request.delivery_info["redelivered"]:
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


@app.task(acks_late=True)
def die_late(file):
    note(file, "run")
    os.kill(os.getpid(), signal.SIGKILL)


@app.task
def leave(status=3):
    sys.exit(status)


@app.task
def with_grandchild(file):
    """Starts a program that outlives the task."""
    process = subprocess.Popen(["sleep", "300"])
    note(file, str(process.pid))
    time.sleep(300)


@app.task
def allocate(mebibytes, seconds=0.0):
    data = bytearray(mebibytes << 20)
    for at in range(0, len(data), 4096):
        data[at] = 1
    time.sleep(seconds)
    return os.getpid()


@app.task
def pid():
    return os.getpid()


@app.task
def parent_pid():
    return os.getppid()


@app.task
def identity(file):
    """Who the task is, and what files it makes."""
    Path(file).touch(0o666)
    mask = os.umask(0)
    os.umask(mask)
    return {
        "uids": os.getresuid(),
        "gids": os.getresgid(),
        "groups": os.getgroups(),
        "umask": mask,
    }


@app.task
def say(text):
    print(text)
    logger.info("logged %s", text)
    return text


@app.task
def total(numbers):
    return sum(numbers)


@app.task(rate_limit="5/s")
def limited(file):
    note(file, str(time.time()))


@app.task(ignore_result=True)
def ignored():
    return "not stored"


@app.task(ignore_result=True, store_errors_even_if_ignored=True)
def ignored_but_errors():
    raise ValueError("stored")


@app.task(track_started=True)
def tracked(seconds):
    time.sleep(seconds)
    return "done"


@app.task(bind=True, base=AbortableTask)
def abortable(self):
    """Runs until it is told to stop, as tasks that clean up after themselves do."""
    deadline = time.monotonic() + 60
    self.update_state(state="STARTED")
    while not self.is_aborted():
        if time.monotonic() > deadline:
            return "not aborted"
        time.sleep(0.01)
    return "cleaned up"


@app.task(bind=True)
def progress(self):
    self.update_state(state="PROGRESS", meta={"done": 50})
    time.sleep(1)
    return "done"


@app.task(bind=True)
def replace(self, x):
    raise self.replace(add.s(x, 100))


@app.task
def on_error(request, exc, traceback):
    Path(os.environ["INTEROP_FOLDER"], "on_error").write_text(f"{request.id} {exc!r}")


class Hooked(Task):
    """Writes down which of its hooks were called."""

    def before_start(self, task_id, args, kwargs):
        note(args[0], "before_start")

    def on_success(self, retval, task_id, args, kwargs):
        note(args[0], f"on_success {retval}")

    def on_failure(self, exc, task_id, args, kwargs, einfo):
        note(args[0], f"on_failure {exc!r}")

    def on_retry(self, exc, task_id, args, kwargs, einfo):
        note(args[0], f"on_retry {exc!r}")

    def after_return(self, status, retval, task_id, args, kwargs, einfo):
        note(args[0], f"after_return {status}")


@app.task(base=Hooked, bind=True)
def hooked(self, file, what):
    if what == "fail":
        raise ValueError("no")
    if what == "retry" and not self.request.retries:
        raise self.retry(countdown=1, exc=KeyError("k"))
    if what == "sleep":
        time.sleep(60)
    return what


@app.task(acks_late=True)
def clean_up_late(file, text, returns=False):
    """Cleans up at the soft time limit, and ends there, with a result or without."""
    note(file, f"start {text}")
    try:
        time.sleep(300)
    except SoftTimeLimitExceeded:
        note(file, f"cleaned up {text}")
        if returns:
            return text
        raise


@app.task(acks_late=True, autoretry_for=(Exception,), bind=True)
def retried_late(self, file, text):
    """What goes wrong is tried again; the second delivery ends at once."""
    redelivered = self.request.delivery_info["redelivered"]
    note(file, f"start {text} retries={self.request.retries}")
    if not redelivered:
        time.sleep(300)
    return text


@app.task(acks_late=True)
def deaf_late(file, text):
    """Takes no notice of the soft time limit."""
    note(file, f"start {text}")
    while True:
        try:
            time.sleep(300)
        except SoftTimeLimitExceeded:
            note(file, f"went on {text}")


@app.task
def clean_up_early(file, text):
    note(file, f"start {text}")
    try:
        time.sleep(300)
    finally:
        note(file, f"cleaned up {text}")
