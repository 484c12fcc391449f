"""Programs whose tasks are in Rust: those of ``examples/rust-quickstart``."""

from __future__ import annotations

import functools
import json
import os
import socket
import subprocess
import uuid
from pathlib import Path

from harness.workers import ROOT, Program, environment

#: Nothing of Python is found with it.
NO_PYTHON = "/nonexistent/python"


@functools.cache
def _built() -> dict[str, Path]:
    """The programs by their names, as cargo has built them."""
    command = ["cargo", "build", "--quiet", "--package", "rust-quickstart"]
    built = subprocess.run(
        [*command, "--message-format=json"], cwd=ROOT, check=True, stdout=subprocess.PIPE
    )
    messages = [json.loads(line) for line in built.stdout.splitlines()]
    programs = [Path(message["executable"]) for message in messages if message.get("executable")]
    return {program.name: program for program in programs}


def program(name: str) -> Path:
    """One of the programs: beside that which ``CELERIAC_QUICKSTART`` names, or built now."""
    given = os.environ.get("CELERIAC_QUICKSTART")
    found = Path(given).with_name(name) if given else _built()[name]
    assert found.exists(), f"{found} is not there: name rust-quickstart in CELERIAC_QUICKSTART"
    return found


def variables(broker: str, backend: str) -> dict[str, str]:
    """What tells a program of its broker and its results; there is no Python for it."""
    return {
        "CELERY_BROKER_URL": broker,
        "CELERY_RESULT_BACKEND": backend,
        "CELERIAC_PYTHON": NO_PYTHON,
        "PATH": "/nonexistent",
    }


def run(
    name: str, *arguments: str, broker: str, backend: str, timeout: float = 60
) -> subprocess.CompletedProcess[str]:
    """Runs one of the programs to its end."""
    return subprocess.run(
        [str(program(name)), *arguments],
        env=environment(**variables(broker, backend)),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


class RustWorker(Program):
    """A worker that is one of the programs. A context, which ends it."""

    def __init__(self, folder: Path, name: str, *arguments: str, broker: str, backend: str) -> None:
        self.name = f"rust-{uuid.uuid4().hex[:8]}"
        words = [str(program(name)), "worker", "-l", "INFO", "-n", f"{self.name}@%h"]
        alone = ["--without-gossip", "--without-mingle"]
        super().__init__(
            folder / f"{self.name}.log",
            [*words, *alone, *arguments],
            variables(broker, backend),
        )

    def __enter__(self) -> RustWorker:
        return self

    @property
    def node(self) -> str:
        """Its name for remote control."""
        return f"{self.name}@{socket.gethostname()}"
