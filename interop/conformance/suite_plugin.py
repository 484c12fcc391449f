"""A plugin for pytest that gives Celery's integration suite a worker outside of its process.

The suite takes ``celery_session_worker`` from ``celery.contrib.pytest``; this module is loaded
before and puts another fixture there. The suite's files stay as they are. What they read inside
the process of a worker is put in its place:

* the signal ``task_received`` is sent here when a task begins in the worker's process pool;
* ``successful_requests`` holds the ids of tasks whose end the process pool told of;
* the log of the worker is repeated here for ``caplog``;
* where the suite only wants to know by remote control whether the worker lives or is idle, a task
  tells.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Listener
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import celery.contrib.pytest
import pytest
import redis
from celery import Celery
from celery.contrib.testing.manager import ManagerMixin
from celery.signals import task_received
from celery.worker import state as worker_state

from conformance import suite
from conformance.conformance_app import __file__ as app_file
from harness.workers import Worker

pytest_plugins = ["celery.contrib.pytest"]

OUT = Path(os.environ["CONFORMANCE_OUT"])
#: Seconds for a task that only shows that a worker works: others may be before it in its queue.
ALIVE = 60
#: Seconds for a test; nothing that works takes half of that.
LIMIT = 120
#: Tests that sleep for longer by themselves.
SLOW = {
    "test_canvas.py::test_chord::test_enabling_flag_allow_error_cb_on_chord_header": 400,
    "test_canvas.py::test_chord::test_disabling_flag_allow_error_cb_on_chord_header": 400,
}


class Outside:
    """The worker, which is replaced by a new one after a test that failed."""

    def __init__(self) -> None:
        self.app: Celery | None = None
        self.worker: Worker | None = None

    def start(self) -> None:
        folders = [Path(app_file).parent, Path.cwd()]
        self.worker = Worker(
            OUT,
            Path(app_file).stem,
            "-c",
            "1",
            kind=os.environ["CONFORMANCE_WORKER"],
            variables={
                "PYTHONPATH": os.pathsep.join(map(str, folders)),
                "CONFORMANCE_NEWS": news.address,
            },
        )
        threading.Thread(target=repeat_log, args=(self.worker,), daemon=True).start()
        self.worker.wait_ready(timeout=ALIVE)
        self.prove_alive()

    def prove_alive(self) -> None:
        assert self.app is not None
        answer = self.app.send_task("celery.ping").get(timeout=ALIVE)
        assert answer == "pong"

    def end(self) -> int | None:
        """Its exit status after a warm shutdown."""
        assert self.worker is not None
        try:
            return self.worker.stop(timeout=ALIVE)
        finally:
            self.worker.clean_up()
            self.worker = None

    def replace(self) -> None:
        """A test that failed may leave anything behind."""
        assert self.worker is not None
        self.worker.clean_up()
        redis.Redis.from_url(os.environ["TEST_BROKER"]).flushdb()
        self.start()


outside = Outside()


class News:
    """What the worker's processes tell."""

    def __init__(self) -> None:
        # The path of a Unix socket must be short.
        self._folder = tempfile.TemporaryDirectory(prefix="conformance-")
        self.address = f"{self._folder.name}/news"
        self.succeeded: set[str] = set()
        self._closed = False
        self._listener = Listener(self.address, family="AF_UNIX", backlog=64)
        threading.Thread(target=self._listen, daemon=True).start()

    def close(self) -> None:
        self._closed = True
        self._listener.close()
        self._folder.cleanup()

    def _listen(self) -> None:
        while not self._closed:
            try:
                with self._listener.accept() as connection:
                    self._handle(*connection.recv())
                    connection.send(None)
            except (OSError, EOFError):
                # The process that was to tell something is gone.
                continue

    def _handle(self, what: str, name: str, request: dict[str, Any]) -> None:
        if what == "succeeded":
            self.succeeded.add(request["id"])
            return
        received = SimpleNamespace(task_id=request["id"], name=name, task_name=name, **request)
        received.stamps = request["stamps"] or {}
        received.stamped_headers = request["stamped_headers"] or []
        received.replaced_task_nesting = request["replaced_task_nesting"] or 0
        embed = {name: request[name] for name in ("callbacks", "errbacks")}
        received._Request__payload = (request["args"], request["kwargs"], embed)
        task_received.send(sender=None, request=received)


news = News()


def repeat_log(worker: Worker) -> None:
    """Hands the lines of a worker's log to ``logging`` as they come."""
    log = logging.getLogger("worker")
    with open(worker.log_file, errors="replace") as file:
        while worker.process.poll() is None:
            line = file.readline()
            if line:
                log.warning("%s", line.rstrip("\n"))
            else:
                time.sleep(0.02)


def wait_until_idle(manager: ManagerMixin) -> None:
    manager.app.control.purge()
    # The worker runs one task at a time.
    outside.prove_alive()


@pytest.fixture(scope="session")
def celery_session_worker(
    celery_session_app: Celery, celery_includes: set[str], celery_class_tasks: list[type]
) -> Iterator[Outside]:
    for module in celery_includes:
        celery_session_app.loader.import_task_module(module)
    for task in celery_class_tasks:
        celery_session_app.register_task(task)
    outside.app = celery_session_app
    outside.start()
    yield outside
    results["exit status"] = outside.end()


celery.contrib.pytest.celery_session_worker = celery_session_worker
ManagerMixin.wait_until_idle = wait_until_idle
worker_state.successful_requests = news.succeeded

results: dict[str, Any] = {"exit status": None, "tests": {}}


def test_id(nodeid: str) -> str:
    """The id of a test as ``skips.tsv`` has it."""
    return nodeid.removeprefix(f"{suite.INTEGRATION}/")


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    left_out = (skip.test for skip in suite.skips() if skip.is_whole_file)
    return True if collection_path.name in left_out else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for module in {item.getparent(pytest.Module) for item in items}:
        if module is not None and hasattr(module.obj, "assert_ping"):
            module.obj.assert_ping = lambda manager: outside.prove_alive()
    used = {skip for skip in suite.skips() if skip.is_whole_file and is_there(skip)}
    for item in items:
        test = test_id(item.nodeid)
        limit = SLOW.get(test, LIMIT)
        item.add_marker(pytest.mark.timeout(limit), append=False)
        for skip in suite.skips():
            if skip.covers(test):
                used.add(skip)
                item.add_marker(pytest.mark.skip(reason=f"{skip.kind}: {skip.reason}"))
    files = {test_id(item.nodeid).partition("::")[0] for item in items}
    stale = [
        skip.test
        for skip in suite.skips()
        if skip not in used and (skip.file in files or not is_there(skip))
    ]
    if stale:
        raise pytest.UsageError(f"skips.tsv has what is not in the suite: {', '.join(stale)}")


def is_there(skip: suite.Skip) -> bool:
    return (suite.INTEGRATION / skip.file).exists()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    entry = results["tests"].setdefault(
        test_id(report.nodeid), {"outcome": "passed", "reason": "", "seconds": 0.0}
    )
    entry["seconds"] += report.duration
    # A part of a test that fails makes the test fail, whatever comes after it.
    if entry["outcome"] == "passed" and report.outcome != "passed":
        entry["outcome"] = report.outcome
        entry["reason"] = reason(report)


def reason(report: pytest.TestReport) -> str:
    where = report.longrepr
    if isinstance(where, tuple):
        return str(where[2])
    crash = getattr(where, "reprcrash", None)
    return str(crash.message if crash else where)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    done = yield
    entry = results["tests"].get(test_id(item.nodeid), {})
    if entry.get("outcome") == "failed" and outside.worker is not None:
        status = outside.worker.process.poll()
        if status is not None:
            entry["reason"] += f"\nThe worker had ended with exit status {status}."
        outside.replace()
    return done


def pytest_sessionfinish() -> None:
    news.close()
    (OUT / "results.json").write_text(json.dumps(results, indent=1))
