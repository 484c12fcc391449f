"""Gets the text out of a file: plain text, HTML, and PDF where ``pdftotext`` is installed."""

from __future__ import annotations

import errno
import fcntl
import shutil
import subprocess
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import BinaryIO

_MOST_BYTES = 20_000_000
_PDFTOTEXT_SECONDS = 30
#: How ``pdftotext`` ends when the file is to blame: it can't be opened, or is protected.
_FAULT_OF_FILE = (1, 3)
#: Bytes that are rare in a text in any single-byte encoding.
_CONTROL = bytes(set(range(32)) - set(b"\t\n\f\r\x1b"))
#: Errors that may be over in a moment.
_PASSING = (
    errno.EAGAIN,
    errno.EBUSY,
    errno.EINTR,
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
    errno.ESTALE,
    errno.ETIMEDOUT,
)


class Busy(Exception):
    """The document can't be read now; a later attempt may succeed."""


class Unreadable(Exception):
    """The document can't be read, however often one tries."""


class Skipped(Exception):
    """There is nothing in the file that this program reads."""


@dataclass(frozen=True)
class Document:
    kind: str
    text: str


def read(path: Path) -> Document:
    """The text of a file.

    Raises:
        Busy, Unreadable, Skipped: with the reason.
    """
    content = _content(path)
    suffix = path.suffix.lower()
    if not content.strip():
        raise Skipped("empty")
    if content.startswith(b"%PDF-") or suffix == ".pdf":
        return Document("pdf", _pdf_text(path))
    text = _decoded(content)
    start = text[:500].lstrip().lower()
    if suffix in (".html", ".htm", ".xhtml") or start.startswith(("<!doctype html", "<html")):
        return Document("html", _html_text(text))
    return Document("text", text)


def _content(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            if _is_locked(file):
                raise Busy("locked by another program")
            content = file.read(_MOST_BYTES + 1)
    except OSError as exc:
        reason = exc.strerror or str(exc)
        raise (Busy if exc.errno in _PASSING else Unreadable)(reason) from exc
    if len(content) > _MOST_BYTES:
        raise Skipped(f"larger than {_MOST_BYTES // 1_000_000} MB")
    return content


def _is_locked(file: BinaryIO) -> bool:
    """Whether a program holds the file for itself, as one does that writes it with care."""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        # A file system without locks.
        return False
    return False


def _decoded(content: bytes) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16", errors="replace")
    if b"\0" in content:
        raise Skipped("no text")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        pass
    without_control = content.translate(None, _CONTROL)
    if len(content) - len(without_control) > len(content) / 100:
        raise Skipped("no text")
    return content.decode("latin-1")


def _pdf_text(path: Path) -> str:
    program = shutil.which("pdftotext")
    if program is None:
        raise Skipped("a PDF, and pdftotext is not installed")
    try:
        done = subprocess.run(
            [program, "-q", "-enc", "UTF-8", str(path), "-"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PDFTOTEXT_SECONDS,
        )
    except subprocess.TimeoutExpired as exc:
        raise Busy(f"pdftotext took longer than {_PDFTOTEXT_SECONDS} s") from exc
    except OSError as exc:
        raise Busy(f"pdftotext could not be started: {exc.strerror}") from exc
    if done.returncode == 0:
        text = done.stdout.decode(errors="replace")
        if not text.strip():
            raise Skipped("a PDF without text")
        return text
    said = done.stderr.decode(errors="replace").strip().splitlines()
    reason = f"pdftotext: {said[-1] if said else f'ended with status {done.returncode}'}"
    raise (Unreadable if done.returncode in _FAULT_OF_FILE else Busy)(reason)


def _html_text(source: str) -> str:
    page = _Page()
    try:
        page.feed(source)
        page.close()
    except AssertionError as exc:
        # What the standard library's parser raises for some broken declarations.
        raise Unreadable(f"no proper HTML: {exc}") from exc
    return "".join(page.parts)


class _Page(HTMLParser):
    """Collects what a browser would show."""

    HIDDEN = frozenset(("script", "style", "template", "noscript"))
    #: Elements within a line of text; every other one ends a paragraph.
    INLINE = frozenset(
        ("a", "abbr", "b", "cite", "code", "em", "i", "kbd", "q", "s", "small", "span", "strong")
        + ("sub", "sup", "tt", "u", "var")
    )

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self.HIDDEN:
            self._hidden += 1
        self._end_paragraph(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.HIDDEN and self._hidden:
            self._hidden -= 1
        self._end_paragraph(tag)

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.parts.append(data)

    def _end_paragraph(self, tag: str) -> None:
        if tag not in self.INLINE:
            self.parts.append("\n\n")
