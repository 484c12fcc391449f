"""Gets Celery's integration suite, and knows which of its tests are left out and which are long."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

#: The kind of what celeriac does otherwise on purpose, on RabbitMQ.
DIFFERS = "differs"
SKIPS = Path(__file__).with_name("skips.tsv")
SLOW = Path(__file__).with_name("slow.tsv")
#: Seconds for a test that is not in ``slow.tsv``: what Celery's suite takes after each is in it.
USUAL = 2.0
#: Where the tests are inside the source distribution.
INTEGRATION = Path("t", "integration")
#: The other tests that come with it.
_NOT_WANTED = ("unit", "smoke", "benchmarks")


def obtain(cache: Path) -> Path:
    """The source distribution of the Celery that is installed, from the index that pip is
    configured for. An installed Celery is without its tests."""
    celery = version("celery")
    kept = cache / f"celery-{celery}.tar.gz"
    if kept.exists():
        return kept
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        wanted = ["--no-deps", "--no-binary", "celery", f"celery=={celery}"]
        done = subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--dest", folder, *wanted],
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        found = list(Path(folder).glob("celery-*.tar.gz"))
        if done.returncode or not found:
            raise RuntimeError(f"pip could not download celery's source:\n{done.stdout}")
        # Another run at the same time finds either all of it or nothing.
        found[0].replace(kept)
    return kept


def unpack(sdist: Path, folder: Path) -> None:
    """Puts the folder ``t`` with the integration tests and their helpers into ``folder``."""
    with tarfile.open(sdist) as archive:
        for member in archive:
            parts = Path(member.name).parts[1:]
            if not member.isfile() or parts[:1] != ("t",) or parts[1] in _NOT_WANTED:
                continue
            content = archive.extractfile(member)
            assert content is not None, member.name
            target = folder.joinpath(*parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(target, "wb") as file:
                shutil.copyfileobj(content, file)


def file_of(test: str) -> str:
    """The file that a test is in."""
    return test.partition("::")[0]


@dataclass(frozen=True)
class Skip:
    """One line of ``skips.tsv``: a file, a class or a test that is left out."""

    kind: str
    test: str
    reason: str

    @property
    def is_whole_file(self) -> bool:
        return "::" not in self.test

    def holds_for(self, worker: str, broker: str) -> bool:
        """Whether it counts for a kind of worker on a broker of this URL, or this kind."""
        return self.kind != DIFFERS or (worker == "celeriac" and broker.startswith("amqp"))

    def covers(self, test: str) -> bool:
        """Whether it is about a test, whose id begins with the name of its file."""
        return test == self.test or test.startswith((f"{self.test}::", f"{self.test}["))


def skips() -> list[Skip]:
    return [Skip(*row) for row in _rows(SKIPS)]


def slow() -> dict[str, float]:
    """Seconds that long tests take."""
    return {test: float(seconds) for test, seconds in _rows(SLOW)}


def part(tests: Mapping[str, float], number: int, of: int) -> set[str]:
    """One of so many parts of the tests, which take about as long as each other.

    Each test is in exactly one of them. The order of the tests counts: all that take part must be
    given the same."""
    seconds = [0.0] * of
    found = set()
    for test in sorted(tests, key=lambda test: -tests[test]):
        shortest = seconds.index(min(seconds))
        seconds[shortest] += tests[test]
        if shortest == number:
            found.add(test)
    return found


def _rows(file: Path) -> list[list[str]]:
    lines = file.read_text().splitlines()
    return [line.split("\t") for line in lines if line and not line.startswith("#")]
