"""``celeriac run-docker`` as a client: what it sends, and what it shows of the task."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Callable

import pytest
from conftest import Place

from harness import workers

pytestmark = pytest.mark.skipif(workers.KIND != "celeriac", reason="Celery has no such command")

#: A worker that answers with what it was asked, in the place of one that runs containers.
APP = """
import os
from celery import Celery

app = Celery("echo", broker=os.environ["INTEROP_BROKER"], backend=os.environ["INTEROP_BACKEND"])

@app.task(name="tasks.run_docker", bind=True)
def run_docker(self, **kwargs):
    if kwargs["image"] == "missing":
        raise ValueError("no such image")
    return {"id": self.request.id, "output": repr(sorted(kwargs.items())), "truncated": True}
"""


@pytest.fixture
def send(place: Place) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the command far from any app, with the URLs of broker and results alone."""

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        urls = ("--broker", place.broker, "--result-backend", place.backend)
        return workers.run("celeriac", *urls, "run-docker", *words, cwd=place.folder)

    return run


@pytest.fixture
def echo(place: Place, start: Callable[..., workers.Worker], tmp_path: Path) -> workers.Worker:
    (tmp_path / "echo.py").write_text(APP)
    # Celery's own worker: that it takes the message shows that others do.
    where = {"PYTHONPATH": str(tmp_path)}
    return start(place, "-c", "1", app="echo", kind="celery", variables=where)


def test_it_submits_and_prints_the_id(
    place: Place,
    send: Callable[..., subprocess.CompletedProcess[str]],
    client: Callable[..., ModuleType],
    echo: workers.Worker,
) -> None:
    done = send("--inputpath", "/in", "--out", "log", "busybox", "--", "sh", "-c", "echo Done")
    assert done.returncode == 0, done.stderr
    (task_id,) = done.stdout.split()
    result = client(place).app.AsyncResult(task_id).get(timeout=30)
    assert result["id"] == task_id
    expected = {
        "image": "busybox",
        "command": ["sh", "-c", "echo Done"],
        "inputpath": "/in",
        "logoutfile": str(place.folder / "log"),
    }
    assert result["output"] == repr(sorted(expected.items()))


def test_it_may_wait_for_the_end(
    send: Callable[..., subprocess.CompletedProcess[str]], echo: workers.Worker
) -> None:
    done = send("--wait", "busybox", "--", "true")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(repr([("command", ["true"]), ("image", "busybox")]))
    assert "the end of the output" in done.stderr

    failed = send("--wait", "missing", "--", "true")
    assert failed.returncode == 1
    assert "FAILURE: ValueError: no such image" in failed.stderr


def test_an_app_s_own_settings_count(
    place: Place,
    client: Callable[..., ModuleType],
    start: Callable[..., workers.Worker],
) -> None:
    app = client(place).app
    words = ("-A", "basic", "run-docker", "--queue", "elsewhere", "i", "--", "c")
    done = workers.run("celeriac", *words, timeout=60, cwd=None, **place.variables())
    assert done.returncode == 0, done.stderr
    with app.connection_for_read() as connection:
        message = connection.SimpleQueue("elsewhere").get(timeout=30)
        message.ack()
    assert message.headers["task"] == "tasks.run_docker"
    assert message.headers["id"] == done.stdout.strip()
    assert json.loads(message.body)[1] == {"image": "i", "command": ["c"]}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["i"], "COMMAND"),
        (["--env", "A", "i", "--", "c"], "NAME=VALUE"),
    ],
)
def test_slips_are_told(
    send: Callable[..., subprocess.CompletedProcess[str]], words: list[str], expected: str
) -> None:
    done = send(*words)
    assert done.returncode == 2
    assert expected in done.stderr
