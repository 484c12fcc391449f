"""``python -m celeriac``: runs the binary that was installed with this package."""

from __future__ import annotations

import os
import sys

from celeriac._find_celeriac import find_celeriac


def main() -> None:
    binary = find_celeriac()
    # The app runs in the interpreter that was asked to start the worker.
    os.environ.setdefault("CELERIAC_PYTHON", sys.executable)
    os.execv(binary, [binary, *sys.argv[1:]])


if __name__ == "__main__":
    main()
