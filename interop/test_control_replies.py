"""Every command of remote control is answered as Celery's worker answers it.

A worker of Celery and one of the kind under test have the same app and the same broker; both are
asked the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
from conftest import Place

from harness.control import ask
from harness.workers import KIND, Worker


@dataclass
class Two:
    app: ModuleType
    theirs: Worker
    ours: Worker

    def ask(self, command: str, **arguments: Any) -> tuple[Any, Any]:
        theirs, ours = (
            ask(self.app.app, worker.node, command, **arguments)
            for worker in (self.theirs, self.ours)
        )
        return theirs, ours


@pytest.fixture(scope="module")
def two(
    shared_place: Place,
    shared_start: Callable[..., Worker],
    shared_client: Callable[..., ModuleType],
) -> Two:
    shared_place.settings = {
        "task_default_queue": "main",
        "task_annotations": {"controlled.add": {"rate_limit": "50/s"}},
        "my_password": "hush",
        "worker_cancel_long_running_tasks_on_connection_loss": True,
        "broker_transport_options": {"visibility_timeout": 4321},
    }
    # Some settings and answers are made of sets.
    order = {"PYTHONHASHSEED": "0"}
    workers = [
        shared_start(
            shared_place, "-c", "2", app="controlled", kind=kind, variables=order, ready=False
        )
        for kind in ("celery", KIND)
    ]
    for worker in workers:
        worker.wait_ready()
    return Two(shared_client(shared_place, "controlled"), *workers)


def named(value: Any, worker: Worker) -> Any:
    """With the same name for either node."""
    if isinstance(value, dict):
        return {key: named(item, worker) for key, item in value.items()}
    if isinstance(value, list):
        return [named(item, worker) for item in value]
    return value.replace(worker.name, "NODE") if isinstance(value, str) else value


SAME: list[tuple[str, dict[str, Any]]] = [
    ("ping", {}),
    ("ping", {"what": "ever"}),
    ("active", {}),
    ("active", {"safe": True}),
    ("dump_active", {}),
    ("reserved", {}),
    ("dump_reserved", {"safe": None}),
    ("scheduled", {}),
    ("dump_schedule", {}),
    ("query_task", {"ids": ["there", "is", "none"]}),
    ("query_task", {"ids": "none"}),
    ("query_task", {"ids": None}),
    ("registered", {}),
    ("dump_tasks", {}),
    ("registered", {"taskinfoitems": []}),
    ("registered", {"taskinfoitems": ["rate_limit"]}),
    ("registered", {"taskinfoitems": ["max_retries", "acks_late", "time_limit", "no_such", "_x"]}),
    ("registered", {"builtins": True}),
    ("active_queues", {}),
    ("conf", {}),
    ("dump_conf", {"with_defaults": False}),
    ("conf", {"with_defaults": True}),
    ("report", {}),
    ("heartbeat", {}),
    ("rate_limit", {"task_name": "controlled.add", "rate_limit": "10/m"}),
    ("rate_limit", {"task_name": "controlled.add", "rate_limit": 0}),
    ("rate_limit", {"task_name": "controlled.add", "rate_limit": "0"}),
    ("rate_limit", {"task_name": "controlled.add", "rate_limit": 2.5}),
    ("rate_limit", {"task_name": "controlled.add", "rate_limit": None}),
    ("rate_limit", {"task_name": "controlled.none", "rate_limit": "1/s"}),
    ("rate_limit", {"task_name": "controlled.add", "rate_limit": "often"}),
    ("rate_limit", {"task_name": "controlled.add", "rate_limit": "often/x"}),
    ("rate_limit", {"task_name": "controlled.none", "rate_limit": "1/x/y"}),
    ("time_limit", {"task_name": "controlled.add", "hard": 60, "soft": 30.5}),
    ("time_limit", {"task_name": "controlled.add", "hard": None, "soft": None}),
    ("time_limit", {"task_name": "controlled.add"}),
    ("time_limit", {"task_name": "controlled.none", "hard": 1}),
    ("disable_events", {}),
    ("enable_events", {}),
    ("enable_events", {}),
    ("disable_events", {}),
    ("disable_events", {}),
    ("revoke", {"task_id": "one"}),
    ("revoke", {"task_id": ["two"]}),
    ("revoke", {"task_id": ["three"], "terminate": True}),
    ("revoke", {"task_id": "four", "terminate": True, "signal": "KILL"}),
    ("revoke", {"task_id": ["five"], "terminate": False, "signal": "SIGKILL"}),
    ("revoke", {"task_id": ["five"], "terminate": True, "signal": "9"}),
    ("revoke", {"task_id": []}),
    ("terminate", {"task_id": "six", "signal": "SIGTERM"}),
    ("terminate", {"task_id": ["seven"], "signal": "KILL"}),
    ("revoked", {}),
    ("dump_revoked", {}),
    ("revoke_by_stamped_headers", {"headers": {"stamp": ["a", "b"]}}),
    ("revoke_by_stamped_headers", {"headers": {"other": [1, None, 2.5]}}),
    ("revoke_by_stamped_headers", {"headers": ["more=b"]}),
    ("revoke_by_stamped_headers", {"headers": {"stamp": ["a"]}, "terminate": True}),
    ("pool_grow", {}),
    ("pool_shrink", {"n": 1}),
    ("pool_grow", {"n": 2}),
    ("pool_shrink", {"n": 2}),
    ("autoscale", {"max": 4, "min": 2}),
    ("pool_restart", {}),
    ("pool_restart", {"modules": ["controlled"], "reload": True}),
    ("add_consumer", {"queue": "extra"}),
    ("cancel_consumer", {"queue": "extra"}),
    ("cancel_consumer", {"queue": "never heard of"}),
    ("hello", {"from_node": "other@host", "revoked": {}}),
    ("where", {}),
    ("where", {"names": ["a", "b"]}),
    ("whereabouts", {"names": ["a"]}),
    ("take_note", {"text": "noted"}),
    ("breaks", {}),
    ("no_such_command", {}),
    ("", {}),
]


def without_what_differs(value: Any) -> Any:
    """Clocks go on, and what is asked comes after what was asked before."""
    if isinstance(value, dict) and isinstance(value.get("clock"), int):
        return {**value, "clock": "number"}
    return value


@pytest.mark.parametrize("number", range(len(SAME)), ids=lambda n: f"{n}-{SAME[n][0] or 'empty'}")
def test_the_answer_is_celerys(two, number):
    command, arguments = SAME[number]
    theirs, ours = two.ask(command, **arguments)
    assert without_what_differs(named(ours, two.ours)) == without_what_differs(
        named(theirs, two.theirs)
    )


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("query_task", {}),
        ("revoke", {}),
        ("terminate", {"task_id": "x"}),
        ("rate_limit", {"task_name": "controlled.add"}),
        ("autoscale", {"max": 1, "what": "ever"}),
        ("enable_events", {"what": "ever"}),
        ("active_queues", {"what": "ever"}),
        ("heartbeat", {"what": "ever"}),
        ("add_consumer", {}),
        ("cancel_consumer", {}),
        ("hello", {}),
        ("revoke_by_stamped_headers", {}),
        ("revoke", {"task_id": "x", "terminate": True, "signal": "SIGNONE"}),
        ("pool_grow", {"n": "many"}),
        ("take_note", {}),
    ],
)
def test_wrong_arguments_are_an_error(two, command, arguments):
    """In words that are Python's own in Celery's worker."""
    for reply in two.ask(command, **arguments):
        assert list(reply) == ["error"]
        assert re.match(r"(\w+(Error|Exception)\(|Invalid )", reply["error"])


def shape(value: Any) -> Any:
    """Types and names, without the values."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return sorted({str(shape(item)) for item in value})
    return type(value).__name__


def test_statistics_have_the_same_members_of_the_same_types(two):
    assert two.app.add.delay(1, 1).get(timeout=30) == 2
    theirs, ours = two.ask("stats")
    for stats in (theirs, ours):
        # A worker that has run nothing has no names there.
        stats["total"] = {}
        # Only what the pool itself writes.
        writes = stats["pool"].pop("writes")
        assert isinstance(writes, (dict, str))
    # Celery does not count them.
    assert ours.pop("expired") == 0
    assert shape(ours) == shape(theirs)
    assert ours["broker"] == theirs["broker"]
    same = ("implementation", "max-concurrency", "max-tasks-per-child", "timeouts")
    assert [ours["pool"][name] for name in same] == [theirs["pool"][name] for name in same]


def test_statistics_tell_of_this_worker(two):
    _, ours = two.ask("stats")
    assert ours["pid"] == two.ours.pid
    assert sorted(ours["pool"]["processes"]) == sorted(two.ours.children())
    assert ours["uptime"] >= 0

    def total() -> int:
        return sum(stats["total"].get("controlled.limited", 0) for stats in two.ask("stats"))

    before = total()
    for _ in range(6):
        two.app.limited.delay(two.app.os.devnull, "").get(timeout=30)
    assert total() == before + 6


def test_writes_of_the_pool_can_be_shown(two):
    """Flower shows them."""
    _, ours = two.ask("stats")
    writes = ours["pool"]["writes"]
    assert {"total", "avg", "all", "raw", "strategy", "inqueues"} <= set(writes)
    assert {"total", "active"} <= set(writes["inqueues"])


def test_the_clock_goes_on(two):
    _, first = two.ask("clock")
    _, second = two.ask("clock")
    assert isinstance(first["clock"], int)
    assert second["clock"] > first["clock"]


def test_hello_from_itself_is_not_answered_to(two):
    assert ask(two.app.app, two.ours.node, "hello", from_node=two.ours.node) is None


def test_hello_takes_over_what_others_know_as_revoked(two):
    ours = ask(
        two.app.app, two.ours.node, "hello", from_node="other@host",
        revoked={"from a dict": [1.0, 2, "x"]},
    )  # fmt: skip
    assert "from a dict" in ours["revoked"]
    ours = ask(two.app.app, two.ours.node, "hello", from_node="other@host", revoked=["from a list"])
    assert ours["revoked"][-1] == "from a list"


def test_memory_is_told(two):
    theirs, ours = two.ask("memsample")
    assert re.fullmatch(r"[\d.]+(KB|MB|GB)", theirs)
    assert re.fullmatch(r"[\d.]+(KB|MB|GB)", ours)
    for text in two.ask("memdump", samples=3):
        assert "rss" in text


def test_what_cannot_be_sent_is_no_answer_and_no_end(two):
    """An answer that no JSON can be made of."""
    replies = two.app.app.control.broadcast(
        "unsayable", destination=[two.ours.node], reply=True, timeout=2
    )
    assert not replies or "error" in replies[0][two.ours.node]
    assert ask(two.app.app, two.ours.node, "ping") == {"ok": "pong"}


def test_several_ids_are_told_in_any_order(two):
    theirs, ours = two.ask("revoke", task_id=["x", "y", "z"])
    pattern = r"tasks \{('[xyz]'(, )?){3}\} flagged as revoked"
    assert re.fullmatch(pattern, theirs["ok"])
    assert re.fullmatch(pattern, ours["ok"])


# -- Who is asked ------------------------------------------------------------------------------


def nodes(replies: list[dict[str, Any]] | None) -> set[str]:
    return {node for reply in replies or [] for node in reply}


def test_all_are_asked_who_are_not_left_out(two):
    control, names = two.app.app.control, {two.theirs.node, two.ours.node}
    assert nodes(control.ping(timeout=3)) == names
    assert nodes(control.broadcast("ping", reply=True, timeout=3, limit=2)) == names


@pytest.mark.parametrize(
    ("pattern", "matcher", "meant"),
    [
        ("{name}@*", "glob", True),
        ("{name}", "glob", False),
        ("*{half}@[!x]*", "glob", True),
        ("?{rest}@*", "glob", True),
        ("*", "glob", True),
        ("{name}@", "pcre", True),
        ("{rest}", "pcre", False),
        (".*{half}", "pcre", True),
        ("(?i){upper}", "pcre", True),
        ("{name}$", "pcre", False),
    ],
)
def test_patterns_choose(two, pattern, matcher, meant):
    name = two.ours.name
    text = pattern.format(name=name, half=name[-6:], rest=name[1:], upper=name.upper())
    replies = two.app.app.control.broadcast(
        "ping", pattern=text, matcher=matcher, reply=True, timeout=10 if meant else 1,
        limit=2 if text == "*" else 1,
    )  # fmt: skip
    assert (two.ours.node in nodes(replies)) == meant


def test_a_destination_counts_and_a_pattern_beside_it_does_not(two):
    inspect = two.app.app.control.inspect([two.ours.node], timeout=10)
    assert set(inspect.ping()) == {two.ours.node}
    replies = two.app.app.control.broadcast(
        "ping", destination=[two.ours.node], pattern="none", matcher="glob", reply=True, timeout=10
    )
    assert nodes(replies) == {two.ours.node}
    assert not two.app.app.control.ping(destination=["nobody@nowhere"], timeout=0.5)
