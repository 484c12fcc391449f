"""A small disk for the broker's data, which can be full. Only root can mount one."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

_MIB = 1 << 20


class Disk:
    """A tmpfs: what is written to it survives every kill, though no power cut."""

    SIZE = 1024 * _MIB

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        try:
            _run("mount", "-t", "tmpfs", "-o", f"size={self.SIZE},mode=777", "ledger", str(folder))
            self.can_be_full = True
        except (OSError, subprocess.CalledProcessError):
            self.can_be_full = False

    def fill(self, left: int) -> None:
        """Leaves room for so many bytes more, or a few."""
        while True:
            found = os.statvfs(self.folder)
            try:
                self._resize((found.f_blocks - found.f_bfree) * found.f_frsize + left)
                return
            except subprocess.CalledProcessError:
                # It was written to meanwhile: no disk can be smaller than what it holds.
                continue

    def free(self) -> None:
        self._resize(self.SIZE)

    def _resize(self, size: int) -> None:
        _run("mount", "-o", f"remount,size={size}", str(self.folder))

    def close(self) -> None:
        if self.can_be_full:
            _run("umount", "--lazy", str(self.folder))


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)
