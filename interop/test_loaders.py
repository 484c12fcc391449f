"""Where an app has its configuration from: loaders of its own, modules, the environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from conftest import Place

from harness import workers
from harness.wait import wait_until

TIMEOUT = 60

#: An app that has a loader of its own.
LOADER = '''
import json
import os
from celery import Celery
from celery.loaders.app import AppLoader

class FileLoader(AppLoader):
    """Reads the configuration from a file, and imports what that names."""

    def read_configuration(self, env="CELERY_CONFIG_MODULE"):
        with open(os.path.join(os.environ["INTEROP_FOLDER"], "conf.json")) as file:
            return json.load(file)
'''
OWN_LOADER = LOADER + "\napp = Celery('own', loader=FileLoader)\n"
LOADER_OF_THE_ENVIRONMENT = LOADER + "\napp = Celery('own')\n"
TASKS = """
from celery import shared_task, current_app

@shared_task(name="where")
def where():
    conf = current_app.conf
    return [type(current_app.loader).__name__, conf.task_default_queue, conf.worker_concurrency]
"""


class Files:
    """Modules of an app, and a client that has none of them."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.app = Celery(broker=place.broker, backend=place.backend)
        self.write("their_tasks.py", TASKS)

    def write(self, name: str, text: str) -> None:
        Path(self.place.folder, name).write_text(text)

    def configuration(self) -> dict[str, Any]:
        return {
            "broker_url": self.place.broker,
            "result_backend": self.place.backend,
            "task_default_queue": "own_queue",
            "worker_concurrency": 2,
            "imports": ["their_tasks"],
        }

    def where(self) -> Any:
        return self.app.send_task("where", queue="own_queue").get(timeout=TIMEOUT)


@pytest.fixture
def files(redis_place: Place) -> Files:
    return Files(redis_place)


def variables(files: Files, **more: str) -> dict[str, str]:
    return {"PYTHONPATH": str(files.place.folder), **more}


@pytest.mark.parametrize("by_environment", [False, True])
def test_a_loader_of_the_apps_own(files, start, by_environment):
    import json

    files.write("own.py", LOADER_OF_THE_ENVIRONMENT if by_environment else OWN_LOADER)
    files.write("conf.json", json.dumps(files.configuration()))
    more = {"CELERY_LOADER": "own:FileLoader"} if by_environment else {}
    worker = start(files.place, app="own", variables=variables(files, **more))
    assert files.where() == ["FileLoader", "own_queue", 2]
    wait_until(lambda: len(worker.children()) == 2, "there are two processes", TIMEOUT)
    assert "FileLoader" in worker.log, "the banner names a loader that is not Celery's own"
    assert worker.stop() == 0


def test_a_module_of_settings_in_the_environment(files, start):
    files.write("own.py", "from celery import Celery\napp = Celery('own')\n")
    lines = [f"{name} = {value!r}" for name, value in files.configuration().items()]
    files.write("their_config.py", "\n".join(lines) + "\n")
    worker = start(
        files.place,
        app="own",
        variables=variables(files, CELERY_CONFIG_MODULE="their_config"),
    )
    assert files.where() == ["AppLoader", "own_queue", 2]
    assert worker.stop() == 0


@pytest.mark.parametrize(
    "options, module",
    [(["--config", "their_config"], "their_config"), ([], "celeryconfig")],
    ids=["--config", "celeryconfig"],
)
def test_a_worker_without_an_app(files, options, module):
    """``celery worker`` alone takes ``celeryconfig.py``."""
    import subprocess

    from harness import processes

    lines = [f"{name} = {value!r}" for name, value in files.configuration().items()]
    files.write(f"{module}.py", "\n".join(lines) + "\n")
    with open(files.place.folder / "log", "wb") as log:
        worker = subprocess.Popen(
            [*workers.command(workers.KIND), *options, "worker", "-l", "INFO"],
            env=workers.environment(**variables(files)),
            cwd=files.place.folder,
            stdout=log,
            stderr=log,
            preexec_fn=processes.die_with_parent,
        )
    try:
        assert files.where()[1:] == ["own_queue", 2]
    finally:
        worker.terminate()
    assert worker.wait(TIMEOUT) == 0


def test_the_environment_counts_over_the_settings(files, start):
    """``CELERY_BROKER_URL`` and ``CELERY_RESULT_BACKEND``."""
    settings = {**files.configuration(), "broker_url": "redis://127.0.0.1:1/0"}
    settings["result_backend"] = "redis://127.0.0.1:1/1"
    files.write(
        "own.py", f"from celery import Celery\napp = Celery('own')\napp.conf.update({settings!r})\n"
    )
    worker = start(
        files.place,
        app="own",
        variables=variables(
            files, CELERY_BROKER_URL=files.place.broker, CELERY_RESULT_BACKEND=files.place.backend
        ),
    )
    assert files.where()[1] == "own_queue"
    assert worker.stop() == 0


def test_a_loader_that_cannot_be_imported_is_named(files):
    files.write(
        "own.py", "from celery import Celery\napp = Celery('own', loader='nobody:Loader')\n"
    )
    answer = workers.run(
        workers.KIND, "-A", "own", "worker", **variables(files), **files.place.variables()
    )
    assert answer.returncode not in (0, -9)
    assert "nobody" in answer.stderr + answer.stdout
