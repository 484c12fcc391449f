"""Options of ``worker`` and settings of the broker: what they do, from outside."""

from __future__ import annotations

import json
import os
import socket
import sys

import pytest
from celery.result import AsyncResult

from harness import workers
from harness.queues import queues_of
from harness.servers import free_port
from harness.wait import stays, wait_until

TIMEOUT = 60


def own_app(place, text: str) -> dict[str, str]:
    """Writes ``proj.py``; the variables with which a worker finds it."""
    head = (
        "from celery import Celery\n"
        f"app = Celery('proj', broker={place.broker!r}, backend={place.backend!r})\n"
        "@app.task\n"
        "def add(x, y):\n"
        "    return x + y\n"
    )
    (place.folder / "proj.py").write_text(head + text)
    return {"PYTHONPATH": os.pathsep.join([str(place.folder), str(workers.APPS)])}


ACCEPTED = [
    ("-E",),
    ("--task-events",),
    ("--events",),
    ("-B",),
    ("--beat", "-s", "{folder}/schedule", "--scheduler", "celery.beat:PersistentScheduler"),
    ("--schedule", "{folder}/schedule"),
    ("-O", "fair"),
    ("-O", "default"),
    ("--optimization=fair",),
    ("--prefetch-multiplier", "1"),
    ("--prefetch-multiplier", "0"),
    ("--disable-prefetch",),
    ("-c", "2"),
    ("-c", "0"),
    ("-c", "auto"),
    ("-P", "prefork"),
    ("-P", "processes"),
    ("--pool=prefork",),
    ("--time-limit", "10", "--soft-time-limit", "5.5"),
    ("--max-tasks-per-child", "10"),
    ("--max-memory-per-child", "500000"),
    ("--pool-start-method", "fork"),
    ("--pool-start-method", "spawn"),
    ("--purge",),
    ("--discard",),
    ("-Q", "one,celery"),
    ("-X", "one"),
    ("-I", "json,math"),
    ("--without-gossip", "--without-mingle", "--without-heartbeat"),
    ("--heartbeat-interval", "5"),
    ("--autoscale", "3,1"),
    ("--autoscale", "1,3"),
    ("--autoscale", "2"),
    ("--pidfile", "{folder}/%n.pid"),
    ("-S", "{folder}/%n.state"),
    ("--statedb={folder}/state",),
    ("--umask", "022"),
    # What is said twice counts as it was said last.
    ("-l", "info"),
    ("-n", "first@%h", "--hostname", "second@%h"),
    ("-l", "INFO", "-n", "name@%h"),
    ("--executable", "{python}"),
]


@pytest.mark.parametrize("given", ACCEPTED, ids=" ".join)
def test_every_option_of_celery_is_accepted(sqlite_place, start, client, given):
    app = client(sqlite_place)
    words = [word.format(folder=sqlite_place.folder, python=sys.executable) for word in given]
    concurrency = () if "-c" in words or "--autoscale" in words else ("-c", "1")
    worker = start(sqlite_place, *concurrency, *words)
    if "-Q" not in words or "celery" in words:
        assert app.add.delay(1, 2).get(timeout=TIMEOUT) == 3
    assert worker.stop() == 0


def test_what_comes_later_is_said(sqlite_place, start):
    worker = start(sqlite_place, "-c", "1", "-B")
    assert "runs no beat" in worker.log
    assert worker.stop() == 0


def test_options_come_from_the_environment(sqlite_place, start, client):
    app = client(sqlite_place)
    variables = {
        "CELERY_WORKER_CONCURRENCY": "3",
        "CELERY_WORKER_QUEUES": "one,two",
        "CELERY_WORKER_HOSTNAME": "from-environment@there",
        "CELERY_WORKER_MAX_TASKS_PER_CHILD": "50",
        "CELERY_WORKER_WITHOUT_MINGLE": "1",
    }
    worker = start(sqlite_place, "-n", "on-the-line@there", variables=variables)
    wait_until(lambda: len(worker.children()) == 3, "three processes", TIMEOUT)
    assert "on-the-line@there ready." in worker.log, "the command line counts first"
    assert app.add.apply_async((1, 2), queue="two").get(timeout=TIMEOUT) == 3


def test_empty_variables_say_nothing(sqlite_place, start, client):
    app = client(sqlite_place)
    names = (
        "CONCURRENCY PREFETCH_MULTIPLIER TIME_LIMIT SOFT_TIME_LIMIT MAX_TASKS_PER_CHILD "
        "MAX_MEMORY_PER_CHILD AUTOSCALE QUEUES EXCLUDE_QUEUES INCLUDE HOSTNAME LOGFILE PIDFILE "
        "STATEDB UID GID UMASK POOL LOGLEVEL OPTIMIZATION POOL_START_METHOD HEARTBEAT_INTERVAL "
        "PURGE BEAT TASK_EVENTS DETACH DISABLE_PREFETCH EXECUTABLE"
    ).split()
    variables = {f"CELERY_WORKER_{name}": "" for name in names}
    empty = ("CELERY_BROKER_URL", "CELERY_BROKER", "CELERY_APP", "CELERY_WORKDIR", "CELERY_QUIET")
    variables.update(dict.fromkeys(empty, ""))
    start(sqlite_place, "-c", "1", variables=variables)
    assert app.add.delay(1, 2).get(timeout=TIMEOUT) == 3


def test_queues_are_chosen_and_left_out(place, start, client):
    app = client(place)
    queues = queues_of(place.broker)
    start(place, "-c", "1", "-Q", "one,two", "-X", "two")
    left = app.add.apply_async((1, 1), queue="two")
    default = app.add.delay(1, 1)
    assert app.add.apply_async((1, 2), queue="one").get(timeout=TIMEOUT) == 3
    assert (queues.waiting("two"), queues.waiting()) == (1, 1)
    assert left.state == default.state == "PENDING"


def test_included_modules_bring_their_tasks(sqlite_place, start, client):
    app = client(sqlite_place)
    (sqlite_place.folder / "more_tasks.py").write_text(
        "from celery import shared_task\n@shared_task\ndef double(x):\n    return 2 * x\n"
    )
    path = os.pathsep.join([str(sqlite_place.folder), str(workers.APPS)])
    worker = start(sqlite_place, "-c", "1", "-I", "more_tasks", variables={"PYTHONPATH": path})
    assert ". more_tasks.double" in worker.log
    assert app.app.send_task("more_tasks.double", (21,)).get(timeout=TIMEOUT) == 42


def test_purge_deletes_what_waited_and_nothing_else(place, start, client):
    app = client(place)
    old = [app.add.delay(1, 1) for _ in range(3)]
    kept = app.add.apply_async((1, 1), queue="other")
    worker = start(place, "-c", "1", "--purge")
    assert "purge: Erased 3 messages from the queue." in worker.log
    assert app.add.delay(1, 2).get(timeout=TIMEOUT) == 3
    assert all(result.state == "PENDING" for result in [*old, kept])
    assert queues_of(place.broker).waiting("other") == 1


def test_the_node_name_is_expanded(sqlite_place, start, client):
    host = socket.gethostname()
    name, _, domain = host.partition(".")
    for given, expected in [
        ("w1@%h", f"w1@{host}"),
        # As in Celery, a name without a host is the host.
        ("w2", "celery@w2"),
        ("w3@%n.%d", f"w3@{name}.{domain}"),
        ("w%%4@x", "w%4@x"),
        ("w5@fixed.example.com", "w5@fixed.example.com"),
    ]:
        worker = start(sqlite_place, "-c", "1", "-n", given)
        assert f"{expected} ready." in worker.log, given
        assert worker.stop() == 0


def test_files_are_named_after_the_node(sqlite_place, start, client):
    app = client(sqlite_place)
    folder = sqlite_place.folder
    files = ("-f", f"{folder}/%n%I.log", "--pidfile", f"{folder}/%n-%d.pid")
    worker = start(sqlite_place, "-c", "1", "-n", "w1@there.example.com", *files, ready=False)
    wait_until((folder / "w1.log").exists, "the log file is there", TIMEOUT)
    wait_until(lambda: " ready." in (folder / "w1.log").read_text(), "it is ready", TIMEOUT)
    assert (folder / "w1-example.com.pid").read_text() == f"{worker.pid}\n"
    assert app.add.delay(1, 2).get(timeout=TIMEOUT) == 3
    wait_until((folder / "w1-1.log").exists, "the process has a log file of its own", TIMEOUT)
    assert worker.stop() == 0
    assert not (folder / "w1-example.com.pid").exists()


def test_settings_stand_behind_two_dashes(redis_place, start, client):
    app = client(redis_place)
    worker = start(
        redis_place,
        *("-c", "1", "--", "worker.prefetch_multiplier=(int)7", "task.default_queue=elsewhere"),
        *("task.soft_time_limit=(int)1",),
    )
    assert "> elsewhere " in worker.log
    sent = app.sleep.apply_async((30,), queue="elsewhere")
    with pytest.raises(Exception, match="SoftTimeLimitExceeded"):
        sent.get(timeout=TIMEOUT)


USER_OPTIONS = """
from celery import bootsteps
from click import Option
import os

app.user_options["worker"].add(Option(("--tenant",), default="nobody", help="whose tasks"))
app.user_options["worker"].add(Option(("--fast",), is_flag=True))
app.user_options["preload"].add(Option(("-Z", "--zone"), default="here"))


class Says(bootsteps.Step):
    def __init__(self, parent, tenant="none", fast=None, zone=None, **options):
        super().__init__(parent, **options)
        with open(os.environ["INTEROP_FOLDER"] + "/options", "w") as file:
            file.write(f"{tenant} {fast} {zone}")


app.steps["worker"].add(Says)
"""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), "nobody False here"),
        (("--tenant", "acme", "--fast"), "acme True here"),
        (("--tenant=acme", "-Z", "there"), "acme False there"),
    ],
)
def test_the_app_has_options_of_its_own(sqlite_place, start, words, expected):
    variables = own_app(sqlite_place, USER_OPTIONS)
    worker = start(sqlite_place, "-c", "1", *words, app="proj", variables=variables)
    assert (sqlite_place.folder / "options").read_text() == expected
    assert worker.stop() == 0


def test_an_option_that_the_app_does_not_have_is_refused(sqlite_place):
    variables = own_app(sqlite_place, USER_OPTIONS)
    ended = workers.run(
        "celeriac",
        "-A",
        "proj",
        "worker",
        "--tennant",
        "x",
        **sqlite_place.variables(),
        **variables,
    )
    assert ended.returncode == 2
    assert "--tennant" in ended.stderr and "Traceback" not in ended.stderr


def test_the_working_folder_has_the_app(sqlite_place, start, client):
    app = client(sqlite_place)
    folder = sqlite_place.folder / "project"
    folder.mkdir()
    (folder / "elsewhere.py").write_text((workers.APPS / "basic.py").read_text())
    worker = start(sqlite_place, "-c", "1", "--workdir", str(folder), app="elsewhere")
    assert app.app.send_task("elsewhere.add", (1, 2)).get(timeout=TIMEOUT) == 3
    assert worker.stop() == 0


def test_urgent_messages_come_first_on_redis(redis_place, start, client):
    redis_place.transport_options = {"priority_steps": [0, 3, 6, 9]}
    app = client(redis_place)
    # In kombu's lists the smallest number is the most urgent.
    for priority in (9, 3, 6, 0, 5):
        text = str(priority)
        app.sleep.apply_async((0, redis_place.file(), text), priority=priority)
    start(redis_place, "-c", "1")

    def ended() -> list[str]:
        return [line.split()[1] for line in redis_place.lines() if line.startswith("end")]

    wait_until(lambda: len(ended()) == 5, "all ran", TIMEOUT)
    assert ended() == ["0", "3", "5", "6", "9"]


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("priority", ["c1", "c2", "a1", "a2", "b1", "b2"]),
        ("sorted", ["a1", "a2", "b1", "b2", "c1", "c2"]),
        ("round_robin", ["c1", "a1", "b1", "c2", "a2", "b2"]),
    ],
)
def test_queues_take_turns_as_the_strategy_says(redis_place, start, client, strategy, expected):
    redis_place.transport_options = {"queue_order_strategy": strategy}
    app = client(redis_place)
    for number in (1, 2):
        for queue in "abc":
            note = (0, redis_place.file(), f"{queue}{number}")
            app.sleep.apply_async(note, queue=queue)
    start(redis_place, "-c", "1", "-Q", "c,a,b")

    def ended() -> list[str]:
        return [line.split()[1] for line in redis_place.lines() if line.startswith("end")]

    wait_until(lambda: len(ended()) == 6, "all ran", TIMEOUT)
    assert ended() == expected


def test_a_prefix_stands_before_every_key(redis_place, redis_server, start, client):
    redis_place.transport_options = {"global_keyprefix": "tenant1:"}
    app = client(redis_place)
    broker = redis_server.client(redis_place.redis_database)
    worker = start(redis_place, "-c", "1")
    assert app.add.delay(1, 2).get(timeout=TIMEOUT) == 3
    running = app.sleep.delay(3, redis_place.file())
    wait_until(redis_place.lines, "it runs", TIMEOUT)
    far = app.add.apply_async((1, 1), countdown=600)
    # The running one was acknowledged when it began.
    wait_until(lambda: broker.hlen("tenant1:unacked") == 1, "it is stored", TIMEOUT)
    assert all(key.startswith(b"tenant1:") for key in broker.keys("*")), broker.keys("*")
    assert running.get(timeout=TIMEOUT) == "done"
    assert worker.stop() == 0
    assert broker.hlen("tenant1:unacked") == 1 and not broker.exists("tenant1:celery")
    assert far.state == "PENDING"


def test_redis_is_reached_through_its_socket(redis_place, redis_server, start, client):
    file = redis_server.folder / "redis.sock"
    redis_place.broker = f"redis+socket://{file}?virtual_host={redis_place.redis_database}"
    app = client(redis_place)
    worker = start(redis_place, "-c", "1")
    assert app.add.delay(1, 2).get(timeout=TIMEOUT) == 3
    assert worker.stop() == 0


@pytest.mark.parametrize("separator", [";", "list"])
def test_a_broker_that_is_away_is_passed_over(redis_place, start, client, separator):
    app = client(redis_place)
    away = f"redis://127.0.0.1:{free_port()}/0"
    good = redis_place.broker
    redis_place.settings = {"broker_connection_retry_on_startup": True}
    if separator == ";":
        redis_place.broker = f"{away};{good}"
    else:
        redis_place.settings["broker_url"] = [away, good]
    worker = start(redis_place, "-c", "1")
    assert "Will retry using next failover." in worker.log
    assert app.add.delay(1, 2).get(timeout=TIMEOUT) == 3
    assert worker.stop() == 0


def test_protocol_1_over_both_brokers(place, start, client):
    place.settings = {"task_protocol": 1}
    app = client(place)
    app.add.delay(1, 2)
    start(place, "-c", "1")
    assert app.add.delay(1, 2).get(timeout=TIMEOUT) == 3
    sent = app.echo.apply_async(([1, {"a": None}],), {"key": "zwölf"}, countdown=0.2, expires=60)
    assert sent.get(timeout=TIMEOUT) == [[[1, {"a": None}]], {"key": "zwölf"}]
    late = app.add.apply_async((1, 1), expires=-1)
    with pytest.raises(Exception, match="expired"):
        late.get(timeout=TIMEOUT)
    unknown = app.app.send_task("no.such.task")
    with pytest.raises(Exception, match=r"NotRegistered|no\.such\.task"):
        AsyncResult(unknown.id, app=app.app).get(timeout=TIMEOUT)
    queues = queues_of(place.broker)
    wait_until(lambda: not (queues.waiting() or queues.held()), "nothing is left", TIMEOUT)
    stays(lambda: not queues.waiting(), "nothing comes back", 1)


def test_json_lines_are_json(sqlite_place, start, client):
    app = client(sqlite_place)
    worker = start(sqlite_place, "-q", "-c", "1", "--log-format", "json", ready=False)
    assert app.add.delay(1, 2).get(timeout=TIMEOUT) == 3
    worker.wait_for("succeeded")
    assert worker.stop() == 0
    lines = [line for line in worker.log.splitlines() if line.startswith("{")]
    assert len(lines) >= 3
    assert all(isinstance(json.loads(line), dict) for line in lines)
