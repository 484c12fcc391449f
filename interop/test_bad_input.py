"""What the operator did wrong: one clear error with the remedy, and no message is lost."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness import workers
from harness.queues import queues_of

#: What clap and Click exit with for a wrong command line.
EX_USAGE = 2
#: A pidfile that is taken.
EX_CANTCREAT = 73
TIMEOUT = 60

APP = """\
from celery import Celery

app = Celery("{name}", broker={broker!r}, backend={backend!r})


@app.task
def add(x, y):
    return x + y


"""


def write_app(place, name: str, more: str = "") -> None:
    text = APP.format(name=name, broker=place.broker, backend=place.backend) + more
    (place.folder / f"{name}.py").write_text(text)


def run_worker(place, app: str, *arguments: str, **variables: str):
    """Runs a worker that is to end by itself."""
    return workers.run(
        workers.KIND,
        *("-A", app, "worker", "-c", "1", "-l", "INFO", *arguments),
        cwd=place.folder,
        timeout=TIMEOUT,
        **{**place.variables(), **variables},
    )


def output(ended: subprocess.CompletedProcess[str]) -> str:
    return ended.stdout + ended.stderr


def assert_one_clear_error(
    ended: subprocess.CompletedProcess[str], status: int, *texts: str, remedy: bool = True
) -> None:
    """One error, with all of ``texts`` in it, a remedy, and nothing of how we are made."""
    shown = output(ended)
    assert ended.returncode == status, shown
    assert len(re.findall(r"^Error: ", ended.stderr, re.MULTILINE)) == 1, shown
    for text in texts:
        assert text in ended.stderr, shown
    assert ("To mend this: " in ended.stderr) == remedy, shown
    assert_no_insides(shown)


def assert_no_insides(shown: str) -> None:
    """Neither our shim's frames nor a Rust panic."""
    for inside in ("<celeriac>", "celeriac/host", "panicked", "RUST_BACKTRACE", ".rs:"):
        assert inside not in shown, shown
    assert "stack backtrace" not in shown, shown


@pytest.fixture
def kept(sqlite_place, client):
    """A place with a message in its queue, which must be there afterwards."""
    queues = queues_of(sqlite_place.broker)
    client(sqlite_place).add.delay(1, 2)
    assert queues.waiting() == 1
    yield sqlite_place
    assert queues.waiting() == 1
    assert queues.held() == 0


def test_a_missing_module_is_named(kept):
    ended = run_worker(kept, "no_such_module")
    assert_one_clear_error(
        ended,
        EX_USAGE,
        "Unable to load celery application.",
        "The module no_such_module was not found.",
        "--workdir",
    )
    assert "Traceback" not in output(ended)


@pytest.mark.parametrize("separator", [":", "."])
def test_a_missing_attribute_is_named(kept, separator):
    write_app(kept, "proj")
    ended = run_worker(kept, f"proj{separator}nothere")
    assert_one_clear_error(ended, EX_USAGE, "Unable to load celery application.", "nothere")
    assert "Traceback" not in output(ended)


def test_a_missing_submodule_of_a_package_is_named(kept):
    (kept.folder / "pack").mkdir()
    (kept.folder / "pack" / "__init__.py").write_text("")
    ended = run_worker(kept, "pack.nothere")
    assert_one_clear_error(ended, EX_USAGE, "Unable to load celery application.", "nothere")
    assert "Traceback" not in output(ended)


@pytest.mark.parametrize("text", ["x = 1\n", "app = 5\n", "app = None\ncelery = 'text'\n"])
def test_a_module_without_an_app_is_an_error(kept, text):
    (kept.folder / "appless.py").write_text(text)
    ended = run_worker(kept, "appless")
    assert_one_clear_error(ended, EX_USAGE, "Unable to load celery application.", "appless")
    assert "Traceback" not in output(ended)


def test_an_attribute_that_is_no_app_is_an_error(kept):
    write_app(kept, "proj")
    ended = run_worker(kept, "proj:add")
    assert_one_clear_error(
        ended, EX_USAGE, "Unable to load celery application.", "proj:add", "not a Celery app"
    )
    assert "Traceback" not in output(ended)


@pytest.mark.parametrize(
    ("text", "last_line", "line"),
    [
        (
            "def setup():\n    raise RuntimeError('no licence')\n\nsetup()\n",
            "RuntimeError: no licence",
            4,
        ),
        ("def setup():\n    raise ValueError('no licence')\n\nsetup()\n", "no licence", 4),
        ("import no_such_library\n", "ModuleNotFoundError: No module named 'no_such_library'", 1),
        ("from json import nothing_there\n", "ImportError: cannot import name 'nothing_there'", 1),
        (
            "import json\njson.nothing\n",
            "AttributeError: module 'json' has no attribute 'nothing'",
            2,
        ),
        ("def f(:\n", "SyntaxError", 1),
        ("import sys\nsys.exit('not today')\n", "not today", 2),
    ],
)
def test_an_app_that_fails_shows_its_own_traceback(kept, text, last_line, line):
    (kept.folder / "broken.py").write_text(text)
    ended = run_worker(kept, "broken")
    shown = output(ended)
    assert ended.returncode == EX_USAGE, shown
    assert "Unable to load celery application." in ended.stderr
    assert last_line in ended.stderr, shown
    assert re.search(rf'broken\.py", line {line}\b', ended.stderr), shown
    assert_no_insides(shown)
    # What stands between the interpreter and the app's first line is none of its author's concern.
    for machinery in ("importlib", "site-packages", "During handling of the above exception"):
        assert machinery not in shown, shown


def test_a_failing_receiver_of_the_set_up_shows_its_own_traceback(kept):
    more = """\
from celery.signals import celeryd_after_setup


@celeryd_after_setup.connect
def configure(**kwargs):
    raise SystemExit("no configuration")
"""
    write_app(kept, "proj", more)
    ended = run_worker(kept, "proj")
    assert ended.returncode != 0, output(ended)
    assert "no configuration" in ended.stderr
    assert_no_insides(output(ended))


def test_a_module_to_include_that_is_missing_is_named(kept):
    write_app(kept, "proj")
    ended = run_worker(kept, "proj", "-I", "no_such_tasks")
    assert ended.returncode != 0, output(ended)
    assert "No module named 'no_such_tasks'" in ended.stderr
    assert_no_insides(output(ended))


@pytest.fixture
def bare_python(tmp_path: Path) -> Path:
    """An interpreter that has the standard library and nothing else."""
    program = tmp_path / "bare" / "python3"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -I "$@"\n')
    program.chmod(0o755)
    return program


def test_an_interpreter_without_celery_is_named(kept, bare_python):
    write_app(kept, "proj")
    for how in ({"CELERIAC_PYTHON": str(bare_python)}, None):
        arguments = () if how else ("--python", str(bare_python))
        ended = run_worker(kept, "proj", *arguments, **(how or {}))
        assert_one_clear_error(
            ended, 1, "Celery is not installed", "pip install celery", "--python"
        )
        assert "Traceback" not in output(ended)


@pytest.mark.parametrize("command", ["call", "purge", "report"])
def test_other_commands_say_that_celery_is_missing_as_well(kept, bare_python, command):
    write_app(kept, "proj")
    words = {"call": ["call", "proj.add"], "purge": ["purge", "-f"], "report": ["report"]}[command]
    ended = workers.run(
        "celeriac", "--python", str(bare_python), "-A", "proj", *words, cwd=kept.folder
    )
    assert ended.returncode != 0
    assert "pip install celery" in ended.stderr, output(ended)


def test_an_interpreter_that_is_not_there_is_named(kept):
    write_app(kept, "proj")
    missing = str(kept.folder / "nowhere" / "python3")
    ended = run_worker(kept, "proj", "--python", missing)
    assert_one_clear_error(ended, 1, missing)


def test_an_interpreter_that_is_none_is_an_error(kept):
    write_app(kept, "proj")
    ended = run_worker(kept, "proj", "--python", "/bin/false")
    assert_one_clear_error(ended, 1, "/bin/false", remedy="To mend this" in ended.stderr)


@pytest.mark.parametrize(
    ("pool", "remedy"), [("nosuch", "prefork"), ("eventlet", "gevent"), ("proj:Pool", "prefork")]
)
def test_an_unknown_pool_is_refused(kept, pool, remedy):
    write_app(kept, "proj", "class Pool:\n    pass\n")
    ended = run_worker(kept, "proj", "-P", pool)
    assert ended.returncode in (1, EX_USAGE)
    assert_one_clear_error(ended, ended.returncode, pool, remedy)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("worker_pool", "proj:Pool"),
        ("worker_consumer", "proj:Consumer"),
        ("worker_timer", "proj:Timer"),
        ("worker_autoscaler", "proj:Autoscaler"),
        ("worker_agent", "proj:Agent"),
    ],
)
def test_classes_that_would_run_in_the_parent_are_refused(kept, setting, value):
    more = f"""\
from celery.concurrency.prefork import TaskPool
from celery.utils.timer2 import Timer as CelerysTimer
from celery.worker.autoscale import Autoscaler as CelerysAutoscaler
from celery.worker.consumer import Consumer as CelerysConsumer


class Pool(TaskPool):
    pass


class Timer(CelerysTimer):
    pass


class Autoscaler(CelerysAutoscaler):
    pass


class Consumer(CelerysConsumer):
    pass


class Agent:
    pass


app.conf.{setting} = {value!r}
"""
    write_app(kept, "proj", more)
    ended = run_worker(kept, "proj")
    assert_one_clear_error(ended, 1, value, "celery worker")


def test_the_class_itself_instead_of_its_name_is_refused_as_well(kept):
    more = """\
from celery.worker.consumer import Consumer as CelerysConsumer


class Consumer(CelerysConsumer):
    pass


app.conf.worker_consumer = Consumer
"""
    write_app(kept, "proj", more)
    assert_one_clear_error(run_worker(kept, "proj"), 1, "worker_consumer", "celery worker")


def test_a_strategy_of_a_tasks_own_is_refused(kept):
    more = """\
from celery import Task


class Special(Task):
    Strategy = "proj:strategy"


@app.task(base=Special)
def special():
    pass
"""
    write_app(kept, "proj", more)
    assert_one_clear_error(run_worker(kept, "proj"), 1, "proj.special", "proj:strategy")


@pytest.mark.parametrize("limit", ["abc", "10/q", "/s", "5/s/m", "-"])
@pytest.mark.parametrize("where", ["task", "annotation", "default"])
def test_a_bad_rate_limit_is_named(kept, limit, where):
    more = {
        "task": f"@app.task(rate_limit={limit!r})\ndef slow():\n    pass\n",
        "annotation": f"app.conf.task_annotations = {{'proj.add': {{'rate_limit': {limit!r}}}}}\n",
        "default": f"app.conf.task_default_rate_limit = {limit!r}\n",
    }[where]
    write_app(kept, "proj", more)
    name = {"task": "proj.slow", "annotation": "proj.add", "default": "rate limit"}[where]
    assert_one_clear_error(run_worker(kept, "proj"), 1, name, limit, "10/s")


def test_a_bad_rate_limit_of_no_concern_is_left_alone(kept, start):
    more = "@app.task(rate_limit='abc')\ndef slow():\n    pass\n\n\n"
    more += "app.conf.worker_disable_rate_limits = True\n"
    write_app(kept, "proj", more)
    path = os.pathsep.join([str(kept.folder), str(workers.APPS)])
    start(kept, "-c", "1", "-Q", "other", app="proj", variables={"PYTHONPATH": path})


@pytest.mark.parametrize(
    "arguments",
    [
        ("--concurrency", "many"),
        ("--concurrency", "-1"),
        ("-l", "LOUD"),
        ("--autoscale", "a,b"),
        ("--umask", "99"),
        ("-O", "wild"),
        ("--time-limit", "soon"),
        ("--max-tasks-per-child", "few"),
        ("--no-such-option",),
        ("--", "nonsense"),
        ("--", "worker.no_such_setting=1"),
    ],
)
def test_a_bad_option_is_a_usage_error(kept, arguments):
    write_app(kept, "proj")
    ended = run_worker(kept, "proj", *arguments)
    shown = output(ended)
    assert ended.returncode == EX_USAGE, shown
    assert arguments[-1] in shown or arguments[0] in shown
    assert "Traceback" not in shown
    assert_no_insides(shown)


def test_an_unknown_queue_is_an_error_where_none_may_be_made(kept):
    write_app(kept, "proj", "app.conf.task_create_missing_queues = False\n")
    ended = run_worker(kept, "proj", "-Q", "no_such_queue")
    assert_one_clear_error(ended, 1, "no_such_queue", remedy="To mend" in ended.stderr)
    assert "Traceback" not in output(ended)


@pytest.mark.parametrize("option", ["--pidfile", "--logfile", "--statedb"])
@pytest.mark.parametrize("where", ["no_such_folder/file", "folder", "file/below"])
def test_a_file_that_cannot_be_written_is_named(kept, option, where):
    write_app(kept, "proj")
    (kept.folder / "folder").mkdir()
    (kept.folder / "file").write_text("")
    if (option, where) == ("--statedb", "folder"):
        # dbm adds an ending of its own to the name, so that this is no error.
        (kept.folder / "folder.db").mkdir()
        (kept.folder / "folder.dir").mkdir()
    path = str(kept.folder / where)
    ended = run_worker(kept, "proj", option, path)
    assert_one_clear_error(ended, 1, path, option)
    assert "Traceback" not in output(ended)


def test_the_pidfile_of_a_running_worker_is_respected(kept):
    write_app(kept, "proj")
    pidfile = kept.folder / "worker.pid"
    pidfile.write_text(f"{os.getpid()}\n")
    ended = run_worker(kept, "proj", "--pidfile", str(pidfile))
    shown = output(ended)
    assert ended.returncode == EX_CANTCREAT, shown
    assert f"Pidfile ({pidfile}) already exists." in shown
    assert f"Seems we're already running? (pid: {os.getpid()})" in shown
    assert pidfile.read_text() == f"{os.getpid()}\n"


def test_a_missing_workdir_is_named(kept):
    write_app(kept, "proj")
    missing = str(kept.folder / "nowhere")
    ended = workers.run("celeriac", "--workdir", missing, "-A", "proj", "worker", cwd=kept.folder)
    assert_one_clear_error(ended, ended.returncode, missing)
    assert ended.returncode != 0


def test_a_user_that_does_not_exist_is_named(kept):
    write_app(kept, "proj")
    ended = run_worker(kept, "proj", "--uid", "no_such_user")
    assert_one_clear_error(ended, 1, "no_such_user")


def test_pickle_is_refused_for_root(kept):
    if os.getuid() != 0:
        pytest.skip("only root is refused")
    write_app(kept, "proj", "app.conf.accept_content = ['json', 'pickle']\n")
    ended = run_worker(kept, "proj")
    assert ended.returncode == 1, output(ended)
    assert "C_FORCE_ROOT" in output(ended)
    assert_no_insides(output(ended))
