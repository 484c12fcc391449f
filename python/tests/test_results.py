"""What is stored in Redis, and published, is what Celery's own method stores and publishes."""

from __future__ import annotations

import datetime
import os
from typing import Any

import pytest
import redis
from celery import states
from celery.app.task import Context
from celery.exceptions import BackendStoreError, Retry

from celeriac.host import results

TASK = "0b5e1ba5-6a2e-4a8c-8c53-6d7f9a0e2f11"
KEY = f"celery-task-meta-{TASK}".encode()
DEADLINE = 30


def request(**members: Any) -> Any:
    return Context(
        {
            "id": TASK,
            "task": "tested.add",
            "args": [1, "ö"],
            "kwargs": {"y": 2},
            "group": "a-group",
            "parent_id": "a-parent",
            "hostname": "one@host",
            "retries": 3,
            "delivery_info": {"routing_key": "hot"},
            **members,
        }
    )


def outcome(server: Any, backend: Any, steps: list[tuple[Any, ...]]) -> dict[str, Any]:
    """What the steps leave: the keys with their values and whether and how long they are kept,
    and what was published."""
    server.empty()
    listener = server.client.pubsub()
    listener.psubscribe("*")
    assert listener.get_message(timeout=DEADLINE)["type"] == "psubscribe"
    returned = [
        backend.store_result(TASK, result, state, traceback=traceback, request=request())
        for result, state, traceback in steps
    ]
    server.client.publish("the-end", "")
    published = []
    while True:
        message = listener.get_message(timeout=DEADLINE)
        if message["channel"] == b"the-end":
            break
        published.append((message["channel"], message["data"]))
    listener.close()
    stored = {}
    for key in server.client.keys():
        # Rounded up to minutes: some milliseconds have passed.
        kept = server.client.pttl(key)
        stored[key] = server.client.get(key), kept if kept < 0 else -(-kept // 60_000)
    return {"stored": stored, "published": published, "returned": [repr(one) for one in returned]}


class OwnError(Exception):
    pass


SUCCEEDS = ({"sum": 3}, states.SUCCESS, None)
FAILS = (OwnError("no", 7), states.FAILURE, "Traceback: …")
RETRIES = (Retry("later", ValueError("why")), states.RETRY, "Traceback")
STARTS = ({"pid": 7, "hostname": "one@host"}, states.STARTED, None)
PROGRESSES = ({"done": 5}, "PROGRESS", None)

STEPS = {
    "success": [SUCCEEDS],
    "failure": [FAILS],
    "retry": [RETRIES],
    "started, then success": [STARTS, SUCCEEDS],
    "started twice, then failure": [STARTS, STARTS, FAILS],
    "progress, retry and success": [STARTS, PROGRESSES, PROGRESSES, RETRIES, SUCCEEDS],
    "success, then failure": [SUCCEEDS, FAILS],
    "success, then another": [SUCCEEDS, ("other", states.SUCCESS, None)],
    "failure, then success": [FAILS, SUCCEEDS],
    "the text of a success": [('{"status": "SUCCESS"}', "PROGRESS", None), FAILS],
    "signs": [("žluťoučký 🐎 \udcef \x00", states.SUCCESS, None)],
    "large": [("x" * 300_000, states.SUCCESS, None)],
    "too large for a script": [("x" * 3_000_000, states.SUCCESS, None), FAILS],
    "large progress": [("x" * 300_000, "PROGRESS", None), SUCCEEDS],
}


def check_same(server: Any, make_redis_app: Any, steps: Any, **settings: Any) -> dict[str, Any]:
    own, short = make_redis_app(**settings), make_redis_app(**settings)
    assert results.shorten(short) == 1
    expected = outcome(server, own.backend, steps)
    assert server.calls("evalsha", "eval") == [0, 0]
    assert outcome(server, short.backend, steps) == expected
    assert expected["stored"] and expected["published"]
    return expected


@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
def test_each_state_is_stored_and_published_as_celery_does(server, make_redis_app, steps):
    check_same(server, make_redis_app, steps)


@pytest.mark.parametrize("serializer", ["json", "yaml", "pickle"])
@pytest.mark.parametrize("steps", [[FAILS, SUCCEEDS, FAILS], [STARTS, FAILS]])
def test_each_serializer_gives_the_same_bytes(server, make_redis_app, serializer, steps):
    check_same(server, make_redis_app, steps, result_serializer=serializer)
    assert server.calls("evalsha")[0] >= len(steps)


@pytest.mark.parametrize(
    "expires, minutes",
    [(None, -1), (0, -1), (3600, 60), (5400.75, 90), (datetime.timedelta(hours=3), 180)],
)
def test_a_result_is_kept_as_long_as_celery_keeps_it(server, make_redis_app, expires, minutes):
    expected = check_same(server, make_redis_app, [SUCCEEDS], result_expires=expires)
    assert expected["stored"][KEY][1] == minutes
    check_same(server, make_redis_app, [FAILS], result_expires=expires)


def test_a_failure_may_be_kept_for_another_time(server, make_redis_app):
    settings = {"result_expires": 3600, "result_failure_expires": 7200}
    assert check_same(server, make_redis_app, [FAILS], **settings)["stored"][KEY][1] == 120
    assert check_same(server, make_redis_app, [SUCCEEDS], **settings)["stored"][KEY][1] == 60


def test_a_backend_whose_expiry_was_changed_to_a_timedelta_keeps_that(server, make_short):
    backend = make_short()
    backend.expires = datetime.timedelta(hours=2)
    assert outcome(server, backend, [SUCCEEDS])["stored"][KEY][1] == 120
    assert server.calls("multi") == [0]


@pytest.mark.parametrize(
    "settings",
    [
        {"result_extended": True},
        {"result_compression": "gzip"},
        {"result_backend_transport_options": {"global_keyprefix": "mine:"}},
        {"result_backend_transport_options": {"global_keyprefix": "ö"}},
        {"result_backend_always_retry": True},
        {"result_backend_thread_safe": True},
        {"redis_backend_health_check_interval": 1},
        {"redis_max_connections": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("steps", [[STARTS, SUCCEEDS, FAILS], [STARTS, FAILS, SUCCEEDS]])
def test_settings_of_the_backend_count(server, make_redis_app, settings, steps):
    check_same(server, make_redis_app, steps, **settings)
    assert server.calls("multi") == [0]


def test_decoded_responses_are_understood(server, make_redis_app):
    url = server.url(query="?decode_responses=true")
    check_same(server, make_redis_app, [FAILS, PROGRESSES, SUCCEEDS, FAILS], url=url)
    assert server.calls("multi") == [0]


def test_one_request_is_enough_also_for_a_state_that_this_process_stored(server, make_short):
    backend = make_short()
    outcome(server, backend, [STARTS, PROGRESSES, SUCCEEDS])
    # The first was sent twice: the server did not know the script.
    assert server.calls("evalsha", "eval", "multi") == [3, 1, 0]


def test_what_another_process_stored_costs_a_second_request(server, make_short):
    backend, other = make_short(), make_short()
    outcome(server, other, [STARTS])
    backend.store_result(TASK, 1, states.SUCCESS)
    assert server.calls("evalsha", "eval", "multi") == [3, 1, 0]
    assert backend.get_task_meta(TASK)["result"] == 1


def test_a_success_stored_by_another_process_since_is_kept(server, make_short):
    backend, other = make_short(), make_short()
    outcome(server, backend, [STARTS])
    other.store_result(TASK, "first", states.SUCCESS)
    backend.store_result(TASK, OwnError("second"), states.FAILURE)
    assert backend.get_task_meta(TASK)["result"] == "first"
    assert server.calls("multi") == [0]


def test_a_state_that_changes_time_and_again_is_left_to_celery(server, make_short, monkeypatch):
    backend = make_short()
    changes = iter(range(100))
    decode = backend.decode_result

    def change(payload: Any) -> Any:
        meta = decode(payload)
        server.client.set(KEY, backend.encode({**meta, "result": next(changes)}))
        return meta

    server.client.set(KEY, backend.encode({"status": "PROGRESS", "result": -1}))
    monkeypatch.setattr(backend, "decode_result", change)
    backend.store_result(TASK, "end", states.SUCCESS)
    assert next(changes) == results.MAX_ATTEMPTS + 1
    monkeypatch.undo()
    assert backend.get_task_meta(TASK)["result"] == "end"


# -- trouble -----------------------------------------------------------------------------------


def test_a_connection_that_was_dropped_is_made_anew(server, make_short):
    backend = make_short()
    backend.store_result("before", 1, states.SUCCESS)
    for _ in range(results.MAX_FAILURES + 1):
        server.client.client_kill_filter(_type="normal", skipme=True)
        backend.store_result(TASK, {"sum": 3}, states.SUCCESS)
        assert backend.get_task_meta(TASK, cache=False)["result"] == {"sum": 3}
    server.client.config_resetstat()
    backend.store_result("after", 1, states.SUCCESS)
    assert server.calls("evalsha", "multi") == [1, 0]


def test_a_connection_lost_after_the_request_is_left_to_celery(server, make_short, monkeypatch):
    backend = make_short()
    backend.store_result("before", 1, states.SUCCESS)
    connection = backend.client.connection_pool.get_connection()
    backend.client.connection_pool.release(connection)
    ask = results._Store._ask

    def lose(self: Any, *arguments: Any) -> Any:
        ask(self, *arguments)
        connection.disconnect()
        raise redis.ConnectionError("lost")

    monkeypatch.setattr(results._Store, "_ask", lose)
    got = outcome(server, backend, [SUCCEEDS])
    # Celery's method found it stored and left it alone.
    assert list(got["stored"]) == [KEY] and len(got["published"]) == 1
    assert server.calls("multi") == [0]


def test_a_server_that_is_gone_is_the_error_that_it_is_with_celery(make_short, start_server):
    lost = start_server()
    backend = make_short(url=lost.url())
    backend.store_result("before", 1, states.SUCCESS)
    lost.stop()
    with pytest.raises(redis.ConnectionError):
        backend.store_result(TASK, 1, states.SUCCESS)


def test_a_user_that_may_not_run_scripts_is_served_by_celery(server, make_redis_app):
    rights = "on >secret ~* &* +@all -eval -evalsha"
    server.client.execute_command("ACL", "SETUSER", "limited", "reset", *rights.split())
    url = server.url("limited:secret@")
    check_same(server, make_redis_app, [STARTS, SUCCEEDS, FAILS], url=url)
    statistics = server.client.info("commandstats")["cmdstat_evalsha"]
    # It is asked no second time.
    assert statistics["rejected_calls"] == 1
    assert server.calls("multi") == [2]


def test_a_server_without_scripts_is_served_by_celery(make_redis_app, make_short, start_server):
    commands = ("EVAL", "EVALSHA")
    bare = start_server(*(part for name in commands for part in ("--rename-command", name, "")))
    own, short = make_redis_app(url=bare.url()).backend, make_short(url=bare.url())
    steps = [STARTS, SUCCEEDS, FAILS]
    assert outcome(bare, short, steps) == outcome(bare, own, steps)
    errors = bare.client.info("errorstats")
    short.store_result("later", 1, states.SUCCESS)
    # It is asked no second time.
    assert bare.client.info("errorstats") == errors


def test_a_user_that_may_not_publish_stores_nothing_as_with_celery(server, make_redis_app):
    rights = "on >secret ~* resetchannels +@all"
    server.client.execute_command("ACL", "SETUSER", "mute", "reset", *rights.split())
    for is_short in (False, True):
        app = make_redis_app(url=server.url("mute:secret@"))
        assert not is_short or results.shorten(app) == 1
        with pytest.raises(redis.exceptions.ResponseError, match="permissions"):
            app.backend.store_result(TASK, 1, states.SUCCESS)
        assert server.client.keys() == []


def test_a_value_of_another_type_is_the_error_that_it_is_with_celery(server, make_short):
    server.client.rpush(KEY, "a list")
    for _ in range(results.MAX_FAILURES + 1):
        with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
            make_short().store_result(TASK, 1, states.SUCCESS)


def test_an_expiry_that_redis_refuses_is_the_error_that_it_is_with_celery(server, make_short):
    with pytest.raises(redis.ResponseError, match="invalid expire time"):
        make_short(result_expires=-5).store_result(TASK, 1, states.SUCCESS)
    assert server.client.keys() == []


def test_a_value_too_large_for_redis_is_refused_by_celery(server, make_short):
    backend = make_short()
    backend._MAX_STR_VALUE_SIZE = results.MAX_BYTES
    with pytest.raises(BackendStoreError, match="too large"):
        backend.store_result(TASK, "x" * (results.MAX_BYTES + 1), states.SUCCESS)


def test_a_time_limit_that_strikes_leaves_no_answer_behind(server, make_short):
    class LimitError(Exception):
        pass

    def strike(*_: Any) -> None:
        del connection.read_response
        raise LimitError

    backend = make_short()
    backend.store_result("before", 1, states.SUCCESS)
    inherited = backend.client.client_id()
    connection = backend.client.connection_pool.get_connection()
    backend.client.connection_pool.release(connection)
    connection.read_response = strike
    # The answer is still to come when the connection is used again.
    server.client.client_pause(DEADLINE * 1000, all=False)
    with pytest.raises(LimitError):
        backend.store_result("struck", 1, states.SUCCESS)
    assert backend.client.client_id() not in (inherited, None)
    server.client.client_unpause()
    backend.store_result(TASK, "mine", states.SUCCESS)
    assert backend.get_task_meta(TASK)["result"] == "mine"


@pytest.mark.parametrize("is_in_a_row", [True, False])
def test_a_server_that_hangs_up_on_scripts_is_not_asked_for_ever(
    server, make_short, monkeypatch, is_in_a_row
):
    backend = make_short()
    own_ask = results._Store._ask
    asked = 0

    def ask(self: Any, *arguments: Any) -> Any:
        nonlocal asked
        asked += 1
        if is_in_a_row or asked % results.MAX_FAILURES:
            raise redis.ConnectionError("Connection closed by server.")
        return own_ask(self, *arguments)

    backend.store_result("first", 1, states.SUCCESS)
    monkeypatch.setattr(results._Store, "_ask", ask)
    for number in range(3 * results.MAX_FAILURES):
        backend.store_result(f"{number}", 1, states.SUCCESS)
        assert backend.get_state(f"{number}") == states.SUCCESS
    assert asked == (1 if is_in_a_row else 3) * results.MAX_FAILURES


def test_each_process_has_a_connection_of_its_own(server, make_short):
    backend = make_short()
    # Before and after: the app may have used the backend while it was loaded.
    for number in range(2):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                backend.store_result(f"child-{number}", backend.client.client_id(), states.SUCCESS)
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        backend.store_result(f"parent-{number}", backend.client.client_id(), states.SUCCESS)
    names = ("child-0", "child-1", "parent-0", "parent-1")
    ids = [backend.get_task_meta(name)["result"] for name in names]
    assert len(set(ids)) == 3 and ids[2] == ids[3]
    assert server.calls("multi") == [0]
