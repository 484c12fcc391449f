"""The servers of a run, which are started when the first row needs them."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path

from harness.servers import RabbitServer, RedisServer


class Servers:
    """A context: they end with it."""

    def __init__(self) -> None:
        self._stack = ExitStack()

    def __enter__(self) -> Servers:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @cached_property
    def redis(self) -> RedisServer:
        """For results, and for most rows the broker."""
        server = RedisServer(self._folder())
        self._stack.callback(server.stop)
        return server

    @cached_property
    def rabbitmq(self) -> RabbitServer:
        server = RabbitServer(self._folder())
        self._stack.callback(server.close)
        return server

    def _folder(self) -> Path:
        folder = tempfile.TemporaryDirectory(prefix="celeriac-bench-", ignore_cleanup_errors=True)
        return Path(self._stack.enter_context(folder))
