"""A worker in the background: its pidfile, its user, its files, and the size of its pool."""

from __future__ import annotations

import os
import signal
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery.exceptions import TimeLimitExceeded, WorkerLostError
from conftest import Place

from harness import processes, workers
from harness.wait import wait_until

TIMEOUT = 60
EX_CANTCREAT = 73
#: Beyond the kernel's largest process id.
NOBODYS_PID = 4194305


class Background:
    """Workers started with ``-D``, which are no children of the test."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.kind = workers.KIND
        self.marker = uuid.uuid4().hex

    def start(self, *arguments: str, app: str = "basic", **variables: str) -> Any:
        given: dict[str, Any] = {**self.place.variables(), **variables}
        return workers.run(
            self.kind,
            *("-A", app, "worker", "-D", "-c", "1", "-l", "INFO", *arguments),
            INTEROP_WORKER=self.marker,
            **given,
        )

    def processes(self) -> list[int]:
        return processes.with_marker(f"INTEROP_WORKER={self.marker}")

    def clean_up(self) -> None:
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


@pytest.fixture
def background(redis_place: Place) -> Iterator[Background]:
    made = Background(redis_place)
    yield made
    made.clean_up()


def pid_in(file: Path) -> int:
    return int(file.read_text())


def ends(pid: int) -> None:
    wait_until(lambda: not processes.is_running(pid), f"{pid} ends", TIMEOUT)


# -- in the background -------------------------------------------------------------------------


def test_a_worker_goes_to_the_background(background, client):
    folder = background.place.folder
    pidfile, logfile = folder / "w.pid", folder / "w.log"
    answer = background.start(f"--pidfile={pidfile}", f"--logfile={logfile}")
    assert answer.returncode == 0, answer
    wait_until(pidfile.exists, "the pidfile is there", TIMEOUT)
    assert client(background.place).add.delay(1, 2).get(timeout=TIMEOUT) == 3
    pid = pid_in(pidfile)
    assert os.getsid(pid) != os.getsid(0), "it has a session of its own"
    for running in background.processes():
        for number in range(3):
            file = os.readlink(f"/proc/{running}/fd/{number}")
            assert file in ("/dev/null", str(logfile)), (processes.name_of(running), number, file)
    os.kill(pid, signal.SIGTERM)
    ends(pid)
    wait_until(lambda: not background.processes(), "nothing is left", TIMEOUT)
    assert not pidfile.exists()
    assert " ready." in logfile.read_text()


def test_what_goes_wrong_at_the_start_is_seen_in_the_terminal(background):
    folder = background.place.folder
    (folder / "broken.py").write_text("import nothing_of_that_name\n")
    answer = background.start(f"--pidfile={folder}/w.pid", app="broken", PYTHONPATH=str(folder))
    assert answer.returncode == 2
    assert "nothing_of_that_name" in answer.stderr + answer.stdout
    assert not (folder / "w.pid").exists()
    assert background.processes() == []


def test_a_log_file_that_cannot_be_written_is_seen_in_the_terminal(background):
    """Celery's command shows it as well, but ends as if all were well."""
    background.kind = "celeriac"
    answer = background.start("--logfile=/no/such/folder/w.log")
    assert answer.returncode not in (0, None)
    assert "/no/such/folder" in answer.stderr + answer.stdout
    assert background.processes() == []


def test_a_worker_in_the_background_keeps_its_working_directory(background):
    folder = background.place.folder
    (folder / "here.py").write_text(
        "import os\nfrom celery import Celery\n"
        "app = Celery('here', broker=os.environ['INTEROP_BROKER'],"
        " backend=os.environ['INTEROP_BACKEND'])\n"
        "@app.task(name='where')\ndef where():\n    return os.getcwd()\n"
    )
    answer = workers.run(
        workers.KIND,
        *("-A", "here", "--workdir", str(folder), "worker", "-D", "-c", "1"),
        *("--pidfile=w.pid", "--logfile=w.log"),
        INTEROP_WORKER=background.marker,
        **background.place.variables(),
    )
    assert answer.returncode == 0, answer
    wait_until((folder / "w.pid").exists, "the pidfile is there", TIMEOUT)
    from celery import Celery

    app = Celery(broker=background.place.broker, backend=background.place.backend)
    assert app.send_task("where").get(timeout=TIMEOUT) == str(folder)


def test_a_second_worker_in_the_background_is_refused_in_the_terminal(background):
    pidfile = background.place.folder / "w.pid"
    options = (f"--pidfile={pidfile}", f"--logfile={background.place.folder}/w.log")
    assert background.start(*options).returncode == 0
    wait_until(pidfile.exists, "the pidfile is there", TIMEOUT)
    before = pid_in(pidfile)
    answer = background.start(*options)
    assert answer.returncode == EX_CANTCREAT
    assert f"Pidfile ({pidfile}) already exists." in answer.stderr
    assert pid_in(pidfile) == before


def test_a_worker_in_the_background_can_be_restarted(background, client):
    """Celery's own worker does not come back when it was started with ``python -m celery``."""
    background.kind = "celeriac"
    folder = background.place.folder
    pidfile, logfile = folder / "w.pid", folder / "w.log"
    answer = background.start(f"--pidfile={pidfile}", f"--logfile={logfile}")
    assert answer.returncode == 0, answer
    wait_until(lambda: logfile.exists() and " ready." in logfile.read_text(), "ready", TIMEOUT)
    pid = pid_in(pidfile)
    os.kill(pid, signal.SIGHUP)
    wait_until(lambda: logfile.read_text().count(" ready.") == 2, "ready again", TIMEOUT)
    assert client(background.place).add.delay(1, 2).get(timeout=TIMEOUT) == 3
    again = pid_in(pidfile)
    os.kill(again, signal.SIGTERM)
    wait_until(lambda: not background.processes(), "nothing is left", TIMEOUT)
    assert not pidfile.exists()


# -- the pidfile -------------------------------------------------------------------------------


def test_a_second_worker_with_the_same_pidfile_is_refused(redis_place, start):
    pidfile = redis_place.folder / "w.pid"
    first = start(redis_place, "-c", "1", f"--pidfile={pidfile}")
    assert pid_in(pidfile) == first.pid
    second = start(redis_place, "-c", "1", f"--pidfile={pidfile}", ready=False)
    assert second.wait(TIMEOUT) == EX_CANTCREAT
    assert f"Pidfile ({pidfile}) already exists." in second.log
    assert f"Seems we're already running? (pid: {first.pid})" in second.log
    assert second.leftovers() == []
    assert pid_in(pidfile) == first.pid, "it is left alone"
    assert first.stop() == 0
    assert not pidfile.exists()


@pytest.mark.parametrize(
    "content, said",
    [
        (f"{NOBODYS_PID}\n", "Stale pidfile exists - Removing it."),
        ("", "Broken pidfile found - Removing it."),
        ("rubbish\n", "Broken pidfile found - Removing it."),
    ],
)
def test_a_stale_pidfile_is_taken_over(redis_place, start, content, said):
    pidfile = redis_place.folder / "w.pid"
    pidfile.write_text(content)
    worker = start(redis_place, "-c", "1", f"--pidfile={pidfile}")
    assert pid_in(pidfile) == worker.pid
    assert said in worker.log
    assert pidfile.stat().st_mode & 0o777 == 0o644
    assert worker.stop() == 0
    assert not pidfile.exists()


@pytest.mark.parametrize("signals", [[signal.SIGINT], [signal.SIGQUIT], [signal.SIGKILL]])
def test_a_pidfile_goes_with_its_worker(redis_place, start, signals):
    pidfile = redis_place.folder / "w.pid"
    worker = start(redis_place, "-c", "1", "-n", "w1@h", f"--pidfile={redis_place.folder}/%n.pid")
    named = redis_place.folder / "w1.pid"
    assert pid_in(named) == worker.pid
    worker.stop(signals[0])
    if signals == [signal.SIGKILL]:
        assert named.exists()
        again = start(
            redis_place, "-c", "1", "-n", "w1@h", f"--pidfile={redis_place.folder}/%n.pid"
        )
        assert pid_in(named) == again.pid
        assert again.stop() == 0
    assert not named.exists() and not pidfile.exists()


def test_a_pidfile_outlives_a_restart(redis_place, start):
    pidfile = redis_place.folder / "w.pid"
    worker = start(redis_place, "-c", "1", f"--pidfile={pidfile}", kind="celeriac")
    worker.send(signal.SIGHUP)
    wait_until(lambda: worker.log.count(" ready.") == 2, "it is restarted", TIMEOUT)
    assert pid_in(pidfile) == worker.pid
    assert worker.stop() == 0
    assert not pidfile.exists()


# -- the user ----------------------------------------------------------------------------------


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that every user may write to."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o777)
        yield Path(name)


def interpreter_is_for_everybody() -> bool:
    library = Path(os.__file__).resolve()
    return all(folder.stat().st_mode & 0o001 for folder in library.parents)


needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root may become somebody else")


@needs_root
@pytest.mark.skipif(
    not interpreter_is_for_everybody(), reason="only root may use this interpreter's library"
)
@pytest.mark.parametrize("user, group", [("nobody", "nogroup"), ("65534", "65534")])
def test_a_worker_becomes_another_user(redis_server, shared, start, client, user, group):
    url = f"redis://127.0.0.1:{redis_server.port}"
    place = Place(f"{url}/{redis_server.database()}", f"{url}/{redis_server.database()}", shared)
    app = client(place)
    files = [f"--pidfile={shared}/w.pid", f"--logfile={shared}/w.log", f"--statedb={shared}/w.db"]
    worker = start(place, "-c", "1", "--uid", user, "--gid", group, *files, ready=False)
    identity = app.identity.delay(place.file("made")).get(timeout=TIMEOUT)
    assert identity["uids"] == identity["gids"] == [65534] * 3
    assert identity["groups"] == [65534]
    for pid in [worker.pid, *processes.descendants(worker.pid)]:
        status = Path(f"/proc/{pid}/status").read_text()
        assert "Uid:\t65534\t65534\t65534\t65534" in status, processes.name_of(pid)
        assert "Gid:\t65534\t65534\t65534\t65534" in status, processes.name_of(pid)
    for name in ("w.pid", "w.log", "made"):
        assert (shared / name).stat().st_uid == 65534, name
    # What the kernel forgets with a change of the user: the children die with their parent.
    worker.kill()
    wait_until(lambda: not worker.leftovers(), "nothing is left", TIMEOUT)


@needs_root
def test_a_worker_becomes_another_group(redis_place, start, client):
    app = client(redis_place)
    worker = start(redis_place, "-c", "1", "--gid", "65534")
    found = app.identity.delay(redis_place.file("made")).get(timeout=TIMEOUT)
    assert (found["uids"], found["gids"]) == ([0, 0, 0], [65534] * 3)
    assert worker.stop() == 0


def test_a_mask_for_new_files(background, client):
    app = client(background.place)
    folder = background.place.folder
    answer = background.start(
        "--umask", "077", f"--pidfile={folder}/w.pid", f"--logfile={folder}/w.log"
    )
    assert answer.returncode == 0, answer
    made = background.place.file("made")
    assert app.identity.delay(made).get(timeout=TIMEOUT)["umask"] == 0o077
    assert (folder / "made").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("options", [["--uid", "no-such-user"], ["--gid", "no-such-group"]])
@needs_root
def test_a_user_that_does_not_exist_is_refused(redis_place, start, options):
    worker = start(redis_place, "-c", "1", *options, ready=False)
    assert worker.wait(TIMEOUT) != 0
    assert options[1] in worker.log
    assert worker.leftovers() == []


# -- the state database ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "first, second",
    [("celeriac", "celery"), ("celery", "celeriac"), ("celeriac", "celeriac")],
)
def test_revoked_tasks_stay_revoked(redis_place, start, client, first, second):
    """Both workers keep them in the same file. What has expired counts as revoked as well."""
    app = client(redis_place)
    statedb = redis_place.folder / "state"
    options = ("-c", "1", "-n", "w1@h", f"--statedb={redis_place.folder}/state")
    worker = start(redis_place, *options, kind=first)
    expired = app.add.apply_async((1, 1), task_id="expired", expires=-1)
    wait_until(lambda: expired.state == "REVOKED", "it is revoked", TIMEOUT)
    if first == "celery":
        app.app.control.revoke("by command", reply=True)
    assert worker.stop(timeout=TIMEOUT) == 0
    assert list(redis_place.folder.glob("state*")), statedb
    for kind in (second, first):
        worker = start(redis_place, *options, kind=kind)
        for task_id in ("expired", "by command") if first == "celery" else ("expired",):
            before = worker.log.count(f"Discarding revoked task: basic.add[{task_id}]")
            app.add.apply_async((1, 1), task_id=task_id)
            worker.wait_for(f"Discarding revoked task: basic.add[{task_id}]", TIMEOUT)
            assert before == 0
        assert app.add.delay(1, 1).get(timeout=TIMEOUT) == 2
        # What one has read it hands on.
        assert worker.stop(timeout=TIMEOUT) == 0


def test_a_state_database_that_cannot_be_opened_is_refused(redis_place, start):
    worker = start(
        redis_place, "-c", "1", "--statedb=/no/such/folder/state", kind="celeriac", ready=False
    )
    assert worker.wait(TIMEOUT) == 1
    assert "/no/such/folder/state" in worker.log
    assert worker.leftovers() == []


# -- the size of the pool ----------------------------------------------------------------------


def test_the_pool_grows_with_its_work_and_shrinks_without(redis_place, start, client):
    app = client(redis_place)
    worker = start(redis_place, "--autoscale", "4,1", variables={"AUTOSCALE_KEEPALIVE": "2"})
    wait_until(lambda: len(worker.children()) == 1, "there is one process", TIMEOUT)
    long = app.sleep.delay(20, redis_place.file(), "long")
    short = [app.sleep.delay(3, redis_place.file(), str(n)) for n in range(6)]
    wait_until(lambda: len(worker.children()) == 4, "there are four", TIMEOUT)
    assert "Scaling up " in worker.log
    assert [result.get(timeout=TIMEOUT) for result in short] == ["done"] * 6 or [
        result.get(timeout=TIMEOUT) for result in short
    ] == [str(n) for n in range(6)]
    wait_until(lambda: len(worker.children()) == 1, "there is one again", TIMEOUT)
    assert "Scaling down " in worker.log
    # None that works is ended.
    assert long.get(timeout=TIMEOUT) == "long"
    assert len(worker.children()) == 1
    again = [app.pid.delay() for _ in range(20)]
    assert all(result.get(timeout=TIMEOUT) for result in again)
    assert worker.stop() == 0


def test_a_pool_may_shrink_to_nothing(redis_place, start, client):
    app = client(redis_place)
    worker = start(
        redis_place, "--autoscale", "2", variables={"AUTOSCALE_KEEPALIVE": "1"}, kind="celeriac"
    )
    for _ in range(2):
        assert app.add.delay(1, 1).get(timeout=TIMEOUT) == 2
        wait_until(lambda: not worker.children(), "there is none", TIMEOUT)
    assert worker.stop() == 0


def test_each_task_has_a_process_of_its_own(redis_place, start):
    """Every one of them is set up in full, and ends in order."""
    import json

    from celery import Celery

    worker = start(
        redis_place, "-c", "2", "--max-tasks-per-child", "1", app="recorder", loglevel="WARNING",
        ready=False,
    )  # fmt: skip
    app = Celery(broker=redis_place.broker, backend=redis_place.backend)
    results = [app.send_task("succeed") for _ in range(200)]
    for result in results:
        assert result.get(timeout=120) == "done"
    assert worker.stop(timeout=TIMEOUT) == 0
    lives: dict[int, list[str]] = {}
    for line in redis_place.lines("events"):
        event = json.loads(line)
        if event["role"] == "C":
            lives.setdefault(event["pid"], []).append(event["event"])
    busy = [life for life in lives.values() if "task_prerun" in life]
    assert len(busy) == 200
    for life in lives.values():
        begin = [name for name in life if name in ("worker_process_init", "task_prerun")]
        assert begin in (["worker_process_init"], ["worker_process_init", "task_prerun"]), life
        assert life.index("Loader.on_worker_process_init") < life.index("worker_process_init")
    assert [life[-1] for life in busy] == ["worker_process_shutdown"] * 200
    assert {life.count("task_postrun") for life in busy} == {1}
    assert "exited with" not in worker.log


def test_a_process_over_its_limit_of_memory_is_killed_within_its_task(redis_place, start, client):
    """Celery looks when the task is done, which may be too late for the machine."""
    app = client(redis_place)
    worker = start(
        redis_place, "-c", "2", "--max-memory-per-child", str(150 * 1024), kind="celeriac"
    )
    bystander = app.sleep.delay(5, redis_place.file(), "bystander")
    greedy = app.allocate.delay(500, 300.0)
    with pytest.raises(WorkerLostError, match="KiB of memory"):
        greedy.get(timeout=TIMEOUT)
    assert bystander.get(timeout=TIMEOUT) == "bystander"
    assert [app.add.delay(n, 1).get(timeout=TIMEOUT) for n in range(4)] == [1, 2, 3, 4]
    wait_until(lambda: len(worker.children()) == 2, "it is replaced", TIMEOUT)
    assert worker.stop() == 0


def test_a_process_that_has_grown_is_replaced_after_its_task(redis_place, start, client):
    app = client(redis_place)
    worker = start(redis_place, "-c", "1", "--max-memory-per-child", str(250 * 1024))
    small = {app.allocate.delay(10).get(timeout=TIMEOUT) for _ in range(3)}
    assert len(small) == 1
    large = [app.allocate.delay(300).get(timeout=TIMEOUT) for _ in range(2)]
    after = app.pid.delay().get(timeout=TIMEOUT)
    assert len({*small, *large, after}) == 3, "the first large one ran where the small ones did"
    assert large[0] in small
    assert worker.stop() == 0


@pytest.mark.parametrize("settings", [False, True], ids=["options", "settings"])
def test_the_time_limits_of_a_worker(redis_place, start, client, settings):
    options = [] if settings else ["--time-limit", "2"]
    redis_place.settings = {"task_time_limit": 2} if settings else {}
    app = client(redis_place)
    worker = start(redis_place, "-c", "1", *options)
    with pytest.raises(TimeLimitExceeded):
        app.sleep.delay(60).get(timeout=TIMEOUT)
    worker.wait_for("Hard time limit (2")
    # A task's own count over it, and those of a call over both.
    with pytest.raises(TimeLimitExceeded):
        app.hard_limited.delay(60).get(timeout=TIMEOUT)
    worker.wait_for("Hard time limit (1s) exceeded for basic.hard_limited")
    assert app.sleep.apply_async((3,), time_limit=30).get(timeout=TIMEOUT) == "done"
    assert worker.stop() == 0


def test_only_a_soft_limit(redis_place, start, client):
    app = client(redis_place)
    worker = start(redis_place, "-c", "1", "--soft-time-limit", "1.5")
    with pytest.raises(Exception, match="SoftTimeLimitExceeded"):
        app.sleep.delay(60).get(timeout=TIMEOUT)
    worker.wait_for("Soft time limit (1.5s) exceeded for basic.sleep")
    assert app.soft_limited.delay(60).get(timeout=TIMEOUT) == "soft"
    pids = {app.pid.delay().get(timeout=TIMEOUT) for _ in range(3)}
    assert len(pids) == 1
    assert worker.stop() == 0


def test_options_may_come_from_the_environment(redis_place, start, client):
    folder = redis_place.folder
    app = client(redis_place)
    worker = start(
        redis_place,
        variables={
            "CELERY_WORKER_CONCURRENCY": "3",
            "CELERY_WORKER_PIDFILE": f"{folder}/w.pid",
            "CELERY_WORKER_TIME_LIMIT": "1.5",
        },
    )
    wait_until(lambda: len(worker.children()) == 3, "there are three processes", TIMEOUT)
    assert pid_in(folder / "w.pid") == worker.pid
    with pytest.raises(TimeLimitExceeded):
        app.sleep.delay(60).get(timeout=TIMEOUT)
    assert worker.stop() == 0


def test_of_an_option_that_is_given_twice_the_last_counts(redis_place, start):
    """Scripts add options to a command line that has them already."""
    worker = start(redis_place, "-c", "3", "-l", "INFO", "--concurrency", "2", "-E", "-E")
    wait_until(lambda: len(worker.children()) == 2, "there are two processes", TIMEOUT)
    assert "concurrency: 2" in worker.log
    assert worker.stop() == 0
