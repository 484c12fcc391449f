"""A way to a server that can be cut, and that can stall."""

from __future__ import annotations

import selectors
import socket
import threading
from contextlib import suppress

_CHUNK = 1 << 16


class Proxy:
    """Forwards what comes in on a port of its own to a server, until it is told to cut."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        """``port`` is the server's on this machine; ``host`` is where the proxy itself listens."""
        self._target = ("127.0.0.1", port)
        self._listener = socket.create_server((host, 0))
        self._flows = threading.Event()
        self._flows.set()
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        #: How many connections have been made so far.
        self.made = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                inner, _ = self._listener.accept()
            except OSError:
                return
            try:
                outer = socket.create_connection(self._target, timeout=10)
            except OSError:
                inner.close()
                continue
            outer.settimeout(None)
            with self._lock:
                self._open.add(inner)
                self.made += 1
            threading.Thread(target=self._forward, args=(inner, outer), daemon=True).start()

    def _forward(self, inner: socket.socket, outer: socket.socket) -> None:
        # Not select(), which knows no descriptor above 1023.
        with inner, outer, selectors.DefaultSelector() as selector, suppress(OSError):
            selector.register(inner, selectors.EVENT_READ, outer)
            selector.register(outer, selectors.EVENT_READ, inner)
            while self._passes_on(selector):
                pass
        # Whoever cuts finds it closed, which does no harm.
        with self._lock:
            self._open.discard(inner)

    def _passes_on(self, selector: selectors.BaseSelector) -> bool:
        for key, _ in selector.select():
            self._flows.wait()
            source: socket.socket = key.fileobj  # type: ignore[assignment]
            data = source.recv(_CHUNK)
            if not data:
                return False
            key.data.sendall(data)
        return True

    def connections(self) -> int:
        """How many are open."""
        with self._lock:
            return len(self._open)

    def cut(self) -> int:
        """Ends all connections wherever they are, and says how many there were."""
        with self._lock:
            cut = list(self._open)
            self._open.clear()
        for connection in cut:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        return len(cut)

    def stall(self) -> None:
        """Connections stay, and new ones are accepted, but nothing comes through until
        ``resume``."""
        self._flows.clear()

    def resume(self) -> None:
        self._flows.set()

    def stop(self) -> None:
        self.resume()
        # A listener that a thread waits on ends by this alone.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
