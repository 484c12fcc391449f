"""The layers of the configuration: what reaches the app, what is shown, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable

import pytest
from celery import Celery
from celery.app.defaults import NAMESPACES, flatten

from harness import workers
from harness.wait import wait_until

TIMEOUT = 60
HEAD = """
import os
from celery import Celery
app = Celery('proj', set_as_current=False)
@app.task
def conf(*names):
    return [app.conf.get(name) for name in names]
@app.task
def variables(*names):
    return [os.environ.get(name) for name in names]
@app.task
def late():
    return late.acks_late
# A task has its options from the configuration when it is first used.
bound = late.s()
"""


class Project:
    """An app in a folder of its own, with files beside it; where its broker and its results are is
    said by one of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.broker = f"sqla+sqlite:///{folder}/broker.db"
        self.backend = f"db+sqlite:///{folder}/results.db"
        self.write("proj.py", HEAD)
        self.client = Celery("client", broker=self.broker, backend=self.backend)

    @property
    def urls(self) -> str:
        return f"[celery]\nbroker_url = '{self.broker}'\nresult_backend = '{self.backend}'\n"

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def variables(self) -> dict[str, str]:
        return {}

    def run(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return workers.run("celeriac", *words, cwd=self.folder, timeout=TIMEOUT, **variables)

    def ask(self, task: str, *arguments: Any, **options: Any) -> Any:
        sent = self.client.send_task(f"proj.{task}", arguments, **options)
        return sent.get(timeout=TIMEOUT)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.fixture
def begin(project: Project, start: Callable[..., workers.Worker]) -> Callable[..., workers.Worker]:
    """Starts a worker for the project in its folder."""

    def begin(*arguments: str, **variables: str) -> workers.Worker:
        words = ("--workdir", str(project.folder), *arguments)
        return start(project, *words, app="proj", variables=variables)

    return begin


def test_of_all_layers_the_highest_one_reaches_the_tasks(project, begin):
    # Each setting stands in one layer more than the one before it.
    names = [
        "result_chord_join_timeout",
        "result_chord_retry_interval",
        "event_queue_ttl",
        "event_queue_expires",
        "control_queue_ttl",
        "control_queue_expires",
    ]
    app, file, of_environment, dotenv, exported, line = (names[at:] for at in range(6))
    project.write("proj.py", HEAD + "".join(f"app.conf.{name} = 1\n" for name in app))
    lines = [f"{name} = 2" for name in file]
    project.write("celeriac.toml", project.urls + "\n".join(lines))
    lines = [f"{name} = 3" for name in of_environment]
    project.write("celeriac.staging.toml", "[celery]\n" + "\n".join(lines))
    lines = [f"CELERIAC_CELERY__{name.upper()}=4" for name in dotenv]
    project.write(".env", "\n".join(["APP_ENV=staging", *lines]))
    variables = {f"CELERIAC_CELERY__{name.upper()}": "5" for name in exported}
    words = [f"{name.replace('_', '.', 1)}=6" for name in line]
    begin("-c", "1", "--", *words, **variables)
    assert project.ask("conf", *names) == [1, 2, 3, 4, 5, 6]


def test_a_setting_counts_for_tasks_that_were_used_while_the_app_was_imported(project, begin):
    project.write("celeriac.toml", f"{project.urls}task_acks_late = true\n")
    begin("-c", "1")
    assert project.ask("late") is True


@pytest.mark.parametrize("namespace", [None, "CELERY"])
def test_settings_count_over_those_of_an_object(project, begin, namespace):
    name = "CELERY_RESULT_EXPIRES" if namespace else "result_expires"
    text = f"app.config_from_object({{{name!r}: 1}}, namespace={namespace!r})\n"
    # Read, and then changed: both while the module is imported.
    text += "assert app.conf.result_expires == 2\napp.conf.result_chord_join_timeout = 1\n"
    project.write("proj.py", HEAD + text)
    settings = "result_expires = 2\nresult_chord_join_timeout = 2\n"
    project.write("celeriac.toml", project.urls + settings)
    begin("-c", "1")
    assert project.ask("conf", "result_expires", "result_chord_join_timeout") == [2, 2]


def test_settings_count_over_those_with_old_names(project, begin):
    text = (
        "app.conf.CELERY_TASK_RESULT_EXPIRES = 1\napp.conf.CELERY_TASK_SERIALIZER = 'pickle'\n"
        "app.conf.CELERYD_CONCURRENCY = 3\n"
    )
    project.write("proj.py", HEAD + text)
    settings = "result_expires = 2\ntask_serializer = 'json'\n"
    project.write("celeriac.toml", project.urls + settings)
    worker = begin()
    assert project.ask("conf", "result_expires", "task_serializer") == [2, "json"]
    assert len(worker.children()) == 3, "the app's own setting is as it was"


def test_dotenv_sets_what_nobody_exports(project, begin):
    project.write("celeriac.toml", project.urls)
    text = "ONE=of the file\nTWO=of the file\nexport QUOTED='a # b'\nREFERS=${ONE}/1\n"
    project.write(".env", text)
    begin("-c", "1", TWO="exported")
    told = project.ask("variables", "ONE", "TWO", "QUOTED", "REFERS")
    assert told == ["of the file", "exported", "a # b", None]


def test_a_folder_by_the_name_of_dotenv_is_left_alone(project):
    (project.folder / ".env").mkdir()
    assert project.run("-A", "proj", "report").returncode == 0


def test_a_url_in_dotenv_is_what_celery_takes_it_for(project, begin):
    project.write(
        "celeriac.toml", "[celery]\nbroker_url = 'memory://'\nresult_backend = 'rpc://'\n"
    )
    text = f"CELERY_BROKER_URL={project.broker}\nCELERY_RESULT_BACKEND={project.backend}\n"
    project.write(".env", text)
    begin("-c", "1")
    names = ("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND")
    assert project.ask("variables", *names) == [project.broker, project.backend]


def test_options_of_the_worker_stand_below_the_command_line(project, begin):
    project.write(
        "celeriac.toml",
        f"app = 'no.such.app'\n{project.urls}\n"
        "[worker]\nconcurrency = 3\nqueues = ['one', 'two']\nhostname = 'configured@there'\n"
        "task_events = true\n",
    )
    worker = begin("-c", "2", CELERY_WORKER_QUEUES="two,three")
    wait_until(lambda: len(worker.children()) == 2, "two processes", TIMEOUT)
    assert project.ask("conf", "worker_send_task_events", queue="three") is not None
    shown = [line.split()[1] for line in worker.log.splitlines() if "exchange=" in line]
    assert shown == ["three", "two"]
    assert "task events: ON" in worker.log


def test_a_setting_of_a_higher_layer_counts_over_an_option(project, begin):
    project.write("celeriac.toml", f"{project.urls}\n[worker]\nconcurrency = 3\n")
    project.write("celeriac.big.toml", "[celery]\nworker_concurrency = 1\n")
    worker = begin(APP_ENV="big")
    wait_until(lambda: len(worker.children()) == 1, "one process", TIMEOUT)


def test_an_only_pool_with_a_name(project, begin):
    project.write(
        "celeriac.toml",
        f"{project.urls}\n[pools.cpu]\npool = 'prefork'\nconcurrency = 3\nqueues = ['other']\n",
    )
    worker = begin("--pool", "cpu=prefork:2@celery,batch")
    wait_until(lambda: len(worker.children()) == 2, "two processes", TIMEOUT)
    for queue in ("celery", "batch"):
        assert project.ask("late", queue=queue) is False
    assert ".> other" not in worker.log


def test_limits_are_sections_of_their_own(project):
    project.write("celeriac.toml", f"{project.urls}[limits.'proj.late']\nrate = 'often'\n")
    ended = project.run("-A", "proj", "worker")
    assert ended.returncode == 1
    assert 'celeriac_limits["proj.late"]' in ended.stderr


def test_commands_of_celery_are_configured_as_well(project):
    project.write("celeriac.toml", f"app = 'proj'\n{project.urls}")
    called = project.run("call", "proj.late")
    assert called.returncode == 0, called.stderr
    purged = project.run("purge", "-f")
    assert "Purged 1 message" in purged.stdout, purged.stderr
    listed = project.run("dlq", "list")
    assert listed.returncode == 0, listed.stderr
    elsewhere = f"sqla+sqlite:///{project.folder}/elsewhere.db"
    purged = project.run("-b", elsewhere, "purge", "-f")
    assert "No messages purged" in purged.stdout, purged.stderr


def configuration(ended: subprocess.CompletedProcess[str]) -> list[str]:
    """The lines of a report that are about the layers."""
    assert "configuration ->" in ended.stdout, ended.stderr
    _, section = ended.stdout.split("configuration ->\n")
    return [line.strip() for line in section.splitlines()]


def test_the_report_shows_each_value_with_its_source(project):
    text = "app.conf.result_expires = 60\napp.conf.broker_url = 'amqp://me:hidden@there//'\n"
    project.write("proj.py", HEAD + text)
    project.write(
        "celeriac.toml",
        "app = 'proj'\n[celery]\nbroker_url = 'redis://:hidden@file'\nresult_expires = 30\n"
        "redis_password = 'hidden'\n[worker]\nconcurrency = 2\n"
        "[commands.fetch]\nargv = ['fetch', 'ftp://me:hidden@host']\n"
        "environment = { A = 'hidden' }\n",
    )
    project.write(".env", "CELERIAC_WORKER__CONCURRENCY=3\n")
    variables = {"CELERY_BROKER_URL": "redis://:hidden@variable", "CELERY_WORKER_QUEUES": "a"}
    ended = project.run("--result-backend", "redis://u:hidden@line", "report", **variables)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.lstrip().startswith("software -> celery:"), "Celery's own report"
    assert "hidden" not in ended.stdout
    over = "environment (CELERY_BROKER_URL)"
    # The test's own environment names the interpreter.
    shown = [line for line in configuration(ended) if not line.startswith("python = ")]
    assert shown == [
        'app = "proj"  [celeriac.toml:1]',
        f'celery.broker_url = "redis://:**@variable"  [{over}]',
        f'celery.broker_url = "redis://:**@file"  [celeriac.toml:3, overridden by {over}]',
        f"celery.broker_url = 'amqp://me:**@there:5672//'  [the app, overridden by {over}]",
        'celery.redis_password = "********"  [celeriac.toml:5]',
        'celery.result_backend = "redis://u:**@line"  [command line (--result-backend)]',
        "celery.result_expires = 30  [celeriac.toml:4]",
        "celery.result_expires = 60  [the app, overridden by celeriac.toml:4]",
        'commands.fetch.argv = ["fetch","ftp://me:**@host"]  [celeriac.toml:9]',
        'commands.fetch.environment.A = "********"  [celeriac.toml:10]',
        "worker.concurrency = 3  [.env:1 (CELERIAC_WORKER__CONCURRENCY)]",
        "worker.concurrency = 2  [celeriac.toml:7, overridden by .env:1 "
        "(CELERIAC_WORKER__CONCURRENCY)]",
        'worker.queues = "a"  [environment (CELERY_WORKER_QUEUES)]',
    ]


def test_the_report_needs_no_app(project):
    project.write("celeriac.toml", "[celery]\nresult_expires = 30\n")
    ended = project.run("report")
    assert ended.returncode == 0, ended.stderr
    assert "celery.result_expires = 30  [celeriac.toml:2]" in configuration(ended)


def test_the_report_shows_the_configuration_where_there_is_no_interpreter(project):
    project.write("celeriac.toml", "[celery]\nresult_expires = 30\n")
    ended = project.run("report", CELERIAC_PYTHON="/no/such/python")
    assert ended.returncode == 1
    assert "celery.result_expires = 30  [celeriac.toml:2]" in configuration(ended)
    assert "/no/such/python" in ended.stderr


def test_slips_are_told_by_the_worker_and_by_the_report(project, begin):
    slips = "app.conf.worker_concurency = 3\napp.conf.CELERY_TASK_ANNOTATIONS = {}\n"
    own = "app.conf.tenant = 'acme'\n"
    project.write("proj.py", HEAD + slips + own)
    project.write("celeriac.toml", f"{project.urls}task_serialiser = 'json'\n")
    told = [
        "celeriac.toml:4: there is no setting task_serialiser (write task_serializer)",
        "The app's configuration has CELERY_TASK_ANNOTATIONS, of which Celery takes no notice: is "
        "task_annotations (or CELERY_ANNOTATIONS, as before Celery 4) meant?",
        "The app's configuration has worker_concurency, of which Celery takes no notice: is "
        "worker_concurrency meant?",
    ]
    worker = begin("-c", "1")
    for line in told:
        # The worker's files are in another folder than it was started in.
        assert line.removeprefix("celeriac.toml:4: ") in worker.log
    assert "tenant" not in worker.log
    ended = project.run("-A", "proj", "report")
    warnings = [line for line in configuration(ended) if line.startswith("warning")]
    assert warnings == [f"warning -> {line}" for line in told]


BAD = [
    ({"celeriac.toml": "[celery]\nbroker_url = \n"}, "celeriac.toml:2:14: this is no TOML: "),
    ({"celeriac.toml": "[celery]\ntask_acks_late = 'yes'\n"}, "celeriac.toml:2: celery.task_acks"),
    (
        {"celeriac.toml": "[wroker]\nconcurrency = 1\n"},
        "celeriac.toml:2: there is no section wroker",
    ),
    ({"celeriac.toml": "[worker]\nconcurency = 1\n"}, "(write concurrency)"),
    ({"celeriac.toml": "[worker]\nloglevel = 'loud'\n"}, "celeriac.toml:2: invalid value 'loud'"),
    (
        {"celeriac.toml": "[worker]\nheartbeat_interval = -1\n"},
        "celeriac.toml:2: invalid value '-1'",
    ),
    (
        {"celeriac.toml": "[pools.a]\npool = 'gevnet'\n"},
        "celeriac.toml:2: pool a: there is no kind",
    ),
    ({"celeriac.test.toml": "nothing = 1\n"}, "celeriac.test.toml:1: there is no key nothing"),
    ({".env": "A='1\n"}, ".env:1:3: the quotes of this value do not end"),
    (
        {".env": "CELERIAC_WORKER__CONCURRENCY=many\n"},
        ".env:1 (CELERIAC_WORKER__CONCURRENCY): worker",
    ),
    ({".env": "CELERY_WORKER_LOGLEVEL=loud\n"}, ".env:1 (CELERY_WORKER_LOGLEVEL): invalid value"),
]


@pytest.mark.parametrize(("files", "told"), BAD, ids=[told for _, told in BAD])
def test_files_that_make_no_sense_are_refused(project, files, told):
    for name, text in files.items():
        project.write(name, text)
    ended = project.run("-A", "proj", "worker", APP_ENV="test")
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert told in ended.stderr
    assert ended.stdout == ""


def test_a_file_that_can_not_be_read_is_refused(project):
    # Whatever the user that the tests run as may read.
    (project.folder / "celeriac.toml").mkdir()
    ended = project.run("-A", "proj", "report")
    assert ended.returncode == 2
    assert "celeriac.toml: it can't be read: " in ended.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--pool", "io=gevnet:5"], 'there is no kind of pool "gevnet" (write gevent)'),
        (["--pool", "io=eventlet"], "eventlet pools are not available"),
        (["--pool", "a=prefork@x", "--pool", "b=prefork@x"], "queue x: a and b both have it"),
        (["--pool", "a=prefork@x", "--pool", "a=prefork@y"], "there is another pool a"),
        (["--pool", "a=prefork@x", "-Q", "y"], "queue y: no pool has it"),
        (["--pool", "a=prefork:0"], "it could run nothing"),
    ],
)
def test_pools_that_make_no_sense_are_refused(project, words, told):
    ended = project.run("-A", "proj", "worker", *words)
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert told in ended.stderr


def test_every_setting_of_celery_is_known(project):
    values = {
        "bool": False,
        "int": 1,
        "float": 1.5,
        "string": "x",
        "str": "x",
        "bytes": "x",
        "list": ["x"],
        "tuple": ["x"],
        "dict": {"x": 1},
        "any": "x",
        int: 1,
    }
    # Celery has these for text, which is not what they are.
    others = {"cassandra_auth_kwargs": {"x": 1}, "task_default_priority": 1}
    settings = {name: values[option.type] for name, option in flatten(NAMESPACES)}
    settings.update(others)
    text = json.dumps(settings)
    # An inline table of TOML is nearly JSON.
    table = text.replace('": ', '" = ')
    project.write("celeriac.toml", f"celery = {table}\n")
    ended = project.run("report", CELERIAC_PYTHON="/no/such/python")
    shown = configuration(ended)
    assert not [line for line in shown if line.startswith("warning")]
    keys = {line.split(" = ")[0].split(".")[1] for line in shown if line.startswith("celery.")}
    assert keys == set(settings)


def test_the_interpreter_and_the_app_may_be_configured(project):
    python = os.path.relpath(sys.executable, project.folder)
    text = f"app = 'proj'\npython = {python!r}\n{project.urls}"
    project.write("celeriac.toml", text)
    ended = project.run("call", "proj.late", CELERIAC_PYTHON="")
    assert ended.returncode == 0, ended.stderr
