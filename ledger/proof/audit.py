"""What the ledger says: which tasks were lost, which ran again, and why.

Pure: lists of lines and of faults in, findings out.

A *run* is a start line with the end line of the same process, if it has one. A task is **lost**
when its publishing was confirmed and its last attempt has no end line. A run is a **repeat** when
it began after another run of the same attempt had ended, or ended although another had ended too.
(A run that a kill interrupted and that has no end line is no repeat: running it again is what late
acknowledgement is for.) Each repeat has a **reason**, which is the fault that hit the process of
the earlier run at the time when it would have acknowledged, or it is **unexplained**. A repeat
whose only faults came later than ``GRACE`` after the earlier run's end line is one of a task that
had **finished before the kill**.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass, field

from proof.line import Mark, Published

#: Seconds between an end line and the moment when its acknowledgement is with the broker, on a
#: machine that is as busy as this run makes it.
GRACE = 1.0
#: Seconds after the end of an outage in which workers find back to the broker and learn what is
#: no longer theirs: Celery's tries again after 2, 4, 6... seconds.
SETTLING = 8.0
#: The same for what a run is sure to have felt.
SAME_TIME = 0.1
#: What ends nobody's task: no repeat is explained by it.
HARMLESS = frozenset({"kill main", "clock jump"})

FINISHED = "finished before the kill"
UNEXPLAINED = "UNEXPLAINED"
PUBLISHED_TWICE = "the retry was published twice: "


@dataclass(frozen=True)
class Fault:
    """Something that was done to the system."""

    kind: str
    begin: float
    #: When it was undone; of a kill, the same.
    end: float
    #: The start of a worker that it hit; nothing: whatever the broker serves.
    worker: str | None = None
    #: The one process that it hit, if it was not the worker as a whole.
    pid: int | None = None

    @property
    def is_kill(self) -> bool:
        return self.kind.startswith("kill")

    def hits(self, run: Run) -> bool:
        return (
            self.kind not in HARMLESS
            and self.worker in (None, run.worker)
            and self.pid in (None, run.pid)
        )

    def settled(self, settling: float) -> float:
        """Since when it has no effect any more. (Children of a killed worker end what they were
        given.)"""
        return self.end + settling if self.pid is None else self.end


@dataclass
class Run:
    task: str
    attempt: int
    start: float
    end: float | None
    pid: int
    worker: str


@dataclass(frozen=True)
class Repeat:
    task: str
    attempt: int
    earlier: Run
    later: Run
    reason: str


@dataclass
class Findings:
    confirmed: int = 0
    unconfirmed: int = 0
    runs: int = 0
    lost: list[str] = field(default_factory=list)
    #: Lost, but found among the dead letters.
    buried: list[str] = field(default_factory=list)
    repeats: list[Repeat] = field(default_factory=list)
    #: Runs without an end line whose attempt was run again.
    interrupted: int = 0

    def reasons(self) -> collections.Counter[str]:
        return collections.Counter(repeat.reason for repeat in self.repeats)


@dataclass(frozen=True)
class Fleet:
    """Who the workers were: the starts of stock Celery workers, and when these take back what was
    not acknowledged (None: never)."""

    celery: Set[str] = frozenset()
    visibility_timeout: float | None = None


def audit(
    published: Iterable[Published],
    marks: Iterable[Mark],
    faults: Iterable[Fault],
    buried: Set[str] = frozenset(),
    fleet: Fleet | None = None,
    grace: float = GRACE,
) -> Findings:
    """``grace`` replaces ``GRACE`` on machines that have much else to do."""
    published = list(published)
    since = {message.task: message.at for message in published}
    history = _History(runs_of(marks), list(faults), fleet or Fleet(), grace, since)
    findings = Findings(runs=sum(map(len, history.runs.values())))
    for message in published:
        if not message.is_confirmed:
            findings.unconfirmed += 1
            continue
        findings.confirmed += 1
        last = history.runs.get((message.task, message.attempts - 1), [])
        if all(run.end is None for run in last):
            gone = findings.buried if message.task in buried else findings.lost
            gone.append(message.task)
    for (task, attempt), runs in history.runs.items():
        if any(run.end is not None for run in runs):
            findings.interrupted += sum(run.end is None for run in runs)
        for earlier, later in repeated(runs):
            reason = history.reason(earlier, later)
            findings.repeats.append(Repeat(task, attempt, earlier, later, reason))
    return findings


def runs_of(marks: Iterable[Mark]) -> dict[tuple[str, int], list[Run]]:
    """The runs of each attempt of each task, in the order in which they began."""
    runs: dict[tuple[str, int], list[Run]] = {}
    for mark in sorted(marks, key=lambda mark: mark.at):
        own = runs.setdefault((mark.task, mark.attempt), [])
        if mark.verb == "start":
            own.append(Run(mark.task, mark.attempt, mark.at, None, mark.pid, mark.worker))
            continue
        place = (mark.worker, mark.pid)
        begun = [run for run in own if (run.worker, run.pid) == place and run.end is None]
        if not begun:
            raise ValueError(f"an end without a start: {mark}")
        begun[-1].end = mark.at
    return runs


def repeated(runs: list[Run]) -> Iterator[tuple[Run, Run]]:
    """The runs of one attempt that are repeats, each behind the run before it: that one was not
    acknowledged in time."""
    for number, run in enumerate(runs[1:], 1):
        ends = [before.end for before in runs[:number] if before.end is not None]
        if ends and (run.end is not None or run.start > min(ends)):
            yield runs[number - 1], run


class _History:
    def __init__(
        self,
        runs: dict[tuple[str, int], list[Run]],
        faults: list[Fault],
        fleet: Fleet,
        grace: float,
        since: dict[str, float],
    ) -> None:
        self.runs = runs
        self._since = since
        self._faults = faults
        self._fleet = fleet
        self._grace = grace

    def reason(self, earlier: Run, later: Run) -> str:
        """Why an attempt that ran ``earlier`` ran ``later`` as well."""
        return (
            self._retried_twice(earlier)
            or self._not_acknowledged(earlier, later, SAME_TIME)
            or self._published_twice(earlier)
            or self._not_acknowledged(earlier, later, SETTLING)
            or self._taken_from_another(earlier, later)
            or self._not_renewed(earlier, later)
            or (FINISHED if self._any_between(earlier, later) else UNEXPLAINED)
        )

    def _not_acknowledged(self, earlier: Run, later: Run, settling: float) -> str | None:
        """A fault that hit the earlier run before it can have been acknowledged: the last one."""
        ended = earlier.end if earlier.end is not None else later.start
        before = min(ended + self._grace, later.start)
        hits = [
            fault
            for fault in self._faults
            if fault.hits(earlier)
            and fault.begin <= before
            and fault.settled(settling) >= earlier.start
        ]
        if not hits:
            return None
        fault = max(hits, key=lambda fault: (min(fault.end, ended), fault.begin))
        if fault.end < earlier.start:
            when = "before it ran"
        elif fault.begin < ended:
            when = "while it ran"
        else:
            when = "between end and acknowledgement"
        return f"{fault.kind} {when}, {self._whose(earlier)}"

    def _whose(self, run: Run) -> str:
        return "on a Celery worker" if run.worker in self._fleet.celery else "on celeriac"

    def _taken_from_another(self, earlier: Run, later: Run) -> str | None:
        """A fault that hit whoever had fetched the message before the earlier run's worker did."""
        for fault in self._faults:
            if (
                fault.hits(later)
                and not fault.is_kill
                and fault.begin <= earlier.start + self._grace
                and fault.settled(SETTLING) >= later.start
            ):
                return f"{fault.kind} of who had it first, {self._whose(later)}"
        return None

    def _not_renewed(self, earlier: Run, later: Run) -> str | None:
        """A Celery worker that had the message for so long that another was given it as well, in
        its pool or fetched ahead."""
        timeout = self._fleet.visibility_timeout
        if timeout is None or not {earlier.worker, later.worker} & self._fleet.celery:
            return None
        is_old = later.start - self._since.get(earlier.task, later.start) >= timeout
        return "a Celery worker had it for its visibility timeout" if is_old else None

    def _retried_twice(self, run: Run) -> str | None:
        """An attempt is published by the one before: by each run of it."""
        before = self._attempt_before(run)
        if len(before) < 2:
            return None
        reason = self.reason(before[0], before[1])
        is_told = reason == UNEXPLAINED or reason.startswith(PUBLISHED_TWICE)
        return reason if is_told else f"{PUBLISHED_TWICE}{reason}"

    def _published_twice(self, run: Run) -> str | None:
        """Whoever publishes tries again when no answer came: the broker may have it already."""
        for before in self._attempt_before(run):
            ended = before.end if before.end is not None else run.start
            for fault in self._faults:
                is_cut = not fault.is_kill or fault.worker is None
                overlaps = fault.begin <= ended and fault.settled(SAME_TIME) >= before.start
                if is_cut and overlaps and fault.hits(before):
                    return f"{PUBLISHED_TWICE}{fault.kind} while it was"
        return None

    def _attempt_before(self, run: Run) -> list[Run]:
        return self.runs.get((run.task, run.attempt - 1), [])

    def _any_between(self, earlier: Run, later: Run) -> bool:
        return any(
            fault.hits(earlier) and earlier.start <= fault.begin <= later.start
            for fault in self._faults
        )
