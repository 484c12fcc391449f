"""The command line: every command but the worker's life, and where its words may stand."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import uuid

import pytest
from celery.result import AsyncResult

from harness import workers
from harness.queues import queues_of
from harness.wait import wait_until

TIMEOUT = 60


def run(place, *words: str, kind: str = "celeriac", **variables: str):
    return workers.run(
        kind, *words, cwd=workers.APPS, timeout=TIMEOUT, **{**place.variables(), **variables}
    )


def succeeds(place, *words: str, **options: str) -> str:
    ended = run(place, *words, **options)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_the_version_is_told():
    ended = workers.run("celeriac", "--version")
    assert ended.returncode == 0
    assert re.fullmatch(r"celeriac \d+\.\d+\.\d+\n", ended.stdout)
    assert ended.stderr == ""


def test_without_a_command_the_commands_are_told():
    ended = workers.run("celeriac")
    assert ended.returncode == 2
    for command in ("worker", "call", "result", "purge", "list", "report", "completions"):
        assert re.search(rf"\b{command}\b", ended.stdout + ended.stderr), command


@pytest.mark.parametrize("command", ["worker", "call", "result", "purge", "list", "report"])
def test_every_command_has_help(command):
    ended = workers.run("celeriac", command, "--help")
    assert ended.returncode == 0
    assert "Usage: celeriac" in ended.stdout and "--app" in ended.stdout
    assert ended.stderr == ""


def test_help_needs_no_interpreter():
    ended = workers.run("celeriac", "--help", CELERIAC_PYTHON="/no/such/python")
    assert ended.returncode == 0


@pytest.mark.parametrize("words", [["wroker"], ["call"], ["result"], ["list"], ["list", "nothing"]])
def test_wrong_words_are_usage_errors(words):
    ended = workers.run("celeriac", *words)
    assert ended.returncode == 2
    assert "Usage: celeriac" in ended.stderr


def test_call_sends_a_task_and_tells_its_id(place, start, client):
    app = client(place)
    printed = succeeds(place, "-A", "basic", "call", "basic.add", "-a", "[2, 3]")
    task_id = printed.strip()
    uuid.UUID(task_id)
    assert queues_of(place.broker).waiting() == 1
    start(place, "-c", "1")
    assert AsyncResult(task_id, app=app.app).get(timeout=TIMEOUT) == 5


def test_call_has_all_of_its_options(redis_place, client):
    client(redis_place)
    queues = queues_of(redis_place.broker)
    words = [
        *("--args=[1]", "--kwargs", '{"y": -2}', "--countdown=-1", "--expires", "60"),
        *("--serializer", "json", "--queue", "elsewhere"),
    ]
    succeeds(redis_place, "-A", "basic", "call", "basic.add", *words)
    message = json.loads(queues.client.lindex("elsewhere", 0))
    assert message["headers"]["argsrepr"] in ("[1]", "(1,)")
    assert message["headers"]["kwargsrepr"] == "{'y': -2}"
    assert message["headers"]["expires"] and message["headers"]["eta"]
    succeeds(redis_place, "-A", "basic", "call", "basic.add", "--eta", "2030-01-01T00:00:00")
    message = json.loads(queues.client.lindex("celery", 0))
    assert message["headers"]["eta"].startswith("2030-01-01T00:00:00")


@pytest.mark.parametrize(
    "words",
    [
        ["basic.add", "-a", "no json"],
        ["basic.add", "-k", "[1"],
        ["basic.add", "--eta", "soon"],
        ["basic.add", "--countdown", "many"],
    ],
)
def test_call_refuses_what_makes_no_sense(redis_place, words):
    ended = run(redis_place, "-A", "basic", "call", *words)
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert queues_of(redis_place.broker).waiting() == 0


def test_result_shows_values_and_tracebacks(place, start, client):
    app = client(place)
    start(place, "-c", "1")
    good, bad = app.add.delay(20, 22), app.fail.delay()
    assert good.get(timeout=TIMEOUT) == 42
    wait_until(bad.ready, "the other task failed", TIMEOUT)
    assert succeeds(place, "-A", "basic", "result", good.id).strip() == "42"
    failed = run(place, "-A", "basic", "result", bad.id)
    assert failed.returncode == 1
    assert "ValueError: ('boom', 42)" in failed.stderr
    traceback = succeeds(place, "-A", "basic", "result", "--traceback", bad.id)
    assert "raise ValueError(text, 42)" in traceback
    named = succeeds(place, "-A", "basic", "result", "-t", "basic.add", good.id)
    assert named.strip() == "42"


def test_purge_deletes_what_waits(place, client):
    app = client(place)
    queues = queues_of(place.broker)
    for _ in range(3):
        app.add.delay(1, 1)
    assert queues.waiting() == 3
    printed = succeeds(place, "-A", "basic", "purge", "-f")
    assert "3" in printed
    assert queues.waiting() == 0
    assert "No messages purged" in succeeds(place, "-A", "basic", "purge", "--force")


def test_purge_asks_first(redis_place, client):
    client(redis_place).add.delay(1, 1)
    ended = subprocess.run(
        [workers.CELERIAC, "-A", "basic", "purge"],
        input="no\n",
        env=workers.environment(**redis_place.variables()),
        cwd=workers.APPS,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert "Are you sure you want to delete all tasks?" in ended.stdout + ended.stderr
    assert ended.returncode == 1
    assert queues_of(redis_place.broker).waiting() == 1


def test_purge_takes_queues(redis_place, client):
    app = client(redis_place)
    queues = queues_of(redis_place.broker)
    for name in ("one", "two", "three"):
        app.add.apply_async((1, 1), queue=name)
    succeeds(redis_place, "-A", "basic", "purge", "-f", "-Q", "one,two", "-X", "two")
    assert [queues.waiting(name) for name in ("one", "two", "three")] == [0, 1, 1]


def test_list_bindings_is_answered_as_celery_does(redis_place, client):
    client(redis_place).add.delay(1, 1)
    ours = run(redis_place, "-A", "basic", "list", "bindings")
    theirs = run(redis_place, "-A", "basic", "list", "bindings", kind="celery")
    assert (ours.returncode, ours.stdout) == (theirs.returncode, theirs.stdout)


def test_report_names_the_versions_and_settings(redis_place):
    printed = succeeds(redis_place, "-A", "basic", "report")
    for name in ("celery:", "kombu:", "py:", "platform ->", "transport:redis"):
        assert name in printed, printed


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "elvish", "powershell"])
def test_completions_are_written_for_each_shell(shell):
    ended = workers.run("celeriac", "completions", shell, CELERIAC_PYTHON="/no/such/python")
    assert ended.returncode == 0 and ended.stderr == ""
    assert "worker" in ended.stdout and "concurrency" in ended.stdout
    assert "detached" not in ended.stdout, "an option of our own is offered"


def test_the_completions_of_bash_complete():
    bash = shutil.which("bash")
    if not bash:
        pytest.skip("there is no bash")
    script = workers.run("celeriac", "completions", "bash").stdout
    asks = "COMP_WORDS=(celeriac wor); COMP_CWORD=1; _celeriac celeriac wor celeriac"
    asks += "; echo ${COMPREPLY[@]}"
    ended = subprocess.run([bash, "-c", f"{script}\n{asks}"], capture_output=True, text=True)
    assert ended.stdout.split() == ["worker"], ended.stderr


def test_completions_survive_a_reader_that_goes_away():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as gone:
        ended = subprocess.run(
            [workers.CELERIAC, "completions", "bash"],
            stdout=gone,
            stderr=subprocess.PIPE,
            text=True,
            timeout=TIMEOUT,
        )
    assert "panicked" not in ended.stderr and "backtrace" not in ended.stderr, ended.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["-A", "basic", "call", "basic.add", "-a", "[1, 1]"],
        ["call", "-A", "basic", "basic.add", "-a", "[1, 1]"],
        ["call", "basic.add", "-a", "[1, 1]", "--app=basic"],
        ["-A", "basic:app", "call", "basic.add", "--args", "[1, 1]"],
        ["--no-color", "-q", "call", "-Abasic", "basic.add", "-a[1, 1]"],
    ],
)
def test_global_options_stand_before_the_command_or_after_it(redis_place, words):
    succeeds(redis_place, *words)
    assert queues_of(redis_place.broker).waiting() == 1


@pytest.mark.parametrize("name", ["APP", "CELERY_APP"])
def test_the_app_comes_from_the_environment(redis_place, name):
    succeeds(redis_place, "call", "basic.add", "-a", "[1, 1]", **{name: "basic"})
    assert queues_of(redis_place.broker).waiting() == 1


@pytest.mark.parametrize(
    "how", ["-b", "--broker", "BROKER_URL", "CELERY_BROKER", "CELERY_BROKER_URL"]
)
def test_the_broker_may_be_another_than_the_apps(redis_place, redis_server, how):
    other = f"redis://127.0.0.1:{redis_server.port}/{redis_server.database()}"
    words, variables = ([how, other], {}) if how.startswith("-") else ([], {how: other})
    succeeds(redis_place, *words, "-A", "basic", "call", "basic.nothing", **variables)
    assert queues_of(other).waiting() == 1
    assert queues_of(redis_place.broker).waiting() == 0


@pytest.mark.parametrize("how", ["--result-backend", "RESULT_BACKEND", "CELERY_RESULT_BACKEND"])
def test_the_result_backend_may_be_another_than_the_apps(
    redis_place, redis_server, start, client, how
):
    number = redis_server.database()
    other = f"redis://127.0.0.1:{redis_server.port}/{number}"
    app = client(redis_place)
    words, variables = ([how, other], {}) if how.startswith("-") else ([], {how: other})
    start(redis_place, "-c", "1", *words, variables=variables)
    sent = app.add.delay(1, 2)
    key = f"celery-task-meta-{sent.id}"
    wait_until(lambda: redis_server.client(number).exists(key), "it is stored there", TIMEOUT)


def test_the_config_module_and_the_working_folder(redis_place, tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "settings.py").write_text(f"broker_url = {redis_place.broker!r}\n")
    (folder / "proj.py").write_text(
        "from celery import Celery\n"
        "app = Celery('proj')\napp.config_from_envvar('CELERY_CONFIG_MODULE')\n"
    )
    words = ["--workdir", str(folder), "--config", "settings", "-A", "proj"]
    succeeds(redis_place, *words, "call", "proj.anything")
    assert queues_of(redis_place.broker).waiting() == 1


def test_the_interpreter_is_that_of_the_active_environment(redis_place, tmp_path):
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    python = tmp_path / "venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\necho used > {tmp_path}/used\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    environment = workers.environment(**redis_place.variables(), VIRTUAL_ENV=str(tmp_path / "venv"))
    del environment["CELERIAC_PYTHON"]
    ended = subprocess.run(
        [workers.CELERIAC, "-A", "basic", "call", "basic.nothing"],
        env=environment,
        cwd=workers.APPS,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "used").exists()


def test_a_read_only_home_and_no_environment_at_all(redis_place):
    kept = {
        name: value
        for name, value in workers.environment(**redis_place.variables()).items()
        if name.startswith("INTEROP") or name in ("CELERIAC_PYTHON", "PYTHONPATH")
    }
    ended = subprocess.run(
        [workers.CELERIAC, "-A", "basic", "call", "basic.nothing"],
        env=kept,
        cwd=os.sep,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert ended.returncode == 0, ended.stderr
