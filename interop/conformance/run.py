"""Runs Celery's own integration suite against a worker process, on a Redis of its own.

The suite is the one of the Celery that is installed: pip downloads its source distribution, which
is kept below ``target``. Exit status: 0 when all passed, 1 when some did not, 2 when the suite
could not be run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

INTEROP = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(INTEROP))

from conformance import suite  # noqa: E402
from harness.processes import die_with_parent  # noqa: E402
from harness.servers import RedisServer  # noqa: E402
from harness.workers import ROOT  # noqa: E402

TARGET = ROOT / "target" / "conformance"
#: What the suite expects of pytest's configuration.
PYTEST_INI = """\
[pytest]
python_classes = test_*
addopts = --strict-markers -p no:cacheprovider
markers =
    flaky
    amqp
    celery
    masked_modules
    patched_environ
    patched_module
    sleepdeprived_patched_module
"""


class Unusable(Exception):
    """The suite could not be run."""


@dataclass(frozen=True)
class Test:
    outcome: str
    reason: str
    seconds: float


@dataclass(frozen=True)
class Results:
    tests: dict[str, Test]
    #: What the worker's warm shutdown after the last test ended with.
    exit_status: int | None

    def failed(self) -> dict[str, Test]:
        return {name: test for name, test in self.tests.items() if test.outcome == "failed"}

    def summary(self) -> str:
        counts = Counter(test.outcome for test in self.tests.values())
        lines = [f"{name}\n    {short(test.reason)}" for name, test in self.failed().items()]
        lines.append(
            ", ".join(f"{counts[what]} {what}" for what in ("passed", "failed", "skipped"))
        )
        return "\n".join(lines)


def short(reason: str) -> str:
    return " ".join(reason.split())[:400]


def collect(out: Path) -> None:
    """Goes through the whole suite without running any of it: what ``skips.tsv`` leaves out must
    be there, also in the files that a run of some files does not look into."""
    run("celeriac", [], out, options=["--collect-only"])


def run(
    worker: str, files: list[str], out: Path, only: str = "", options: Sequence[str] = ()
) -> Results:
    """Runs files of the suite, or all of it, and writes logs into ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    found = out / "results.json"
    found.unlink(missing_ok=True)
    sdist = suite.obtain(TARGET)
    with tempfile.TemporaryDirectory(prefix="conformance-") as temporary:
        folder = Path(temporary)
        suite.unpack(sdist, folder)
        (folder / "pytest.ini").write_text(PYTEST_INI)
        server = RedisServer(folder)
        url = f"redis://127.0.0.1:{server.port}/0"
        paths = [str(suite.INTEGRATION / file) for file in files] or [str(suite.INTEGRATION)]
        try:
            with open(out / "pytest.log", "wb") as log:
                done = subprocess.run(
                    [sys.executable, "-m", "pytest", "-p", "conformance.suite_plugin"]
                    + ["-v", "--tb=short", *(["-k", only] if only else []), *options, *paths],
                    check=False,
                    cwd=folder,
                    env={
                        **os.environ,
                        "PYTHONPATH": os.pathsep.join([str(INTEROP), str(folder)]),
                        "TEST_BROKER": url,
                        "TEST_BACKEND": url,
                        # For tasks of the suite that use Redis themselves.
                        "REDIS_HOST": "127.0.0.1",
                        "REDIS_PORT": str(server.port),
                        "CONFORMANCE_WORKER": worker,
                        "CONFORMANCE_OUT": str(out),
                    },
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    preexec_fn=die_with_parent,
                )
        finally:
            server.stop()
    # pytest's own: 0 all passed, 1 some failed.
    if done.returncode not in (0, 1) or not found.exists():
        text = (out / "pytest.log").read_text(errors="replace")
        raise Unusable(f"pytest ended with {done.returncode}:\n{text[-4000:]}")
    results = json.loads(found.read_text())
    tests = {name: Test(**test) for name, test in results["tests"].items()}
    return Results(tests, results["exit status"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", help="such as test_tasks.py; default: all")
    parser.add_argument("--worker", choices=("celeriac", "celery"), default="celeriac")
    parser.add_argument("--out", type=Path, help="default: a folder below target")
    parser.add_argument("-k", dest="only", default="", help="pytest's own -k")
    given = parser.parse_args()
    out = (given.out or TARGET / given.worker).resolve()
    try:
        results = run(given.worker, given.files, out, given.only)
    except (Unusable, RuntimeError) as problem:
        print(problem, file=sys.stderr)
        return 2
    print(results.summary())
    print(f"Logs are in {out}.")
    return 1 if results.failed() or results.exit_status != 0 else 0


if __name__ == "__main__":
    sys.exit(main())
