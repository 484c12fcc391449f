"""A Redis server with a replica, and a Sentinel that promotes it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import redis

from harness.processes import die_with_parent
from harness.servers import RedisServer, free_port
from harness.wait import wait_until

#: What the Sentinel calls the two.
NAME = "interop"
#: A loaded machine may take its time to copy nothing.
_TIMEOUT = 60.0


class Pair:
    """A context: the servers end with it.

    The master confirms no write unless its replica has answered within the last seconds
    (``min-replicas-to-write``). Redis does not wait for the replica before it confirms: what it
    confirmed in the moment in which it dies can be lost. That moment is that of one round of its
    event loop, as it sends replies and replicated writes in the same one.
    """

    def __init__(self, folder: Path) -> None:
        options = ("--min-replicas-to-write", "1", "--repl-diskless-sync-delay", "0")
        self._servers = [
            self._server(folder / "first", *options, "--repl-ping-replica-period", "1"),
        ]
        first = self._servers[0]
        self._servers.append(
            self._server(folder / "second", "--replicaof", f"127.0.0.1 {first.port}")
        )
        self.port = free_port()
        file = folder / "sentinel.conf"
        file.write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {folder}\n"
            f"sentinel monitor {NAME} 127.0.0.1 {first.port} 1\n"
            f"sentinel down-after-milliseconds {NAME} 1000\n"
            f"sentinel failover-timeout {NAME} 10000\n"
        )
        program = shutil.which("redis-server")
        assert program, "redis-server is not installed"
        with open(folder / "sentinel.log", "a") as log:
            self._sentinel = subprocess.Popen(
                [program, str(file), "--sentinel"],
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,
            )
        self._client = redis.Redis(port=self.port, decode_responses=True)
        wait_until(self._is_complete, "the Sentinel knows both", _TIMEOUT)

    @staticmethod
    def _server(folder: Path, *options: str) -> RedisServer:
        folder.mkdir()
        return RedisServer(folder, *options)

    def _is_complete(self) -> bool:
        try:
            (replica,) = self._client.sentinel_slaves(NAME)
        except (redis.ConnectionError, redis.ResponseError, ValueError):
            return False
        in_step = self._servers[0].client().info("replication")
        return replica["flags"] == "slave" and in_step["min_slaves_good_slaves"] == 1

    @property
    def url(self) -> str:
        """For kombu, with ``options`` as its ``broker_transport_options``."""
        return f"sentinel://127.0.0.1:{self.port}/0"

    @property
    def options(self) -> dict[str, str]:
        return {"master_name": NAME}

    def master(self) -> RedisServer:
        """Whom the Sentinel sends clients to."""
        _, port = self._client.sentinel_get_master_addr_by_name(NAME)
        return next(server for server in self._servers if server.port == port)

    def promote(self) -> None:
        """Kills the master, and returns when the replica is in its place."""
        dead = self.master()
        replica = next(server for server in self._servers if server is not dead)
        dead.stop()

        def is_promoted() -> bool:
            return (
                self.master() is replica
                and replica.client().info("replication")["role"] == "master"
            )

        wait_until(is_promoted, "the replica is promoted", _TIMEOUT)

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *_: object) -> None:
        self._sentinel.kill()
        self._sentinel.wait()
        for server in self._servers:
            server.stop()
