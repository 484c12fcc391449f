"""Servers of our own, on free ports, with their data in a folder of their own."""

from __future__ import annotations

import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import redis

from harness.processes import die_with_parent
from harness.wait import wait_until


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class RedisServer:
    """A Redis server; each test takes databases of its own."""

    DATABASES = 2048

    def __init__(self, folder: Path, *options: str) -> None:
        program = shutil.which("redis-server")
        assert program, "redis-server is not installed"
        self.port = free_port()
        self.folder = folder
        self._command = [
            program,
            *("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder)),
            *("--save", "", "--appendonly", "no", "--databases", str(self.DATABASES)),
            *("--unixsocket", str(folder / "redis.sock")),
            *options,
        ]
        self._next_database = 0
        self.start()

    def start(self) -> None:
        with open(self.folder / "redis.log", "a") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, preexec_fn=die_with_parent
            )
        wait_until(self._answers, "Redis answers", context=self._log)

    def _answers(self) -> bool:
        try:
            return bool(redis.Redis(port=self.port).ping())
        except redis.AuthenticationError:
            return True
        except redis.ConnectionError:
            return False

    def _log(self) -> str:
        return (self.folder / "redis.log").read_text()

    def database(self) -> int:
        """The number of a database that nobody has used."""
        self._next_database += 1
        assert self._next_database < self.DATABASES
        return self._next_database

    def client(self, database: int = 0, **options: Any) -> redis.Redis:
        return redis.Redis(port=self.port, db=database, **options)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
