"""Gets Celery's integration suite, and knows which of its tests are left out."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

SKIPS = Path(__file__).with_name("skips.tsv")
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


@dataclass(frozen=True)
class Skip:
    """One line of ``skips.tsv``: a file, a class or a test that is left out."""

    kind: str
    test: str
    reason: str

    @property
    def file(self) -> str:
        return self.test.partition("::")[0]

    @property
    def is_whole_file(self) -> bool:
        return "::" not in self.test

    def covers(self, test: str) -> bool:
        """Whether it is about a test, whose id begins with the name of its file."""
        return test == self.test or test.startswith((f"{self.test}::", f"{self.test}["))


def skips() -> list[Skip]:
    lines = SKIPS.read_text().splitlines()
    return [Skip(*line.split("\t")) for line in lines if line and not line.startswith("#")]
