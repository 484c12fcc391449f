"""What apps do while a worker is set up counts: settings, queues, threads, and their mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

import pytest
from celery import Celery
from conftest import Place

from harness import workers
from harness.wait import wait_until
from harness.workers import Worker

TIMEOUT = 60

APP = """
import os, threading
from celery import Celery, signals, shared_task
app = Celery("own", broker=os.environ["INTEROP_BROKER"], backend=os.environ["INTEROP_BACKEND"])

@app.task(name="who")
def who():
    names = sorted(thread.name for thread in threading.enumerate())
    return [os.getpid(), os.environ.get("SET_BY_HOOK"), names]

@app.task(name="add")
def add(x, y):
    return x + y
"""


@pytest.fixture
def run(redis_place: Place, start: Callable[..., Worker]) -> Callable[..., Worker]:
    """Starts the app with more code of its own."""

    def run_app(code: str, *arguments: str) -> Worker:
        Path(redis_place.folder, "own.py").write_text(APP + code)
        variables = {"PYTHONPATH": str(redis_place.folder)}
        return start(redis_place, "-c", "1", *arguments, app="own", variables=variables)

    return run_app


@pytest.fixture
def call(redis_place: Place) -> Callable[..., Any]:
    app = Celery(broker=redis_place.broker, backend=redis_place.backend)

    def send(name: str, *args: Any, **options: Any) -> Any:
        return app.send_task(name, args, **options).get(timeout=TIMEOUT)

    return send


def test_settings_that_celeryd_init_changes_count(run, call):
    worker = run(
        "@signals.celeryd_init.connect\n"
        "def change(conf=None, **_):\n"
        "    conf.task_default_queue = 'changed'\n"
        "    conf.worker_log_format = 'CHANGED %(message)s'\n"
    )
    assert call("add", 1, 2, queue="changed") == 3
    assert "CHANGED Task add[" in worker.log
    assert worker.stop() == 0


def test_queues_that_celeryd_after_setup_adds_are_consumed(run, call):
    worker = run(
        "@signals.celeryd_after_setup.connect\n"
        "def add_queue(sender, instance, **_):\n"
        "    instance.app.amqp.queues.select_add(sender.partition('@')[0])\n",
        "-n",
        "w1@here",
    )
    assert call("add", 1, 2, queue="w1") == 3
    assert call("add", 1, 2) == 3
    assert ".> w1 " in worker.log
    assert worker.stop() == 0


def test_what_worker_init_does_reaches_the_children(run, call):
    worker = run(
        "@signals.worker_init.connect\ndef prepare(**_):\n    os.environ['SET_BY_HOOK'] = 'yes'\n"
    )
    assert call("who")[1] == "yes"
    assert worker.stop() == 0


@pytest.mark.parametrize("name", ["worker_init", "worker_ready", "celeryd_after_setup"])
def test_a_thread_of_a_hook_lives_on_in_main_alone(run, call, name):
    """The children are forks: only the thread that forks is in them."""
    worker = run(
        "from pathlib import Path\n"
        "file = Path(os.environ['INTEROP_FOLDER'], 'beats')\n"
        "def beat():\n"
        "    for number in range(100000):\n"
        "        file.write_text(f'{os.getpid()} {number}')\n"
        "        threading.Event().wait(0.05)\n"
        f"@signals.{name}.connect\n"
        "def begin(**_):\n"
        "    threading.Thread(target=beat, name='beating', daemon=True).start()\n"
    )
    file = worker.log_file.parent / "beats"
    wait_until(lambda: file.exists() and file.read_text(), "it beats", TIMEOUT)
    assert "beating" not in call("who")[2]
    before = file.read_text()
    wait_until(lambda: file.read_text() not in ("", before), "it goes on beating", TIMEOUT)
    if workers.KIND == "celeriac":
        assert int(file.read_text().split()[0]) == worker.host("main")
    assert worker.stop() == 0


@pytest.mark.parametrize(
    "name",
    [
        "celeryd_init",
        "worker_init",
        "celeryd_after_setup",
        "worker_before_create_process",
        "worker_process_init",
        "worker_ready",
        "task_received",
        "task_prerun",
        "task_success",
        "task_postrun",
        "worker_process_shutdown",
        "worker_shutting_down",
        "worker_shutdown",
    ],
)
def test_a_hook_that_fails_stops_nothing(run, call, name):
    worker = run(f"@signals.{name}.connect\ndef fail(**_):\n    raise ValueError('its mistake')\n")
    assert call("add", 1, 2) == 3
    assert call("add", 3, 4) == 7
    assert worker.stop() == 0
    # Before logging is set up, Celery's signals have nowhere to say it.
    if name not in ("celeryd_init", "worker_init"):
        assert "its mistake" in worker.log
    wait_until(lambda: not worker.leftovers(), "nothing is left of it", TIMEOUT)
