"""A way to a broker on which a worker is killed at a command of its choice: just before the broker
gets it, or once it has and before the worker hears of it."""

from __future__ import annotations

import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

_CHUNK = 1 << 16
#: How long the broker may take to carry a command out that it does not answer.
_UNANSWERED = 0.05


@dataclass(frozen=True)
class Point:
    """The command by its number, from 1, over all connections; without one nobody is killed."""

    number: int
    after: bool

    def __str__(self) -> str:
        return f"{'after' if self.after else 'before'} command {self.number}"


class Commands(ABC):
    """Cuts what a client sends into commands of its protocol."""

    @abstractmethod
    def cut(self, sent: bytes) -> tuple[int, bool]:
        """How long the first command is, or 0 as long as it is not whole; and whether it counts."""


class RedisCommands(Commands):
    def cut(self, sent: bytes) -> tuple[int, bool]:
        at = sent.find(b"\r\n") + 2
        if at < 2:
            return 0, False
        assert sent[:1] == b"*", sent[:40]
        for _ in range(int(sent[1:at])):
            end = sent.find(b"\r\n", at) + 2
            if end < 2:
                return 0, False
            at = end + int(sent[at + 1 : end]) + 2
        return (at, True) if at <= len(sent) else (0, False)


class AmqpCommands(Commands):
    """Each frame is one, but for heartbeats: a message may be cut off behind its method."""

    _HEARTBEAT = 8

    def cut(self, sent: bytes) -> tuple[int, bool]:
        if sent[:4] == b"AMQP":
            return (8, True) if len(sent) >= 8 else (0, False)
        if len(sent) < 7:
            return 0, False
        size = 8 + int.from_bytes(sent[3:7], "big")
        return (size, sent[0] != self._HEARTBEAT) if size <= len(sent) else (0, False)


class PostgresCommands(Commands):
    """What the server carries out: a query, or what a Sync ends."""

    def __init__(self) -> None:
        self._has_begun = False

    def cut(self, sent: bytes) -> tuple[int, bool]:
        tag = 1 if self._has_begun else 0
        if len(sent) < tag + 4:
            return 0, False
        size = tag + int.from_bytes(sent[tag : tag + 4], "big")
        if size > len(sent):
            return 0, False
        if not tag:
            # A question for TLS has eight bytes; what begins a session names a user.
            self._has_begun = size > 8
            return size, True
        return size, sent[:1] in b"QS"


class MariaDBCommands(Commands):
    """A packet that begins a sequence; the others belong to the greeting."""

    def cut(self, sent: bytes) -> tuple[int, bool]:
        if len(sent) < 4:
            return 0, False
        size = 4 + int.from_bytes(sent[:3], "little")
        return (size, sent[3] == 0) if size <= len(sent) else (0, False)


class Failpoint:
    """Listens on a port of its own, and forwards to the broker's."""

    def __init__(self, port: int, protocol: type[Commands], point: Point | None) -> None:
        self._target = ("127.0.0.1", port)
        self._protocol = protocol
        self._point = point
        self._kill: Callable[[], None] = lambda: None
        self._armed = threading.Event()
        self._lock = threading.Lock()
        #: How many commands have come.
        self.seen = 0
        #: Whether the point was reached.
        self.reached = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def arm(self, kill: Callable[[], None]) -> None:
        """Says how the client is killed, which returns when it is gone; nothing is forwarded
        before."""
        self._kill = kill
        self._armed.set()

    def stop(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for connection in self._open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            with self._lock:
                self._open |= {client, server}
            answered = threading.Event()
            for target in (self._ask, self._answer):
                threading.Thread(
                    target=target, args=(client, server, answered), daemon=True
                ).start()

    def _answer(
        self, client: socket.socket, server: socket.socket, answered: threading.Event
    ) -> None:
        with suppress(OSError):
            while data := server.recv(_CHUNK):
                answered.set()
                # Once the point is reached its answer is for nobody.
                with self._lock:
                    if not self.reached.is_set():
                        client.sendall(data)
        with suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)

    def _ask(self, client: socket.socket, server: socket.socket, answered: threading.Event) -> None:
        self._armed.wait()
        protocol, sent = self._protocol(), b""
        with suppress(OSError):
            while data := client.recv(_CHUNK):
                sent += data
                while sent:
                    size, counts = protocol.cut(sent)
                    if size == 0:
                        break
                    self._forward(server, sent[:size], counts, answered)
                    sent = sent[size:]
        # The broker learns that the client is gone as it would without us.
        with suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)

    def _forward(
        self, server: socket.socket, command: bytes, counts: bool, answered: threading.Event
    ) -> None:
        with self._lock:
            if self.reached.is_set():
                raise ConnectionAbortedError
            self.seen += counts
            point = self._point
            is_it = counts and point is not None and self.seen == point.number
            if is_it:
                self.reached.set()
        if not is_it:
            server.sendall(command)
            return
        assert point is not None
        if point.after:
            answered.clear()
            server.sendall(command)
            answered.wait(_UNANSWERED)
        self._kill()
        raise ConnectionAbortedError
