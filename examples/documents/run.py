"""Sends the documents of a folder to the worker, waits for the report, and prints it."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import sysconfig
import textwrap
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from app import DATA, app, describe, report
from celery import chord
from celery.exceptions import CeleryError
from celery.result import AsyncResult

HERE = Path(__file__).resolve().parent
#: The project that this example is part of, if it still is where it belongs.
PROJECT = HERE.parents[1]

_LIMIT = 300
_MOST_BYTES_OF_LICENCE = 64_000
_PAUSE = 0.2
#: So many open results are looked at in one round: documents are done in about the order in
#: which they were sent, and to read all of the results again and again would cost more than the
#: documents do.
_WINDOW = 16
#: After so many seconds without any result, somebody may have forgotten the worker.
_PATIENCE = 15


def main() -> int:
    folder = os.environ.get("DOCS")
    limit = os.environ.get("DEMO_LIMIT") or str(_LIMIT)
    if not limit.isdecimal() or int(limit) == 0:
        return _complain(f"DEMO_LIMIT={limit} is no number of documents.")
    if folder and not Path(folder).is_dir():
        return _complain(f"DOCS={folder} is no folder.")
    if folder:
        found = list(_unique(_below(Path(folder))))
    else:
        found = list(_worth_reading(_unique(_of_this_machine())))
    if not found:
        where = folder or "the usual places of this machine"
        return _complain(f"There are no documents in {where}.\nName a folder with DOCS=…")
    if shutil.which("pdftotext") is None and any(path.suffix.lower() == ".pdf" for path in found):
        print("pdftotext is not installed (Debian: poppler-utils): PDFs are left out.")
    if len(found) > int(limit):
        print(f"The first {limit} of {len(found)} documents; DEMO_LIMIT= sets another number.")
    return _run([str(path) for path in found[: int(limit)]])


def _run(paths: list[str]) -> int:
    began = time.monotonic()
    result = None
    try:
        result = chord(describe.s(path) for path in paths)(report.s())
        _follow(result, result.parent.results)
        outcome = result.get(timeout=60)
    except KeyboardInterrupt:
        print(flush=True)
        _cancel(result)
        print("Stopped. What no worker had taken was removed from the queue.")
        return 130
    except CeleryError as exc:
        return _complain(f"The report could not be made: {exc}")
    print("\n".join(_lines(outcome, time.monotonic() - began)), flush=True)
    return 0


# -- the documents -----------------------------------------------------------------------------


def _of_this_machine() -> Iterator[Path]:
    """Texts that every machine has: this project's own pages, and the licences of programs."""
    yield HERE / "README.md"
    if (PROJECT / "examples" / HERE.name).is_dir() and (PROJECT / "docs").is_dir():
        yield from sorted(PROJECT.glob("*.md"))
        yield from sorted(PROJECT.glob("docs/**/*.md"))
    yield from sorted(Path("/usr/share/common-licenses").glob("*"))
    yield from sorted(Path("/usr/share/doc").glob("*/copyright"))
    yield from sorted(Path("/usr/share/licenses").glob("*/*"))
    packages = Path(sysconfig.get_path("purelib"))
    yield from sorted(packages.glob("*.dist-info/**/LICENSE*"))


def _worth_reading(paths: Iterable[Path]) -> Iterator[Path]:
    """Without the copies that packages of one origin have of the same text, and the few texts
    that are longer than all others together."""
    seen = set()
    for path in paths:
        try:
            if path.stat().st_size <= _MOST_BYTES_OF_LICENCE:
                digest = hashlib.sha256(path.read_bytes()).digest()
                if digest not in seen:
                    seen.add(digest)
                    yield path
        except OSError:
            continue


def _below(folder: Path) -> Iterator[Path]:
    """Every file below a folder, less what is hidden."""
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent, name) for name in sorted(files) if not name.startswith("."))


def _unique(paths: Iterable[Path]) -> Iterator[Path]:
    """Each regular file once, whatever links lead to it."""
    seen = set()
    for path in paths:
        if not path.is_file():
            continue
        target = path.resolve()
        if target not in seen:
            seen.add(target)
            yield path.absolute()


# -- on the way --------------------------------------------------------------------------------


def _follow(result: AsyncResult, parts: list[AsyncResult]) -> None:
    """Shows how many documents are done, until the report is there."""
    open_parts = list(parts)
    show = _Bar(len(parts)) if sys.stdout.isatty() else _Lines(len(parts))
    last_change = time.monotonic()
    reminded = False
    while not result.ready():
        ready = {part.id for part in islice(open_parts, _WINDOW) if part.ready()}
        if ready:
            open_parts = [part for part in open_parts if part.id not in ready]
            last_change = time.monotonic()
        show.update(len(parts) - len(open_parts))
        waited = time.monotonic() - last_change
        if waited > _PATIENCE and len(open_parts) == len(parts) and not reminded:
            reminded = True
            show.interrupt(
                f"No document is read yet. Is there a worker on {DATA}?\n"
                f"  DEMO_DATA={DATA} celeriac worker -A app --workdir {HERE}"
            )
        if not ready:
            time.sleep(_PAUSE)
    show.update(len(parts))
    show.end()


class _Bar:
    """A bar that grows in its line, for a terminal."""

    def __init__(self, total: int) -> None:
        self._total = total

    def update(self, done: int) -> None:
        text = f" {done}/{self._total} documents"
        width = min(40, max(10, shutil.get_terminal_size().columns - len(text) - 3))
        full = width * done // self._total
        print(f"\r[{'#' * full}{'.' * (width - full)}]{text}", end="", flush=True)

    def interrupt(self, text: str) -> None:
        print(f"\r\033[K{text}", flush=True)

    def end(self) -> None:
        print(flush=True)


class _Lines:
    """A line at every tenth of the way, for a file."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._tenths = 0

    def update(self, done: int) -> None:
        tenths = 10 * done // self._total
        if tenths > self._tenths:
            self._tenths = tenths
            print(f"{done}/{self._total} documents", flush=True)

    def interrupt(self, text: str) -> None:
        print(text, flush=True)

    def end(self) -> None:
        pass


def _cancel(result: AsyncResult | None) -> None:
    """Leaves nothing of this run to the next one."""
    app.control.purge()
    if result is None:
        return
    # A chord whose parts will never be done would be asked for again and again; parts that are
    # marked as revoked end it.
    for part in result.parent.results:
        if not part.ready():
            app.backend.mark_as_revoked(part.id, "the run was stopped")


def _complain(text: str) -> int:
    print(text, file=sys.stderr)
    return 1


# -- the report --------------------------------------------------------------------------------


def _lines(outcome: dict[str, Any], seconds: float) -> Iterator[str]:
    kinds = outcome["kinds"]
    yield ""
    yield f"{'kind':10}{'documents':>12}{'words':>12}{'sentences':>12}"
    for name, kind in kinds.items():
        yield _row(name, kind["documents"], kind["words"], kind["sentences"])
    yield _row(
        "all",
        *(
            sum(kind[part] for kind in kinds.values())
            for part in ("documents", "words", "sentences")
        ),
    )
    yield ""
    if outcome["read"]:
        languages = ", ".join(f"{name} {count}" for name, count in outcome["languages"])
        yield f"Languages: {languages}"
        terms = ", ".join(f"{term} {count}" for term, count in outcome["terms"])
        yield from _wrapped(f"Most common terms: {terms}")
        yield ""
    for one in outcome["summaries"]:
        if one["summary"]:
            title = f"{_name(one['path'])} ({one['words']:,} words, "
            yield f"{title}{one['distinct_words']:,} different ones), in short:"
            yield from _wrapped(textwrap.shorten(one["summary"], 400, placeholder=" …"), "    ")
            yield ""
    for title, name in (("Failed", "failed"), ("Left out", "skipped")):
        if outcome[name]:
            yield f"{title}: {len(outcome[name])}"
            yield from _reasons(outcome[name])
            yield ""
    if outcome["tried_again"]:
        yield f"Tried more than once: {outcome['tried_again']}"
    total, rate = outcome["documents"], outcome["documents"] / seconds
    yield (
        f"{total} documents in {seconds:.1f} s: {rate:.0f} documents per second, "
        f"by {outcome['processes']} processes."
    )
    yield ""
    yield from _what_next()


def _what_next() -> Iterator[str]:
    command = os.environ.get("DEMO_COMMAND") or "python run.py"
    yield "Try next:"
    yield f"  DOCS=~/Documents {command}   reads a folder of yours"
    yield "  while it runs, `pkill -9 -n celeriac:child`: every document is still read"
    yield "  in place of celeriac, `celery -A app worker`: the same app on Celery's own worker"
    yield f"  the app is {HERE / 'app.py'}; what it left is in {DATA}"


def _row(name: str, *numbers: int) -> str:
    return f"{name:10}" + "".join(f"{number:>12,}" for number in numbers)


def _reasons(documents: list[dict[str, Any]], most: int = 10) -> Iterator[str]:
    for one in documents[:most]:
        attempts = f" (tried {one['attempts']} times)" if one["attempts"] > 1 else ""
        yield f"    {_name(one['path'])}: {one['reason']}{attempts}"
    if len(documents) > most:
        yield f"    and {len(documents) - most} more"


def _name(path: str) -> str:
    """The end of a path that tells documents apart, with what can't be printed replaced."""
    parts = Path(path).parts[-2:]
    return os.path.join(*parts).encode(errors="replace").decode()


def _wrapped(text: str, indent: str = "") -> list[str]:
    width = min(100, max(40, shutil.get_terminal_size().columns))
    return textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent or "  ")


if __name__ == "__main__":
    sys.exit(main())
