# What the interpreter runs first; the binary sends it through the control channel.
# It takes the host's modules from the control channel, makes them importable and begins.
# Where the interpreter is to be Celery's own program, only the class is used: see `client`.
from __future__ import annotations

import os
import sys

# `-c` puts the working directory first; the host does that when Celery itself is imported. Until
# then a file there must not hide a module of the standard library.
sys.path[:] = [entry for entry in sys.path if entry]

import importlib.abc
import importlib.util
import json
import struct
from importlib.machinery import ModuleSpec
from types import CodeType


def read_exactly(fd: int, length: int) -> bytes:
    parts = []
    while length:
        part = os.read(fd, min(length, 1 << 20))
        if not part:
            os._exit(1)  # the parent is gone
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


class Embedded(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Imports the host's modules from the texts that the binary sent."""

    def __init__(self, modules: list[tuple[str, str]]) -> None:
        self.packages = {name[:-1] for name, _ in modules if name.endswith(".")}
        self.sources = {name.rstrip("."): source for name, source in modules}

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name not in self.sources:
            return None
        return importlib.util.spec_from_loader(
            name, self, origin=f"<celeriac>/{name}", is_package=name in self.packages
        )

    def is_package(self, name: str) -> bool:
        return name in self.packages

    def get_source(self, name: str) -> str:
        return self.sources[name]

    def get_code(self, name: str) -> CodeType:
        code: CodeType = compile(self.sources[name], f"<celeriac>/{name}", "exec")
        return code


def begin() -> None:
    control, zygote = int(sys.argv[1]), int(sys.argv[2])
    text_length, _ = struct.unpack(">II", read_exactly(control, 8))
    start = json.loads(read_exactly(control, text_length))
    sys.meta_path.insert(0, Embedded(start.pop("modules")))
    from celeriac.host.start import run

    run(control, zygote, start)


if __name__ == "__main__":
    begin()
