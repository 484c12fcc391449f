"""Opens the body of a task message, as protocol 2 or protocol 1.

Celery's counterparts: ``kombu.message.Message.decode`` and
``celery.worker.strategy.{hybrid_to_proto2, proto1_to_proto2}``.
"""

from __future__ import annotations

import json
from typing import Any

from kombu.compression import decompress
from kombu.serialization import loads as kombu_loads
from kombu.serialization import prepare_accept_content, registry
from kombu.utils import json as kombu_json

_JSON = "application/json"


class Undecodable(Exception):
    """The bytes can't be read."""

    def __init__(self, reason: BaseException) -> None:
        super().__init__(str(reason))
        self.reason = reason


class Invalid(Exception):
    """The bytes can be read, but are not the arguments of a task."""


def read_request(text: bytes) -> dict[str, Any]:
    """The request as the parent writes it, from the message's headers.

    Raises:
        Undecodable: a mark of kombu's that nothing can be made of, or nested too deep.
    """
    try:
        # kombu's reader also makes datetimes and the like of their marked form.
        loads = kombu_json.loads if b"__type__" in text else json.loads
        request: dict[str, Any] = loads(text.decode())
    except Exception as exc:
        raise Undecodable(exc) from exc
    return request


class Decoder:
    """Makes arguments of bodies, for one app."""

    def __init__(self, app: Any) -> None:
        self._accept = prepare_accept_content(app.conf.accept_content)
        # Python's own reader gives the same as kombu's where nothing is marked, much faster;
        # only if nobody registered another reader for JSON.
        self._plain_json = registry._decoders.get(_JSON) is kombu_json.loads

    def decode(self, raw: bytes, request: dict[str, Any]) -> Any:
        """The triple of arguments, keyword arguments and embedded options.

        ``request`` gives up its member ``celeriac``, which tells how the body is encoded, and
        is completed with what protocol 1 has in the body.

        Raises:
            Undecodable: what the serializer or the decompressor raised.
            Invalid: when the body is no task's.
        """
        encoding = request.pop("celeriac")
        content_type, content_encoding = encoding or (_JSON, "utf-8")
        try:
            compression = request.get("compression")
            if compression:
                raw = decompress(raw, compression)
            if (
                content_type == _JSON
                and self._plain_json
                and b"__type__" not in raw
                and b"\\u00" not in raw
            ):
                payload = json.loads(raw.decode())
            else:
                payload = kombu_loads(raw, content_type, content_encoding, accept=self._accept)
        except Exception as exc:
            raise Undecodable(exc) from exc
        if isinstance(payload, (list, tuple)):
            if len(payload) != 3:
                raise Invalid(f"the body has {len(payload)} parts instead of 3")
            return payload
        if isinstance(payload, dict):
            return _from_mapping(payload, request)
        raise Invalid(f"the body is of type {type(payload).__name__}")


def _from_mapping(payload: dict[str, Any], request: dict[str, Any]) -> Any:
    args, kwargs = payload.get("args", ()), payload.get("kwargs", {})
    if not isinstance(kwargs, dict):
        raise Invalid("Task keyword arguments must be a mapping")
    embed = {
        "callbacks": payload.get("callbacks"),
        "errbacks": payload.get("errbacks"),
        "chord": payload.get("chord"),
        "chain": None,
    }
    if "task" in request:
        # Protocol 2 headers over a protocol 1 body: the headers count.
        members = {
            name: payload.get(name)
            for name in (
                "lang",
                "root_id",
                "parent_id",
                "group",
                "meth",
                "shadow",
                "eta",
                "expires",
                "argsrepr",
                "kwargsrepr",
                "origin",
            )
        }
        members["retries"] = payload.get("retries", 0)
        members["timelimit"] = payload.get("timelimit", (None, None))
    else:
        from celery.utils.saferepr import saferepr

        members = dict(payload, argsrepr=saferepr(args), kwargsrepr=saferepr(kwargs), headers={})
        if "taskset" in payload:
            members["group"] = payload["taskset"]
    for name, value in members.items():
        request.setdefault(name, value)
    return args, kwargs, embed
