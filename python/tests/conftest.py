"""An app in memory, as the host's modules are given one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from celery.backends.cache import _DUMMY_CLIENT_CACHE


@pytest.fixture
def app() -> Iterator[Any]:
    made = Celery("tested", broker="memory://", backend="cache+memory://", set_as_current=False)
    made.conf.accept_content = ["json", "yaml", "pickle"]
    yield made
    # The memory is one for all apps of the process.
    _DUMMY_CLIENT_CACHE.clear()
    made.close()
