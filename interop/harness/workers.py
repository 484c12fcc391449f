"""Workers as processes: celeriac's, and Celery's own."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import uuid
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Protocol

from harness import processes
from harness.wait import wait_until

ROOT = Path(__file__).resolve().parents[2]
APPS = ROOT / "interop" / "apps"
CELERIAC = os.environ.get("CELERIAC", str(ROOT / "target" / "release" / "celeriac"))
#: What the tests are run on. That they hold for Celery's own worker as well shows that they ask
#: for the right thing.
KIND = os.environ.get("INTEROP_WORKER", "celeriac")
CELERY = [sys.executable, "-m", "celery"]


def command(kind: str) -> list[str]:
    return [CELERIAC] if kind == "celeriac" else CELERY


def environment(**variables: str | None) -> dict[str, str]:
    """The environment for a worker: this one, without what would configure it by chance."""
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("CELERY", "CELERIAC", "DJANGO")) and name != "APP"
    }
    clean["CELERIAC_PYTHON"] = sys.executable
    clean["PYTHONPATH"] = str(APPS)
    clean["PYTHONUNBUFFERED"] = "1"
    clean.update({name: value for name, value in variables.items() if value is not None})
    return clean


def run(
    kind: str, *arguments: str, timeout: float = 60, cwd: Path | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end."""
    return subprocess.run(
        [*command(kind), *arguments],
        env=environment(**variables),
        cwd=cwd or APPS,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def load_app(name: str) -> ModuleType:
    """One of the apps, as a client in this process loads it: it finds its place in the
    environment.

    Not among the imported modules: each place has an app of its own, and tasks are named by the
    module that the worker imports."""
    module = ModuleType(name)
    file = APPS / f"{name}.py"
    exec(compile(file.read_text(), str(file), "exec"), module.__dict__)
    return module


class Program:
    """A process whose output is kept. A context, which ends it."""

    def __init__(self, file: Path, words: list[str], variables: dict[str, str]) -> None:
        self.file = file
        with open(file, "ab") as output:
            self.process = subprocess.Popen(
                words,
                env=environment(**variables),
                cwd=APPS,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                preexec_fn=processes.start_in_the_foreground,
            )

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def output(self) -> str:
        return self.file.read_text(errors="replace")

    def wait_for(self, text: str, timeout: float = 30) -> None:
        """Waits until the output has ``text``."""

        def is_there() -> bool:
            if text in self.output:
                return True
            assert self.process.poll() is None, f"it ended:\n{self.output}"
            return False

        wait_until(is_there, f"{text!r} in the output", timeout, lambda: self.output)

    def stop(self, number: int = signal.SIGTERM, timeout: float = 30) -> int:
        """Ends it, and returns its exit status."""
        self.process.send_signal(number)
        return self.process.wait(timeout)


class Worker:
    """One worker process with everything below it."""

    def __init__(
        self,
        folder: Path,
        app: str,
        *arguments: str,
        kind: str = KIND,
        loglevel: str = "INFO",
        variables: dict[str, str] | None = None,
        alone: bool = True,
        within: tuple[str, ...] = (),
        cwd: Path = APPS,
    ) -> None:
        """``alone``: it takes no notice of other workers, which saves the second that it would
        wait for their greetings. ``within`` is a command that becomes the one behind it, such as
        ``nsenter``."""
        self.kind = kind
        self.marker = f"INTEROP_WORKER={uuid.uuid4().hex}"
        self.name = f"{kind}-{uuid.uuid4().hex[:8]}"
        self.log_file = folder / f"{self.name}.log"
        name, _, value = self.marker.partition("=")
        extra = ("--without-gossip", "--without-mingle") if alone else ()
        given = " ".join(arguments)
        node = () if re.search(r"(^| )(-n|--hostname)", given) else ("-n", f"{self.name}@%h")
        self._log = open(self.log_file, "ab")
        self.process = subprocess.Popen(
            [
                *(*within, *command(kind), "-A", app, "worker", "-l", loglevel),
                *(*extra, *node, *arguments),
            ],
            env=environment(**{name: value}, **(variables or {})),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            preexec_fn=processes.start_in_the_foreground,
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def node(self) -> str:
        """Its name for remote control, unless it was given another one."""
        return f"{self.name}@{socket.gethostname()}"

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def wait_ready(self, timeout: float = 30) -> Worker:
        self.wait_for(" ready.", timeout)
        return self

    def wait_for(self, text: str, timeout: float = 30) -> None:
        """Waits until the log has ``text``."""

        def is_there() -> bool:
            if text in self.log:
                return True
            assert self.process.poll() is None, f"{self.name} ended:\n{self.log}"
            return False

        wait_until(is_there, f"{text!r} in the log of {self.name}", timeout, lambda: self.log)

    def children(self) -> list[int]:
        """The processes that run tasks."""
        below = processes.descendants(self.pid)
        if self.kind == "celeriac":
            return [pid for pid in below if processes.name_of(pid) == "celeriac:child"]
        return below

    def host(self, name: str) -> int:
        """The process id of ``main`` or ``zygote``."""

        def find() -> int | None:
            below = processes.descendants(self.pid)
            found = [pid for pid in below if processes.name_of(pid) == f"celeriac:{name}"]
            return found[0] if found else None

        pid = wait_until(find, f"{self.name} has a {name}", context=lambda: self.log)
        assert pid is not None
        return pid

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self, timeout: float = 30) -> int:
        """Waits for its end, and returns its exit status."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} does not end:\n{self.log}") from None

    def stop(self, number: int = signal.SIGTERM, timeout: float = 30) -> int:
        self.send(number)
        return self.wait(timeout)

    def kill(self) -> None:
        """The parent alone, as the kernel's OOM killer would."""
        self.process.kill()
        self.process.wait()

    def leftovers(self) -> list[str]:
        """What of it still runs."""
        return [
            f"{pid} {processes.name_of(pid)} {processes.command_of(pid)}"
            for pid in processes.with_marker(self.marker)
        ]

    def clean_up(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for pid in processes.with_marker(self.marker):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self._log.close()


class Place(Protocol):
    """Where a worker finds its broker and its results."""

    def variables(self) -> dict[str, str]:
        """Its environment variables."""


class Crew:
    """Starts workers, and ends them all when it is left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._started: list[Worker] = []

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for worker in self._started:
            worker.clean_up()

    def start(self, place: Place, *arguments: str, app: str = "basic", **options: Any) -> Worker:
        """Starts one, and waits until it is ready unless told not to by ``ready``."""
        variables = {**place.variables(), **options.pop("variables", {})}
        ready = options.pop("ready", True)
        worker = Worker(self.folder, app, *arguments, variables=variables, **options)
        self._started.append(worker)
        return worker.wait_ready() if ready else worker
