"""A Docker engine of our own, with an image ``busybox``; it needs root and Debian's packages
``docker.io`` and ``busybox-static``."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from harness.processes import die_with_parent
from harness.wait import TimedOut, wait_until

#: A first start, on a machine that has other things to do.
_START = 60.0
_BUSYBOX = Path("/bin/busybox")
#: What the image can do.
_PROGRAMS = ("cat", "echo", "false", "head", "id", "md5sum", "sh", "sleep", "tr", "true")


class NoEngine(Exception):
    """Why none can run here."""


class DockerEngine:
    """``dockerd`` with its data in a folder of its own."""

    def __init__(self) -> None:
        program = shutil.which("dockerd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        if not program:
            raise NoEngine("dockerd is not installed (Debian: docker.io)")
        if not _BUSYBOX.exists():
            raise NoEngine(f"there is no {_BUSYBOX} (Debian: busybox-static)")
        if os.getuid() != 0:
            raise NoEngine("dockerd needs root")
        # Paths of sockets are short.
        self.folder = Path(tempfile.mkdtemp(prefix="docker"))
        (self.folder / "daemon.json").write_text("{}")
        self.log_file = self.folder / "log"
        with open(self.log_file, "ab") as log:
            self._process = subprocess.Popen(
                [
                    *(program, "--config-file", str(self.folder / "daemon.json")),
                    *("--data-root", str(self.folder / "data")),
                    *("--exec-root", str(self.folder / "exec")),
                    *("--pidfile", str(self.folder / "pid"), "--host", self.host),
                    # Nothing of this machine's network is touched.
                    *("--iptables=false", "--ip6tables=false", "--bridge=none"),
                    *("--exec-opt", "native.cgroupdriver=cgroupfs"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        try:
            wait_until(self._answers, "dockerd answers", _START, self._log)
            self._import()
        except TimedOut as error:
            self.stop()
            raise NoEngine(str(error)) from None
        except BaseException:
            self.stop()
            raise

    @property
    def host(self) -> str:
        return f"unix://{self.folder}/docker.sock"

    def _answers(self) -> bool:
        if self._process.poll() is not None:
            raise NoEngine(f"dockerd ended:\n{self._log()}")
        done = subprocess.run(
            ["docker", "--host", self.host, "version"], capture_output=True, timeout=30
        )
        return done.returncode == 0

    def _log(self) -> str:
        return self.log_file.read_text(errors="replace")[-3000:]

    def _import(self) -> None:
        """Makes the image ``busybox``: one program by many names."""
        image = io.BytesIO()
        with tarfile.open(fileobj=image, mode="w") as tar:
            tar.add(_BUSYBOX, "bin/busybox")
            for name in _PROGRAMS:
                link = tarfile.TarInfo(f"bin/{name}")
                link.type = tarfile.SYMTYPE
                link.linkname = "busybox"
                tar.addfile(link)
        self.docker("import", "-", "busybox:latest", given=image.getvalue())

    def docker(self, *arguments: str, given: bytes | None = None) -> str:
        """What Docker's command answers."""
        done = subprocess.run(
            ["docker", "--host", self.host, *arguments],
            input=given,
            capture_output=True,
            timeout=60,
        )
        assert done.returncode == 0, f"docker {' '.join(arguments)}: {done.stderr!r}"
        return done.stdout.decode(errors="replace")

    def containers(self) -> list[str]:
        """The names of all that are there, whether they run or not."""
        return self.docker("ps", "--all", "--format", "{{.Names}}").split()

    def remove_all(self) -> None:
        for name in self.containers():
            self.docker("rm", "--force", "--volumes", name)

    def stop(self) -> None:
        """In order: it unmounts what it has mounted."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def is_required(variables: Any = os.environ) -> bool:
    """Whether it is a failure that no engine can run."""
    return bool(variables.get("CELERIAC_DOCKER") == "required")
