"""A Django project: found, set up and checked as Celery does, with connections of its own."""

from __future__ import annotations

import datetime
import sqlite3
import subprocess
import sys
from typing import Any, Callable

import pytest
from celery import Celery
from celery.exceptions import WorkerLostError
from conftest import Place

from harness import workers
from harness.wait import wait_until
from harness.workers import Worker

TIMEOUT = 60
PROJECT = str(workers.APPS / "django_project")


class Project:
    """The project's database, its worker, and a client that does not know Django."""

    def __init__(self, place: Place, start: Callable[..., Worker]) -> None:
        self.place = place
        self._start = start
        self.app = Celery(broker=place.broker, backend=place.backend)
        self.app.conf.task_default_queue = "shop"
        subprocess.run(
            [sys.executable, "-m", "django", "migrate", "--run-syncdb", "-v", "0"],
            env=workers.environment(
                **{
                    **place.variables(),
                    **self.variables(),
                    "DJANGO_SETTINGS_MODULE": "proj.settings",
                }
            ),
            check=True,
        )

    def variables(self, **more: str) -> dict[str, str]:
        return {"PYTHONPATH": PROJECT, **more}

    def start(self, *arguments: str, ready: bool = True, **variables: str) -> Worker:
        return self._start(
            self.place, *arguments, app="proj", ready=ready, variables=self.variables(**variables)
        )

    def run(self, *arguments: str, **variables: str) -> Any:
        """A worker that is to end by itself."""
        given: dict[str, Any] = {**self.place.variables(), **self.variables(), **variables}
        return workers.run(workers.KIND, "-A", "proj", "worker", "-c", "1", *arguments, **given)

    def send(self, name: str, *args: Any, **options: Any) -> Any:
        return self.app.send_task(name, args, **options)

    def call(self, name: str, *args: Any) -> Any:
        return self.send(name, *args).get(timeout=TIMEOUT)

    def orders(self) -> dict[str, int]:
        with sqlite3.connect(self.place.folder / "db.sqlite3") as database:
            return dict(database.execute("select name, made_by from shop_order").fetchall())


@pytest.fixture
def project(redis_place: Place, start: Callable[..., Worker]) -> Project:
    return Project(redis_place, start)


def test_tasks_of_the_apps_are_found_and_use_the_database(project):
    worker = project.start("-c", "2")
    assert project.call("shop.tasks.order", "tea") == 1
    assert project.call("shop.jobs.clean") == "clean"
    assert set(project.orders()) == {"tea"}
    for name in ("shop.tasks.order", "shop.jobs.clean"):
        assert f"  . {name}" in worker.log
    assert ".> shop " in worker.log, "settings with the prefix CELERY_ count"
    assert worker.stop() == 0


def test_many_processes_write_at_the_same_time(project):
    worker = project.start("-c", "4")
    results = [project.send("shop.tasks.order", f"order {n}") for n in range(100)]
    assert [result.get(timeout=TIMEOUT) for result in results] == [1] * 100
    made_by = project.orders()
    assert len(made_by) == 100
    assert set(made_by.values()) <= set(worker.children())
    assert worker.stop() == 0


def database_is_open_in(pid: int, project: Project) -> bool:
    from pathlib import Path

    folder = Path(f"/proc/{pid}/fd")
    target = str(project.place.folder / "db.sqlite3")
    try:
        return any(str(entry.readlink()) == target for entry in folder.iterdir())
    except OSError:
        return False


@pytest.mark.parametrize("options", [[], ["--max-tasks-per-child", "1"]], ids=["", "replaced"])
def test_no_connection_crosses_a_fork(project, options):
    """The app opens one while it is loaded, and another in ``worker_ready``."""
    worker = project.start("-c", "2", *options, INTEROP_OPENS_DATABASE="1")
    found = [project.call("shop.tasks.look") for _ in range(10)]
    for look in found:
        # Nothing was inherited, nothing is left of the task before.
        assert look["before"] == [[], True]
        assert look["after"] == 1
    notes = project.place.lines()
    assert next(line for line in notes if line.startswith("loader")).endswith("has 1")
    children = [line for line in notes if line.startswith("child")]
    assert len(children) >= len({look["pid"] for look in found})
    if workers.KIND == "celery":
        # A later child of Celery's worker inherits main's: it closes it before the first task.
        children = children[:2]
    assert all(line.endswith("has [] None") for line in children), children
    assert next(line for line in notes if line.startswith("main")).endswith("has 1")
    if workers.KIND == "celeriac":
        assert not database_is_open_in(worker.host("zygote"), project)
        assert not database_is_open_in(worker.pid, project)
        assert database_is_open_in(worker.host("main"), project)
    assert worker.stop() == 0


def test_a_child_after_a_lost_one_has_no_connection_either(project):
    project.start("-c", "1", INTEROP_OPENS_DATABASE="1")
    for _ in range(3):
        with pytest.raises(WorkerLostError):
            project.call("shop.tasks.die")
        assert project.call("shop.tasks.look")["before"] == [[], True]


def test_connections_are_used_again_where_that_is_wanted(project):
    project.place.settings = {"CELERY_DB_REUSE_MAX": 100}
    worker = project.start("-c", "1")
    found = [project.call("shop.tasks.look") for _ in range(5)]
    assert found[0]["before"] == [[], True]
    assert all(look["before"][1] is False for look in found[1:])
    assert len({look["connection"] for look in found}) == 1
    assert worker.stop() == 0


def test_a_failed_transaction_leaves_nothing(project):
    project.start("-c", "1")
    with pytest.raises(ValueError, match="changed my mind"):
        project.call("shop.tasks.order_and_fail", "tea")
    assert project.call("shop.tasks.order", "tea") == 1


def test_a_task_that_is_sent_on_commit_sees_what_was_committed(project):
    project.start("-c", "2")
    project.call("shop.tasks.order_and_confirm", "tea")
    wait_until(lambda: "confirmed tea" in project.place.lines(), "it is confirmed", TIMEOUT)
    said = [line for line in project.place.lines() if line.endswith("tea")]
    assert said == ["ordered tea", "confirmed tea"]


def test_time_is_djangos(project):
    project.start("-c", "1")
    now, timezone = project.call("shop.tasks.now")
    found = datetime.datetime.fromisoformat(now)
    assert found.tzinfo is not None
    assert abs((found - datetime.datetime.now(datetime.timezone.utc)).total_seconds()) < 60
    assert timezone == "Pacific/Auckland"


def test_settings_of_the_namespace_reach_the_worker(project):
    project.place.settings = {"CELERY_WORKER_CONCURRENCY": 3}
    worker = project.start()
    wait_until(lambda: len(worker.children()) == 3, "there are three processes", TIMEOUT)
    assert project.call("shop.tasks.order", "tea") == 1
    assert "concurrency: 3" in worker.log
    assert worker.stop() == 0


# -- what may be wrong -------------------------------------------------------------------------


def test_a_check_that_fails_is_shown_and_ends_the_worker(project):
    """What a check merely reports stops no worker, as in Celery."""
    answer = project.run(INTEROP_FAILS_CHECKS="1")
    assert answer.returncode not in (0, -9)
    assert "the shop is closed" in answer.stderr + answer.stdout


def test_checks_may_be_skipped(project):
    worker = project.start("-c", "1", INTEROP_FAILS_CHECKS="1", CELERY_SKIP_CHECKS="1")
    assert project.call("shop.tasks.order", "tea") == 1
    assert worker.stop() == 0


@pytest.mark.parametrize(
    "settings, said",
    [
        ("no_such_settings", "no_such_settings"),
        ("shop.tasks_of_nobody", "shop.tasks_of_nobody"),
        ("broken_settings", "broken by its author"),
    ],
)
def test_settings_that_cannot_be_read_are_named(project, settings, said):
    folder = project.place.folder
    (folder / "broken_settings.py").write_text("raise RuntimeError('broken by its author')\n")
    answer = project.run(DJANGO_SETTINGS_MODULE=settings, PYTHONPATH=f"{PROJECT}:{folder}")
    assert answer.returncode not in (0, -9)
    assert said in answer.stderr + answer.stdout
    if workers.KIND == "celeriac":
        assert "<celeriac>" not in answer.stderr, "the frames of the host are of no use to anybody"


def test_an_app_that_is_not_installed_is_named(project):
    project.place.settings = {"INSTALLED_APPS": ["shop.apps.ShopConfig", "no_such_app"]}
    answer = project.run()
    assert answer.returncode not in (0, -9)
    assert "no_such_app" in answer.stderr + answer.stdout


def test_a_database_that_is_away_does_not_stop_the_worker(project):
    worker = project.start("-c", "1")
    (project.place.folder / "db.sqlite3").rename(project.place.folder / "away")
    with pytest.raises(Exception, match="no such table"):
        project.call("shop.tasks.order", "tea")
    (project.place.folder / "away").rename(project.place.folder / "db.sqlite3")
    assert project.call("shop.tasks.order", "tea") == 1
    assert worker.stop() == 0
