"""A plugin for pytest that gives Celery's integration suite a worker outside of its process.

The suite takes ``celery_session_worker`` from ``celery.contrib.pytest``; this module is loaded
before and puts another fixture there. The suite's files stay as they are. What they read inside
the process of a worker is put in its place:

* the signal ``task_received`` is sent here when a task begins in the worker's process pool;
* ``successful_requests`` holds the ids of tasks whose end the process pool told of;
* ``revoked_stamps.clear()`` starts the worker anew: no command of remote control clears them;
* the log of the worker is repeated here for ``caplog``;
* the name of the node is that of a worker in this process, and where a test asks for its own
  process id it gets the worker's.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import threading
import time
from collections.abc import Collection, Iterator
from multiprocessing.connection import Listener
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import celery.contrib.pytest
import pytest
import redis
from celery import Celery
from celery.signals import task_received
from celery.utils.nodenames import anon_nodename
from celery.worker import state as worker_state
from kombu import Connection

from conformance import suite
from conformance.conformance_app import __file__ as app_file
from harness.workers import Worker

pytest_plugins = ["celery.contrib.pytest"]

OUT = Path(os.environ["CONFORMANCE_OUT"])
BROKER = os.environ["TEST_BROKER"]
WORKER = os.environ["CONFORMANCE_WORKER"]
#: Which part of the suite is run here, and of how many.
PART, OF = map(int, os.environ["CONFORMANCE_PART"].split("/"))
#: Seconds for a task that only shows that a worker works: others may be before it in its queue.
ALIVE = 60
#: Seconds for a test that is not known to be slow; nothing that works takes half of that.
LIMIT = 120


class Outside:
    """The worker, which is replaced by a new one after a test that failed."""

    def __init__(self) -> None:
        self.app: Celery | None = None
        self.worker: Worker | None = None
        #: When it ended by itself: after which test, and its exit status.
        self.deaths: list[str] = []

    def start(self) -> None:
        folders = [Path(app_file).parent, Path.cwd()]
        self.worker = Worker(
            OUT,
            Path(app_file).stem,
            *("-c", "1", "-n", anon_nodename(), "--without-heartbeat"),
            kind=WORKER,
            variables={
                "PYTHONPATH": os.pathsep.join(map(str, folders)),
                "CONFORMANCE_NEWS": news.address,
            },
        )
        threading.Thread(target=repeat_log, args=(self.worker,), daemon=True).start()
        self.worker.wait_ready(timeout=ALIVE)
        self.prove_alive()

    def pid(self) -> int:
        assert self.worker is not None
        return self.worker.pid

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
        if BROKER.startswith("redis"):
            redis.Redis.from_url(BROKER).flushdb()
        else:
            with Connection(BROKER) as connection:
                connection.default_channel.queue_delete("celery")
        self.start()

    def look_after(self, test: str, failed: bool) -> str:
        """After each test. Returns what became of the worker, if it is not there."""
        if self.worker is None:
            return ""
        status = self.worker.process.poll()
        ended = "" if status is None else f"the worker ended with exit status {status}"
        if ended:
            self.deaths.append(f"{test}: {ended}")
        if failed or ended:
            self.replace()
        return ended


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


class Stamps(dict[str, Any]):
    """Has the worker forget what it was told to revoke by stamps."""

    def clear(self) -> None:
        status = outside.end()
        if status != 0:
            outside.deaths.append(f"a warm shutdown ended with exit status {status}")
        outside.start()


class Substitute:
    """A module with other things for some of its names."""

    def __init__(self, module: Any, **others: Any) -> None:
        self._module = module
        self.__dict__.update(others)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


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
worker_state.successful_requests = news.succeeded
worker_state.revoked_stamps = Stamps()

results: dict[str, Any] = {"exit status": None, "deaths": outside.deaths, "tests": {}}


def test_id(nodeid: str) -> str:
    """The id of a test as ``skips.tsv`` has it."""
    return nodeid.removeprefix(f"{suite.INTEGRATION}/")


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    left_out = (skip.test for skip in suite.skips() if skip.is_whole_file)
    return True if collection_path.name in left_out else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    slow = suite.slow()
    seconds: dict[str, float] = {}
    left_out = set()
    for item in items:
        test = test_id(item.nodeid)
        seconds[test] = slow.get(test, suite.USUAL)
        item.add_marker(pytest.mark.timeout(max(LIMIT, 3 * seconds[test])), append=False)
        for skip in suite.skips():
            if skip.covers(test):
                left_out.add(skip.test)
            if skip.covers(test) and skip.holds_for(WORKER, BROKER):
                seconds[test] = 0.0
                item.add_marker(pytest.mark.skip(reason=f"{skip.kind}: {skip.reason}"))
        module = item.getparent(pytest.Module)
        if module is not None and module.name == "test_inspect.py":
            module.obj.os = Substitute(os, getpid=outside.pid)
    if not any("::" in given for given in config.args):
        complain_of_stale(seconds, left_out)
    here = suite.part(seconds, PART, OF)
    items[:] = [item for item in items if test_id(item.nodeid) in here]


def complain_of_stale(tests: Collection[str], left_out: set[str]) -> None:
    """What the tables name must be in the suite."""
    collected = {suite.file_of(test) for test in tests}
    named = {skip.test for skip in suite.skips()} - left_out | suite.slow().keys() - set(tests)
    stale = []
    for test in sorted(named):
        file = suite.file_of(test)
        there = (suite.INTEGRATION / file).exists()
        if not there or (file in collected and file != test):
            stale.append(test)
    if stale:
        raise pytest.UsageError(f"the suite does not have: {', '.join(stale)}")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    entry = results["tests"].setdefault(
        test_id(report.nodeid), {"outcome": "passed", "reason": "", "seconds": 0.0}
    )
    entry["seconds"] += report.duration
    # A part of a test that fails makes the test fail, whatever comes after it.
    if report.outcome == "failed" or (entry["outcome"] == "passed" and report.skipped):
        entry["outcome"] = report.outcome
        entry["reason"] = entry["reason"] or reason(report)


def reason(report: pytest.TestReport) -> str:
    where = report.longrepr
    if isinstance(where, tuple):
        return str(where[2])
    crash = getattr(where, "reprcrash", None)
    return str(crash.message if crash else where)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    done = yield
    test = test_id(item.nodeid)
    entry = results["tests"].get(test, {})
    ended = outside.look_after(test, failed=entry.get("outcome") == "failed")
    if ended:
        entry["reason"] += f"\n{ended}"
    return done


def pytest_sessionfinish() -> None:
    news.close()
    (OUT / "results.json").write_text(json.dumps(results, indent=1))
