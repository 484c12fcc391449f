"""The app of the worker that Celery's integration suite is run against.

It is configured as the app that the suite would run a worker for inside its own process, and
tells that process of the tasks that it runs, since some tests look at them there.
"""

from __future__ import annotations

import os
from multiprocessing.connection import Client
from typing import Any

import celery.contrib.testing.tasks  # noqa: F401  registers celery.ping
from celery import Celery, Task
from celery.contrib.testing.app import DEFAULT_TEST_CONFIG
from celery.signals import task_postrun, task_prerun

app = Celery("celery.tests")
app.conf.update(
    DEFAULT_TEST_CONFIG,
    broker_url=os.environ["TEST_BROKER"],
    result_backend=os.environ["TEST_BACKEND"],
    result_extended=True,
    task_create_missing_queues=False,
    include=["t.integration.tasks"],
)
app.set_default()

#: What the tests read of a request.
FIELDS = (
    "id",
    "args",
    "kwargs",
    "callbacks",
    "errbacks",
    "stamps",
    "stamped_headers",
    "replaced_task_nesting",
)


@app.on_after_finalize.connect
def register_class(sender: Celery, **_: Any) -> None:
    from t.integration.tasks import ClassBasedAutoRetryTask

    sender.register_task(ClassBasedAutoRetryTask)


def tell(what: str, task: Task) -> None:
    """Returns when the process of the tests has handled it: a test that has the result of a task
    may rely on this having come before."""
    if task.request.is_eager:
        return
    request = {field: getattr(task.request, field) for field in FIELDS}
    with Client(os.environ["CONFORMANCE_NEWS"], family="AF_UNIX") as connection:
        connection.send((what, task.name, request))
        connection.recv()


@task_prerun.connect
def on_prerun(task: Task, **_: Any) -> None:
    tell("begun", task)


@task_postrun.connect
def on_postrun(task: Task, state: str, **_: Any) -> None:
    if state == "SUCCESS":
        tell("succeeded", task)
