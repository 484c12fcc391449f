"""A chord of tasks in Rust, in Python, of a command and of a container, with its body in Python."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Callable

import pytest
from celery import chord
from conftest import Place

from harness import workers
from harness.docker_engine import DockerEngine, NoEngine, is_required
from harness.programs import RustWorker

pytestmark = pytest.mark.skipif(
    workers.KIND != "celeriac", reason="Celery's own worker has no such tasks"
)

CONFIGURATION = """
[commands."tools.print"]
argv = ["printf", "%s", "{word}"]

[containers.run_docker]
host = "HOST"
"""


@pytest.fixture
def engine() -> Any:
    try:
        started = DockerEngine()
    except NoEngine as error:
        text = f"NO DOCKER ENGINE, NO CHORD WITH A CONTAINER IS TESTED: {error}"
        if is_required():
            pytest.fail(text)
        print(text, file=sys.__stderr__)
        pytest.skip(text)
    yield started
    started.stop()


def test_a_chord_of_all_kinds(
    fanout_place: Place,
    engine: DockerEngine,
    tmp_path: Path,
    start: Callable[..., workers.Worker],
    client: Callable[..., ModuleType],
) -> None:
    place = fanout_place
    (place.folder / "celeriac.toml").write_text(CONFIGURATION.replace("HOST", engine.host))
    rust = RustWorker(tmp_path, "rust-quickstart", broker=place.broker, backend=place.backend)
    with rust:
        rust.wait_for(" ready.")
        start(place, "-c", "2", cwd=place.folder)
        app = client(place)
        signature = app.app.signature
        container = {"image": "busybox", "command": ["echo", "contained"]}
        header = [
            signature("quickstart.add", (2, 3), queue="rust"),
            app.add.s(4, 5),
            signature("tools.print", kwargs={"word": "commanded"}),
            signature("tasks.run_docker", kwargs=container),
        ]
        [found] = chord(header)(app.echo.s()).get(timeout=120)[0]
        assert found[:2] == [5, 9]
        assert found[2]["stdout"] == "commanded"
        assert found[3]["output"] == "contained\n"
        assert engine.containers() == []
