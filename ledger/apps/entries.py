"""The app of the ledger: tasks that write down when they start and when they end."""

from __future__ import annotations

import os
import time
from pathlib import Path

from celery import Celery
from celery.exceptions import Retry

from proof.line import Book

app = Celery("entries", broker=os.environ["LEDGER_URL"])
app.conf.update(
    # What Celery's documentation recommends for tasks that must not be lost.
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    broker_transport_options=eval(os.environ["LEDGER_TRANSPORT_OPTIONS"]),
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    # A retry that can't be published now is lost in Celery: its producer must not give up.
    task_publish_retry_policy={"max_retries": None, "interval_step": 0.2, "interval_max": 1},
    task_ignore_result=True,
    worker_cancel_long_running_tasks_on_connection_loss=False,
)

_books: dict[int, Book] = {}


def book() -> Book:
    """This process's own."""
    pid = os.getpid()
    if pid not in _books:
        _books[pid] = Book(Path(os.environ["LEDGER_BOOK"]))
    return _books[pid]


@app.task(bind=True, max_retries=None)
def entry(self, seconds: float, attempts: int, countdown: float) -> None:
    """Runs ``attempts`` times, the next ``countdown`` seconds after the one before."""
    task, attempt = self.request.id, self.request.retries
    book().mark("start", task, attempt)
    time.sleep(seconds)
    if attempt + 1 < attempts:
        try:
            self.retry(countdown=countdown)
        except Retry:
            book().mark("end", task, attempt)
            raise
    book().mark("end", task, attempt)
