"""Log lines: in Celery's words, wherever and however the app wants them."""

from __future__ import annotations

import difflib
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from conftest import Place

from harness import workers
from harness.servers import RedisServer
from harness.wait import wait_until
from harness.workers import Worker

TIMEOUT = 60


def send(place: Place, name: str, *args: Any, **options: Any) -> Any:
    app = Celery("client", broker=place.broker, backend=place.backend)
    return app.send_task(name, args, **options)


def finish(place: Place, name: str, *args: Any, **options: Any) -> None:
    result = send(place, name, *args, **options)
    wait_until(result.ready, f"{name} ends", TIMEOUT)


# -- the same words as Celery's -------------------------------------------------------------------

NUMBERS = [
    (re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d[,.]\d+"), "TIME"),
    (re.compile(r"succeeded in [\d.e-]+s"), "succeeded in SECONDS"),
    (re.compile(r"pid:\d+"), "pid:PID"),
    (re.compile(r"ForkPoolWorker-\d+"), "ForkPoolWorker-N"),
    (re.compile(r"Job: \d+"), "Job: N"),
    (re.compile(r"line \d+"), "line N"),
    (re.compile(r"celer(y|iac)-[0-9a-f]{8}@\S+"), "NODE"),
]


def same_each_time(line: str) -> str:
    for pattern, replacement in NUMBERS:
        line = pattern.sub(replacement, line)
    return line


def is_about_tasks(line: str) -> bool:
    return bool(re.search(r"MARK|\[the-|Traceback|ValueError|WorkerLost|in two lines", line))


def lines(text: str) -> list[str]:
    """What is said about tasks, sorted: several processes write it."""
    found = [same_each_time(line) for line in text.splitlines() if is_about_tasks(line)]
    # That a process is lost is found at another place in each worker's code. Celery's code has a
    # line for the acceptance of a task that it writes in some processes only.
    left_out = ("    raise WorkerLostError(", "[TIME: DEBUG/MainProcess] Task accepted: ")
    return sorted(line for line in found if not line.startswith(left_out))


def run_all(redis_server: RedisServer, folder: Path, kind: str, way: str, settings: Any,
            *options: str, loglevel: str = "INFO") -> tuple[list[str], list[str]]:  # fmt: skip
    """What a worker of a kind writes: to its log, and to the app's own."""
    (folder / kind).mkdir()
    url = f"redis://127.0.0.1:{redis_server.port}"
    databases = redis_server.database(), redis_server.database()
    place = Place(
        f"{url}/{databases[0]}", f"{url}/{databases[1]}", folder / kind, settings=settings
    )
    variables = {**place.variables(), "INTEROP_LOGGING": way}
    worker = Worker(
        place.folder, "logs", "-c", "1", *options,
        kind=kind, variables=variables, loglevel=loglevel,
    )  # fmt: skip
    try:
        finish(place, "say", "hello", task_id="the-first")
        finish(place, "fail", "oh no", task_id="the-second")
        finish(place, "slow", task_id="the-third")
        finish(place, "lose", task_id="the-fourth")
        finish(place, "say", "again", task_id="the-fifth", expires=-1)
        finish(place, "say", "bye", task_id="the-sixth")
        assert worker.stop(timeout=TIMEOUT) == 0
    finally:
        worker.clean_up()
    logfile = place.folder / "worker.log"
    log = worker.log + (logfile.read_text() if logfile.exists() else "")
    own = place.folder / "own.log"
    return lines(log), lines(own.read_text() if own.exists() else "")


def differences(theirs: list[str], ours: list[str]) -> list[str]:
    """Lines that only one of them has. Celery keeps no dead letters, and so tells of none."""
    ours = [line for line in ours if " is a dead letter now: " not in line]
    return [line for line in difflib.ndiff(theirs, ours) if not line.startswith("  ")]


WAYS: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "by default": ("", {}, []),
    "into a file": ("", {}, ["-f", "{folder}/worker.log"]),
    "debug": ("", {}, ["--", "DEBUG"]),
    "warning": ("", {}, ["--", "WARNING"]),
    "formats": (
        "",
        {
            "worker_log_format": "%(levelname)s|%(name)s|%(processName)s|%(message)s",
            "worker_task_log_format": "TASK %(task_name)s %(task_id)s %(message)s",
        },
        [],
    ),
    "date format": ("", {"worker_log_datefmt": "THEN"}, []),
    "what only Python can format": (
        "",
        {"worker_log_format": "%(levelname)-8.3s <%(module)s> %(message)s"},
        [],
    ),
    "colours": ("", {"worker_log_color": True}, []),
    "streams left alone": ("", {"worker_redirect_stdouts": False}, []),
    "streams at another level": ("", {"worker_redirect_stdouts_level": "INFO"}, []),
    "root logger left alone": ("root", {"worker_hijack_root_logger": False}, []),
    "root logger taken over": ("root", {}, []),
    **{
        way.replace("_", " "): (way, {}, [])
        for way in (
            "setup_logging",
            "after_setup_logger",
            "after_setup_task_logger",
            "filter",
            "formatter",
            "level",
        )
    },
}


@pytest.mark.parametrize("name", WAYS)
def test_the_lines_are_celerys(redis_server, tmp_path, name):
    way, settings, options = WAYS[name]
    loglevel = "INFO"
    if options[:1] == ["--"]:
        loglevel, options = options[1], []
    written = {}
    for kind in ("celery", "celeriac"):
        given = [option.format(folder=tmp_path / kind) for option in options]
        written[kind] = run_all(
            redis_server, tmp_path, kind, way, settings, *given, loglevel=loglevel
        )
    (their_log, their_own), (our_log, our_own) = written["celery"], written["celeriac"]
    assert their_log or their_own
    assert differences(their_log, our_log) == []
    assert differences(their_own, our_own) == []


# -- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pattern, names",
    [
        ("%n.log", ["w1.log"]),
        ("%n%I.log", ["w1-1.log", "w1-2.log", "w1.log"]),
        ("%n-%i.log", ["w1-0.log", "w1-1.log", "w1-2.log"]),
        ("%h.log", ["here.there.log"]),
        ("%d.log", ["there.log"]),
        ("%p.log", ["w1@here.there.log"]),
    ],
)
def test_names_of_log_files(redis_place, start, pattern, names):
    """``%i`` and ``%I`` give every process a file of its own."""
    folder = redis_place.folder / "logs"
    folder.mkdir()
    worker = start(
        redis_place, "-c", "2", "-n", "w1@here.there", "-f", f"{folder}/{pattern}",
        app="logs", ready=False,
    )  # fmt: skip
    for number in range(10):
        finish(redis_place, "say", f"text {number}")
    assert worker.stop(timeout=TIMEOUT) == 0
    assert sorted(os.listdir(folder)) == names
    text = "".join((folder / name).read_text() for name in names)
    for number in range(10):
        assert f"MARK task logger text {number}" in text
    assert text.count("MARK ready hook") == 1
    if "%i" in pattern.lower():
        assert "MARK task logger" not in (folder / names[-1 if "I" in pattern else 0]).read_text()


def test_processes_that_are_replaced_keep_to_the_files_there_are(redis_place, start):
    folder = redis_place.folder / "logs"
    folder.mkdir()
    worker = start(
        redis_place, "-c", "2", "-n", "w1@h", "-f", f"{folder}/%n%I.log",
        "--max-tasks-per-child", "1", app="logs", ready=False,
    )  # fmt: skip
    for number in range(12):
        finish(redis_place, "say", f"text {number}")
    assert worker.stop(timeout=TIMEOUT) == 0
    assert sorted(os.listdir(folder)) == ["w1-1.log", "w1-2.log", "w1.log"]


def test_a_log_file_is_appended_to_and_survives_rotation(redis_place, start):
    file = redis_place.folder / "w.log"
    file.write_text("from before\n")
    worker = start(redis_place, "-c", "1", "-f", str(file), app="logs", ready=False)
    finish(redis_place, "say", "one")
    assert file.read_text().startswith("from before\n")
    wait_until(lambda: "MARK task logger one" in file.read_text(), "it is written", TIMEOUT)
    # logrotate's copytruncate.
    wait_until(lambda: "succeeded in" in file.read_text(), "all is written", TIMEOUT)
    os.truncate(file, 0)
    finish(redis_place, "say", "two", task_id="the-second")
    wait_until(lambda: "[the-second] succeeded in" in file.read_text(), "all is written", TIMEOUT)
    text = file.read_text()
    assert "\0" not in text and "logger one" not in text
    assert text.startswith("[20") and "Task say[the-second] received" in text
    # logrotate's create.
    file.rename(redis_place.folder / "w.log.1")
    finish(redis_place, "say", "three", task_id="the-third")
    wait_until(lambda: "[the-third] succeeded in" in file.read_text(), "it is followed", TIMEOUT)
    assert "Task say[the-third] received" in file.read_text()
    assert worker.stop(timeout=TIMEOUT) == 0


@pytest.mark.parametrize("way", ["", "after_setup_logger"])
@pytest.mark.parametrize("to_file", [True, False], ids=["file", "standard error"])
def test_json_lines(redis_place, start, way, to_file):
    file = redis_place.folder / "w.log"
    options = ["-f", str(file)] if to_file else []
    worker = start(
        redis_place, "-c", "1", "--log-format", "json", *options,
        app="logs", kind="celeriac", loglevel="DEBUG", ready=False,
        variables={"INTEROP_LOGGING": way},
    )  # fmt: skip
    finish(redis_place, "say", 'hällo " \\ \x07', task_id="the-first")
    finish(redis_place, "fail", "oh no", task_id="the-second")
    finish(redis_place, "lose", task_id="the-third")
    finish(redis_place, "say", "again", task_id="the-fourth", expires=-1)
    assert worker.stop(timeout=TIMEOUT) == 0
    text = file.read_text() if to_file else worker.log
    # The banner and the words of the shutdown are for people: they go to standard output.
    records = [json.loads(line) for line in text.splitlines() if to_file or line.startswith("{")]
    for record in records:
        assert {"timestamp", "level", "logger", "process", "pid", "message"} <= set(record)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", record["timestamp"])
    messages = {record["message"]: record for record in records}
    received = messages["Task say[the-first] received"]
    assert (received["task_id"], received["task_name"]) == ("the-first", "say")
    assert received["process"] == "MainProcess"
    logged = messages['MARK task logger hällo " \\ \x07']
    assert (logged["task_id"], logged["task_name"]) == ("the-first", "say")
    assert logged["process"].startswith("ForkPoolWorker-")
    assert logged["pid"] != received["pid"]
    (failed,) = [r for m, r in messages.items() if "[the-second] raised unexpected" in m]
    assert failed["level"] == "ERROR"
    assert "Traceback (most recent call last)" in failed["message"] + failed.get("exception", "")
    assert "MARK ready hook" in messages
    assert len([r for r in records if r["message"] == "MARK ready hook"]) == 1


def test_json_lines_in_a_file_for_each_process(redis_place, start):
    """``%I`` has every child set up logging for itself."""
    folder = redis_place.folder / "logs"
    folder.mkdir()
    worker = start(
        redis_place, "-c", "1", "-n", "w1@h", "--log-format", "json", "-f", f"{folder}/%n%I.log",
        app="logs", kind="celeriac", ready=False,
    )  # fmt: skip
    finish(redis_place, "say", "hello", task_id="the-first")
    assert worker.stop(timeout=TIMEOUT) == 0
    assert sorted(os.listdir(folder)) == ["w1-1.log", "w1.log"]
    for name, message in (
        ("w1-1", "MARK task logger hello"),
        ("w1", "Task say[the-first] received"),
    ):
        records = [json.loads(line) for line in (folder / f"{name}.log").read_text().splitlines()]
        assert [r["task_id"] for r in records if r["message"] == message] == ["the-first"]


# -- levels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "level, received, warning, error",
    [
        ("DEBUG", True, True, True),
        ("info", True, True, True),
        ("Warning", False, True, True),
        ("ERROR", False, False, True),
        ("CRITICAL", False, False, False),
        ("fatal", False, False, False),
    ],
)
def test_levels(redis_place, start, level, received, warning, error):
    worker = start(redis_place, "-c", "1", app="logs", loglevel=level, ready=False)
    finish(redis_place, "say", "hello", task_id="the-first")
    finish(redis_place, "fail", "oh no", task_id="the-second")
    finish(redis_place, "lose", task_id="the-third")
    assert worker.stop(timeout=TIMEOUT) == 0
    log = worker.log
    assert ("Task say[the-first] received" in log) is received
    assert ("MARK task logger hello" in log) is received
    assert ("MARK debug hello" in log) is (level == "DEBUG")
    assert ("MARK logger hello" in log) is warning
    assert ("MARK root hello" in log) is error
    assert ("Task fail[the-second] raised unexpected" in log) is error
    assert ("exited with 'exitcode 7'" in log) is error


def test_a_level_that_there_is_not_is_refused(redis_place):
    answer = workers.run(
        workers.KIND, "-A", "logs", "worker", "-l", "LOUD", **redis_place.variables()
    )
    assert answer.returncode == 2
    assert "LOUD" in answer.stderr


def test_without_a_reader_of_its_log_a_worker_goes_on(redis_place, tmp_path):
    """A full pipe: whoever reads slowly holds up no task of the parent's."""
    reader, writer = os.pipe()
    import subprocess

    from harness import processes

    worker = subprocess.Popen(
        [*workers.command("celeriac"), "-A", "logs", "worker", "-c", "1", "-l", "WARNING"],
        env=workers.environment(**redis_place.variables()),
        cwd=workers.APPS,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=writer,
        preexec_fn=processes.die_with_parent,
    )
    os.close(writer)
    os.close(reader)
    try:
        finish(redis_place, "say", "hello")
        finish(redis_place, "fail", "oh no")
        finish(redis_place, "say", "hello")
    finally:
        worker.terminate()
    assert worker.wait(TIMEOUT) == 0
