"""The same tasks in an app that imports what many real ones do."""

from __future__ import annotations

import django
import numpy  # noqa: F401
import pandas  # noqa: F401
from django.conf import settings

settings.configure(
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes"],
    DEFAULT_AUTO_FIELD="django.db.models.AutoField",
)
django.setup()

from small import app  # noqa: E402

__all__ = ["app"]
