"""What a child keeps of its log for the parent to read when it is dead."""

from __future__ import annotations

import io
import logging
import mmap
import os
import struct
import sys
from collections.abc import Iterator

import pytest

from celeriac.host import last_words
from celeriac.host.last_words import LastWords

RING = 8192 - 16


class Page:
    """The parent's side."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("control")
        os.ftruncate(self.fd, mmap.PAGESIZE + 8192)
        self.job = 0
        self.words = LastWords(self.fd, lambda: self.job)

    def read(self) -> tuple[int, int, bytes]:
        job, written = struct.unpack("<QQ", os.pread(self.fd, 16, mmap.PAGESIZE))
        return job, written, os.pread(self.fd, RING, mmap.PAGESIZE + 16)

    def text(self) -> bytes:
        _, written, ring = self.read()
        return ring[:written]


@pytest.fixture
def page() -> Iterator[Page]:
    made = Page()
    yield made
    os.close(made.fd)


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    made = logging.getLogger("tested.last.words")
    made.propagate = False
    made.setLevel(logging.INFO)
    made.addHandler(logging.StreamHandler(io.StringIO()))
    yield made
    made.handlers.clear()
    made.propagate = True


def record(message: object, **members: object) -> logging.LogRecord:
    return logging.makeLogRecord({"msg": message, "levelname": "INFO", "name": "app", **members})


def test_only_what_a_task_writes_is_kept_and_each_task_begins_anew(page):
    page.words.write("nobody's\n")
    assert page.read()[:2] == (0, 0)
    page.job = 7
    page.words.write("one\n")
    page.words.write("two\n")
    assert (page.read()[0], page.text()) == (7, b"one\ntwo\n")
    page.job = 8
    assert page.read()[0] == 7, "nothing is done when a task begins"
    page.words.write("six\n")
    assert (page.read()[0], page.text()) == (8, b"six\n")


def test_the_ring_goes_round(page):
    page.job = 1
    page.words.write("a" * (RING - 2) + "\n")
    page.words.write("bcd\n")
    _, written, ring = page.read()
    assert written == RING + 3
    assert ring[:3] == b"cd\n"
    assert ring[-2:] == b"\nb"
    page.words.write("e" * (3 * RING))
    assert page.read()[1] == 2 * RING + 3


def test_records_are_cut_and_their_traceback_is_left_to_others(page):
    page.job = 1
    try:
        raise ValueError("é" * 600)
    except ValueError:
        broken = record("it broke", exc_info=sys.exc_info())
    page.words.handle(broken)
    assert broken.exc_text is None
    first, *_, last = page.text().decode().splitlines()
    assert first.endswith(": INFO/app] it broke")
    assert len(last) == 500 and last.startswith("ValueError: éé")
    page.words.handle(broken)
    assert page.text().count(b"it broke") == 1, "it came by another logger, too"


def test_what_cannot_be_written_does_not_break_the_task(page):
    page.job = 1
    page.words.handle(record("%s %s", args=("one",)))
    page.words.handle(record("\ud800"))
    assert page.text().endswith(b"] ?\n")


def test_loggers_that_are_listened_to_are(page, logger, monkeypatch):
    monkeypatch.setattr(logging.root, "handlers", [])
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    page.words.listen()
    page.job = 1
    logger.info("logged")
    print("printed", file=sys.stderr)
    sys.stderr.writelines(["a", "b\n"])
    assert not logging.root.handlers, "its records go to the standard error stream"
    assert stream.getvalue() == "printed\nab\n"
    assert sys.stderr.getvalue() == stream.getvalue(), "it is the stream in all else"
    logged, *printed = page.text().splitlines()
    assert logged.endswith(b"INFO/tested.last.words] logged")
    assert printed == [b"printed", b"ab"]


def test_the_redirected_stream_is_kept_once(page, monkeypatch):
    from celery.utils.log import LoggingProxy

    heard = io.StringIO()
    monkeypatch.setattr(logging.root, "handlers", [logging.StreamHandler(heard)])
    proxy = LoggingProxy(logging.getLogger("tested.redirected"), logging.WARNING)
    monkeypatch.setattr(sys, "stderr", proxy)
    page.words.listen()
    page.job = 1
    print("printed", file=sys.stderr)
    assert sys.stderr is proxy
    assert heard.getvalue() == "printed\n"
    assert page.text().count(b"printed") == 1


def test_the_sizes_are_the_parents():
    assert last_words._BYTES == 8192
    assert last_words._HEAD.size == 16
