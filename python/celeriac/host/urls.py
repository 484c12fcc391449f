"""The URLs of the broker and the result backend: refused where they can't be read.

What Python's parser says of them may be a piece of a password, and it comes with a traceback that
helps nobody.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote

from celeriac.host.errors import StartError


def check(app: Any) -> None:
    """Raises a :class:`StartError` where one of the app's URLs can't be read.

    Other errors are left to those who use what the URL names.
    """
    conf = app.conf
    for setting, url, build in (
        ("broker_url", conf.broker_read_url, app.connection_for_read),
        ("broker_url", conf.broker_write_url, app.connection_for_write),
        ("result_backend", app.backend_cls or conf.result_backend, lambda: app.backend),
    ):
        try:
            build()
        except ValueError as exc:
            # Without the error as the cause: its text must not be shown anywhere.
            raise StartError(
                f"{setting} can't be read: {_reason(exc, url)}",
                hint=(
                    "percent-encode the special characters of its user name and password, "
                    "such as / as %2F, @ as %40 and # as %23"
                ),
            ) from None
        except Exception:
            continue


def _reason(exc: ValueError, url: Any) -> str:
    """What is wrong, without a piece of anything that may be secret."""
    text = str(exc).strip()
    urls = [url] if isinstance(url, str) else url if isinstance(url, (list, tuple)) else []
    for one in urls:
        before_host = str(one).partition("://")[2].rpartition("@")[0]
        after_path = str(one).partition("?")[2]
        for piece in re.split(r"[/:@?#;,&=\[\]]", f"{before_host}?{after_path}"):
            if piece and (piece in text or unquote(piece) in text):
                return "it is not a valid URL"
    return text
