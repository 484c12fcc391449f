"""Opens the database while it is loaded, as many an app does without knowing."""

from __future__ import annotations

import os
from pathlib import Path

from celery.signals import worker_process_init, worker_ready
from django.apps import AppConfig
from django.core import checks


def open_files(path: str) -> list[int]:
    """The file descriptors of this process that are ``path``."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            if os.readlink(entry) == path:
                found.append(int(entry.name))
        except FileNotFoundError:
            pass
    return found


def note(text: str) -> None:
    fd = os.open(
        Path(os.environ["INTEROP_FOLDER"], "notes"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644
    )
    try:
        os.write(fd, f"{text}\n".encode())
    finally:
        os.close(fd)


def database() -> str:
    from django.conf import settings

    return str(settings.DATABASES["default"]["NAME"])


@worker_process_init.connect(weak=False)
def look_around(**_):
    from django.db import connection

    note(f"child {os.getpid()} has {open_files(database())} {connection.connection}")


@worker_ready.connect(weak=False)
def open_in_main(**_):
    """A connection that main keeps, for instance for metrics."""
    from django.db import connection

    connection.ensure_connection()
    note(f"main {os.getpid()} has {len(open_files(database()))}")


class ShopConfig(AppConfig):
    name = "shop"

    def ready(self) -> None:
        from django.db import connection

        if os.environ.get("INTEROP_OPENS_DATABASE"):
            connection.ensure_connection()
            note(f"loader {os.getpid()} has {len(open_files(database()))}")


@checks.register()
def check(app_configs, **_):
    if os.environ.get("INTEROP_FAILS_CHECKS"):
        raise RuntimeError("the shop is closed")
    return []
