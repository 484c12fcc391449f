"""Frames between the Rust parent and this interpreter.

On a stream socket a frame is two big-endian lengths, a JSON text and raw bytes. The channels to
the zygote and to each child are SOCK_SEQPACKET and need no lengths (see :mod:`.zygote` and
:mod:`.child`). Counterpart: ``crates/celeriac-pool/src/python/frame.rs``.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
from typing import Any

_LENGTHS = struct.Struct(">II")


class Closed(Exception):
    """The Rust parent is gone."""


class Unreadable(Exception):
    """A frame's text can't be read; the channel stands at the next frame.

    Attributes:
        text: the text.
        reason: what its reader raised.
    """

    def __init__(self, text: bytes, reason: Exception) -> None:
        super().__init__(str(reason))
        self.text = text
        self.reason = reason


class Channel:
    """A stream of frames; frames of several threads are written one after the other."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._write_lock = threading.Lock()

    def read(self) -> tuple[dict[str, Any], bytes]:
        """The next frame.

        Raises:
            Closed: when the other side has closed the channel.
            Unreadable: when the text is nested deeper than Python's reader goes, which the
                headers of a message may be that anybody sent.
        """
        text_length, blob_length = _LENGTHS.unpack(self._read_exactly(_LENGTHS.size))
        text, blob = self._read_exactly(text_length), self._read_exactly(blob_length)
        try:
            return json.loads(text), blob
        except (RecursionError, ValueError) as exc:
            raise Unreadable(text, exc) from exc

    def write(self, message: dict[str, Any], blob: bytes = b"") -> None:
        """Writes one frame.

        Raises:
            Closed: when the other side has closed the channel.
        """
        # Lone surrogates, such as undecodable file names have, are no UTF-8 and no JSON.
        text = json.dumps(message, default=repr, ensure_ascii=False).encode("utf-8", "replace")
        try:
            with self._write_lock:
                self._sock.sendall(_LENGTHS.pack(len(text), len(blob)) + text + blob)
        except OSError as exc:
            raise Closed from exc

    def close(self) -> None:
        self._sock.close()

    def detach(self) -> int:
        """Gives up the descriptor without closing it."""
        return self._sock.detach()

    def _read_exactly(self, length: int) -> bytes:
        parts = []
        while length:
            try:
                part = self._sock.recv(min(length, 1 << 20))
            except OSError as exc:
                raise Closed from exc
            if not part:
                raise Closed
            parts.append(part)
            length -= len(part)
        return b"".join(parts)
