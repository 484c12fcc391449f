"""The client's side of the local bus: remote control and events where the broker has no fanout.

Nodes listen on Unix sockets; whoever wants something connects to all of them. Paths and frames are
those of ``crates/celeriac-broker/src/local``.
"""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import json
import os
import re
import selectors
import socket
import stat
import struct
import time
import uuid
from collections.abc import Iterable, Iterator
from typing import Any, Callable
from urllib.parse import parse_qs, unquote, urlsplit

from celery.events.receiver import EventReceiver
from kombu.message import Message
from kombu.pidbox import Mailbox
from kombu.serialization import dumps, loads, prepare_accept_content

#: What is longer is no frame.
LARGEST = 16 << 20
#: Seconds in which a node takes a connection or a command.
PATIENCE = 1.0
#: Seconds between two looks for new nodes.
LOOK_AGAIN = 1.0

_LENGTH = struct.Struct(">I")
#: Dialects of servers by the names that SQLAlchemy has, and their ports.
_SERVERS = {
    "postgresql": ("postgresql", 5432),
    "postgres": ("postgresql", 5432),
    "mysql": ("mysql", 3306),
    "mariadb": ("mysql", 3306),
}
#: The user, and maybe a password, before the host.
_LOGIN = re.compile(r"([^:/?#]*)[^/?#]*@")


def has_fanout(connection: Any) -> bool:
    """Whether a broker can do without the local bus."""
    return bool(connection.supports_exchange_type("fanout"))


# -- places --------------------------------------------------------------------------------------


def identity(url: str, connect_args: dict[str, Any] | None = None) -> str | None:
    """What makes one SQL broker the same for all who use it on this machine; ``None`` for a URL
    of no such broker.

    The rule is told in ``crates/celeriac-broker/src/sql/identity.rs``; this has to agree with it.
    """
    text = url.partition("+")[2] if url.startswith(("sqla+", "sqlalchemy+")) else url
    scheme, _, rest = text.partition("://")
    dialect = scheme.partition("+")[0]
    if dialect == "sqlite":
        from sqlalchemy.engine import make_url

        file = make_url(text).database
        return f"sqlite://{os.path.realpath(file)}" if file else None
    if dialect not in _SERVERS:
        return None
    name, port = _SERVERS[dialect]
    # What reads URLs takes brackets for those of an address, in a password as well.
    login = _LOGIN.match(rest)
    parsed = urlsplit(f"//{rest[login.end() :] if login else rest}")
    query = parse_qs(parsed.query)

    def option(key: str) -> str:
        found = query[key][0] if key in query else (connect_args or {}).get(key)
        return str(found) if type(found) in (str, int) else ""

    user = unquote(login[1] if login else "") or option("user")
    database = unquote(parsed.path).lstrip("/") or option("dbname") or user
    path = option("unix_socket")
    if name == "mysql" and path:
        return f"mysql://{path}/{database}"
    host = parsed.hostname or option("host")
    if ":" in host:
        with contextlib.suppress(ValueError):
            host = str(ipaddress.ip_address(host))
    if host in ("", "127.0.0.1", "::1"):
        host = "localhost"
    elif not host.startswith("/"):
        host = host.lower()
    return f"{name}://{host}:{parsed.port or option('port') or port}/{database}"


def bases() -> list[str]:
    """The folders that may hold sockets of this user's nodes."""
    user = os.geteuid()
    found = []
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    for folder in (runtime if os.path.isabs(runtime) else "", f"/run/user/{user}"):
        if folder and _belongs_to(folder, user):
            found.append(os.path.join(folder, "celeriac"))
    found.append(f"/tmp/celeriac-{user}")
    return [base for base in dict.fromkeys(found) if _belongs_to(base, user, mode=0o700)]


def _belongs_to(path: str, user: int, mode: int | None = None) -> bool:
    """Whether a folder, which is no link where its mode counts, is the user's own."""
    try:
        found = os.stat(path) if mode is None else os.lstat(path)
    except OSError:
        return False
    right = mode is None or stat.S_IMODE(found.st_mode) == mode
    return stat.S_ISDIR(found.st_mode) and found.st_uid == user and right


def sockets(connection: Any, control_exchange: str) -> list[str]:
    """The paths of the nodes' sockets for a broker."""
    urls = list(connection.alt) or [connection.as_uri(include_password=True)]
    broker = identity(urls[0], (connection.transport_options or {}).get("connect_args"))
    if broker is None:
        return []
    text = f"{broker}#{control_exchange}"
    name = uuid.uuid5(uuid.NAMESPACE_URL, text).hex[:16]
    found = []
    for base in bases():
        try:
            files = sorted(os.listdir(os.path.join(base, name)))
        except OSError:
            continue
        found += [os.path.join(base, name, file) for file in files if file.endswith(".sock")]
    return found


# -- frames --------------------------------------------------------------------------------------


def pack(frame: dict[str, Any]) -> bytes:
    text = json.dumps(frame).encode()
    return _LENGTH.pack(len(text)) + text


class Nodes:
    """Connections to all nodes that there are."""

    def __init__(self, find: Callable[[], list[str]], first: dict[str, Any]) -> None:
        self._find = find
        self._first = pack(first)
        self._selector = selectors.DefaultSelector()
        self._open: dict[str, tuple[socket.socket, bytearray]] = {}

    def __enter__(self) -> Nodes:
        return self

    def __exit__(self, *_: object) -> None:
        for path in list(self._open):
            self._drop(path)
        self._selector.close()

    @property
    def paths(self) -> set[str]:
        """The nodes that are connected."""
        return set(self._open)

    def connect(self) -> None:
        """Connects to the nodes that are not connected yet, and sends each the first frame."""
        for path in self._find():
            if path in self._open:
                continue
            made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            made.settimeout(PATIENCE)
            try:
                made.connect(path)
                made.sendall(self._first)
            except OSError:
                made.close()  # it is dead, or about to be
                continue
            self._open[path] = made, bytearray()
            self._selector.register(made, selectors.EVENT_READ, path)

    def finish(self, timeout: float) -> None:
        """Says that nothing more will come, and waits until the nodes have read all there is.

        Who leaves at once may be given up by a node that has not read yet, but writes.
        """
        for made, _ in self._open.values():
            with contextlib.suppress(OSError):
                made.shutdown(socket.SHUT_WR)
        end = time.monotonic() + timeout
        while self._open and (left := end - time.monotonic()) > 0:
            self.read(left)

    def read(self, timeout: float) -> list[tuple[str, dict[str, Any]]]:
        """The frames that come within so many seconds, each with the path of its node."""
        if not self._open:
            time.sleep(timeout)
            return []
        frames = []
        for key, _ in self._selector.select(timeout):
            path = key.data
            made, buffer = self._open[path]
            try:
                data = made.recv(1 << 16)
                buffer += data
                frames += [(path, frame) for frame in _cut(buffer)]
            except (OSError, ValueError):
                data = b""
            if not data:
                self._drop(path)
        return frames

    def _drop(self, path: str) -> None:
        made, _ = self._open.pop(path)
        self._selector.unregister(made)
        made.close()


def _cut(buffer: bytearray) -> Iterator[dict[str, Any]]:
    """Takes the whole frames from the beginning of a buffer.

    Raises:
        ValueError: when there is something that is no frame.
    """
    while len(buffer) >= _LENGTH.size:
        (length,) = _LENGTH.unpack_from(buffer)
        if length > LARGEST:
            raise ValueError("a frame is too long")
        end = _LENGTH.size + length
        if len(buffer) < end:
            return
        text = bytes(buffer[_LENGTH.size : end])
        del buffer[:end]
        frame = json.loads(text)
        if isinstance(frame, dict):
            yield frame


# -- messages ------------------------------------------------------------------------------------


def seal(value: Any, serializer: str, headers: dict[str, Any], exchange: str) -> dict[str, Any]:
    """A message as kombu's envelope."""
    content_type, encoding, body = dumps(value, serializer=serializer)
    if isinstance(body, str):
        body = body.encode()
    return {
        "body": base64.b64encode(body).decode(),
        "content-type": content_type,
        "content-encoding": encoding,
        "headers": headers,
        "properties": {
            "body_encoding": "base64",
            "delivery_mode": 2,
            "delivery_info": {"exchange": exchange, "routing_key": ""},
        },
    }


def unseal(envelope: dict[str, Any], accept: Iterable[str]) -> tuple[Any, Message]:
    """The value in an envelope, and the message around it."""
    properties = envelope.get("properties") or {}
    body = envelope["body"]
    if properties.get("body_encoding") == "base64":
        body = base64.b64decode(body)
    message = Message(
        body=body,
        headers=envelope.get("headers") or {},
        properties=properties,
        content_type=envelope.get("content-type"),
        content_encoding=envelope.get("content-encoding"),
        delivery_info=properties.get("delivery_info"),
    )
    allowed = prepare_accept_content(accept)
    return loads(body, message.content_type, message.content_encoding, accept=allowed), message


class LocalMailbox(Mailbox):  # type: ignore[misc]
    """A mailbox that reaches the nodes of this machine where the broker can't."""

    def _broadcast(
        self,
        command: str,
        arguments: dict[str, Any] | None = None,
        destination: Any = None,
        reply: bool = False,
        timeout: float | None = 1,
        limit: int | None = None,
        callback: Callable[[Any], Any] | None = None,
        channel: Any = None,
        serializer: str | None = None,
        pattern: str | None = None,
        matcher: str | None = None,
    ) -> Any:
        if has_fanout(self.connection):
            return super()._broadcast(
                command,
                arguments,
                destination,
                reply,
                timeout,
                limit,
                callback,
                channel,
                serializer,
                pattern,
                matcher,
            )
        if destination is not None and not isinstance(destination, (list, tuple)):
            raise ValueError(f"destination must be a list/tuple not {type(destination)}")
        request = {
            "method": command,
            "arguments": arguments or {},
            "destination": destination,
            "pattern": pattern,
            "matcher": matcher,
        }
        ticket = str(uuid.uuid4()) if reply else None
        frame: dict[str, Any] = {"kind": "command"}
        if ticket:
            reply_to = {"exchange": self.reply_exchange.name, "routing_key": self.oid}
            request.update(ticket=ticket, reply_to=reply_to)
            frame["reply_key"] = self.oid
        headers = {
            "clock": self.clock.forward(),
            "expires": time.time() + timeout if timeout else 0,
        }
        frame["message"] = seal(
            request, serializer or self.serializer or "json", headers, self.exchange.name
        )
        with Nodes(lambda: sockets(self.connection, self.namespace), frame) as nodes:
            nodes.connect()
            if not ticket:
                nodes.finish(PATIENCE)
                return None
            return self._replies(nodes, ticket, timeout, limit or len(destination or ()), callback)

    def _replies(
        self,
        nodes: Nodes,
        ticket: str,
        timeout: float | None,
        limit: int,
        callback: Callable[[Any], Any] | None,
    ) -> list[Any]:
        """The replies, until there are enough, nobody is left to reply, or nobody has for so many
        seconds."""
        replies: list[Any] = []
        silent: set[str] = set()
        last = time.monotonic()
        while not (limit and len(replies) >= limit) and nodes.paths - silent:
            left = None if timeout is None else last + timeout - time.monotonic()
            if left is not None and left <= 0:
                break
            for path, frame in nodes.read(LOOK_AGAIN if left is None else left):
                if frame.get("kind") == "hello" and not frame.get("commands", True):
                    silent.add(path)
                if frame.get("kind") != "reply":
                    continue
                body, message = unseal(frame["message"], self.accept)
                self.clock.adjust(message.headers.get("clock") or 0)
                if message.headers.get("ticket", ticket) != ticket:
                    continue
                silent.add(path)
                last = time.monotonic()
                replies.append(body)
                if callback:
                    callback(body)
        return replies


class LocalReceiver(EventReceiver):  # type: ignore[misc]
    """A receiver of events that hears the nodes of this machine where the broker can't tell."""

    def consume(
        self,
        limit: int | None = None,
        timeout: float | None = None,
        safety_interval: float = LOOK_AGAIN,
        wakeup: bool = True,
        **kwargs: Any,
    ) -> Iterator[None]:
        if has_fanout(self.connection):
            yield from super().consume(limit, timeout, safety_interval, wakeup=wakeup, **kwargs)
            return
        if wakeup:
            self.wakeup_workers()
        wish = {"kind": "events", "routing_key": self.routing_key}
        heard, last = 0, time.monotonic()
        looked = float("-inf")
        exchange = self.app.conf.control_exchange
        with Nodes(lambda: sockets(self.connection, exchange), wish) as nodes:
            while not self.should_stop and not (limit and heard >= limit):
                if time.monotonic() - looked >= LOOK_AGAIN:
                    nodes.connect()
                    looked = time.monotonic()
                for _, frame in nodes.read(min(safety_interval, LOOK_AGAIN)):
                    if frame.get("kind") == "event":
                        self._receive(*unseal(frame["message"], self.accept))
                        heard, last = heard + 1, time.monotonic()
                        yield
                if timeout and time.monotonic() - last >= timeout:
                    raise socket.timeout
