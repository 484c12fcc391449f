"""The proxy that tests cut off workers with."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from harness.proxy import Proxy


@pytest.fixture
def through() -> Iterator[tuple[Proxy, socket.socket]]:
    """A proxy, and a connection through it to a server that sends back what it gets."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = Proxy(listener.getsockname()[1])
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as client:
            server, _ = listener.accept()
            threading.Thread(target=send_back, args=(server,), daemon=True).start()
            yield proxy, client
        proxy.stop()


def send_back(server: socket.socket) -> None:
    with server:
        while data := server.recv(100):
            server.sendall(data)


def test_nothing_comes_through_a_stalled_proxy_and_nothing_is_lost(through):
    proxy, client = through
    client.sendall(b"one")
    assert client.recv(100) == b"one"
    proxy.stall()
    client.sendall(b"two")
    client.settimeout(0.3)
    with pytest.raises(TimeoutError):
        client.recv(100)
    proxy.resume()
    client.settimeout(10)
    assert client.recv(100) == b"two"


def test_a_stalled_proxy_can_be_cut(through):
    proxy, client = through
    client.sendall(b"one")
    assert client.recv(100) == b"one"
    proxy.stall()
    assert proxy.cut() == 1
    proxy.resume()
    assert client.recv(100) == b""
