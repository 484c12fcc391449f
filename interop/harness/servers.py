"""Servers of our own, on free ports, with their data in a folder of their own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import amqp
import redis

from harness.processes import die_with_parent
from harness.wait import wait_until


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def is_listened_on(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


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

    @property
    def pid(self) -> int:
        return self._process.pid

    def database(self) -> int:
        """The number of a database that nobody has used."""
        self._next_database += 1
        assert self._next_database < self.DATABASES
        return self._next_database

    def url(self, database: int) -> str:
        return f"redis://127.0.0.1:{self.port}/{database}"

    def client(self, database: int = 0, **options: Any) -> redis.Redis:
        return redis.Redis(port=self.port, db=database, **options)

    def is_up(self) -> bool:
        return self._process.poll() is None

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


class RabbitServer:
    """A RabbitMQ node; each test takes a virtual host of its own."""

    #: Debian's: the programs on the path insist on a user and on folders of their own.
    PROGRAMS = Path("/usr/lib/rabbitmq/bin")
    #: Virtual hosts that are made at once: asking the node for something takes half a second.
    BATCH = 16
    #: Seconds for a start, which takes six of a processor that nobody else uses.
    START = 120

    def __init__(self, folder: Path, *settings: str, advanced: str = "") -> None:
        """``settings`` are lines of ``rabbitmq.conf``; ``advanced`` is a list of Erlang terms for
        what that file has no words for."""
        server = self.PROGRAMS / "rabbitmq-server"
        assert server.exists(), "rabbitmq-server is not installed"
        self.folder = folder
        self.port = free_port()
        names = free_port()
        (folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.local = 127.0.0.1:{self.port}\n"
            # Tests send what nobody should and cut connections.
            "log.file.level = warning\n" + "".join(f"{line}\n" for line in settings)
        )
        (folder / "advanced.config").write_text(f"[{advanced}].\n")
        (folder / "plugins").write_text("[].\n")
        self._command = [str(server)]
        self._environment = {
            **os.environ,
            # Where the secret is that the node shares with what controls it.
            "HOME": str(folder),
            "ERL_EPMD_PORT": str(names),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_FLAGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
            "RABBITMQ_CONF_ENV_FILE": os.devnull,
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_NODENAME": f"interop{self.port}@localhost",
            # One scheduler that does not spin while it has nothing to do.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                "+S 1 +sbwt none +sbwtdcpu none +sbwtdio none -start_epmd false"
            ),
            # The script becomes the node, instead of waiting for it.
            "RUNNING_UNDER_SYSTEMD": "true",
        }
        self._free_vhosts: list[str] = []
        self._vhosts = 0
        program = shutil.which("epmd")
        assert program, "Erlang's epmd is not installed"
        # The node would start one as a daemon, which outlives it.
        self._names = subprocess.Popen(
            [program, "-port", str(names), "-address", "127.0.0.1"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=die_with_parent,
        )
        wait_until(lambda: is_listened_on(names), "epmd listens")
        self.start()

    def start(self) -> None:
        """Starts it on the data that are there."""
        with open(self.folder / "output", "a") as output:
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                preexec_fn=die_with_parent,
            )
        wait_until(self._answers, "RabbitMQ answers", self.START, self._log)

    def _answers(self) -> bool:
        assert self._process.poll() is None, self._log()
        try:
            with amqp.Connection(f"127.0.0.1:{self.port}", connect_timeout=5):
                return True
        except OSError:
            return False

    def _log(self) -> str:
        logs = [self.folder / "output", *self.folder.glob("log/*.log")]
        return "\n".join(log.read_text(errors="replace")[-3000:] for log in logs)

    @property
    def pid(self) -> int:
        return self._process.pid

    def control(self, *arguments: str) -> str:
        """What ``rabbitmqctl`` answers."""
        done = subprocess.run(
            [str(self.PROGRAMS / "rabbitmqctl"), "--quiet", *arguments],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, f"rabbitmqctl {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def vhost(self) -> str:
        """The name of a virtual host that nobody has used."""
        if not self._free_vhosts:
            names = [f"v{self._vhosts + number}" for number in range(self.BATCH)]
            self._vhosts += self.BATCH
            made = ", ".join(f'<<"{name}">>' for name in names)
            self.control(
                "eval",
                'lists:foreach(fun(V) -> rabbit_vhost:add(V, <<"interop">>), '
                "rabbit_auth_backend_internal:set_permissions("
                '<<"guest">>, V, <<".*">>, <<".*">>, <<".*">>, <<"interop">>) '
                f"end, [{made}]).",
            )
            self._free_vhosts = names
        return self._free_vhosts.pop(0)

    def url(self, vhost: str) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}/{vhost}"

    def queues(self, vhost: str, *columns: str) -> dict[str, list[str]]:
        """What ``rabbitmqctl list_queues`` tells of each queue."""
        shown = self.control("list_queues", "--no-table-headers", "-p", vhost, "name", *columns)
        rows = [line.split("\t") for line in shown.splitlines()]
        return {name: values for name, *values in rows}

    def close_connections(self) -> None:
        """Cuts everyone off; they may come again at once."""
        self.control("close_all_connections", "interop")

    def stop(self) -> None:
        """Stops it in order: what is durable is there after ``start``."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """Ends it as a power cut would."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """For good."""
        self.kill()
        self._names.kill()
        self._names.wait()
