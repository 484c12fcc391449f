"""A result backend of an app's own: files in a folder, and who wrote them."""

from __future__ import annotations

import os
from pathlib import Path

from billiard import current_process
from celery.backends.base import KeyValueStoreBackend
from kombu.utils.encoding import bytes_to_str


class Backend(KeyValueStoreBackend):
    """``result_backend = "own_backend:Backend"``."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.folder = Path(os.environ["INTEROP_FOLDER"], "own")
        self.folder.mkdir(exist_ok=True)

    def _file(self, key):
        return self.folder / bytes_to_str(key)

    def get(self, key):
        file = self._file(key)
        return file.read_text() if file.exists() else None

    def mget(self, keys):
        return [self.get(key) for key in keys]

    def set(self, key, value):
        # Whole, or not at all: others read at any time.
        new = self._file(key).with_suffix(f".{os.getpid()}")
        new.write_text(bytes_to_str(value))
        new.rename(self._file(key))
        with self.folder.joinpath("writers").open("a") as writers:
            writers.write(f"{bytes_to_str(key)} {current_process().name}\n")

    def delete(self, key):
        self._file(key).unlink(missing_ok=True)
