"""A network of its own for one worker, whose wire can be pulled: packets vanish, and nobody is
told.

Only root can make one.
"""

from __future__ import annotations

import os
import subprocess


class Namespace:
    def __init__(self) -> None:
        # Two harnesses may run at once.
        number = os.getpid() % 16384
        self._name = f"ledger{number}"
        self._wire = f"ledger{number}"
        net = f"10.{211 + number // 8192}.{number // 64 % 128}.{number % 64 * 4}"
        base, _, last = net.rpartition(".")
        #: This machine's address on the wire.
        self.host = f"{base}.{int(last) + 1}"
        _ip("netns", "add", self._name)
        try:
            peer = f"{self._wire}p"
            _ip("link", "add", self._wire, "type", "veth", "peer", "name", peer)
            _ip("link", "set", peer, "netns", self._name)
            _ip("address", "add", f"{self.host}/30", "dev", self._wire)
            _ip("link", "set", self._wire, "up")
            inside = ("-n", self._name)
            _ip(*inside, "address", "add", f"{base}.{int(last) + 2}/30", "dev", peer)
            _ip(*inside, "link", "set", peer, "up")
            _ip(*inside, "link", "set", "lo", "up")
        except BaseException:
            self.close()
            raise

    #: What runs a command within it.
    @property
    def within(self) -> tuple[str, ...]:
        return ("nsenter", f"--net=/run/netns/{self._name}")

    def pull(self) -> None:
        _ip("link", "set", self._wire, "down")

    def plug(self) -> None:
        _ip("link", "set", self._wire, "up")

    def close(self) -> None:
        # The wire goes with it.
        _ip("netns", "delete", self._name)


def namespace() -> Namespace | None:
    """One, or none where this user or this machine can't."""
    try:
        return Namespace()
    except (OSError, subprocess.CalledProcessError):
        return None


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
