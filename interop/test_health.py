"""What probes are told of a worker, and that it is true."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Place, place_on_redis

from harness import workers
from harness.servers import RabbitServer, RedisServer, free_port
from harness.wait import wait_until

TIMEOUT = 60
#: What is longer than any timeout of a probe here, and shorter than waiting for ever.
SOON = 10

pytestmark = pytest.mark.skipif(workers.KIND != "celeriac", reason="celery has no such command")

OK, UNWELL, NO_WORKER = 0, 1, 69


class Health:
    """``celeriac health`` of the workers of one test, which has a folder for sockets of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Nothing that the command asks for: neither an app nor an interpreter.
        self.variables = {"XDG_RUNTIME_DIR": str(folder), "CELERIAC_PYTHON": "/nowhere/python"}

    def __call__(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*workers.command("celeriac"), "health", *arguments],
            env=workers.environment(**{**self.variables, **variables}),
            capture_output=True,
            text=True,
            timeout=SOON,
        )

    def status(self, *arguments: str) -> int:
        return self(*arguments).returncode

    def wait_for(self, status: int, *arguments: str, words: str = "") -> str:
        """Waits until the command exits with ``status`` and says ``words``."""

        def found() -> str | None:
            asked = self(*arguments)
            said = asked.stdout + asked.stderr
            return said if asked.returncode == status and words in said else None

        what = f"health {' '.join(arguments)} is {status}, {words!r}"
        said = wait_until(found, what, TIMEOUT, lambda: repr(self(*arguments)))
        assert said is not None
        return said

    def sockets(self) -> list[Path]:
        return list(self.folder.glob("celeriac/health/*.sock"))


@pytest.fixture
def health() -> Iterator[Health]:
    # Paths of sockets are short.
    folder = Path(tempfile.mkdtemp(prefix="health"))
    yield Health(folder)
    shutil.rmtree(folder)


@pytest.fixture
def run(start: Any, health: Health) -> Any:
    """Starts workers where ``health`` finds them."""

    def begin(place: Place, *arguments: str, **options: Any) -> workers.Worker:
        variables = {"XDG_RUNTIME_DIR": str(health.folder), **options.pop("variables", {})}
        worker: workers.Worker = start(place, *arguments, variables=variables, **options)
        return worker

    return begin


def test_a_worker_that_works_is_well(place, run, health):
    worker = run(place, "-c", "1")
    for question, word in [("--live", "live"), ("--ready", "ready"), ("--started", "started")]:
        asked = health(question)
        assert (asked.returncode, asked.stdout) == (OK, f"{worker.node}: {word}\n")
    report = json.loads(health("--json").stdout)
    assert report["hostname"] == worker.node and report["pid"] == worker.pid
    assert report["ready"] == {"ok": True, "reasons": []}
    (socket,) = health.sockets()
    assert socket.parent.stat().st_mode & 0o777 == 0o700
    assert worker.stop(timeout=TIMEOUT) == 0
    assert health.status() == NO_WORKER
    assert not health.sockets(), "nothing is left of it"


def test_no_worker_is_no_answer(health):
    for question in ([], ["--live"], ["-n", "w1@%h"]):
        asked = health(*question)
        assert asked.returncode == NO_WORKER
        assert "No worker" in asked.stderr
    assert health("--pidfile", "/nowhere/pid").returncode == NO_WORKER


def test_a_worker_whose_broker_is_down_lives_and_is_not_ready(tmp_path, run, health):
    folder = tmp_path / "redis"
    folder.mkdir()
    server = RedisServer(folder)
    try:
        run(place_on_redis(server, tmp_path), "-c", "1")
        health.wait_for(OK)
        server.stop()
        health.wait_for(UNWELL, words="no connection to the broker")
        assert health.status("--live") == OK
        assert health.status("--started") == OK
        server.start()
        health.wait_for(OK)
        assert health.status("--live") == OK
    finally:
        server.stop()


def test_a_worker_whose_rabbitmq_is_down_lives_and_is_not_ready(
    tmp_path, redis_server, run, health
):
    folder = tmp_path / "rabbit"
    folder.mkdir()
    server = RabbitServer(folder)
    try:
        place = Place(
            server.url(server.vhost()), redis_server.url(redis_server.database()), tmp_path
        )
        run(place, "-c", "1")
        health.wait_for(OK)
        server.stop()
        health.wait_for(UNWELL, words="no connection to the broker")
        assert health.status("--live") == OK
        server.start()
        health.wait_for(OK)
    finally:
        server.close()


def test_a_broker_that_does_not_answer_is_noticed(tmp_path, run, health):
    folder = tmp_path / "redis"
    folder.mkdir()
    server = RedisServer(folder)
    try:
        run(place_on_redis(server, tmp_path), "-c", "1")
        health.wait_for(OK)
        os.kill(server.pid, signal.SIGSTOP)
        said = health.wait_for(UNWELL)
        assert "owed an answer" in said or "no connection" in said
        assert health.status("--live") == OK
        os.kill(server.pid, signal.SIGCONT)
        health.wait_for(OK)
    finally:
        server.stop()


def test_a_worker_that_waits_for_its_broker_lives_and_has_not_started(tmp_path, run, health):
    place = Place(f"redis://127.0.0.1:{free_port()}/0", "cache+memory://", tmp_path)
    worker = run(place, "-c", "1", ready=False)
    worker.wait_for("Cannot connect to")
    health.wait_for(UNWELL, "--started", words="it waits for the broker")
    assert health.status("--live") == OK
    assert health.status() == UNWELL


def test_a_worker_that_drains_lives_and_is_not_ready(fanout_place, run, health, client):
    app = client(fanout_place)
    worker = run(fanout_place, "-c", "1")
    app.sleep_late.delay(300, fanout_place.file(), "task")
    wait_until(lambda: fanout_place.lines() == ["start task"], "it runs", TIMEOUT)
    assert health.status() == OK
    worker.send(signal.SIGTERM)
    health.wait_for(UNWELL, words="it is shutting down; 1 tasks still run")
    assert health.status("--live") == OK
    assert worker.stop(signal.SIGQUIT, TIMEOUT) == 0


def test_a_worker_that_is_stopped_does_not_live(redis_place, run, health):
    worker = run(redis_place, "-c", "1")
    worker.send(signal.SIGSTOP)
    for question in ("--live", "--ready"):
        began = time.monotonic()
        asked = health(question, "--timeout", "0.3")
        assert asked.returncode == UNWELL
        assert f"process {worker.pid}:" in asked.stdout
        assert "does not answer within 0.3 s" in asked.stdout
        assert time.monotonic() - began < SOON
    assert "within 1 s" in health().stdout, "the default"
    worker.send(signal.SIGCONT)
    health.wait_for(OK)


def test_several_workers_of_one_host(redis_place, run, health):
    pidfile = redis_place.folder / "first.pid"
    first = run(redis_place, "-c", "1", "-n", "first@%h", "--pidfile", str(pidfile))
    second = run(redis_place, "-c", "1", "-n", "second@%h")
    assert len(health().stdout.splitlines()) == 2
    second.send(signal.SIGSTOP)
    fast = ("--timeout", "0.5")
    assert health.status(*fast) == UNWELL, "one of them is"
    assert health.status("-n", "first@%h", *fast) == OK
    assert health.status("--pidfile", str(pidfile), *fast) == OK
    assert health.status("-n", "second@%h", *fast) == UNWELL
    assert health.status("-n", "third@%h", *fast) == NO_WORKER
    asked = health(*fast, CELERY_WORKER_HOSTNAME="first@%h")
    assert asked.returncode == OK, "a probe has the environment of its container"
    second.send(signal.SIGCONT)
    health.wait_for(OK)
    assert first.stop(timeout=TIMEOUT) == 0
    assert len(health().stdout.splitlines()) == 1


def test_what_a_killed_worker_leaves_is_replaced(redis_place, run, health):
    worker = run(redis_place, "-c", "1", "-n", "same@%h")
    worker.kill()
    (left,) = health.sockets()
    assert health.status() == NO_WORKER
    assert health.status("-n", "same@%h") == NO_WORKER
    run(redis_place, "-c", "1", "-n", "same@%h")
    assert health.status("-n", "same@%h") == OK
    (socket,) = health.sockets()
    assert socket != left


def test_a_folder_that_others_can_enter_is_not_used(redis_place, run, health):
    folder = health.folder / "celeriac"
    folder.mkdir()
    folder.chmod(0o755)
    worker = run(redis_place, "-c", "1")
    assert not list(folder.iterdir()), "it is elsewhere"
    health.wait_for(OK, "-n", worker.node)
    assert worker.stop(timeout=TIMEOUT) == 0


def test_a_pool_whose_processes_die_at_their_start_is_not_ready(redis_place, run, health):
    worker = run(redis_place, "-c", "2", app="crashing")
    health.wait_for(OK)
    die = redis_place.folder / "die"
    die.touch()
    for pid in worker.children():
        os.kill(pid, signal.SIGKILL)
    health.wait_for(UNWELL, words="processes of the pool died while they started")
    assert health.status("--live") == OK
    die.unlink()
    health.wait_for(OK)


def test_a_worker_whose_zygote_died_is_ready_again(redis_place, run, health):
    worker = run(redis_place, "-c", "1")
    os.kill(worker.host("zygote"), signal.SIGKILL)
    worker.wait_for("The zygote process is gone")
    health.wait_for(OK)


def test_a_worker_that_consumes_from_no_queue_is_not_ready(redis_place, run, health, client):
    app = client(redis_place)
    run(redis_place, "-c", "1")
    app.app.control.cancel_consumer("celery")
    health.wait_for(UNWELL, words="it consumes from no queue")
    app.app.control.add_consumer("celery")
    health.wait_for(OK)


def get(address: str, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=SOON) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.parametrize("source", ["option", "variable", "setting"])
def test_probes_over_http(redis_place, run, client, source):
    address = f"127.0.0.1:{free_port()}"
    app = client(redis_place)
    given = ("--health-address", address) if source == "option" else ()
    variables = {"CELERIAC_HEALTH_ADDRESS": address} if source == "variable" else {}
    if source == "setting":
        redis_place.settings = {"celeriac_health_address": address}
    worker = run(redis_place, "-c", "1", *given, variables=variables)
    for path, word in [("/livez", "live"), ("/readyz", "ready"), ("/startupz", "started")]:
        assert get(address, path) == (200, f"{word}\n")
    assert json.loads(get(address, "/health")[1])["hostname"] == worker.node
    assert get(address, "/metrics")[0] == 404
    app.sleep_late.delay(300, redis_place.file(), "task")
    wait_until(lambda: redis_place.lines() == ["start task"], "it runs", TIMEOUT)
    worker.send(signal.SIGTERM)
    wait_until(lambda: get(address, "/readyz")[0] == 503, "it drains", TIMEOUT)
    assert get(address, "/livez") == (200, "live\n")
    assert "not ready: it is shutting down; 1 tasks still run" in get(address, "/readyz")[1]
    assert worker.stop(signal.SIGQUIT, TIMEOUT) == 0


def test_without_an_address_nothing_listens(redis_place, run):
    worker = run(redis_place, "-c", "1")
    found = subprocess.run(["ss", "-ltnpH"], capture_output=True, text=True, check=True).stdout
    assert f"pid={worker.pid}," not in found


def test_an_address_that_is_taken_is_refused(redis_place, redis_server, run):
    address = f"127.0.0.1:{redis_server.port}"
    worker = run(redis_place, "-c", "1", "--health-address", address, ready=False)
    assert worker.wait(TIMEOUT) == 1
    assert f"Probes can't be answered at {address}" in worker.log
    assert "--health-address" in worker.log
