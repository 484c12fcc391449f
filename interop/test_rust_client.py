"""celeriac's client calls tasks of a worker of Celery's own, and gets their results."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from typing import Any, Callable

import pytest

from harness.rust_client import RustClient, program
from harness.wait import wait_until
from harness.workers import Worker


def task(name: str, *args: Any, **options: Any) -> dict[str, Any]:
    return {
        "task": f"basic.{name}",
        "args": list(args),
        "kwargs": {},
        "options": options,
        "subtask_type": None,
        "immutable": False,
    }


@pytest.fixture(scope="module")
def worker(shared_place: Any, shared_start: Callable[..., Worker]) -> Worker:
    return shared_start(shared_place, "-c", "2", kind="celery")


@pytest.fixture
def rust(shared_place: Any, worker: Worker) -> Iterator[RustClient]:
    with RustClient(
        program(), broker_url=shared_place.broker, result_backend=shared_place.backend
    ) as client:
        yield client


def test_a_result_comes_back(rust: RustClient) -> None:
    assert rust.value(task("add", 2, 3)) == 5
    echo = {**task("echo", 1, "zwölf", None), "kwargs": {"key": [1.5, {"a": True}]}}
    assert rust.value(echo) == [[1, "zwölf", None], {"key": [1.5, {"a": True}]}]


def test_the_request_is_what_was_asked_for(rust: RustClient) -> None:
    about = rust.value(
        task("about"),
        task_id="my-id",
        headers={"tenant": "acme"},
        expires=60,
        priority=4,
        time_limit=30,
        soft_time_limit=20,
        shadow="shown",
    )
    assert (about["id"], about["root_id"], about["parent_id"]) == ("my-id", "my-id", None)
    assert about["timelimit"] == [30, 20]
    assert about["headers"] == {"tenant": "acme"}
    assert about["shadow"] == "shown"
    assert about["delivery_info"]["priority"] == 4
    assert about["expires"]


def test_a_failure_is_pythons_exception(rust: RustClient) -> None:
    error = rust.call(task("fail"))["error"]
    assert error["kind"] == "failure"
    assert error["exception"] == {
        "exc_type": "ValueError",
        "exc_message": ["boom", 42],
        "exc_module": "builtins",
    }


def test_a_chain_passes_results_on(rust: RustClient) -> None:
    assert rust.value({"chain": [task("add", 1, 2), task("add", 10), task("add", 100)]}) == 113
    # What fails in the middle is what the whole fails with.
    answer = rust.call({"chain": [task("add", 1, 2), task("fail"), task("add", 1)]})
    assert answer["error"]["exception"]["exc_type"] == "ValueError"


def test_a_group_gives_all_results_in_order(rust: RustClient) -> None:
    group = {"group": [task("add", n, n) for n in range(20)]}
    assert rust.value(group) == [2 * n for n in range(20)]


def test_a_chord_gives_all_results_to_its_body(rust: RustClient) -> None:
    header = [task("add", n, n) for n in range(5)]
    assert rust.value({"chord": [header, task("total")]}) == 20
    nested = {
        "chain": [{"group": header}, task("total"), task("add", 1), {"group": [task("add", 2)]}]
    }
    assert rust.value(nested) == 23
    inner = {"chord": [header, task("total")]}
    assert rust.value({"chord": [[inner, task("add", 1, 1)], task("total")]}) == 22


def test_maps_and_chunks(rust: RustClient) -> None:
    assert rust.value({"map": [task("total"), [[1, 2], [3, 4]]]}) == [3, 7]
    pairs = [[1, 2], [3, 4], [5, 6]]
    assert rust.value({"starmap": [task("add"), pairs]}) == [3, 7, 11]
    assert rust.value({"chunks": [task("add"), pairs, 2]}) == [[3, 7], [11]]


def test_what_is_linked_is_called(rust: RustClient, tmp_path: Any) -> None:
    file = tmp_path / "linked"
    link = {**task("sleep", 0, str(file), "linked"), "immutable": True}
    assert rust.value(task("add", 1, 2), link=[link]) == 3
    wait_until(lambda: file.exists() and "linked" in file.read_text(), "the callback is called")
    file = tmp_path / "failed"
    errback = {**task("sleep", 0, str(file), "failed"), "immutable": True}
    assert "error" in rust.call(task("fail"), link_error=[errback])
    wait_until(lambda: file.exists() and "failed" in file.read_text(), "the errback is called")


def test_a_call_waits_for_its_moment(rust: RustClient) -> None:
    eta = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=1)
    about = rust.value(task("about"), eta=eta.isoformat())
    assert about["eta"] == eta.isoformat()
    assert datetime.datetime.now(datetime.timezone.utc) >= eta
    assert rust.value(task("add", 1, 1), countdown=0.5) == 2


def test_a_call_that_waits_is_revoked(rust: RustClient) -> None:
    answer = rust.call(task("add", 1, 1), wait=None, countdown=3)
    id = answer["result"][0][0]
    rust.ask({"revoke": [id]})
    wait_until(lambda: rust.ask({"state": id}) == {"state": "REVOKED"}, "it is revoked")


def test_what_makes_no_sense_is_not_sent(rust: RustClient) -> None:
    for canvas, options, named in (
        (task("add", 1, 1), {"eta": "tomorrow"}, "eta"),
        (task("add", 1, 1), {"priority": "high"}, "priority"),
        (task("add", 1, 1), {"serializer": "pickle"}, "serializer"),
        ({"group": [task("add")]}, {"link": [task("add")]}, "chord"),
    ):
        error = rust.call(canvas, **options)["error"]
        assert error["kind"] == "invalid", error
        assert named in error["text"], error
