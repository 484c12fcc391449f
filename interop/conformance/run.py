"""Runs Celery's own integration suite against a worker process, on servers of its own.

The suite is the one of the Celery that is installed: pip downloads its source distribution, which
is kept below ``target``. It is run for pairs of a broker and a result backend, each in several
parts side by side: most of the time the suite sleeps. Exit status: 0 when all passed, 1 when some
did not, 2 when the suite could not be run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

INTEROP = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(INTEROP))

from conformance import suite  # noqa: E402
from harness.processes import die_with_parent  # noqa: E402
from harness.servers import RabbitServer, RedisServer  # noqa: E402
from harness.workers import ROOT  # noqa: E402

TARGET = ROOT / "target" / "conformance"
#: Tests that race with the worker, which are tried twice.
MAY_FLAP = {
    # Fails now and then on Celery's own worker: it revokes without waiting for an answer, and what
    # it sends next may begin before. Celery's project tries it up to three times.
    "test_tasks.py::test_tasks::test_revoked_by_headers_complex_canvas",
    # Clears the flag that is set when its task is received after it has sent the task: on a busy
    # machine that may be too late.
    "test_tasks.py::test_task_replacement::test_replaced_task_nesting_level_0",
    # Applies a chord twice. Celery's client makes the chord a new one just before it sends the last
    # task of the header: where a worker is done with the first before that, its part counts as a
    # late copy of the chord that is over, and the body never runs.
    "test_canvas.py::test_chord::test_reapplying_frozen_chord_dispatches_body_again",
    # Gives a worker a second to answer, while all parts of the suite run beside it.
    "test_inspect.py::test_Inspect::test_scheduled",
}
#: How many parts are run at once by default.
AT_ONCE = 6
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
class Pair:
    """A broker and a result backend."""

    broker: str
    backend: str
    #: How many tests pass on Celery's own worker. The suite itself skips some by the backend, and
    #: expects some to fail.
    passing: int
    #: Into how many parts a whole run is divided.
    parts: int

    @property
    def name(self) -> str:
        return f"{self.broker}+{self.backend}"

    def expected(self, worker: str) -> int:
        """How many tests are to pass on a kind of worker."""
        differing = [skip for skip in suite.skips() if skip.kind == suite.DIFFERS]
        return self.passing - sum(skip.holds_for(worker, self.broker) for skip in differing)


PAIRS = {
    pair.name: pair
    for pair in (
        Pair("redis", "redis", 347, 5),
        Pair("amqp", "redis", 348, 5),
        Pair("amqp", "rpc", 129, 3),
    )
}


@dataclass(frozen=True)
class Test:
    outcome: str
    reason: str
    seconds: float


@dataclass
class Results:
    """What became of the tests of one pair."""

    tests: dict[str, Test] = field(default_factory=dict)
    #: What failed first and passed when it was tried again.
    flapped: dict[str, Test] = field(default_factory=dict)
    #: What the worker's warm shutdown after the last test of each part ended with.
    exit_statuses: list[int | None] = field(default_factory=list)
    #: When a worker ended by itself, and how.
    deaths: list[str] = field(default_factory=list)

    def add(self, other: Results) -> None:
        self.tests.update(other.tests)
        self.exit_statuses += other.exit_statuses
        self.deaths += other.deaths

    def failed(self) -> list[str]:
        return [name for name, test in self.tests.items() if test.outcome == "failed"]

    def count(self, outcome: str) -> int:
        return Counter(test.outcome for test in self.tests.values())[outcome]

    def problems(self, passing: int = 0) -> list[str]:
        """Why this is no success; ``passing``: how many tests should have passed at least."""
        found = [f"{name}\n    {short(self.tests[name].reason)}" for name in self.failed()]
        found += self.deaths
        if any(self.exit_statuses):
            found.append(f"the workers' exit statuses are {self.exit_statuses}")
        if self.count("passed") < passing:
            found.append(f"{self.count('passed')} tests passed, not {passing}")
        return found

    def summary(self) -> str:
        counts = [f"{self.count(what)} {what}" for what in ("passed", "failed", "skipped")]
        flaps = [
            f"passed at the second try: {name}\n    {short(test.reason)}"
            for name, test in self.flapped.items()
        ]
        return "\n".join([*self.problems(), *flaps, ", ".join(counts)])


def short(reason: str) -> str:
    return " ".join(reason.split())[:400]


@dataclass(frozen=True)
class Part:
    """Some tests of a pair, for one worker with a broker of its own."""

    pair: Pair
    number: int
    of: int
    out: Path
    tests: Sequence[str] = ()
    options: Sequence[str] = ()


class Runner:
    """Runs parts of the suite for one kind of worker. A context: it has servers."""

    def __init__(self, worker: str) -> None:
        self.worker = worker
        self.sdist = suite.obtain(TARGET)
        self._stack = ExitStack()
        self._rabbit: RabbitServer | None = None

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def folder(self) -> Path:
        return Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="conformance-")))

    def rabbit(self) -> RabbitServer:
        """The node that all parts share: each has a virtual host of its own."""
        if self._rabbit is None:
            self._rabbit = RabbitServer(self.folder())
            self._stack.callback(self._rabbit.close)
        return self._rabbit

    def run_pairs(
        self, pairs: Iterable[Pair], out: Path, at_once: int = AT_ONCE, **what: Sequence[str]
    ) -> dict[str, Results]:
        """Runs all of the suite, or the given tests, for each pair. Logs go below ``out``."""
        parts = [
            Part(pair, number, of, out / pair.name / str(number), **what)
            for pair in pairs
            for of in [1 if what.get("tests") else pair.parts]
            for number in range(of)
        ]
        results = {pair.name: Results() for pair in pairs}
        # RabbitMQ's virtual hosts are made by one thread.
        vhosts = [self.rabbit().vhost() if part.pair.broker == "amqp" else "" for part in parts]
        with ThreadPoolExecutor(at_once) as pool:
            for part, found in zip(parts, pool.map(self.run, parts, vhosts)):
                results[part.pair.name].add(found)
        for pair in pairs:
            self._try_again(pair, results[pair.name], out)
        return results

    def _try_again(self, pair: Pair, results: Results, out: Path) -> None:
        again = sorted(MAY_FLAP.intersection(results.failed()))
        if not again:
            return
        first = {name: results.tests[name] for name in again}
        vhost = self.rabbit().vhost() if pair.broker == "amqp" else ""
        results.add(self.run(Part(pair, 0, 1, out / pair.name / "again", again), vhost))
        failed = results.failed()
        results.flapped = {name: test for name, test in first.items() if name not in failed}

    def run(self, part: Part, vhost: str = "") -> Results:
        """Runs one part, to its end."""
        part.out.mkdir(parents=True, exist_ok=True)
        found = part.out / "results.json"
        found.unlink(missing_ok=True)
        with tempfile.TemporaryDirectory(prefix="conformance-") as temporary:
            folder = Path(temporary)
            suite.unpack(self.sdist, folder)
            (folder / "pytest.ini").write_text(PYTEST_INI)
            # Also where it is neither broker nor backend: tasks of the suite use it themselves.
            # None is shared: tests compare what channels the server has before and after.
            server = RedisServer(folder)
            try:
                status = self._run_pytest(part, folder, server, vhost)
            finally:
                server.stop()
        # pytest's own: 0 all passed, 1 some failed.
        if status not in (0, 1) or not found.exists():
            text = (part.out / "pytest.log").read_text(errors="replace")
            raise Unusable(f"pytest ended with {status}:\n{text[-4000:]}")
        written = json.loads(found.read_text())
        tests = {name: Test(**test) for name, test in written["tests"].items()}
        return Results(tests, {}, [written["exit status"]], written["deaths"])

    def _run_pytest(self, part: Part, folder: Path, server: RedisServer, vhost: str) -> int:
        redis = f"redis://127.0.0.1:{server.port}/0"
        pair = part.pair
        tests = [str(suite.INTEGRATION / test) for test in part.tests] or [str(suite.INTEGRATION)]
        with open(part.out / "pytest.log", "wb") as log:
            done = subprocess.run(
                [sys.executable, "-m", "pytest", "-p", "conformance.suite_plugin"]
                + ["-v", "--tb=short", *part.options, *tests],
                check=False,
                cwd=folder,
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join([str(INTEROP), str(folder)]),
                    "TEST_BROKER": self.rabbit().url(vhost) if pair.broker == "amqp" else redis,
                    "TEST_BACKEND": "rpc" if pair.backend == "rpc" else redis,
                    "REDIS_HOST": "127.0.0.1",
                    "REDIS_PORT": str(server.port),
                    "CONFORMANCE_WORKER": self.worker,
                    "CONFORMANCE_OUT": str(part.out),
                    "CONFORMANCE_PART": f"{part.number}/{part.of}",
                },
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=die_with_parent,
            )
        return done.returncode


def collect(out: Path) -> None:
    """Goes through the whole suite without running any of it: what the tables name must be there,
    also in the files that a run of some tests does not look into."""
    with Runner("celeriac") as runner:
        runner.run(Part(PAIRS["redis+redis"], 0, 1, out, options=["--collect-only"]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tests", nargs="*", help="such as test_tasks.py::test_tasks; default: all")
    parser.add_argument("--pair", choices=PAIRS, action="append", help="default: all of them")
    parser.add_argument("--worker", choices=("celeriac", "celery"), default="celeriac")
    parser.add_argument("--at-once", type=int, default=AT_ONCE, help="how many parts (%(default)s)")
    parser.add_argument("--out", type=Path, help="default: a folder below target")
    parser.add_argument("-k", dest="only", help="pytest's own -k")
    given = parser.parse_args()
    out = (given.out or TARGET / given.worker).resolve()
    pairs = [PAIRS[name] for name in given.pair or PAIRS]
    options = ["-k", given.only] if given.only else []
    everything = not given.tests and not options
    try:
        with Runner(given.worker) as runner:
            found = runner.run_pairs(pairs, out, given.at_once, tests=given.tests, options=options)
    except (Unusable, RuntimeError) as problem:
        print(problem, file=sys.stderr)
        return 2
    problems = []
    for pair in pairs:
        results = found[pair.name]
        print(f"== {pair.name}\n{results.summary()}")
        problems += results.problems(pair.expected(given.worker) if everything else 0)
    print(f"Logs are in {out}.")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
