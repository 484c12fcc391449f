"""A broker that is away, refuses the worker, or is full: told clearly, and nothing is lost."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import workers
from harness.queues import queues_of
from harness.servers import RedisServer
from harness.wait import wait_until

TIMEOUT = 60
PASSWORD = "geheim-7291"


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server of the test's own, which it may stop and start."""
    folder = tmp_path / "server"
    folder.mkdir()
    # What waits must be there when the server comes back.
    server = RedisServer(folder, "--appendonly", "yes", "--appendfsync", "always")
    yield server
    server.stop()


@pytest.fixture
def own_place(redis_place, own_server):
    """A place on that server; ``kept`` messages are in its queue."""
    redis_place.broker = f"redis://127.0.0.1:{own_server.port}/1"
    return redis_place


def ends(worker) -> int:
    """The exit status of a worker that is to end by itself."""
    return worker.wait(TIMEOUT)


def assert_no_insides(shown: str) -> None:
    for inside in ("<celeriac>", "celeriac/host", "panicked", "RUST_BACKTRACE", ".rs:"):
        assert inside not in shown, shown


def test_an_unreachable_broker_is_tried_again_until_it_comes(own_place, own_server, start, client):
    own_place.settings = {"broker_connection_retry_on_startup": True}
    app = client(own_place)
    waited = app.add.delay(1, 2)
    own_server.stop()
    worker = start(own_place, "-c", "1", ready=False)
    url = f"redis://127.0.0.1:{own_server.port}/1".replace("://", "://:**@")
    worker.wait_for(f"consumer: Cannot connect to {url}: ")
    worker.wait_for("Trying again in 2.00 seconds... (1/100)")
    worker.wait_for("Trying again in 4.00 seconds... (2/100)")
    own_server.start()
    worker.wait_for(f"Connected to {url}", TIMEOUT)
    worker.wait_ready(TIMEOUT)
    assert waited.get(timeout=TIMEOUT) == 3
    assert app.add.delay(3, 4).get(timeout=TIMEOUT) == 7
    assert worker.stop() == 0
    assert_no_insides(worker.log)


def test_a_broker_that_goes_away_is_waited_for(own_place, own_server, start, client):
    app = client(own_place)
    worker = start(own_place, "-c", "1")
    assert app.add.delay(1, 2).get(timeout=TIMEOUT) == 3
    own_server.stop()
    worker.wait_for("Connection to broker lost. Trying to re-establish the connection...")
    worker.wait_for("Cannot connect to redis://")
    own_server.start()
    assert app.add.delay(3, 4).get(timeout=TIMEOUT) == 7
    assert worker.stop() == 0


@pytest.mark.parametrize(
    "settings",
    [
        {"broker_connection_retry_on_startup": False},
        {"broker_connection_retry": False},
        {"broker_connection_retry_on_startup": True, "broker_connection_max_retries": 1},
    ],
    ids=["not on startup", "never", "once"],
)
def test_a_worker_that_is_not_to_try_again_ends(own_place, own_server, start, client, settings):
    own_place.settings = settings
    client(own_place).add.delay(1, 2)
    own_server.stop()
    worker = start(own_place, "-c", "1", ready=False)
    assert ends(worker) == 1, worker.log
    assert "Cannot connect to redis://" in worker.log
    assert "onnection refused" in worker.log
    assert_no_insides(worker.log)
    assert "Traceback" not in worker.log, worker.log
    wait_until(lambda: not worker.leftovers(), "all its processes ended")
    own_server.start()
    assert queues_of(own_place.broker).waiting() == 1
    assert queues_of(own_place.broker).held() == 0


def test_a_lost_broker_ends_a_worker_that_is_not_to_connect_again(own_place, own_server, start):
    own_place.settings = {
        "broker_connection_retry": False,
        "broker_connection_retry_on_startup": True,
    }
    worker = start(own_place, "-c", "1")
    own_server.stop()
    assert ends(worker) == 1, worker.log
    assert_no_insides(worker.log)


def test_a_worker_that_waits_for_its_broker_can_be_stopped(own_place, own_server, start):
    own_place.settings = {"broker_connection_retry_on_startup": True}
    own_server.stop()
    worker = start(own_place, "-c", "1", ready=False)
    worker.wait_for("Trying again in")
    assert worker.stop(signal.SIGTERM) == 0, worker.log
    wait_until(lambda: not worker.leftovers(), "all its processes ended")


@pytest.fixture
def locked_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server that asks for a password."""
    folder = tmp_path / "locked"
    folder.mkdir()
    server = RedisServer(folder, "--requirepass", PASSWORD)
    yield server
    server.stop()


def locked_url(server: RedisServer, password: str, database: int, user: str = "") -> str:
    quoted = urllib.parse.quote(password, safe="")
    return f"redis://{user}:{quoted}@127.0.0.1:{server.port}/{database}"


def test_the_right_password_works_and_is_not_shown(redis_place, locked_server, start, client):
    redis_place.broker = locked_url(locked_server, PASSWORD, 1)
    redis_place.backend = locked_url(locked_server, PASSWORD, 2)
    app = client(redis_place)
    worker = start(redis_place, "-c", "1", loglevel="DEBUG")
    assert app.add.delay(1, 2).get(timeout=TIMEOUT) == 3
    with pytest.raises(ValueError):
        app.fail.delay().get(timeout=TIMEOUT)
    assert worker.stop() == 0
    assert PASSWORD not in worker.log
    assert f"transport:   redis://:**@127.0.0.1:{locked_server.port}/1" in worker.log
    assert f"results:     redis://:**@127.0.0.1:{locked_server.port}/2" in worker.log


@pytest.mark.parametrize("loglevel", ["INFO", "DEBUG"])
@pytest.mark.parametrize("password", ["falsch-4711", "p:a@s/s#w?o%rd-4711"])
@pytest.mark.parametrize("on_startup", [True, False])
def test_a_wrong_password_is_an_error_that_does_not_show_it(
    redis_place, locked_server, start, client, password, loglevel, on_startup
):
    redis_place.settings = {"broker_connection_retry_on_startup": on_startup}
    right = locked_url(locked_server, PASSWORD, 1)
    redis_place.broker = right
    client(redis_place).add.delay(1, 2)
    redis_place.broker = locked_url(locked_server, password, 1)
    worker = start(redis_place, "-c", "1", ready=False, loglevel=loglevel)
    assert ends(worker) == 1, worker.log
    assert "broker_url" in worker.log and "password" in worker.log, "the remedy is told"
    assert password not in worker.log
    assert urllib.parse.quote(password, safe="") not in worker.log
    assert "4711" not in worker.log
    assert_no_insides(worker.log)
    assert "Traceback" not in worker.log
    assert queues_of(right).waiting() == 1


def test_a_missing_password_is_an_error_with_the_remedy(redis_place, locked_server, start):
    redis_place.broker = f"redis://127.0.0.1:{locked_server.port}/1"
    worker = start(redis_place, "-c", "1", ready=False)
    assert ends(worker) == 1, worker.log
    assert "password in broker_url" in worker.log


def test_a_wrong_password_of_the_result_backend_is_not_shown(
    redis_place, locked_server, start, client
):
    redis_place.backend = locked_url(locked_server, "falsch-4711", 2)
    redis_place.settings = {"result_backend_max_retries": 0, "redis_retry_on_timeout": False}
    redis_place.backend, wrong = "disabled://", redis_place.backend
    app = client(redis_place)
    redis_place.backend = wrong
    worker = start(redis_place, "-c", "1", loglevel="DEBUG", ready=False)
    app.add.delay(1, 2)
    wait_until(
        lambda: "AuthenticationError" in worker.log or "WRONGPASS" in worker.log,
        "the backend's refusal is told",
        TIMEOUT,
        lambda: worker.log,
    )
    assert "4711" not in worker.log


@pytest.mark.parametrize(
    "url",
    [
        f"redis://:{PASSWORD}@127.0.0.1:notaport/0",
        f"redis://:{PASSWORD}@127.0.0.1:6379/notanumber",
        f"redis://:{PASSWORD}@127.0.0.1:99999/0",
        f"nosuch://:{PASSWORD}@127.0.0.1/0",
        # Not quoted as it should be, so that the password looks like other parts of the URL.
        f"redis://:x/{PASSWORD}@127.0.0.1:6379/0",
        f"redis://:x#{PASSWORD}@127.0.0.1:6379/0",
        f"redis://:x?{PASSWORD}@127.0.0.1:6379/0",
        f"redis://:{PASSWORD}/x@127.0.0.1:6379/0",
        f"rediss://:{PASSWORD}@127.0.0.1:1/0?ssl_cert_reqs=required&ssl_ca_certs=/no/such/file",
    ],
)
@pytest.mark.parametrize("how", ["setting", "option"])
def test_a_broken_url_does_not_show_its_password(redis_place, how, url):
    good = redis_place.broker
    redis_place.settings = {"broker_connection_retry_on_startup": False}
    arguments = ("-b", url) if how == "option" else ()
    if how == "setting":
        redis_place.broker = url
    ended = workers.run(
        workers.KIND,
        *("-A", "basic", *arguments, "worker", "-c", "1", "-l", "DEBUG"),
        timeout=TIMEOUT,
        **redis_place.variables(),
    )
    shown = ended.stdout + ended.stderr
    assert ended.returncode == 1, shown
    assert PASSWORD not in shown, shown
    assert_no_insides(shown)
    assert len(re.findall(r"^Error: |Cannot connect to .*Giving up", shown, re.MULTILINE)) == 1, (
        shown
    )
    assert "Traceback" not in shown, shown
    assert queues_of(good).waiting() == 0


def test_a_restart_does_not_show_the_password_of_the_command_line(
    redis_place, locked_server, start, client
):
    redis_place.backend = locked_url(locked_server, PASSWORD, 2)
    url = locked_url(locked_server, PASSWORD, 1)
    worker = start(redis_place, "-c", "1", "-b", url)
    worker.send(signal.SIGHUP)
    worker.wait_for("Restarting celery worker")
    wait_until(lambda: worker.log.count(" ready.") == 2, "it is ready again", TIMEOUT)
    assert PASSWORD not in worker.log
    assert worker.stop() == 0


def test_the_report_does_not_show_passwords(redis_place, locked_server):
    redis_place.broker = locked_url(locked_server, PASSWORD, 1)
    redis_place.backend = locked_url(locked_server, PASSWORD, 2)
    ended = workers.run("celeriac", "-A", "basic", "report", **redis_place.variables())
    assert ended.returncode == 0, ended.stderr
    assert PASSWORD not in ended.stdout + ended.stderr


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    made = mount and subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True
    )
    if not made or made.returncode:
        pytest.skip("a file system can't be mounted here: needs root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Takes all the room that a file system has left."""
    file = folder / "ballast"
    fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        for size in (1 << 16, 1 << 10, 1):
            try:
                while True:
                    os.write(fd, b"\0" * size)
            except OSError:
                continue
    finally:
        os.close(fd)
    return file


def test_a_full_disk_is_told_and_survived(sqlite_place, small_disk, start, client):
    sqlite_place.broker = f"sqla+sqlite:///{small_disk}/broker.db"
    app = client(sqlite_place)
    queues = queues_of(sqlite_place.broker)
    worker = start(sqlite_place, "-c", "1")
    assert app.add.delay(0, 0).get(timeout=TIMEOUT) == 0
    # Sent while there is room; the worker is stopped meanwhile, so that it takes none of them.
    os.kill(worker.pid, signal.SIGSTOP)
    for number in range(40):
        app.sleep_safe.delay(0, sqlite_place.file(), f"{number}-{'x' * 2000}")
    ballast = fill(small_disk)
    os.kill(worker.pid, signal.SIGCONT)
    worker.wait_for("no room for the broker's database", TIMEOUT)
    worker.wait_for("make room on that file system")
    assert worker.process.poll() is None
    ballast.unlink()

    def ended() -> set[str]:
        lines = sqlite_place.lines()
        return {line.split()[1].partition("-")[0] for line in lines if line.startswith("end")}

    numbers = {str(number) for number in range(40)}
    wait_until(lambda: ended() == numbers, "all tasks ran", TIMEOUT, lambda: worker.log[-3000:])
    wait_until(lambda: not (queues.waiting() or queues.held()), "all are settled", TIMEOUT)
    assert app.add.delay(1, 2).get(timeout=TIMEOUT) == 3
    assert_no_insides(worker.log)
    assert worker.stop() == 0


def test_a_disk_that_fills_while_tasks_run_loses_none(sqlite_place, small_disk, start, client):
    sqlite_place.broker = f"sqla+sqlite:///{small_disk}/broker.db"
    app = client(sqlite_place)
    queues = queues_of(sqlite_place.broker)
    for number in range(60):
        app.sleep_safe.delay(0.05, sqlite_place.file(), str(number))
    worker = start(sqlite_place, "-c", "2")
    wait_until(lambda: len(sqlite_place.lines()) > 10, "some tasks ran")
    ballast = fill(small_disk)
    worker.wait_for("no room for the broker's database", TIMEOUT)
    ballast.unlink()

    def ended() -> list[str]:
        lines = sqlite_place.lines()
        return [line.split()[1] for line in lines if line.startswith("end")]

    wait_until(
        lambda: len(set(ended())) == 60, "all tasks ran", TIMEOUT, lambda: worker.log[-3000:]
    )
    wait_until(lambda: not (queues.waiting() or queues.held()), "all are settled", TIMEOUT)
    assert len(ended()) == 60, "none ran twice: this worker lived all the time"
    assert worker.stop() == 0


def test_a_disk_that_is_full_at_the_start_is_waited_for(sqlite_place, small_disk, start, client):
    sqlite_place.broker = f"sqla+sqlite:///{small_disk}/broker.db"
    app = client(sqlite_place)
    waited = app.add.delay(1, 2)
    ballast = fill(small_disk)
    worker = start(sqlite_place, "-c", "1", ready=False)
    worker.wait_for("no room for the broker's database", TIMEOUT)
    ballast.unlink()
    worker.wait_ready(TIMEOUT)
    assert waited.get(timeout=TIMEOUT) == 3
    assert worker.stop() == 0


def test_a_broker_file_in_a_missing_folder_is_an_error(sqlite_place, start):
    sqlite_place.settings = {"broker_connection_retry_on_startup": False}
    missing = sqlite_place.folder / "nowhere" / "broker.db"
    sqlite_place.broker = f"sqla+sqlite:///{missing}"
    worker = start(sqlite_place, "-c", "1", ready=False)
    assert ends(worker) == 1, worker.log
    assert str(missing) in worker.log and "must exist and be writable" in worker.log
    assert_no_insides(worker.log)


def test_a_broker_file_that_is_no_database_is_an_error(sqlite_place, start):
    file = sqlite_place.folder / "broker.db"
    file.write_bytes(b"this is no database" * 1000)
    worker = start(sqlite_place, "-c", "1", ready=False)
    assert ends(worker) == 1, worker.log
    assert str(file) in worker.log and "not (or no longer) an SQLite database" in worker.log
    assert file.read_bytes() == b"this is no database" * 1000
    assert_no_insides(worker.log)


def test_a_locked_database_is_waited_for(sqlite_place, start, client):
    app = client(sqlite_place)
    worker = start(sqlite_place, "-c", "1")
    waited = app.add.delay(1, 2)
    assert waited.get(timeout=TIMEOUT) == 3
    # Another process holds the write lock for longer than anybody waits for it.
    holder = sqlite3.connect(queues_of(sqlite_place.broker).path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    worker.wait_for("database is locked", TIMEOUT)
    holder.execute("ROLLBACK")
    holder.close()
    assert app.add.delay(3, 4).get(timeout=TIMEOUT) == 7
    assert worker.stop() == 0
