"""What was compared, and on what."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

from harness import workers
from harness.servers import RedisServer


def describe(redis: RedisServer) -> dict[str, str]:
    celeriac = subprocess.run(
        [*workers.command("celeriac"), "--version"], capture_output=True, text=True, check=True
    )
    # Where cffi is there, billiard has it parse C in each child that it starts.
    packages = ("celery", "kombu", "billiard", "redis", "cffi", "django", "numpy", "pandas")
    server: dict[str, object] = redis.client().info("server")
    return {
        "celeriac": celeriac.stdout.removeprefix("celeriac").strip(),
        **{name: _version(name) for name in packages},
        "python": platform.python_version(),
        "redis server": str(server["redis_version"]),
        "kernel": platform.release(),
        "processor": _first("/proc/cpuinfo", "model name") or platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": _first("/proc/meminfo", "MemTotal"),
    }


def load() -> str:
    """What else the machine has to do, as the load of the last minutes."""
    return " ".join(f"{load:.2f}" for load in os.getloadavg())


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def _first(file: str, name: str) -> str:
    for line in Path(file).read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""
