"""Values as JSON types, for what the Rust parent or an operator is shown."""

from __future__ import annotations

import json
from typing import Any

from kombu.utils import json as kombu_json

#: What takes the place of a password.
HIDDEN = "********"


def json_safe(value: Any) -> Any:
    """``value`` with everything that JSON can't hold as its repr."""
    if isinstance(value, dict):
        return {str(key): json_safe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [json_safe(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if hasattr(value, "name") and hasattr(value, "value"):  # an enum, such as ssl.CERT_NONE
        return value.name
    return repr(value)


class _Encoder(kombu_json.JSONEncoder):  # type: ignore[misc]
    def default(self, o: Any) -> Any:
        try:
            return super().default(o)
        except TypeError:
            return repr(o)


def as_kombu_writes(value: Any) -> Any:
    """``value`` as a reader of kombu's JSON finds it before it looks for marks, and with a repr
    where kombu would refuse to write."""
    try:
        text = json.dumps(value, cls=_Encoder)
    except (TypeError, ValueError, RecursionError):
        text = json.dumps(json_safe(value), default=repr)
    # Python writes and reads numbers that are none, and no one else does.
    return json.loads(text, parse_constant=str)


def as_kombu_reads(plain: Any) -> Any:
    """JSON with datetimes and the like made of their marked form.

    Here rather than where a call is read: a mark that can't be honoured fails one call alone.
    """
    text = json.dumps(plain)
    return kombu_json.loads(text) if '"__type__"' in text else plain


def without_passwords(value: Any) -> Any:
    """``value`` with a mask for each member that is called a password."""
    if isinstance(value, dict):
        return {
            key: HIDDEN if item and "password" in str(key).lower() else without_passwords(item)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [without_passwords(item) for item in value]
    return value
