"""The example in ``examples/documents``: its client, on a worker, over documents of every sort."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness import processes, workers
from harness.wait import wait_until

EXAMPLE = workers.ROOT / "examples" / "documents"

PLAIN = "The whale sings. The whale swims in the sea.\n\nWhales are large\n"
GERMAN = "Der Wal ist groß und schön. Er lebt im Meer, nicht an der Küste."
PAGE = """<!DOCTYPE html><html><head><title>Sea</title><style>p { color: red }</style></head>
<body><p>The sea is <b>de</b>ep.</p><script>var no = "word";</script>
<p>It is cold &amp; dark.</p></body></html>"""

#: Ends as the real program does for each of these files; one of them kills the process that it is
#: called from, the first time.
PDFTOTEXT = """#!/bin/sh
case "$4" in
    */good.pdf) echo "Whales sing. Whales swim." ;;
    */broken.pdf) echo "Syntax Error: Couldn't read xref table" >&2; exit 1 ;;
    */flaky.pdf)
        if [ ! -e "$0.flaky" ]; then : > "$0.flaky"; kill -9 $$; fi
        echo "At last." ;;
    */stubborn.pdf) kill -9 $$ ;;
    */deadly.pdf)
        if [ ! -e "$0.deadly" ]; then : > "$0.deadly"; kill -9 "$PPID"; fi
        echo "Still alive." ;;
esac
"""


class Example:
    """The example's folders, and its client."""

    def __init__(self, folder: Path) -> None:
        self.data = folder / "data"
        self.documents = folder / "documents"
        self.documents.mkdir()
        self.programs = folder / "bin"
        self.programs.mkdir()
        self.variables = {
            "DEMO_DATA": str(self.data),
            "DOCS": str(self.documents),
            "PATH": str(self.programs),
            "PYTHONPATH": str(EXAMPLE),
        }

    def document(self, name: str | bytes, content: str | bytes) -> Path:
        path = self.documents / os.fsdecode(name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def install_pdftotext(self) -> None:
        program = self.programs / "pdftotext"
        program.write_text(PDFTOTEXT)
        program.chmod(0o755)

    def run(self, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(EXAMPLE / "run.py")],
            env=workers.environment(**{**self.variables, **variables}),
            capture_output=True,
            text=True,
            timeout=120,
        )

    def report(self) -> str:
        done = self.run()
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def waiting(self) -> int:
        """How many messages wait in the queue."""
        if not (self.data / "broker.db").exists():
            return 0
        with sqlite3.connect(self.data / "broker.db", timeout=30) as database:
            try:
                rows = database.execute("SELECT count(*) FROM kombu_message WHERE visible")
            except sqlite3.OperationalError:
                return 0
            count: int = rows.fetchone()[0]
            return count


@pytest.fixture
def example(tmp_path: Path) -> Example:
    return Example(tmp_path)


@pytest.fixture
def start_worker(start, sqlite_place, example):
    def start_on_example() -> Any:
        return start(sqlite_place, "-c", "2", app="app", variables=example.variables)

    return start_on_example


def table(report: str) -> dict[str, list[int]]:
    """The numbers in the report's table."""
    rows = re.findall(r"^(text|html|pdf|all) +([\d,]+) +([\d,]+) +([\d,]+)$", report, re.MULTILINE)
    return {name: [int(number.replace(",", "")) for number in rest] for name, *rest in rows}


def section(report: str, title: str) -> list[str]:
    """What is listed under a title such as ``Failed: 2``."""
    match = re.search(rf"^{title}: (\d+)\n((?:    .*\n)+)", report, re.MULTILINE)
    assert match, report
    lines = [line.strip() for line in match[2].splitlines()]
    assert len(lines) == int(match[1])
    return lines


def test_the_report_counts_what_each_document_has(example, start_worker):
    example.install_pdftotext()
    example.document("plain.txt", PLAIN)
    example.document("latin-1.txt", GERMAN.encode("latin-1"))
    example.document("utf-16.txt", GERMAN.encode("utf-16"))
    example.document(b"folder/na\xefve.md", "# One heading\n\nOne line.\n")
    example.document("page.html", PAGE)
    example.document("no-suffix", PAGE)
    example.document("good.pdf", "%PDF-1.4")
    example.document("flaky.pdf", "%PDF-1.4")
    example.document("broken.pdf", "%PDF-1.4")
    example.document("stubborn.pdf", "%PDF-1.4")
    example.document("empty.txt", "")
    example.document("junk.bin", bytes(range(256)) * 20)
    example.document("more-junk", b"\x01\x02\x03\xff" * 100)
    example.document(".hidden", "Not this one.")
    example.document(".folder/hidden.txt", "Nor this one.")
    (example.documents / "link.txt").symlink_to(example.documents / "plain.txt")
    os.mkfifo(example.documents / "pipe.txt")
    locked = example.document("locked.txt", PLAIN)
    start_worker()
    with open(locked) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        report = example.report()

    # A link and the file that it leads to are one document.
    assert table(report) == {
        "text": [4, 12 + 14 + 14 + 4, 3 + 2 + 2 + 2],
        "html": [2, 2 * 9, 2 * 3],
        "pdf": [2, 4 + 2, 2 + 1],
        "all": [8, 44 + 18 + 6, 9 + 6 + 3],
    }
    assert section(report, "Failed") == [
        "documents/broken.pdf: pdftotext: Syntax Error: Couldn't read xref table",
        "documents/locked.txt: locked by another program (tried 3 times)",
        "documents/stubborn.pdf: pdftotext: ended with status -9 (tried 3 times)",
    ]
    assert section(report, "Left out") == [
        "documents/empty.txt: empty",
        "documents/junk.bin: no text",
        "documents/more-junk: no text",
    ]
    assert "Tried more than once: 3\n" in report
    assert re.search(r"^14 documents in \d+\.\d s: \d+ documents per second", report, re.MULTILINE)
    assert "German 2" in report
    assert (
        "Most common terms: whales 3, cold 2, dark 2, deep 2, groß 2, küste 2, lebt 2, meer 2, "
        "schön 2, whale 2, heading 1, large 1 "
    ) in " ".join(report.split())

    again = example.report()
    assert table(again)["text"] == [5, 44 + 12, 9 + 3]
    assert [line.partition(":")[0] for line in section(again, "Failed")] == [
        "documents/broken.pdf",
        "documents/stubborn.pdf",
    ]


def test_a_killed_process_takes_no_document_with_it(example, start_worker):
    example.install_pdftotext()
    example.document("deadly.pdf", "%PDF-1.4")
    for number in range(10):
        example.document(f"{number}.txt", PLAIN)
    worker = start_worker()
    report = example.report()
    assert (example.programs / "pdftotext.deadly").exists()
    assert "WorkerLostError" in worker.log or "exited with 'signal 9 (SIGKILL)'" in worker.log
    assert table(report)["all"] == [11, 122, 31]


def test_pdfs_are_left_out_without_pdftotext(example, start_worker):
    example.document("good.pdf", "%PDF-1.4")
    example.document("plain.txt", PLAIN)
    start_worker()
    report = example.report()
    assert report.startswith("pdftotext is not installed")
    assert section(report, "Left out") == [
        "documents/good.pdf: a PDF, and pdftotext is not installed"
    ]
    assert table(report)["all"] == [1, 12, 3]


def test_one_document_is_enough(example, start_worker):
    example.document("plain.txt", PLAIN)
    start_worker()
    assert table(example.report())["all"] == [1, 12, 3]


def test_the_limit_is_said(example, start_worker):
    for number in range(5):
        example.document(f"{number}.txt", PLAIN)
    start_worker()
    done = example.run(DEMO_LIMIT="2")
    assert done.stdout.startswith("The first 2 of 5 documents;")
    assert table(done.stdout)["all"] == [2, 24, 6]


def test_an_interrupted_client_leaves_nothing_to_the_next_one(example, start_worker):
    for number in range(20):
        example.document(f"{number}.txt", PLAIN)
    terminal, its_end = pty.openpty()
    client = subprocess.Popen(
        [sys.executable, str(EXAMPLE / "run.py")],
        env=workers.environment(**example.variables),
        stdin=subprocess.DEVNULL,
        stdout=its_end,
        stderr=subprocess.STDOUT,
        preexec_fn=processes.start_in_the_foreground,
    )
    os.close(its_end)
    shown = b""
    while b"0/20 documents" not in shown:
        # Ends with an OSError when the client ends.
        shown += os.read(terminal, 1000)
    wait_until(lambda: example.waiting() == 21, "all documents and the chord are in the queue")
    client.send_signal(signal.SIGINT)
    assert client.wait(60) == 130
    shown += os.read(terminal, 10000)
    os.close(terminal)
    assert b"[......" in shown
    assert b"Stopped." in shown and b"Traceback" not in shown
    assert example.waiting() == 0

    worker = start_worker()
    assert table(example.report())["all"] == [20, 240, 60]
    assert worker.log.count("Task app.describe[") >= 20
    assert worker.log.count("Task app.report[") == 2


@pytest.mark.parametrize(
    "variables, message",
    [
        ({}, "There are no documents in"),
        ({"DOCS": "/nowhere/at/all"}, "DOCS=/nowhere/at/all is no folder."),
        ({"DEMO_LIMIT": "many"}, "DEMO_LIMIT=many is no number of documents."),
        ({"DEMO_LIMIT": "0"}, "DEMO_LIMIT=0"),
    ],
)
def test_what_cannot_work_is_said_at_once(example, variables, message):
    done = example.run(**variables)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_the_demo_brings_all_that_it_needs(example):
    (example.documents / "whale.txt").write_text(PLAIN)
    (example.documents / "wal.txt").write_text(GERMAN)
    # As a user names it: from the folder that the command is given in.
    python = os.path.relpath(sys.executable, example.documents.parent)
    ended = workers.run(
        "celeriac", "--python", python, "demo", "--data", str(example.data), "-c", "1",
        cwd=example.documents.parent, timeout=120, DOCS=str(example.documents),
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "2 documents in" in ended.stdout
    assert "celeriac demo" in ended.stdout
    assert (example.data / "examples" / "documents" / "app.py").exists()
    wait_until(
        lambda: not processes.with_marker(f"DEMO_DATA={example.data}"), "nothing is left of it"
    )


def test_the_demo_says_what_is_missing(example, tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    ended = workers.run("celeriac", "--python", str(python), "demo", cwd=tmp_path)
    assert ended.returncode == 1
    assert f"{python} -m pip install celery sqlalchemy" in ended.stderr
