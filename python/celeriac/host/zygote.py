"""The zygote: a copy of the loaded app that only forks.

It has one thread and talks to nobody but the Rust parent, over a SOCK_SEQPACKET socket whose
messages are JSON texts, some with descriptors attached:

* to it: ``{"fork": "child", "number": 7, "index": 0, "pool": "prefork"}`` with the child's channel
  and its control page, ``{"fork": "main", "number": 8}`` with main's channel;
* from it: ``{"hello": pid}`` once, ``{"forked": number, "pid": pid}`` for each fork, and
  ``{"exited": pid, "code": 0, "peak": KiB}`` or ``{"exited": pid, "signal": 9, "peak": KiB}`` for
  each process that ended.

A child leads its own process group. What a task left running in the group is killed with the
child, before the child's process id is given back to the system.
"""

from __future__ import annotations

import array
import json
import os
import select
import signal
import socket
import sys
from typing import Any, Callable, NoReturn

from celeriac.host import child, pools, processes

#: Longest message that the parent sends.
_MESSAGE_BYTES = 4096
_DESCRIPTORS = 2


class Zygote:
    def __init__(
        self, parent: socket.socket, worker: Any, become_main: Callable[[int], NoReturn]
    ) -> None:
        self._parent = parent
        self._worker = worker
        self._become_main = become_main
        self._children: set[int] = set()
        self._wakeup_reader, self._wakeup_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._inherited_sigchld = pools.original("signal", "getsignal")(signal.SIGCHLD)

    def run(self) -> NoReturn:
        """Serves the parent until it is gone, then ends every child with its process group."""
        processes.set_name("celeriac:zygote")
        processes.become_subreaper()
        processes.outlive_parent()
        # Not gevent's: this process only waits for what the kernel tells it.
        pools.original("signal", "signal")(signal.SIGCHLD, _interrupt)
        signal.set_wakeup_fd(self._wakeup_writer, warn_on_full_buffer=False)
        self._send({"hello": os.getpid()})
        poll = pools.original("select", "poll")()
        poll.register(self._parent, select.POLLIN)
        poll.register(self._wakeup_reader, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poll.poll()}
            if self._wakeup_reader in ready:
                os.read(self._wakeup_reader, 1024)
                self._reap()
            if self._parent.fileno() in ready:
                self._serve_one()

    def _serve_one(self) -> None:
        text, descriptors = self._receive()
        if not text:
            self._end()
        request = json.loads(text)
        if request["fork"] == "child":
            pool = request["pool"]
            self._fork_child(request["number"], request["index"], pool, *descriptors)
        else:
            self._fork_main(request["number"], *descriptors)
        for fd in descriptors:
            os.close(fd)

    def _fork_child(self, number: int, index: int, pool: str, channel: int, page: int) -> None:
        from celery import signals

        signals.worker_before_create_process.send(sender=self._worker.pool)
        processes.flush_standard_streams()
        zygote = os.getpid()
        pid = _fork()
        if pid == 0:
            self._leave_zygote()
            os.setpgid(0, 0)
            child.run(self._worker, zygote, number, index, pool, channel, page)
        # Both sides set the group, so that neither runs before it is set.
        try:
            os.setpgid(pid, pid)
        except OSError:
            pass
        self._children.add(pid)
        self._send({"forked": number, "pid": pid})

    def _fork_main(self, number: int, channel: int) -> None:
        processes.flush_standard_streams()
        pid = _fork()
        if pid == 0:
            self._leave_zygote()
            self._become_main(channel)
        self._send({"forked": number, "pid": pid})

    def _leave_zygote(self) -> None:
        """Gives a forked process what it had inherited if it were Celery's own child."""
        signal.set_wakeup_fd(-1)
        handler = self._inherited_sigchld or signal.SIG_DFL
        pools.original("signal", "signal")(signal.SIGCHLD, handler)
        self._parent.close()
        os.close(self._wakeup_reader)
        os.close(self._wakeup_writer)

    def _reap(self) -> None:
        while True:
            try:
                # Looks without reaping: the process id, and so the group's, stays taken.
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            pid = ended.si_pid
            if pid in self._children:
                self._children.remove(pid)
                processes.kill_group(pid)
            _, _, usage = os.wait4(pid, 0)
            how = "code" if ended.si_code == os.CLD_EXITED else "signal"
            # Linux counts it in KiB.
            self._send({"exited": pid, how: ended.si_status, "peak": usage.ru_maxrss})

    def _send(self, message: dict[str, Any]) -> None:
        try:
            self._parent.send(json.dumps(message).encode())
        except OSError:
            self._end()

    def _receive(self) -> tuple[bytes, list[int]]:
        descriptors = array.array("i")
        try:
            text, ancillary, _, _ = self._parent.recvmsg(
                _MESSAGE_BYTES, socket.CMSG_SPACE(_DESCRIPTORS * descriptors.itemsize)
            )
        except OSError:
            return b"", []
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
        return text, list(descriptors)

    def _end(self) -> NoReturn:
        """The parent is gone: nothing that it started may outlive it."""
        for pid in self._children:
            processes.kill_group(pid)
        sys.stderr.flush()
        os._exit(0)


def _fork() -> int:
    pid: int = pools.original("os", "fork")()
    return pid


def _interrupt(*_: Any) -> None:
    """Makes the arrival of a signal wake the poll."""
