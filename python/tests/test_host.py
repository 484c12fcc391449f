"""The whole host, started from its sources as the Rust parent starts it."""

from __future__ import annotations

import json
import mmap
import os
import re
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from celeriac.host import child, jobs, report
from celeriac.host.wire import Channel

SOURCES = Path(__file__).resolve().parents[1] / "celeriac"
#: What the Rust parent receives with.
PARENTS_BUFFER = 192 * 1024
#: As ``crates/celeriac-pool/src/python/shim.rs`` has it.
LOADER = "import os, sys; exec(b''.join(iter(lambda: os.read(int(sys.argv[1]), 1), b'\\0')))"
APP = """
from celery import Celery
app = Celery("hosted", broker="sqla+sqlite:///secret.db", backend="cache+memory://")
"""


def modules() -> list[tuple[str, str]]:
    found = [("celeriac.", (SOURCES / "__init__.py").read_text())]
    found.append(("celeriac.exceptions", (SOURCES / "exceptions.py").read_text()))
    for path in (SOURCES / "host").glob("*.py"):
        name = "celeriac.host." if path.stem == "__init__" else f"celeriac.host.{path.stem}"
        found.append((name, path.read_text()))
    return found


class Host:
    """A host over an app, and its answer."""

    def __init__(
        self,
        folder: Path,
        text: str,
        options: dict[str, Any],
        app: str,
        log_format: str = "celery",
    ) -> None:
        (folder / "hosted.py").write_text(APP + text)
        self.folder = folder
        control, hosts_control = socket.socketpair()
        self.zygote, hosts_zygote = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        control.settimeout(20)
        self.zygote.settimeout(20)
        fds = hosts_control.fileno(), hosts_zygote.fileno()
        clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", LOADER, *map(str, fds), "celeriac"],
            cwd=folder,
            env={**clean, "C_FORCE_ROOT": "1"},
            pass_fds=fds,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        hosts_control.close()
        hosts_zygote.close()
        self._socket = control
        self.control = Channel(control)
        control.sendall((SOURCES / "host" / "bootstrap.py").read_bytes() + b"\0")
        self.control.write(
            {
                "modules": modules(),
                "app": app,
                "argv": ["celeriac", "worker"],
                "options": {"loglevel": "INFO", "hostname": "one@host", **options},
                "log_format": log_format,
                "settings": {},
                "only_zygote": False,
                "detaches": False,
            }
        )
        self.answer, _ = self.control.read()

    def end(self) -> int:
        """Leaves the host alone, and returns its exit status."""
        self.control.close()
        self.zygote.close()
        with self.process:
            try:
                return self.process.wait(20)
            finally:
                self.process.kill()


@pytest.fixture
def host(tmp_path):
    started = []

    def start(
        text: str = "", app: str = "hosted", log_format: str = "celery", **options: Any
    ) -> Host:
        started.append(Host(tmp_path, text, options, app, log_format))
        return started[-1]

    yield start
    for one in started:
        one.end()


def test_the_parent_is_told_what_it_must_know(host):
    text = """
from celery import signals
from kombu import Queue
app.conf.update(
    task_queues=[Queue("one"), Queue("two", queue_arguments={"x-max-priority": 3})],
    worker_eta_task_limit=5,
    accept_content=["json", "pickle"],
    broker_transport_options={"connect_args": {"timeout": 30}},
)
@signals.celeryd_after_setup.connect
def later(sender, instance, conf, **_):
    instance.app.tasks["hosted.late"].rate_limit = "7/m"
    instance.app.amqp.queues.deselect("one")
@signals.heartbeat_sent.connect(weak=False)
@signals.task_revoked.connect(weak=False)
def revoked(**_): pass
@app.task(acks_late=True, time_limit=9.5, max_retries=None)
def late(): pass
"""
    ready = host(text, concurrency="3", autoscale=None, time_limit=40.0).answer["ready"]
    assert [queue["name"] for queue in ready["queues"]] == ["two"]
    assert ready["queues"][0]["arguments"] == {"x-max-priority": 3}
    late = ready["tasks"]["hosted.late"]
    assert (late["acks_late"], late["time_limit"], late["max_retries"]) == (True, 9.5, None)
    # What a hook of celeryd_after_setup changes counts.
    assert late["rate_limit"] == "7/m"
    assert ready["worker"]["concurrency"] == 3
    assert ready["worker"]["hostname"] == "one@host"
    assert ready["worker"]["loglevel"] == 20
    assert ready["worker"]["time_limit"] == 40.0
    assert ready["signals"] == ["heartbeat_sent", "task_revoked"]
    assert ready["settings"]["worker_eta_task_limit"] == 5
    assert set(ready["accept_content"]) == {"application/json", "application/x-python-serialize"}
    assert ready["broker"]["transport_options"] == {"connect_args": {"timeout": 30}}
    assert ready["app"]["main"] == "hosted"
    assert ready["warnings"] == []


def test_the_parent_is_told_what_remote_control_needs(host):
    text = """
from celery.worker.control import control_command, inspect_command
from kombu import Queue
app.conf.update(
    broker_url="redis://me:SECRET@localhost:1/3;redis://:SECRET@other:2/0",
    broker_transport_options={"sentinel_kwargs": {"password": "SECRET"}, "visibility_timeout": 9},
    task_queues=[Queue("one", consumer_arguments={"x-priority": 3})],
    control_queue_expires=20.0, control_queue_ttl=None, event_exchange="events",
    task_serializer="pickle", accept_content=["json", "pickle"],
)
@control_command(alias="also", visible=False)
def mine(state): pass
@inspect_command()
def ping(state): return "my pong"
@app.task(queue="one", exchange="x", routing_key="y")
def routed(): pass
"""
    ready = host(text, without_gossip=True, heartbeat_interval=7).answer["ready"]
    bus = ready["bus"]
    assert (bus["control_queue_expires"], bus["control_queue_ttl"]) == (20.0, None)
    assert (bus["control_exchange"], bus["event_exchange"]) == ("celery", "events")
    assert len(bus) == 11
    remote = ready["remote"]
    assert (remote["control"], remote["gossip"], remote["mingle"]) == (True, False, True)
    assert (remote["heartbeat"], remote["heartbeat_interval"]) == (True, 7)
    assert (remote["control_serializer"], remote["event_serializer"]) == ("pickle", "json")
    assert remote["signs"] is False
    assert remote["commands"]["mine"] == {"alias": "also", "type": "control", "visible": False}
    assert remote["commands"]["active"]["alias"] == "dump_active"
    assert remote["users"] == ["also", "mine", "ping"]
    assert remote["broker_info"]["hostname"] == "localhost"
    assert remote["broker_info"]["virtual_host"] == "3"
    assert remote["broker_info"]["transport_options"]["visibility_timeout"] == 9
    assert "SECRET" not in json.dumps(remote)
    assert remote["sw_sys"] == "Linux"
    assert (remote["revokes_max"], remote["revoke_expires"]) == (50_000, 10_800)
    assert remote["sw_ver"] == ready["versions"]["celery"]
    assert ready["queues"][0]["consumer_arguments"] == {"x-priority": 3}
    assert ready["queues"][0]["info"]["exchange"]["type"] == "direct"
    task = ready["tasks"]["hosted.routed"]
    assert (task["exchange"], task["routing_key"]) == ("x", "y")
    assert ready["broker"]["driver"] == "redis"
    assert ready["settings"]["broker_channel_error_retry"] is False


@pytest.mark.parametrize("arguments, told", [({"x-queue-type": "quorum"}, True), ({}, False)])
def test_the_parent_is_told_of_quorum_queues(host, arguments, told):
    text = f"""
from kombu import Queue
app.conf.broker_url = "amqp://localhost:1"
app.conf.task_queues = [Queue("one", queue_arguments={arguments})]
"""
    assert host(text).answer["ready"]["broker"]["has_quorum_queues"] is told


def test_a_file_in_the_apps_folder_does_not_hide_the_standard_library(host, tmp_path):
    for name in ("json", "struct", "typing", "socket"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('the wrong one')\n")
    assert "ready" in host().answer


@pytest.mark.parametrize(
    "text, options, message",
    [
        ("app.conf.worker_consumer = 'mine:Consumer'", {}, "worker_consumer = 'mine:Consumer'"),
        ("app.conf.control_queue_durable = True", {}, "cannot both be True"),
        ("", {"pool": "eventlet"}, "The pool 'eventlet' is not available"),
        ("", {"pool": "custom"}, "The pool 'custom' is not available"),
        ("app.conf.worker_pool = 'gevent'", {}, "too late for gevent's patches"),
        ("", {"concurrency": "many"}, "Invalid value for '-c'"),
        ("@app.task(Strategy='mine:s')\ndef t(): pass", {}, "execution strategy of their own"),
        ("", {"logfile": "/no/such/folder/x.log"}, "'/no/such/folder/x.log' can't be opened"),
    ],
)
def test_what_cannot_be_honoured_is_refused_with_a_remedy(host, text, options, message):
    started = host(text, **options)
    failed = started.answer["failed"]
    assert message in failed["message"]
    assert failed["traceback"] is None
    assert failed["exit_status"] in (1, 2)
    assert started.end() == failed["exit_status"]


@pytest.mark.parametrize(
    "setting, url",
    [
        ("broker_url", "redis://:SEC/RET@host/0"),
        ("broker_url", "redis://:SEC#RET@host:6379/0"),
        ("broker_url", "redis://me:SEC]RET@host"),
        ("result_backend", "redis://:SEC/RET@host/0"),
        # Here it is the number of the database that can't be read.
        ("result_backend", "redis://SEC/RET@host"),
    ],
)
def test_a_url_that_cannot_be_read_is_named_without_its_password(host, setting, url):
    started = host(f"app.conf.{setting} = {url!r}\n")
    failed = started.answer["failed"]
    assert failed["message"].startswith(f"{setting} can't be read: ")
    assert "percent-encode" in failed["hint"]
    assert failed["traceback"] is None
    shown = json.dumps(failed) + started.process.stdout.read().decode()
    assert not re.findall("SEC|RET", shown)
    assert started.end() == 1


def test_what_is_wrong_with_a_url_is_told_where_it_is_no_secret(host):
    failed = host("app.conf.broker_url = 'redis://:secret@host:port/0'\n").answer["failed"]
    assert "'port'" in failed["message"]
    assert "secret" not in json.dumps(failed)


def test_an_error_with_an_undecodable_text_reaches_the_parent(host):
    failed = host("raise RuntimeError('na\\udcefve')").answer["failed"]
    assert failed["traceback"].endswith("RuntimeError: na?ve")
    assert failed["exit_status"] == 2


LOGGERS = [
    "celery",
    "celery.apps.worker",
    "celery.worker",
    "celery.worker.consumer.connection",
    "celery.worker.request",
    "celery.worker.strategy",
]


@pytest.mark.parametrize("name", LOGGERS)
def test_a_logger_whose_level_the_app_sets_has_its_records_forwarded(host, name):
    text = f"import logging\nlogging.getLogger({name!r}).setLevel(logging.{{}})\n"
    told = host(text.format("WARNING")).answer["ready"]["logging"]
    assert told["forward"] is True
    # The others still write theirs.
    assert told["level"] == 20
    told = host(text.format("DEBUG")).answer["ready"]["logging"]
    assert (told["forward"], told["level"]) == (True, 10)


def test_records_are_not_forwarded_where_celery_alone_has_set_logging_up(host):
    told = host().answer["ready"]["logging"]
    assert (told["forward"], told["level"]) == (False, 20)


def test_every_line_of_a_log_in_json_is_json(host):
    text = """
import logging
from celery import signals
logger = logging.getLogger("mine")
@signals.after_setup_logger.connect
def logs(**_): logger.warning("receiver")
@signals.worker_process_init.connect
def starts(**_): logger.warning("child")
"""
    started = host(text, log_format="json", loglevel="DEBUG", logfile="%i.log")
    assert "ready" in started.answer
    started.control.write({"split": True})
    started.zygote.recv(4096)
    ours, _ = fork_child(started)
    ours.close()
    started.zygote.recv(4096)
    folder = Path(started.folder)
    lines = {path.name: path.read_text().splitlines() for path in folder.glob("*.log")}
    messages = {
        name: [json.loads(line)["message"] for line in found] for name, found in lines.items()
    }
    assert any("Preparing bootsteps" in message for message in messages["0.log"])
    assert "receiver" in messages["0.log"]
    assert "child" in messages["1.log"]


def make_page() -> int:
    page = os.memfd_create("page")
    os.ftruncate(page, mmap.PAGESIZE + 8192)
    return page


def fork_child(started: Host, page: int | None = None) -> tuple[socket.socket, int]:
    """A child that can work: its channel, and its process. ``page`` is its control page, unless
    nobody looks at it."""
    ours, childs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(20)
    page = make_page() if page is None else os.dup(page)
    order = {"fork": "child", "number": 1, "index": 0, "pool": "prefork"}
    request = json.dumps(order).encode()
    socket.send_fds(started.zygote, [request], [childs.fileno(), page])
    childs.close()
    os.close(page)
    forked = json.loads(started.zygote.recv(4096))
    assert forked["forked"] == 1
    assert ours.recv(100) == bytes([child.UP])
    return ours, forked["pid"]


def test_a_child_forked_from_the_zygote_does_a_job(host, tmp_path):
    started = host("@app.task\ndef add(x, y): return x + y\n")
    assert "ready" in started.answer
    started.control.write({"split": True})
    zygote = json.loads(started.zygote.recv(4096))["hello"]
    assert zygote != started.process.pid
    ours, pid = fork_child(started)
    text = json.dumps({"task": "hosted.add", "id": "1", "celeriac": None}).encode()
    head = jobs.JOB_HEAD.pack(jobs.JOB, report.WANTS_RESULT | child.LAST, 0, len(text), 9)
    ours.send(head + text + b"[[2, 3], {}, {}]")
    done = ours.recv(1000)
    kind, outcome, job, _ = report._DONE.unpack_from(done)
    assert (kind, outcome, job) == (report.DONE, report.SUCCESS, 9)
    assert done[report._DONE.size :] == b"5"
    exited = json.loads(started.zygote.recv(4096))
    assert exited.pop("peak") > 1000, "KiB"
    assert exited == {"exited": pid, "code": child.EX_RECYCLE}
    ours.close()
    # Main answers calls, also those that it does not know.
    started.control.write({"id": 1, "call": "worker_ready"})
    assert started.control.read() == ({"id": 1, "ok": None}, b"")
    started.control.write({"id": 2, "call": "no_such_call"})
    assert "error" in started.control.read()[0]
    started.control.write({"call": "leave"})
    assert started.process.wait(20) == 0


def test_a_child_imports_nothing_before_its_first_job_is_done(host, tmp_path):
    text = """
import sys
from celery import signals
app.conf.result_backend = "redis://localhost:1/0"
app.conf.result_backend_transport_options = {"retry_policy": {"max_retries": 0}}
before = set()
@signals.worker_before_create_process.connect
def note(**_): before.update(sys.modules)
@signals.worker_process_shutdown.connect
def tell(**_): open("imported", "w").write(" ".join(set(sys.modules) - before))
@app.task
def add(x, y): return x + y
"""
    started = host(text)
    assert "ready" in started.answer
    started.control.write({"split": True})
    started.zygote.recv(4096)
    run_add(started)
    imported = (tmp_path / "imported").read_text().split()
    assert imported == []


def test_the_first_child_waits_for_nothing_that_only_main_needs(host, tmp_path):
    text = """
import sys
from celery import signals
@signals.worker_before_create_process.connect
def tell(**_): open("known", "w").write(" ".join(sys.modules))
@app.task
def add(x, y): return x + y
"""
    started = host(text)
    started.control.write({"split": True})
    started.zygote.recv(4096)
    run_add(started)
    known = (tmp_path / "known").read_text().split()
    assert "celeriac.host.zygote" in known
    assert "celeriac.host.main" not in known


def test_the_collector_of_garbage_works_while_the_app_is_loaded(host):
    started = host("import gc\nassert gc.isenabled() and gc.get_freeze_count()\n")
    assert "ready" in started.answer


def test_a_child_builds_the_tracers_of_the_tasks_that_it_runs(host, tmp_path):
    text = """
import os
from celery.app import trace
build = trace.build_tracer
def noting(name, *args, **kwargs):
    with open("built", "a") as file:
        file.write(f"{os.getpid()} {name}\\n")
    return build(name, *args, **kwargs)
trace.build_tracer = noting
@app.task
def other(): pass
@app.task
def add(x, y):
    assert trace.build_tracer is noting
    return x + y
"""
    started = host(text)
    assert "ready" in started.answer
    started.control.write({"split": True})
    started.zygote.recv(4096)
    pid = run_add(started)
    built = (tmp_path / "built").read_text().split("\n")
    assert [line for line in built if line.startswith(f"{pid} ")] == [f"{pid} hosted.add"]


def run_add(started: Host) -> int:
    """Has a child run the task ``hosted.add`` and end; returns its process."""
    ours, pid = fork_child(started)
    text = json.dumps({"task": "hosted.add", "id": "1", "celeriac": None}).encode()
    head = jobs.JOB_HEAD.pack(jobs.JOB, child.LAST, 0, len(text), 9)
    ours.send(head + text + b"[[2, 3], {}, {}]")
    ours.recv(PARENTS_BUFFER)
    assert json.loads(started.zygote.recv(4096))["exited"] == pid
    ours.close()
    return pid


def test_a_child_stores_results_in_redis_with_one_request(host, server):
    text = f"app.conf.result_backend = {server.url()!r}\n@app.task\ndef add(x, y): return x + y\n"
    started = host(text)
    assert "ready" in started.answer
    started.control.write({"split": True})
    started.zygote.recv(4096)
    ours, _ = fork_child(started)
    for number in range(3):
        request = json.dumps({"task": "hosted.add", "id": f"{number}", "celeriac": None}).encode()
        head = jobs.JOB_HEAD.pack(jobs.JOB, 0, 0, len(request), number + 1)
        ours.send(head + request + b"[[2, 3], {}, {}]")
        assert report._DONE.unpack_from(ours.recv(PARENTS_BUFFER))[1] == report.SUCCESS
        assert json.loads(server.client.get(f"celery-task-meta-{number}"))["result"] == 5
    # The first was sent twice: the server did not know the script.
    assert server.calls("evalsha", "eval", "multi") == [3, 1, 0]
    ours.close()


def test_the_last_words_of_a_killed_child_are_there(host):
    text = """
import logging, os, sys
@app.task
def die():
    logging.getLogger("mine").warning("logged")
    print("printed", file=sys.stderr)
    os.kill(os.getpid(), 9)
"""
    started = host(text)
    assert "ready" in started.answer
    started.control.write({"split": True})
    started.zygote.recv(4096)
    page = make_page()
    ours, pid = fork_child(started, page)
    request = json.dumps({"task": "hosted.die", "id": "1", "celeriac": None}).encode()
    ours.send(jobs.JOB_HEAD.pack(jobs.JOB, 0, 0, len(request), 9) + request + b"[[], {}, {}]")
    exited = json.loads(started.zygote.recv(4096))
    assert (exited["exited"], exited["signal"]) == (pid, 9)
    left = os.pread(page, 8192, mmap.PAGESIZE)
    job, written = struct.unpack_from("<QQ", left)
    words = left[16 : 16 + written].decode()
    assert job == 9
    assert "WARNING/mine] logged" in words
    assert "printed" in words
    os.close(page)
    ours.close()
