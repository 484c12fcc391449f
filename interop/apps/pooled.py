"""Tasks that every kind of pool is given, as functions and, named ``…_async``, as coroutines."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from contextvars import ContextVar

from celery import Celery, current_task, signals
from celery.exceptions import SoftTimeLimitExceeded
from celery.utils.log import get_task_logger

app = Celery("pooled", broker=os.environ["INTEROP_BROKER"], backend=os.environ["INTEROP_BACKEND"])
app.conf.broker_transport_options = eval(os.environ.get("INTEROP_TRANSPORT_OPTIONS", "{}"))
app.conf.update(eval(os.environ.get("INTEROP_SETTINGS", "{}")))
app.conf.task_store_errors_even_if_ignored = True

logger = get_task_logger(__name__)
mark: ContextVar[str] = ContextVar("mark", default="")
FOLDER = os.environ["INTEROP_FOLDER"]


def note(text: str) -> None:
    """Appends a line to the test's notes, whole."""
    fd = os.open(f"{FOLDER}/notes", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(fd, f"{text}\n".encode())
    finally:
        os.close(fd)


@signals.worker_process_init.connect
def process_begins(**_):
    note("worker_process_init")


@signals.worker_process_shutdown.connect
def process_ends(**_):
    note("worker_process_shutdown")


@signals.task_prerun.connect
def before(task_id, task, **_):
    if task.name.startswith("pooled.told"):
        note(f"prerun {task.request.id == task_id}")


@signals.task_postrun.connect
def after(task_id, task, state, **_):
    if task.name.startswith("pooled.told"):
        note(f"postrun {task.request.id == task_id} {state}")


@app.task
def add(x, y):
    return x + y


@app.task
async def add_async(x, y):
    await asyncio.sleep(0)
    return x + y


@app.task
def pid():
    return os.getpid()


@app.task
def total(numbers):
    return sum(numbers)


@app.task
async def total_async(numbers):
    return sum(numbers)


@app.task
def told():
    logger.info("it says so")


@app.task
async def told_async():
    await asyncio.sleep(0)
    logger.info("it says so")


@app.task
def fail():
    raise ValueError("as asked")


@app.task
async def fail_async():
    await asyncio.sleep(0)
    raise ValueError("as asked")


@app.task(bind=True)
def retry(self):
    if not self.request.retries:
        raise self.retry(countdown=0)
    return self.request.retries


@app.task(bind=True)
async def retry_async(self):
    await asyncio.sleep(0)
    if not self.request.retries:
        raise self.retry(countdown=0)
    return self.request.retries


@app.task(bind=True, autoretry_for=(KeyError,), retry_backoff=False, default_retry_delay=0)
def autoretry(self):
    if not self.request.retries:
        raise KeyError("again")
    return self.request.retries


@app.task(bind=True, autoretry_for=(KeyError,), retry_backoff=False, default_retry_delay=0)
async def autoretry_async(self):
    await asyncio.sleep(0)
    if not self.request.retries:
        raise KeyError("again")
    return self.request.retries


def naps(seconds):
    """Waits in pieces: an exception reaches a thread between two of them."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.02)


@app.task
def nap(seconds, name=""):
    note(f"begin {name}")
    naps(seconds)
    note(f"end {name}")
    return name


@app.task
async def nap_async(seconds, name=""):
    note(f"begin {name}")
    await asyncio.sleep(seconds)
    note(f"end {name}")
    return name


late_nap = app.task(name="pooled.late_nap", acks_late=True)(nap.run)
late_nap_async = app.task(name="pooled.late_nap_async", acks_late=True)(nap_async.run)


@app.task
def io(seconds):
    time.sleep(seconds)


@app.task
async def io_async(seconds):
    await asyncio.sleep(seconds)


@app.task
def catch(seconds):
    note("begin catch")
    try:
        naps(seconds)
    except SoftTimeLimitExceeded:
        naps(0.05)
        return "caught"
    return "not limited"


@app.task
async def catch_async(seconds):
    note("begin catch")
    try:
        await asyncio.sleep(seconds)
    except SoftTimeLimitExceeded:
        await asyncio.sleep(0.05)
        return "caught"
    return "not limited"


def block_all(seconds):
    """Waits so that nothing else of its thread goes on, and no exception ends it: only a signal
    that ends the process does."""
    previous = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sleep = time.sleep
    if app.conf.worker_pool == "gevent" or "gevent" in sleep.__module__:
        from gevent.monkey import get_original

        sleep = get_original("time", "sleep")
    try:
        sleep(seconds)
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, previous)


@app.task
def block(seconds):
    note("begin block")
    block_all(seconds)


@app.task
async def block_async(seconds):
    note("begin block")
    block_all(seconds)


@app.task
def die():
    os.kill(os.getpid(), signal.SIGKILL)


@app.task
async def die_async():
    os.kill(os.getpid(), signal.SIGKILL)


def seen(self):
    return [current_task.request.id, self.request.id, mark.get(), current_task.name]


@app.task(bind=True)
def who(self):
    """Who it is, looked at again and again while others run."""
    mark.set(self.request.id)
    everything = []
    for _ in range(5):
        time.sleep(0.01)
        everything.append(seen(self))
    return everything


@app.task(bind=True)
async def who_async(self):
    mark.set(self.request.id)

    async def look():
        await asyncio.sleep(0.01)
        return seen(self)

    everything = [seen(self)]
    for _ in range(3):
        await asyncio.sleep(0.01)
        everything += await asyncio.gather(look(), asyncio.create_task(look()))
        everything.append(await asyncio.to_thread(seen, self))
    return everything


@app.task
async def calls_another():
    return await add_async(1, 2)


@app.task
def waits_for_another():
    return add.delay(2, 3).get(timeout=10)


@app.task
def waits_for_another_as_told():
    return add.delay(2, 3).get(timeout=10, disable_sync_subtasks=False)
