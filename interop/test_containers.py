"""Containers as tasks, with a Docker engine of our own: show 6 of the issue.

Where no engine can run, these tests are skipped and say so, unless ``CELERIAC_DOCKER=required``."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Callable

import pytest
from celery import Celery
from celery.result import AsyncResult
from conftest import Place

from harness import processes, workers
from harness.docker_engine import DockerEngine, NoEngine, is_required
from harness.wait import stays, wait_until

pytestmark = pytest.mark.skipif(
    workers.KIND != "celeriac", reason="Celery's own worker has no such tasks"
)


@pytest.fixture(scope="module")
def engine() -> Iterator[DockerEngine]:
    try:
        started = DockerEngine()
    except NoEngine as error:
        text = f"NO DOCKER ENGINE, NOTHING OF CONTAINERS IS TESTED: {error}"
        if is_required():
            pytest.fail(text)
        print(text, file=sys.__stderr__)
        pytest.skip(text)
    yield started
    started.stop()


@pytest.fixture(autouse=True)
def nothing_left(engine: DockerEngine) -> Iterator[None]:
    """No test leaves a container behind."""
    yield
    left = engine.containers()
    engine.remove_all()
    assert left == []


@pytest.fixture
def run(
    fanout_place: Place,
    engine: DockerEngine,
    start: Callable[..., workers.Worker],
    client: Callable[..., ModuleType],
) -> Callable[..., Run]:
    def begin(**options: Any) -> Run:
        return Run(fanout_place, engine, start, client(fanout_place).app, options)

    return begin


class Run:
    """A worker with the task, and a client that knows no more than its name."""

    def __init__(
        self,
        place: Place,
        engine: DockerEngine,
        start: Callable[..., workers.Worker],
        app: Celery,
        options: dict[str, Any],
    ) -> None:
        self.folder = place.folder
        self.engine = engine
        self.app = app
        self.broker = place.broker
        self._place = place
        self._start = start
        given = {"host": engine.host, "retry_delay": 0.1, "max_retries": 1, "grace": 1, **options}
        lines = [f"{name} = {_toml(value)}" for name, value in given.items()]
        (self.folder / "celeriac.toml").write_text(
            "\n".join(["[containers.run_docker]", *lines, ""])
        )
        self.output = self.folder / "output"
        self.output.mkdir()
        self.log = self.folder / "logs" / "log"
        self.worker = self.start()

    def start(self) -> workers.Worker:
        return self._start(self._place, "-c", "1", cwd=self.folder)

    def send(self, script: str, **more: Any) -> AsyncResult[Any]:
        """Has a shell run a script, with the options of ``apply_async`` under ``options``."""
        options = more.pop("options", {})
        arguments = {
            "image": "busybox",
            "command": ["sh", "-c", script],
            "logoutfile": str(self.log),
            "outputpath": str(self.output),
        }
        return self.app.send_task("tasks.run_docker", kwargs={**arguments, **more}, **options)

    def logged(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def wait_logged(self, text: str) -> None:
        wait_until(
            lambda: text in self.logged(), f"{text!r} in the log file", 60, lambda: self.worker.log
        )


def _toml(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value).lower()


def test_celery_docker_s_own_test(run: Callable[..., Run]) -> None:
    it = run()
    given = it.folder / "input.txt"
    given.write_text("hello world")
    result = it.send("md5sum /input > /output/output.txt && echo Done", inputpath=str(given))
    assert result.get(timeout=60) == {"id": result.id, "output": "Done\n", "truncated": False}
    assert it.logged() == "Done\n"
    written = (it.output / "output.txt").read_text()
    assert written == "5eb63bbbe01eeed093cb22bb8f5acdc3  /input\n"
    # celery_docker_store_tasks_hours is 384 in that role.
    backend = it.app.backend
    assert 383 * 3600 < backend.client.ttl(backend.get_key_for_task(result.id)) <= 384 * 3600


def test_a_failure_is_retried_and_its_output_kept(run: Callable[..., Run]) -> None:
    it = run(max_retries=2)
    failed = it.send("echo attempt; echo x >>/output/runs; exit 3")
    failed.get(timeout=60, propagate=False)
    assert failed.state == "FAILURE"
    assert "returned non-zero exit status 3" in str(failed.result)
    assert (it.output / "runs").read_text() == "x\n" * 3
    assert it.logged() == "attempt\n" * 3


def test_wrong_arguments_are_not_retried(run: Callable[..., Run]) -> None:
    it = run()
    for more in (
        {"inputpath": "relative"},
        {"inputpath": "/nonexistent"},
        {"inputpath": str(it.output)},
        {"user": "no such user"},
    ):
        failed = it.send("true", **more)
        with pytest.raises(ValueError):
            failed.get(timeout=60)
    assert "Retry in" not in it.worker.log


@pytest.mark.parametrize("limit", ["time_limit", "soft_time_limit"])
def test_a_container_over_its_time_limit_is_gone(run: Callable[..., Run], limit: str) -> None:
    it = run()
    late = it.send("echo on; sleep 1000", options={limit: 2})
    late.get(timeout=60, propagate=False)
    expected = "TimeLimitExceeded" if limit == "time_limit" else "SoftTimeLimitExceeded"
    assert type(late.result).__name__ == expected
    assert it.engine.containers() == []
    assert it.logged() == "on\n"


def test_a_revoked_container_is_gone(run: Callable[..., Run]) -> None:
    it = run()
    revoked = it.send("echo on; sleep 1000")
    it.wait_logged("on\n")
    assert it.engine.containers() == [f"run-{revoked.id}"]
    revoked.revoke(terminate=True)
    revoked.get(timeout=60, propagate=False)
    assert revoked.state == "REVOKED"
    # As with Celery, the state is stored when the revoke comes.
    wait_until(lambda: not it.engine.containers(), "the container is gone")


def test_a_killed_worker_s_container_is_gone_on_with(run: Callable[..., Run]) -> None:
    it = run()
    script = (
        "echo one; echo x >>/output/runs; while [ ! -e /output/go ]; do sleep 1; done; echo two"
    )
    result = it.send(script)
    it.wait_logged("one\n")
    it.worker.send(signal.SIGKILL)
    it.worker.process.wait()
    assert it.engine.containers() == [f"run-{result.id}"]
    it.worker = it.start()
    it.worker.wait_for("going on with it", 120)
    (it.output / "go").touch()
    assert result.get(timeout=60)["output"] == "one\ntwo\n"
    assert it.logged() == "one\ntwo\n"
    assert (it.output / "runs").read_text() == "x\n"


def test_much_output_does_not_fill_the_worker(run: Callable[..., Run]) -> None:
    it = run(output_tail="1K")
    before = processes.rss_kib(it.worker.pid)
    result = it.send("head -c 100000000 /dev/zero | tr '\\0' x; echo end")
    peak = 0

    def is_done() -> bool:
        nonlocal peak
        peak = max(peak, processes.rss_kib(it.worker.pid))
        return result.ready()

    wait_until(is_done, "it is done", 120, lambda: it.worker.log)
    shown = result.get(timeout=1)
    assert shown["truncated"] and len(shown["output"]) == 1024
    assert shown["output"].endswith("xend\n")
    assert Path(it.log).stat().st_size == 100_000_004
    assert peak - before < 50_000


def test_a_warm_shutdown_waits_for_a_container(run: Callable[..., Run]) -> None:
    it = run()
    result = it.send("echo on; while [ ! -e /output/go ]; do sleep 1; done; echo off")
    it.wait_logged("on\n")
    it.worker.send(signal.SIGTERM)
    it.worker.wait_for("arm shutdown")
    stays(lambda: it.worker.process.poll() is None, "it waits", 1)
    (it.output / "go").touch()
    assert it.worker.wait() == 0
    assert result.get(timeout=60)["output"] == "on\noff\n"


def test_the_command_line_sends_a_call_and_prints_its_id(run: Callable[..., Run]) -> None:
    it = run()
    words = ["--outputpath", "output", "--out", "logs/log", "busybox", "--"]
    script = "echo there > /output/file; echo done"
    done = workers.run(
        "celeriac",
        *("--broker", it.broker, "run-docker", *words, "sh", "-c", script),
        cwd=it.folder,
    )
    assert done.returncode == 0, done.stderr
    result = it.app.AsyncResult(done.stdout.strip())
    assert result.get(timeout=60)["output"] == "done\n"
    assert (it.output / "file").read_text() == "there\n"
    assert it.logged() == "done\n"
    nowhere = workers.run("celeriac", "run-docker", "busybox", "--", "true", cwd=it.folder)
    assert nowhere.returncode != 0
    assert "Nobody says where the broker is" in nowhere.stderr
