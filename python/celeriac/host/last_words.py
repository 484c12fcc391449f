"""What a task logs and writes to the standard error stream, kept where the parent reads it when
this process is dead.

The parent shares a piece of memory with each child: the number of the job that wrote, the number of
bytes written for it, and a ring of bytes. Nothing is done when a task begins: what the ring holds
is another job's until this one writes.

Counterpart: ``crates/celeriac-pool/src/prefork/last_words.rs``.
"""

from __future__ import annotations

import logging
import mmap
import struct
import sys
from collections.abc import Iterable
from typing import Any, Callable

#: Bytes behind the control page, of which the first are the head.
_BYTES = 8192
#: job, bytes written
_HEAD = struct.Struct("<QQ")
_RING = _BYTES - _HEAD.size
#: Characters of a line, and lines of a record, that the parent looks at.
_LINE = 500
_LINES = 20


class LastWords(logging.Handler):
    """Writes records, and whatever else is written, into the ring.

    Without a lock of its own: two threads can at worst garble a line of each other's, while a lock
    that one of them holds would never be released in a process that a task forks.
    """

    def __init__(self, page: int, current_job: Callable[[], int]) -> None:
        """
        Args:
            page: the control page's file.
            current_job: tells the number of the job that runs, 0 for none.
        """
        super().__init__()
        self.setFormatter(logging.Formatter("[%(asctime)s: %(levelname)s/%(name)s] %(message)s"))
        self._ring = mmap.mmap(page, _BYTES, offset=mmap.PAGESIZE)
        self._current_job = current_job
        self._job = 0
        self._written = 0
        self._last_record: tuple[int, float] | None = None

    def listen(self) -> None:
        """Keeps what is logged from now on, and what is written to the standard error stream."""
        from celery.utils.log import LoggingProxy

        known = list(logging.Logger.manager.loggerDict.values())
        loggers = [logger for logger in known if isinstance(logger, logging.Logger)]
        for logger in [logging.root, *loggers]:
            # Where nobody else listens, the root's records go to the standard error stream.
            if logger.handlers and (logger is logging.root or not logger.propagate):
                logger.addHandler(self)
        # What goes to the log anyway comes from there.
        if sys.stderr is not None and not isinstance(sys.stderr, LoggingProxy):
            sys.stderr = _Copied(sys.stderr, self)

    def handle(self, record: logging.LogRecord) -> bool:
        self.emit(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        # A record comes once for each logger that has this handler and hands it on.
        mark = id(record), record.created
        if mark == self._last_record:
            return
        self._last_record = mark
        # The text of the traceback is kept in the record, and may be another's to write.
        exc_text = record.exc_text
        try:
            lines = self.format(record).splitlines()[-_LINES:]
        except Exception:
            return  # the app's own handlers say so
        finally:
            record.exc_text = exc_text
        self.write("".join(f"{line[:_LINE]}\n" for line in lines))

    def write(self, text: str) -> None:
        """Keeps a text, if a task runs."""
        job = self._current_job()
        data = text.encode("utf-8", "replace")[-_RING:]
        if not job or not data:
            return
        if job != self._job:
            self._job, self._written = job, 0
            self._ring[: _HEAD.size] = _HEAD.pack(job, 0)
        at = self._written % _RING
        self._written += len(data)
        first = data[: _RING - at]
        start = _HEAD.size + at
        self._ring[start : start + len(first)] = first
        rest = data[len(first) :]
        self._ring[_HEAD.size : _HEAD.size + len(rest)] = rest
        # Last: a process may be killed in between.
        _HEAD.pack_into(self._ring, 0, job, self._written)


class _Copied:
    """A stream that keeps what is written to it as last words, too."""

    def __init__(self, stream: Any, words: LastWords) -> None:
        self._stream = stream
        self._words = words

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> Any:
        result = self._stream.write(text)
        self._words.write(text)
        return result

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)
