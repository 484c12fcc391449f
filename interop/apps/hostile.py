"""An app whose tasks do what no task should."""

from __future__ import annotations

import array
import ctypes
import itertools
import os
import re
import resource
import signal
import socket
import stat
import struct
import sys
import threading
import time
from pathlib import Path

from celery import Celery

app = Celery("hostile", broker=os.environ["INTEROP_BROKER"], backend=os.environ["INTEROP_BACKEND"])
app.conf.update(eval(os.environ.get("INTEROP_SETTINGS", "{}")))

LIBC = ctypes.CDLL(None)
SIGNALS = [
    number
    for number in signal.Signals
    if number not in (signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV, signal.SIGCHLD)
]


@app.task
def add(x, y):
    return x + y


@app.task(bind=True)
def count(self, file):
    with open(file, "a") as ids:
        ids.write(f"{self.request.id}\n")


@app.task
def segfault():
    ctypes.string_at(0)


@app.task
def abort():
    os.abort()


@app.task
def leave(status):
    os._exit(status)


@app.task
def kill_itself(number):
    os.kill(os.getpid(), number)
    time.sleep(60)


@app.task
def kill_its_group():
    assert os.getpgrp() == os.getpid(), "others are in its group"
    os.killpg(0, signal.SIGKILL)
    time.sleep(60)


@app.task
def kill_its_parent():
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)


@app.task(time_limit=1)
def stop_itself():
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(60)


@app.task(time_limit=1)
def spin_in_c():
    """No signal handler of Python's ever runs."""
    return sum(itertools.repeat(0))


@app.task(time_limit=1)
def match_for_ever():
    return bool(re.match(r"(a*)*b", "a" * 60))


@app.task(time_limit=1)
def ignore_signals_for_ever():
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    while True:
        LIBC.pause()


@app.task(time_limit=1)
def hold_the_interpreter():
    """A call into C that keeps Python's lock, with all signals blocked."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    ctypes.PyDLL(None).sleep(60)


@app.task(time_limit=1, soft_time_limit=0.3)
def swallow_the_soft_limit():
    while True:
        try:
            time.sleep(60)
        except BaseException:
            pass


@app.task
def recurse():
    return recurse.run()


@app.task
def overflow_the_stack():
    """By recursion in C that Python does not count."""
    sys.setrecursionlimit(1 << 30)
    callback = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_int)

    @callback
    def again(depth):
        return again(depth + 1)

    return again(0)


@app.task
def raise_memory_error():
    raise MemoryError("no more")


@app.task
def run_out_of_memory():
    before = resource.getrlimit(resource.RLIMIT_AS)
    (pages, *_) = Path("/proc/self/statm").read_text().split()
    limit = int(pages) * resource.getpagesize() + (256 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    data = []
    try:
        while True:
            data.append(bytearray(16 << 20))
    finally:
        data.clear()
        # Or the next task in this process could not allocate either.
        resource.setrlimit(resource.RLIMIT_AS, before)


@app.task
def close_descriptors(first, last):
    os.closerange(first, last)


@app.task
def replace_descriptors():
    """What the child talks over is another file now."""
    for fd in range(3, 64):
        null = os.open(os.devnull, os.O_RDWR)
        if null != fd:
            os.dup2(null, fd)
            os.close(null)


@app.task
def exhaust_descriptors():
    kept = []
    while True:
        kept.append(os.open(os.devnull, os.O_RDONLY))


@app.task
def say(mebibytes):
    line = "x" * 1023 + "\n"
    for _ in range(mebibytes << 10):
        sys.stdout.write(line)
    os.write(1, line.encode() * 1024)


@app.task
def lose_standard_streams():
    sys.stdout = sys.stderr = None


@app.task
def return_a_lambda():
    return lambda: None


class Unpicklable(Exception):
    def __init__(self, a, b):
        super().__init__(a)
        self.thread = threading.Lock()


class Unprintable(Exception):
    def __repr__(self):
        raise RuntimeError("no repr")

    __str__ = __repr__


@app.task
def fail_unpicklably():
    raise Unpicklable(1, 2)


@app.task
def fail_unprintably():
    raise Unprintable


@app.task
def raise_base(name):
    raise {"GeneratorExit": GeneratorExit, "KeyboardInterrupt": KeyboardInterrupt}[name]


@app.task
def leave_threads():
    for _ in range(50):
        threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()


@app.task
def leave_signals_ignored():
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)


@app.task
def leave_signals_blocked():
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


@app.task
def leave_a_timer():
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)


@app.task
def leave_another_place():
    os.chdir("/")
    os.umask(0o777)
    os.nice(5)


@app.task
def fork_and_return(file):
    """As by mistake: the copy goes on as if it were the child."""
    pid = os.fork()
    if pid:
        Path(file).write_text(f"{pid}\n")
    return os.getpid()


def breed(count, file, leaves):
    """So many grandchildren, which ignore SIGTERM; ``leaves``: each in a session of its own."""
    for _ in range(count):
        if os.fork() == 0:
            if leaves:
                os.setsid()
                if os.fork():
                    os._exit(0)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            with open(file, "a") as pids:
                pids.write(f"{os.getpid()}\n")
            while True:
                signal.pause()


def wait_for_lines(file, count):
    while not os.path.exists(file) or len(Path(file).read_text().splitlines()) < count:
        time.sleep(0.01)


@app.task
def bomb(count, file, leaves, end):
    breed(count, file, leaves)
    wait_for_lines(file, count)
    if end == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if end == "exit":
        os._exit(1)
    if end == "limit":
        time.sleep(3600)


def channels():
    """The sockets by which the parent may be reached."""
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        try:
            if not stat.S_ISSOCK(os.fstat(fd).st_mode):
                continue
            found = socket.socket(fileno=os.dup(fd))
        except OSError:
            continue
        if found.family == socket.AF_UNIX:
            yield found


DONE = struct.Struct("<BBxxxxxxQd")
GARBAGE = {
    "noise": [os.urandom(100) for _ in range(100)],
    "up": [b"\1"] * 100,
    "other jobs": [DONE.pack(2, 0, number, 1.0) for number in (0, 1, 99, (1 << 64) - 1)],
    "no detail": [DONE.pack(2, 1, 1, 1.0) + b"{"],
    "a pickle": [DONE.pack(2, 5, 1, 1.0) + b"{}\0\x80\x04never opened."],
    "large": [b"\2" * (150 * 1024)],
    "cut": [b"\2", b"\2\0", b"\1\2\3"],
}


@app.task
def talk(what):
    """Says things to the parent that no child says."""
    said = 0
    for channel in channels():
        for message in GARBAGE[what]:
            try:
                channel.send(message, socket.MSG_DONTWAIT)
                said += 1
            except OSError:
                pass
    return said


@app.task
def talk_with_descriptors():
    """Sends the parent files that it did not ask for."""
    said = 0
    with open(os.devnull) as null:
        rights = array.array("i", [null.fileno()] * 100)
        for channel in channels():
            for _ in range(20):
                try:
                    channel.sendmsg(
                        [b"\1"],
                        [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)],
                        socket.MSG_DONTWAIT,
                    )
                    said += 1
                except OSError:
                    pass
    return said


@app.task
def listen():
    """Takes what the parent may send to this child."""
    for channel in channels():
        try:
            channel.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
    return "deaf"
