"""The auditor of the ledger: what it finds in lines and faults that are made up here."""

from __future__ import annotations

from typing import Any

import pytest

from proof.audit import FINISHED, GRACE, SETTLING, UNEXPLAINED, Fault, Findings, Fleet, audit
from proof.broker import celery_had
from proof.line import Book, Mark, Published, published, read_marks, read_published
from proof.plan import RATES, plan

T = "t1"


def ran(
    start: float,
    end: float | None,
    worker: str = "w1",
    pid: int = 1,
    task: str = T,
    attempt: int = 0,
) -> list[Mark]:
    marks = [Mark("start", T, attempt, start, 1, worker)]
    return marks if end is None else [*marks, Mark("end", T, attempt, end, 1, worker)]


def found(*runs: list[Mark], faults: list[Fault] | None = None, **more: Any) -> Findings:
    marks = [mark for run in runs for mark in run]
    return audit(more.pop("published", [Published(T, 1, True)]), marks, faults or [], **more)


def reasons(*runs: list[Mark], faults: list[Fault], **more: Any) -> list[str]:
    return [repeat.reason for repeat in found(*runs, faults=faults, **more).repeats]


def kill(at: float, worker: str | None = "w1", pid: int | None = None) -> Fault:
    return Fault("kill worker" if pid is None else "kill child", at, at, worker, pid)


def test_a_task_that_ran_once_is_neither_lost_nor_repeated():
    findings = found(ran(1, 2))
    assert (findings.confirmed, findings.runs, findings.lost, findings.repeats) == (1, 1, [], [])


@pytest.mark.parametrize(
    "runs", [[], [ran(1, None)], [ran(1, None), ran(2, None, worker="w2")]], ids=len
)
def test_what_never_ended_is_lost(runs):
    assert found(*runs).lost == [T]


def test_what_was_not_confirmed_is_not_lost():
    findings = found(published=[Published(T, 1, False)])
    assert (findings.lost, findings.confirmed, findings.unconfirmed) == ([], 0, 1)


def test_what_is_among_the_dead_letters_is_not_lost():
    findings = found(ran(1, None), buried={T})
    assert (findings.lost, findings.buried) == ([], [T])


def test_a_task_is_done_with_its_last_attempt():
    twice = [Published(T, 2, True)]
    assert found(ran(1, 2), published=twice).lost == [T]
    assert found(ran(1, 2), ran(3, 4, attempt=1), published=twice).lost == []


def test_a_run_that_a_kill_cut_short_is_no_repeat():
    findings = found(ran(1, None), ran(5, 6, worker="w2"), faults=[kill(2)])
    assert (findings.repeats, findings.interrupted) == ([], 1)


def test_a_start_after_an_end_is_a_repeat_even_without_an_end():
    assert reasons(ran(1, 2), ran(5, None, worker="w2"), faults=[]) == [UNEXPLAINED]


def test_two_ends_are_a_repeat_though_the_runs_overlap():
    overlapping = [ran(1, 20), ran(12, 13, worker="w2")]
    assert reasons(*overlapping, faults=[]) == [UNEXPLAINED]
    stop = Fault("stop", 1.5, 15, "w1")
    assert reasons(*overlapping, faults=[stop]) == ["stop while it ran, on celeriac"]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (kill(2 + GRACE / 2), "kill worker between end and acknowledgement, on celeriac"),
        (kill(2 + GRACE / 2, pid=1), "kill child between end and acknowledgement, on celeriac"),
        # Another child of that worker, another worker.
        (kill(2 + GRACE / 2, pid=2), UNEXPLAINED),
        (kill(2 + GRACE / 2, worker="w3"), UNEXPLAINED),
        # It had time to acknowledge.
        (kill(2 + GRACE * 2), FINISHED),
        (kill(2 + GRACE * 2, worker=None), FINISHED),
        # After it ran again.
        (kill(6), UNEXPLAINED),
        # The child ended what it was given before its worker was killed.
        (kill(0.9), "kill worker before it ran, on celeriac"),
        (Fault("kill broker", 1.5, 3), "kill broker while it ran, on celeriac"),
        (Fault("cut", 0.5, 0.6, "w1"), "cut before it ran, on celeriac"),
        (Fault("cut", -SETTLING, -SETTLING, "w1"), UNEXPLAINED),
        # These take no message from anybody.
        (Fault("kill main", 2, 2, "w1", 1), UNEXPLAINED),
        (Fault("clock jump", 0, 9, "w1"), UNEXPLAINED),
        # The one that runs it again had it first, and did not know that it was taken from it.
        (Fault("cut", 0.9, 0.9, "w2"), "cut of who had it first, on celeriac"),
        (Fault("cut", 3, 3, "w2"), UNEXPLAINED),
    ],
)
def test_a_repeat_has_the_fault_that_kept_it_from_being_acknowledged_as_its_reason(fault, reason):
    assert reasons(ran(1, 2), ran(5, 5.5, worker="w2"), faults=[fault]) == [reason]


def test_each_repeat_has_a_reason_of_its_own():
    runs = [ran(1, 2), ran(5, 6, worker="w2"), ran(30, 31, worker="w3")]
    first = "kill worker between end and acknowledgement, on celeriac"
    assert reasons(*runs, faults=[kill(2.1)]) == [first, UNEXPLAINED]
    assert reasons(*runs, faults=[kill(2.1), kill(20, worker="w2")]) == [first, FINISHED]
    assert reasons(*runs, faults=[kill(2.1), kill(6.1, worker="w2")]) == [first, first]


def test_a_run_between_that_was_cut_short_is_the_one_to_explain():
    runs = [ran(1, 2), ran(5, None, worker="w2"), ran(30, 31, worker="w3")]
    faults = [kill(2.1), kill(20, worker="w2")]
    last = "kill worker while it ran, on celeriac"
    assert reasons(*runs, faults=faults)[1] == last


def test_the_nearest_fault_is_the_reason():
    faults = [Fault("kill broker", 0, 0.5), kill(2.1)]
    (reason,) = reasons(ran(1, 2), ran(5, 6, worker="w2"), faults=faults)
    assert reason == "kill worker between end and acknowledgement, on celeriac"


def test_what_a_celery_worker_has_for_its_visibility_timeout_is_given_to_another_as_well():
    held = "a Celery worker had it for its visibility timeout"
    runs = [ran(40, 41), ran(42, 43, worker="w2")]
    for celery in "w1", "w2":
        fleet = Fleet(frozenset({celery}), 30)
        old, young = [Published(T, 1, True, 5)], [Published(T, 1, True, 20)]
        assert reasons(*runs, faults=[], fleet=fleet, published=old) == [held]
        assert reasons(*runs, faults=[], fleet=fleet, published=young) == [UNEXPLAINED]
    of_others = Fleet(frozenset({"w3"}), 30)
    assert reasons(*runs, faults=[], fleet=of_others, published=old) == [UNEXPLAINED]
    never = Fleet(frozenset({"w1"}), None)
    assert reasons(*runs, faults=[], fleet=never, published=old) == [UNEXPLAINED]


def test_a_retry_that_was_published_twice_is_explained_by_the_attempt_before():
    before = [ran(1, None), ran(4, 5, worker="w2")]
    again = [ran(6, 7, "w2", attempt=1), ran(8, 9, "w2", attempt=1)]
    (reason,) = reasons(*before, *again, faults=[kill(2)])
    assert reason == "the retry was published twice: kill worker while it ran, on celeriac"
    assert reasons(*before, *again, faults=[]) == [UNEXPLAINED]


def test_a_retry_that_was_published_while_its_connection_was_cut_may_be_there_twice():
    runs = [ran(1, 2), ran(21, 22, attempt=1), ran(25, 26, attempt=1)]
    (reason,) = reasons(*runs, faults=[Fault("cut", 1.5, 1.5, "w1")])
    assert reason == "the retry was published twice: cut while it was"
    assert reasons(*runs, faults=[Fault("cut", 3, 3, "w1")]) == [UNEXPLAINED]


def test_an_end_without_a_start_is_no_ledger():
    with pytest.raises(ValueError, match="without a start"):
        found([Mark("end", T, 0, 1, 1, "w1")])


def test_lines_are_read_as_they_were_written(tmp_path):
    book = Book(tmp_path / "published")
    book.add(published(T, 3, True), published("t2", 1, False))
    first, second = read_published(tmp_path / "published")
    assert (first.task, first.attempts, first.is_confirmed) == (T, 3, True)
    assert (second.task, second.attempts, second.is_confirmed) == ("t2", 1, False)
    assert 0 < first.at <= second.at
    book = Book(tmp_path / "celeriac-0-1")
    book.mark("start", T, 2)
    book.mark("end", T, 2)
    start, end = read_marks(tmp_path / "celeriac-0-1")
    assert (start.verb, start.task, start.attempt, start.worker) == ("start", T, 2, "celeriac-0-1")
    assert (end.verb, end.pid) == ("end", start.pid)
    assert start.at <= end.at


def command(*words: str) -> bytes:
    parts = [f"${len(word)}\r\n{word}\r\n" for word in words]
    return f"*{len(words)}\r\n{''.join(parts)}".encode()


MESSAGE = '{"headers": {"id": "t1"}}'
TAG = "0b4c2d6e-1f7a-4c3b-9d8e-5a6b7c8d9e0f"
PUSH = command("LPUSH", "celery", MESSAGE)


@pytest.mark.parametrize(
    ("written", "is_celerys"),
    [
        # Popped and not noted: kombu's.
        (PUSH + command("RPOP", "celery"), True),
        (PUSH + command("HSET", "unacked", TAG, f"[{MESSAGE}]") + command("HDEL", "unacked"), True),
        (PUSH + command("HSET", "unacked", "celeriac-ab:7", f"[{MESSAGE}]"), False),
        (
            b"".join(
                [
                    *(PUSH, command("HSET", "unacked", TAG, MESSAGE), PUSH),
                    command("HSET", "unacked", "celeriac-ab:7", f"[{MESSAGE}]"),
                ]
            ),
            False,
        ),
        (command("LPUSH", "celery", "another"), False),
    ],
)
def test_the_append_only_file_tells_whether_a_celery_worker_had_a_message_last(written, is_celerys):
    assert celery_had(written, T) is is_celerys


def test_a_plan_is_its_seeds_alone():
    kinds = set(RATES)
    assert plan(7, 100, kinds) == plan(7, 100, kinds)
    assert plan(7, 100, kinds) != plan(8, 100, kinds)
    fewer = plan(7, 100, kinds - {"disk full"})
    assert fewer == [step for step in plan(7, 100, kinds) if step.kind != "disk full"]


@pytest.mark.parametrize("seconds", [1, 30, 600])
def test_a_plan_has_every_kind_within_its_time(seconds):
    steps = plan(1, seconds, set(RATES))
    assert {step.kind for step in steps} == set(RATES)
    assert all(0 <= step.at <= seconds and 0 <= step.lot < 1 for step in steps)
    assert [step.at for step in steps] == sorted(step.at for step in steps)
