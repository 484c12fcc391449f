"""Finds the celeriac binary that belongs to this package."""

from __future__ import annotations

import os
import sys
import sysconfig


def candidates() -> list[str]:
    """Where pip may have put the binary, the likeliest place first."""
    folders = [sysconfig.get_path("scripts")]
    package = os.path.dirname(os.path.abspath(__file__))
    # pip install --target puts scripts into bin beside the packages.
    folders.append(os.path.join(os.path.dirname(package), "bin"))
    folders.append(sysconfig.get_path("scripts", scheme="posix_user"))
    folders.append(os.path.join(sys.base_prefix, "bin"))
    return [os.path.join(folder, "celeriac") for folder in folders]


def find_celeriac() -> str:
    """The path of the binary.

    Raises:
        FileNotFoundError: naming every place that was looked at.
    """
    tried = candidates()
    for path in tried:
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    places = "\n".join(f"  {path}" for path in tried)
    raise FileNotFoundError(
        f"the celeriac binary was not found. Looked at:\n{places}\n"
        "Install it with `pip install celeriac`."
    )
