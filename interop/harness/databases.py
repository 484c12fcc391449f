"""Database servers of our own: PostgreSQL, MariaDB, and one that speaks MongoDB's protocol."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from harness.processes import die_with_parent
from harness.servers import free_port
from harness.wait import wait_until

#: A first start makes tables, on a machine that has other things to do.
_START = 60.0


def _program(name: str, *folders: str) -> str:
    """The path of a program that may be where no ``PATH`` looks, as Debian has PostgreSQL's."""
    path = os.pathsep.join([os.environ.get("PATH", ""), *folders])
    program = shutil.which(name, path=path)
    assert program, f"{name} is not installed"
    return program


class Database(ABC):
    """A server with its data in a folder of its own, and a new database for each who asks."""

    #: Who runs it if we are root, as some servers refuse to be.
    USER: str | None = None

    def __init__(self) -> None:
        self.port = free_port()
        # Not below pytest's folders, which no other user may enter.
        self.folder = Path(tempfile.mkdtemp(prefix="celeriac-database-"))
        self._as_user: dict[str, Any] = {}
        if self.USER and os.getuid() == 0:
            user = pwd.getpwnam(self.USER)
            os.chown(self.folder, user.pw_uid, user.pw_gid)
            self._as_user = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        self.log_file = self.folder / "log"
        self._databases = 0
        try:
            self.prepare()
            self.start()
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise

    def prepare(self) -> None:  # noqa: B027
        """Makes what the server needs to start."""

    @abstractmethod
    def command(self) -> list[str]:
        """The command line of the server."""

    @abstractmethod
    def create(self, name: str) -> str:
        """Makes a database, and returns its URL without what names the driver or the use."""

    def database(self) -> str:
        """The URL of a database that nobody has used."""
        self._databases += 1
        return self.create(f"interop_{self._databases}")

    def answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=5).close()
        except OSError:
            return False
        return True

    def start(self) -> None:
        with open(self.log_file, "ab") as log:
            self._process = subprocess.Popen(
                self.command(),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,
                **self._as_user,
            )
        wait_until(self._is_up, f"{type(self).__name__} answers", _START, self.log)

    def _is_up(self) -> bool:
        assert self._process.poll() is None, self.log()
        return self.answers()

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def run(self, *command: str) -> None:
        """Runs a program as the user of the server."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=_START,
            **self._as_user,
        )
        assert done.returncode == 0, f"{command[0]}: {done.stdout}{done.stderr}"

    def kill(self) -> None:
        """As a power failure would."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


class PostgresServer(Database):
    """PostgreSQL; whoever comes from this machine is let in."""

    USER = "nobody"
    #: Debian's, the newest first.
    _FOLDERS = tuple(map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)))

    def prepare(self) -> None:
        self.run(
            _program("initdb", *self._FOLDERS),
            *("--pgdata", str(self.folder / "data"), "--username", "celery"),
            *("--auth", "trust", "--encoding", "UTF8", "--no-locale", "--no-sync"),
        )

    def command(self) -> list[str]:
        settings = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "max_connections": 300,
            # Nobody pulls the plug: a killed server has given its data to the kernel.
            "fsync": "off",
        }
        options = [f"--{name}={value}" for name, value in settings.items()]
        return [_program("postgres", *self._FOLDERS), "-D", str(self.folder / "data"), *options]

    def _connect(self) -> Any:
        import psycopg

        return psycopg.connect(
            host="127.0.0.1", port=self.port, user="celery", dbname="postgres", autocommit=True
        )

    def answers(self) -> bool:
        import psycopg

        try:
            self._connect().close()
        except psycopg.OperationalError:
            return False
        return True

    def create(self, name: str) -> str:
        with self._connect() as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return f"postgresql://celery@127.0.0.1:{self.port}/{name}"


class MariaDBServer(Database):
    """MariaDB, with a user that has a password."""

    USER = "nobody"
    PASSWORD = "secret"

    def prepare(self) -> None:
        self.run(
            _program("mariadb-install-db"),
            *("--no-defaults", f"--datadir={self.folder / 'data'}"),
            *("--auth-root-authentication-method=normal", "--skip-test-db"),
        )
        (self.folder / "init.sql").write_text(
            f"CREATE USER IF NOT EXISTS celery@'%' IDENTIFIED BY '{self.PASSWORD}';\n"
            "GRANT ALL ON *.* TO celery@'%';\n"
        )

    def command(self) -> list[str]:
        return [
            _program("mariadbd", "/usr/sbin"),
            "--no-defaults",
            f"--datadir={self.folder / 'data'}",
            f"--init-file={self.folder / 'init.sql'}",
            f"--socket={self.folder / 'socket'}",
            f"--pid-file={self.folder / 'pid'}",
            f"--port={self.port}",
            "--bind-address=127.0.0.1",
            "--skip-name-resolve",
            "--max-connections=300",
            # A killed server has given its log to the kernel.
            "--innodb-flush-log-at-trx-commit=2",
        ]

    def _connect(self) -> Any:
        import pymysql

        return pymysql.connect(
            host="127.0.0.1", port=self.port, user="celery", password=self.PASSWORD
        )

    def answers(self) -> bool:
        import pymysql

        try:
            self._connect().close()
        except pymysql.err.OperationalError:
            return False
        return True

    def create(self, name: str) -> str:
        with self._connect() as connection, connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {name}")
        return f"mysql+pymysql://celery:{self.PASSWORD}@127.0.0.1:{self.port}/{name}"


class MongoServer(Database):
    """SecantusDB, a server in Python that speaks MongoDB's protocol."""

    def command(self) -> list[str]:
        return [
            str(Path(sys.executable).with_name("secantusd-py")),
            *("--host", "127.0.0.1", "--port", str(self.port), "--standalone"),
            *("--storage-path", str(self.folder / "data"), "--cache-size", "64M"),
        ]

    def create(self, name: str) -> str:
        return f"mongodb://127.0.0.1:{self.port}/{name}"
