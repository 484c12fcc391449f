"""Commands as tasks: what celeriac.toml declares, and what callers may name."""

from __future__ import annotations

import signal
from pathlib import Path
from types import ModuleType
from typing import Any, Callable

import pytest
from celery import chord, group, signature
from conftest import Place

from harness import processes, workers
from harness.wait import wait_until

pytestmark = pytest.mark.skipif(
    workers.KIND != "celeriac", reason="Celery's own worker has no such tasks"
)

CONFIGURATION = """
[commands."tools.print"]
argv = ["printf", "%s\\\\n", "{words...}"]

[commands."tools.exit"]
argv = ["echo attempt >>$1; exit $2", "{file}", "{code}"]
shell = true
retry_codes = [75]
max_retries = 2
retry_delay = 0.1

[commands."tools.sleep"]
argv = ["setsid sleep 1000 & echo $! $$ >$1.new; mv $1.new $1; sleep 1000", "{file}"]
shell = true
grace = 0.5
acks_late = true

[commands."celeriac.command"]
programs = ["/bin/cat"]
"""


@pytest.fixture
def begin(
    fanout_place: Place, start: Callable[..., workers.Worker], client: Callable[..., ModuleType]
) -> Callable[..., tuple[workers.Worker, ModuleType]]:
    def started(configuration: str = CONFIGURATION) -> tuple[workers.Worker, ModuleType]:
        (fanout_place.folder / "celeriac.toml").write_text(configuration)
        worker = start(fanout_place, "-c", "1", cwd=fanout_place.folder)
        return worker, client(fanout_place)

    return started


def pids(file: Path) -> list[int]:
    wait_until(file.exists, f"{file.name} is there", 60)
    return [int(word) for word in file.read_text().split()]


def test_a_command_s_end_is_the_result(begin: Callable[..., Any]) -> None:
    worker, module = begin()
    result = module.app.send_task("tools.print", kwargs={"words": ["one two", "$(three)"]})
    found = result.get(timeout=60)
    assert found["stdout"] == "one two\n$(three)\n"
    assert (found["exit_code"], found["stderr"], found["truncated"]) == (0, "", False)
    worker.wait_for("one two")


def test_exit_codes_are_failures_or_retried(begin: Callable[..., Any], tmp_path: Path) -> None:
    _, module = begin()
    for code, attempts in ((3, 1), (75, 3)):
        file = tmp_path / f"attempts{code}"
        failed = module.app.send_task("tools.exit", args=[str(file), code])
        failed.get(timeout=60, propagate=False)
        assert failed.state == "FAILURE"
        assert type(failed.result).__name__ == "CommandFailed"
        assert str(failed.result).startswith(f"exit code {code}")
        assert file.read_text().count("attempt") == attempts


def test_wrong_arguments_are_python_s_errors(begin: Callable[..., Any]) -> None:
    _, module = begin()
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'words'"):
        module.app.send_task("tools.print").get(timeout=60)


@pytest.mark.parametrize("how", ["revoked", "time limit"])
def test_all_of_a_command_ends_with_its_task(
    begin: Callable[..., Any], tmp_path: Path, how: str
) -> None:
    _, module = begin()
    file = tmp_path / "pids"
    options = {"time_limit": 3} if how == "time limit" else {}
    result = module.app.send_task("tools.sleep", args=[str(file)], **options)
    running = pids(file)
    if how == "revoked":
        result.revoke(terminate=True)
    result.get(timeout=60, propagate=False)
    assert result.state == ("REVOKED" if how == "revoked" else "FAILURE")

    def is_gone() -> bool:
        return not any(map(processes.is_running, running))

    if how == "revoked":
        # As with Celery, the state is stored when the revoke comes.
        wait_until(is_gone, "all of it is gone")
    assert is_gone()


def test_no_command_outlives_a_killed_worker(begin: Callable[..., Any], tmp_path: Path) -> None:
    worker, module = begin()
    file = tmp_path / "pids"
    module.app.send_task("tools.sleep", args=[str(file)])
    running = pids(file)
    worker.send(signal.SIGKILL)
    worker.process.wait()
    wait_until(lambda: not any(map(processes.is_running, running)), "all of it is gone")
    wait_until(lambda: not worker.leftovers(), "nothing of the worker is left")


def test_callers_run_what_they_may(begin: Callable[..., Any]) -> None:
    _, module = begin()

    def send(*argv: str) -> Any:
        kwargs = {"argv": list(argv), "stdin": "text"}
        return module.app.send_task("celeriac.command", kwargs=kwargs).get(timeout=60)

    assert send("cat")["stdout"] == "text"
    with pytest.raises(PermissionError, match="is not among those that this worker allows"):
        send("/bin/sh", "-c", "true")


def test_callers_run_nothing_unless_that_is_configured(begin: Callable[..., Any]) -> None:
    _, module = begin('[commands."tools.true"]\nargv = ["true"]\n')
    result = module.app.send_task("celeriac.command", kwargs={"argv": ["true"]})
    with pytest.raises(PermissionError, match="runs no commands that callers name"):
        result.get(timeout=60)


def test_commands_and_python_share_a_chord(begin: Callable[..., Any]) -> None:
    _, module = begin()
    words = [signature("tools.print", kwargs={"words": [word]}, app=module.app) for word in "ab"]
    header = group([*words, module.add.s(1, 2)])
    body = module.echo.s()
    [found] = chord(header)(body).get(timeout=60)[0]
    assert [part["stdout"] if isinstance(part, dict) else part for part in found] == [
        "a\n",
        "b\n",
        3,
    ]
