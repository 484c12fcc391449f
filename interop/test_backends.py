"""What result backends hold: the same whichever worker wrote it, child or parent."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Callable

import pytest
from celery import Celery, Signature, chain, chord
from celery.exceptions import TimeoutError as CeleryTimeoutError
from celery.result import AsyncResult
from conftest import Place

from harness.databases import Database, MariaDBServer, MongoServer, PostgresServer
from harness.servers import RedisServer
from harness.wait import wait_until
from harness.workers import APPS, Worker

TIMEOUT = 60

SERVERS: dict[str, Callable[[], Database]] = {
    "postgresql": PostgresServer,
    "mariadb": MariaDBServer,
    "mongodb": MongoServer,
}

#: Each result backend, and settings that change what it holds.
BACKENDS: dict[str, dict[str, Any]] = {
    "redis": {},
    "redis, extended": {"result_extended": True},
    "redis, pickle": {
        "result_serializer": "pickle",
        "accept_content": ["json", "pickle"],
    },
    "rpc": {},
    "sqlite": {},
    "sqlite, extended": {"result_extended": True},
    "postgresql": {},
    "mariadb": {},
    "mongodb": {},
    "filesystem": {},
    "own": {},
}
#: Celery's ``rpc://`` refuses chords.
WITHOUT_CHORDS = ("rpc",)


class Backends:
    """Makes places whose result backend is of a kind; starts servers when they are first needed."""

    def __init__(self, redis: RedisServer) -> None:
        self._redis = redis
        self._servers: dict[str, Database] = {}

    def place(self, name: str, folder: Path) -> Place:
        redis = f"redis://127.0.0.1:{self._redis.port}"
        settings = {"result_chord_retry_interval": 0.2, **BACKENDS[name]}
        number = self._redis.database()
        return Place(
            f"{redis}/{number}", self._url(name, folder), folder, number, settings=settings
        )

    def _url(self, name: str, folder: Path) -> str:
        kind = name.partition(",")[0]
        if kind == "redis":
            return f"redis://127.0.0.1:{self._redis.port}/{self._redis.database()}"
        if kind == "sqlite":
            return f"db+sqlite:///{folder}/results.db"
        if kind in SERVERS:
            server = self._servers.get(kind)
            if server is None:
                server = self._servers[kind] = SERVERS[kind]()
            return server.database() if kind == "mongodb" else f"db+{server.database()}"
        if kind == "filesystem":
            folder.joinpath("results").mkdir()
            return f"file://{folder}/results"
        return {"rpc": "rpc://", "own": "own_backend:Backend"}[kind]

    def stop(self) -> None:
        for server in self._servers.values():
            server.stop()


@pytest.fixture(scope="module")
def backends(redis_server: RedisServer) -> Iterator[Backends]:
    found = Backends(redis_server)
    yield found
    found.stop()


def comparable(text: str) -> str:
    """A text without what differs from run to run: each worker numbers its jobs in its own way."""
    return re.sub(r" Job: \d+\.| at 0x\w+", "", text)


def shown_result(result: Any) -> Any:
    """A result as one can compare it; an exception as its class and arguments."""
    if isinstance(result, BaseException):
        kind = type(result)
        return comparable(f"{kind.__module__}.{kind.__qualname__}{result.args}")
    return result


def shown(meta: dict[str, Any]) -> dict[str, Any]:
    """What a backend holds of a task as one can compare and read it."""
    trace = meta.get("traceback")
    lines = trace.splitlines() if isinstance(trace, str) else None
    found: dict[str, Any] = {
        "status": meta["status"],
        "result": shown_result(meta["result"]),
        # The first line and the last: the frames between are those of each worker's own tracer.
        "traceback": lines and [comparable(lines[0]), comparable(lines[-1])],
        "children": meta.get("children") and len(meta["children"]),
        "is dated": meta.get("date_done") is not None,
        "names": sorted(meta),
    }
    found |= {
        name: meta[name] for name in ("name", "args", "kwargs", "retries", "queue") if name in meta
    }
    return found


class Session:
    """One worker of a kind with one result backend, and all that became of its tasks."""

    def __init__(self, place: Place, worker: Worker, app: Celery) -> None:
        self.place = place
        self.worker = worker
        self.app = app
        self.results: dict[str, AsyncResult] = {}
        self._seen: dict[str, dict[str, Any]] = {}

    def task(self, name: str, *args: Any, **options: Any) -> Signature:
        made = self.app.signature(f"outcomes.{name}", args=args, immutable=options.pop("si", True))
        return made.set(**options)

    def send(self, name: str, *args: Any, called: str | None = None, **options: Any) -> None:
        self.results[called or name] = self.task(name, *args).apply_async(**options)

    def meta(self, called: str) -> dict[str, Any]:
        """What the backend says; ``rpc://`` says it once."""
        found: dict[str, Any] = self.results[called]._get_task_meta()
        if found["status"] != "PENDING":
            self._seen[called] = found
        return self._seen.get(called, found)

    def reaches(self, called: str, state: str, *, consumes: bool = False) -> None:
        """``consumes``: as ``rpc://`` should be waited for, where no earlier state is of interest.
        Asked again and again, it takes what is there and puts it back, on Redis behind what came
        meanwhile, and then an older state counts as the last.
        """

        def context() -> str:
            return f"{self.meta(called)}\n{self.worker.log[-4000:]}"

        def has_reached() -> bool:
            return bool(self.meta(called)["status"] == state)

        if consumes:
            with suppress(CeleryTimeoutError):
                self.results[called].get(timeout=TIMEOUT, propagate=False)
        wait_until(has_reached, f"{called} is {state}", TIMEOUT, context)


#: Every way to end, and the state that the backend has in the end. Those of the second part are
#: written by the process that runs no tasks.
STATES = {
    "add": "SUCCESS",
    "fail": "FAILURE",
    "fail_oddly": "FAILURE",
    "unserialisable": "FAILURE",
    "waiting for a retry": "RETRY",
    "retried in vain": "FAILURE",
    "fail_stored": "FAILURE",
    "progress": "PROGRESS",
    "tracked": "SUCCESS",
    "over_soft_limit": "FAILURE",
    #
    "over_hard_limit": "FAILURE",
    "die": "FAILURE",
    "leave": "FAILURE",
    "reject": "FAILURE",
    "unknown": "FAILURE",
    "expired": "REVOKED",
    "third of a chain": "FAILURE",
    "second of a chain": "FAILURE",
}
CHORDS = {
    "body": "SUCCESS",
    "body of a failed header": "FAILURE",
    "body of a lost header": "FAILURE",
    "body of a header over its limit": "FAILURE",
    "body of an expired header": "FAILURE",
}
#: Nothing is ever stored of them.
NEVER = ("ignored", "fail_ignored", "ignore")


def send_all(session: Session) -> None:
    send, task = session.send, session.task
    send("add", 2, 3)
    for name in ("fail", "fail_oddly", "unserialisable", "fail_stored", "progress", *NEVER):
        send(name)
    send("retry", 3600, called="waiting for a retry")
    send("retry", 0, called="retried in vain")
    send("tracked", 0)
    for name in ("over_soft_limit", "over_hard_limit", "die", "leave", "reject", "unknown"):
        send(name)
    # It is on the worker's hands when it expires.
    send("add", 1, 1, called="expired", countdown=1, expires=0.5)
    chained = chain(task("add", 1, 1), task("die"), task("add", 1, 1)).apply_async()
    session.results["third of a chain"] = chained
    session.results["second of a chain"] = chained.parent
    session.results["first of a chain"] = chained.parent.parent
    errback = session.app.signature("outcomes.old_errback")
    task("die", link_error=errback).apply_async(task_id="lost with an errback")


def send_chords(session: Session) -> None:
    task = session.task
    for called, header in (
        ("body", task("add", 4, 4)),
        ("body of a failed header", task("fail")),
        ("body of a lost header", task("die")),
        ("body of a header over its limit", task("over_hard_limit")),
        ("body of an expired header", task("add", 1, 1, countdown=1, expires=0.5)),
    ):
        # A good one is there as well, whose result is of no use then.
        header.set(task_id=f"header of {called}")
        body = task("total", si=False, task_id=called)
        body.on_error(session.app.signature("outcomes.errback"))
        session.results[called] = chord([task("add", 1, 1), header])(body)


def run_session(place: Place, kind: str) -> dict[str, Any]:
    """Has a worker of a kind run everything, and returns what the backend holds then."""
    # Without that, Celery's worker accepts no pickle from root.
    variables = {**place.variables(), "C_FORCE_ROOT": "1"}
    worker = Worker(place.folder, "outcomes", "-c", "3", kind=kind, variables=variables)
    app = Celery("client", broker=place.broker, backend=place.backend)
    app.conf.update(place.settings)
    try:
        worker.wait_ready()
        session = Session(place, worker, app)
        expected = dict(STATES)
        send_all(session)
        if not place.backend.startswith(WITHOUT_CHORDS):
            send_chords(session)
            expected |= CHORDS
        for called, state in expected.items():
            session.reaches(called, state)
        wait_until(
            lambda: "old_errback lost with an errback" in place.lines(), "the errback ran", TIMEOUT
        )
        # What it has on its hands is written then.
        assert worker.stop(timeout=TIMEOUT) == 0
        found: dict[str, Any] = {called: shown(session.meta(called)) for called in session.results}
        found["errbacks"] = sorted(
            comparable(line) for line in place.lines() if line[:7] == "errback"
        )
        return found
    finally:
        worker.clean_up()
        app.close()


@pytest.fixture(scope="module", params=BACKENDS)
def held(
    request: pytest.FixtureRequest, backends: Backends, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """What a backend holds after Celery's worker, and after ours."""
    patch = pytest.MonkeyPatch()
    made = {}
    for kind in ("celery", "celeriac"):
        folder = tmp_path_factory.mktemp("backend")
        place = backends.place(request.param, folder)
        with patch.context() as here:
            here.syspath_prepend(str(APPS))
            here.setenv("INTEROP_FOLDER", str(folder))
            made[kind] = run_session(place, kind)
            # What is left of results wants to talk to the server, which is there for now.
            gc.collect()
    return made


def test_each_result_is_what_celerys_worker_leaves(held):
    theirs, ours = held["celery"], held["celeriac"]
    assert ours.keys() == theirs.keys()
    for called in theirs:
        # The last task of a header ends a chord, in a child or in the parent.
        varying = ("children", "traceback") if called in CHORDS else ()
        for name in theirs[called] if called != "errbacks" else ():
            if name not in varying:
                assert ours[called][name] == theirs[called][name], (called, name)


#: What is written where no task runs.
BY_THE_PARENT = {
    "over_hard_limit": "billiard.exceptions.TimeLimitExceeded(0.5,)",
    "die": "billiard.exceptions.WorkerLostError('Worker exited prematurely: signal 9 (SIGKILL)',)",
    "leave": "billiard.exceptions.WorkerLostError('Worker exited prematurely: exitcode 3.',)",
    "reject": "celery.exceptions.Reject('unwanted', False)",
    "unknown": "celery.exceptions.NotRegistered('outcomes.unknown',)",
    "expired": "celery.exceptions.TaskRevokedError('expired',)",
}


@pytest.mark.parametrize("kind", ["celery", "celeriac"])
def test_what_no_task_could_write_is_there(held, kind):
    """That both are the same would be true of nothing as well."""
    for called, result in BY_THE_PARENT.items():
        meta = held[kind][called]
        assert (meta["result"], meta["traceback"], meta["is dated"]) == (result, None, True), called
    for called, state in STATES.items():
        assert held[kind][called]["status"] == state, called
    for called in NEVER:
        assert held[kind][called]["status"] == "PENDING", called


@pytest.mark.parametrize("kind", ["celery", "celeriac"])
def test_a_chord_whose_header_fails_in_the_parent_fails(held, kind):
    if "body" not in held[kind]:
        pytest.skip("Celery refuses chords with this backend")
    assert held[kind]["body"]["result"] == 10
    for called in CHORDS:
        if called != "body":
            assert held[kind][called]["result"].startswith("celery.exceptions.ChordError("), called
            assert any(f"errback {called} ChordError(" in line for line in held[kind]["errbacks"])


@pytest.fixture
def session(
    request: pytest.FixtureRequest,
    backends: Backends,
    tmp_path: Path,
    start: Callable[..., Worker],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Session]:
    """A worker with one process and a backend of the kind that the test asks for."""
    place = backends.place(request.param, tmp_path)
    monkeypatch.syspath_prepend(str(APPS))
    monkeypatch.setenv("INTEROP_FOLDER", str(tmp_path))
    worker = start(place, "-c", "1", app="outcomes")
    app = Celery("client", broker=place.broker, backend=place.backend)
    app.conf.update(place.settings)
    yield Session(place, worker, app)
    app.close()
    gc.collect()


#: Those that hold more, or that hold it in another form, say nothing new of what is revoked.
PLAIN = [name for name in BACKENDS if "," not in name]


@pytest.mark.parametrize("session", PLAIN, indirect=True)
def test_what_is_revoked_is_stored_as_revoked(session):
    session.send("tracked", 60, called="running")
    session.reaches("running", "STARTED")
    assert sorted(session.meta("running")["result"]) == ["hostname", "pid"]
    session.send("add", 1, 1, called="waiting")
    session.send("add", 1, 1, called="scheduled", countdown=3600)
    # A task that ends a chord unless it is revoked.
    if not session.place.backend.startswith(WITHOUT_CHORDS):
        header = [session.task("add", 1, 1, task_id=f"header {number}") for number in range(2)]
        body = session.task("total", si=False, task_id="body")
        session.results["body"] = chord(header)(body.on_error(session.task("errback", si=False)))
        session.app.control.revoke("header 1")
    by_request = session.place.backend.startswith("rpc")
    session.app.control.revoke([session.results[called].id for called in ("waiting", "scheduled")])
    if not by_request:
        # Workers store it before they come to it, and at once.
        session.reaches("waiting", "REVOKED")
        session.reaches("scheduled", "REVOKED")
    session.app.control.revoke(session.results["running"].id, terminate=True, signal="SIGKILL")
    session.reaches("running", "REVOKED", consumes=by_request)
    session.reaches("waiting", "REVOKED", consumes=by_request)
    for called, reason in (("waiting", "revoked"), ("running", "terminated")):
        meta = session.meta(called)
        assert shown_result(meta["result"]) == f"celery.exceptions.TaskRevokedError('{reason}',)"
        assert (meta["traceback"], meta["date_done"] is None) == (None, False)
    if "body" in session.results:
        session.reaches("body", "FAILURE")
        assert "TaskRevokedError('revoked')" in str(session.meta("body")["result"])
        wait_until(lambda: "errback body" in "".join(session.place.lines()), "the errback ran")
    session.send("add", 2, 2, called="after")
    session.reaches("after", "SUCCESS")
    assert session.worker.stop(timeout=TIMEOUT) == 0
