"""An app that writes down every signal, hook and step, with the process in which it was called.

Each line of the file ``events`` is one happening as JSON; the file grows in the order in which
things happen, whatever the process.
"""

from __future__ import annotations

import json
import os
import signal
import time
from functools import cached_property
from pathlib import Path
from typing import Any

from billiard import current_process
from celery import Celery, Task, bootsteps, signals
from celery.app.task import Context
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded
from celery.loaders.app import AppLoader
from celery.utils.dispatch import Signal
from celery.worker.request import Request

FILE = Path(os.environ["INTEROP_FOLDER"], "events")

#: A receiver of this one takes the set-up of logging upon itself.
SILENT = {"setup_logging"}


def record(event: str, **details: Any) -> None:
    """Appends a line, durably and whole."""
    role = "C" if current_process().name.startswith("ForkPoolWorker") else "M"
    line = json.dumps({"role": role, "pid": os.getpid(), "event": event, **details}, default=repr)
    fd = os.open(FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(fd, f"{line}\n".encode())
    finally:
        os.close(fd)


def kind(thing: Any) -> str:
    """The name of a class; a worker that has its pool elsewhere has stand-ins for Celery's."""
    return type(thing).__name__.removeprefix("Hosted").replace("TaskPool", "Pool")


#: Arguments of signals whose values are the same in each run.
_SHOWN = ("state", "terminated", "signum", "expired", "sig", "how", "exitcode", "name")
_SHOWN_AS_REPR = ("exception", "reason", "result", "retval", "exc", "args", "kwargs")


def _details(sender: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    if isinstance(sender, Task):
        who: Any = f"task {sender.name}"
    else:
        who = kind(sender)
    shown = {name: arguments[name] for name in _SHOWN if name in arguments}
    shown |= {name: repr(arguments[name]) for name in _SHOWN_AS_REPR if name in arguments}
    if "einfo" in arguments:
        shown["einfo"] = [type(arguments["einfo"]).__name__, bool(arguments["einfo"].traceback)]
    if "request" in arguments:
        shown["request"] = isinstance(arguments["request"], Request | Context)
    if "task" in arguments:
        shown["task"] = arguments["task"].name
    return {"sender": who, "names": sorted(arguments), "shown": shown}


def _task_id(sender: Any, arguments: dict[str, Any]) -> str | None:
    for name in ("task_id", "id"):
        if isinstance(arguments.get(name), str):
            return str(arguments[name])
    if "headers" in arguments:
        return str(arguments["headers"].get("id"))
    if hasattr(arguments.get("request"), "id"):
        return str(arguments["request"].id)
    if isinstance(sender, Task):
        return str(sender.request.id)
    return None


def _recorder(event: str) -> Any:
    def receive(sender: Any = None, **arguments: Any) -> None:
        arguments.pop("signal", None)
        record(event, id=_task_id(sender, arguments), **_details(sender, arguments))

    return receive


for _name, _signal in vars(signals).items():
    if isinstance(_signal, Signal) and _name not in SILENT:
        _signal.connect(_recorder(_name), weak=False)


class RecordingLoader(AppLoader):
    """Celery's loader, with its hooks."""

    def on_worker_init(self) -> None:
        record("Loader.on_worker_init")

    def on_worker_process_init(self) -> None:
        record("Loader.on_worker_process_init")

    def on_worker_shutdown(self) -> None:
        record("Loader.on_worker_shutdown")

    def on_task_init(self, task_id: str, task: Any) -> None:
        record("Loader.on_task_init", id=task_id)

    def on_process_cleanup(self) -> None:
        record("Loader.on_process_cleanup")


class RecordingRequest(Request):
    """What Celery's parent process is told of a task."""

    def on_accepted(self, pid: int, time_accepted: float) -> Any:
        record("Request.on_accepted", id=self.id, shown={"has pid": pid > 0})
        return super().on_accepted(pid, time_accepted)

    def on_success(self, failed__retval__runtime: Any, **kwargs: Any) -> Any:
        record("Request.on_success", id=self.id)
        return super().on_success(failed__retval__runtime, **kwargs)

    def on_failure(self, exc_info: Any, **kwargs: Any) -> Any:
        shown = {"return_ok": kwargs.get("return_ok", False), "type": exc_info.type.__name__}
        record("Request.on_failure", id=self.id, shown=shown)
        return super().on_failure(exc_info, **kwargs)

    def on_retry(self, exc_info: Any) -> Any:
        record("Request.on_retry", id=self.id)
        return super().on_retry(exc_info)

    def on_timeout(self, soft: bool, timeout: float) -> Any:
        shown = {"soft": soft, "timeout": timeout}
        record("Request.on_timeout", id=self.id, shown=shown)
        return super().on_timeout(soft, timeout)


class OnlyFailures(Request):
    """As an app has it that counts whatever did not succeed."""

    def on_failure(self, exc_info: Any, **kwargs: Any) -> Any:
        record("OnlyFailures.on_failure", id=self.id, shown={"type": exc_info.type.__name__})
        return super().on_failure(exc_info, **kwargs)


class Recording(Task):
    """Hooks of a task, an ``__init__`` and a property that is made once a process."""

    def __init__(self) -> None:
        self.made_in = os.getpid()
        record("Task.__init__", task=self.name)

    @cached_property
    def connection(self) -> str:
        record("Task.connection")
        return f"made in {os.getpid()}"

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        record("before_start", id=task_id)

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        record("on_success", id=task_id, shown={"retval": repr(retval)})

    def on_failure(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        record("on_failure", id=task_id, shown={"exc": repr(exc), "einfo": bool(einfo)})

    def on_retry(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        record("on_retry", id=task_id, shown={"exc": repr(exc)})

    def after_return(
        self, status: str, retval: Any, task_id: str, args: Any, kwargs: Any, einfo: Any
    ) -> None:
        shown = {"status": status, "retval": repr(retval), "einfo": bool(einfo)}
        record("after_return", id=task_id, shown=shown)


class RecordingWithRequest(Recording):
    abstract = True
    Request = "recorder:RecordingRequest"


app = Celery(
    "recorder",
    broker=os.environ["INTEROP_BROKER"],
    backend=os.environ["INTEROP_BACKEND"],
    loader=RecordingLoader,
)
app.conf.update(eval(os.environ.get("INTEROP_SETTINGS", "{}")))
app.on_after_configure.connect(_recorder("app.on_after_configure"), weak=False)
app.on_after_finalize.connect(_recorder("app.on_after_finalize"), weak=False)
app.on_after_fork.connect(_recorder("app.on_after_fork"), weak=False)


def _step(event: str, **members: Any) -> Any:
    def method(name: str) -> Any:
        def call(self: Any, parent: Any, *_: Any, **__: Any) -> None:
            record(f"{event}.{name}", shown={"parent": kind(parent)})

        return call

    names = ("__init__", "create", "start", "stop", "close", "terminate")
    methods = {name: method(name) for name in names}
    return type(event, (bootsteps.StartStopStep,), {**methods, "__module__": __name__, **members})


WorkerStep = _step("WorkerStep", requires={"celery.worker.components:Pool"})
ConsumerStep = _step("ConsumerStep", requires={"celery.worker.consumer.tasks:Tasks"})
app.steps["worker"].add(WorkerStep)
app.steps["consumer"].add(ConsumerStep)


class Broken(Exception):
    """What tasks here fail with."""


def succeed(self: Any) -> str:
    return "done"


def fail(self: Any) -> None:
    raise Broken("no")


def retry(self: Any, attempts: int = 2) -> str:
    if self.request.retries + 1 < attempts:
        raise self.retry(countdown=0, exc=Broken("again"))
    return "at last"


def reject(self: Any, requeue: bool) -> str:
    if requeue and self.request.delivery_info["redelivered"]:
        return "second time"
    raise Reject("unwanted", requeue=requeue)


def ignore(self: Any) -> None:
    raise Ignore()


def sleep(self: Any, seconds: float) -> str:
    try:
        time.sleep(seconds)
    except SoftTimeLimitExceeded:
        return "soft"
    return "slept"


def die(self: Any) -> str:
    if self.request.delivery_info["redelivered"]:
        return "survived"
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)
    return "never"


def leave(self: Any) -> None:
    raise SystemExit(3)


def replace(self: Any) -> Any:
    return self.replace(app.tasks["succeed"].s())


def total(self: Any, values: list[str]) -> int:
    return len(values)


def unserialisable(self: Any) -> Any:
    return object()


#: Every task, with its options; each also exists with a Request class of its own, as ``name+``.
TASKS: list[tuple[str, Any, dict[str, Any]]] = [
    ("succeed", succeed, {}),
    ("succeed_late", succeed, {"acks_late": True}),
    ("started", succeed, {"track_started": True}),
    ("ignored_result", succeed, {"ignore_result": True}),
    ("fail", fail, {}),
    ("fail_as_expected", fail, {"throws": (Broken,)}),
    ("fail_late", fail, {"acks_late": True}),
    ("fail_late_unacked", fail, {"acks_late": True, "acks_on_failure": False}),
    ("retry", retry, {}),
    ("retry_late", retry, {"acks_late": True}),
    ("retry_too_often", retry, {"max_retries": 1}),
    ("autoretry", fail, {"autoretry_for": (Broken,), "max_retries": 1, "default_retry_delay": 0}),
    ("reject", reject, {"acks_late": True}),
    ("reject_early", reject, {}),
    ("ignore", ignore, {}),
    ("soft", sleep, {"soft_time_limit": 1}),
    ("hard", sleep, {"time_limit": 1}),
    ("hard_late", sleep, {"time_limit": 1, "acks_late": True}),
    ("hard_soft", sleep, {"time_limit": 30, "soft_time_limit": 1}),
    ("die", die, {}),
    ("die_late", die, {"acks_late": True}),
    ("die_safe", die, {"acks_late": True, "reject_on_worker_lost": True}),
    ("leave", leave, {}),
    ("replace", replace, {}),
    ("total", total, {}),
    ("unserialisable", unserialisable, {}),
]
for _task, _function, _options in TASKS:
    app.task(name=_task, bind=True, base=Recording, **_options)(_function)
    app.task(name=f"{_task}+", bind=True, base=RecordingWithRequest, **_options)(_function)


class FailsInHooks(Task):
    """Hooks that are broken themselves."""

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        raise Broken("in on_success")

    def on_failure(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        raise Broken("in on_failure")

    def after_return(self, *_: Any) -> None:
        raise Broken("in after_return")


app.task(name="succeed_in_broken_hooks", bind=True, base=FailsInHooks)(succeed)
app.task(name="fail_in_broken_hooks", bind=True, base=FailsInHooks)(fail)
for _task, _function in (("fail", fail), ("retry", retry), ("ignore", ignore), ("die", die)):
    app.task(name=f"{_task}_counted", bind=True, Request="recorder:OnlyFailures")(_function)


@app.task(name="properties", bind=True, base=Recording)
def properties(self: Any) -> list[Any]:
    """Where the task object was made, and what its property says."""
    return [os.getpid(), self.made_in, self.connection]


@app.task(name="marker")
def marker() -> None:
    """Shows that what was sent before has been dealt with."""


@app.task(name="errback")
def errback(request: Any, exc: Any, traceback: Any) -> None:
    record("errback", id=request.id, shown={"exc": repr(exc), "traceback": bool(traceback)})


@app.task(name="old_errback")
def old_errback(task_id: str) -> None:
    record("old_errback", id=task_id)


@app.task(name="callback")
def callback(result: Any) -> None:
    record("callback", shown={"result": result})
