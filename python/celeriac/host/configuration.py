"""The operator's settings: Rust has read them from files and variables, and hands them over.

They count over the app's own, and below the command line's.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any


class Given:
    """Settings that are put over those of the app.

    Attributes:
        settings: from their names to their values.
        replaced: the app's own values that they took the place of, where ``app.conf`` has these no
            more.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.replaced: dict[str, Any] = {}

    def install(self) -> None:
        """Has an app find them when it reads its configuration.

        A task has its options from the configuration when it is first used, which may be while the
        app is imported.
        """
        if not self.settings:
            return
        from celery.app.base import Celery

        load = Celery._load_config

        @functools.wraps(load)
        def load_with_given(app: Any) -> Any:
            own = app._preconf
            self.replaced.update({name: own[name] for name in self.settings if name in own})
            own.update(self.settings)
            # All of them have new names, whichever names the app's own have.
            app._preconf_set_by_auto.update(self.settings)
            return load(app)

        Celery._load_config = load_with_given

    def put_over(self, app: Any) -> None:
        """Puts them over what the app has changed since it read its configuration."""
        if not self.settings:
            return
        app.conf.finalize()
        changes = app.conf.changes
        for name, value in self.settings.items():
            if changes.get(name, value) is not value:
                self.replaced[name] = changes[name]
        app.conf.update(self.settings)

    def own(self, app: Any) -> Any:
        """``app.conf`` without them and without defaults."""
        from celery.app.utils import Settings

        conf = app.conf.finalize()
        changes = {name: conf.changes[name] for name in conf.changes if name not in self.settings}
        changes.update(self.replaced)
        return Settings(changes, conf.maps[1:-1], conf._keys, conf.prefix)


def describe(own: Any) -> dict[str, Any]:
    """The names in an app's own configuration of which Celery has no setting, and what the others
    may begin with."""
    from celery.app.defaults import _OLD_SETTING_KEYS, SETTING_KEYS

    prefix = own.prefix or ""
    # The last is what Celery notes there itself.
    known = {*SETTING_KEYS, *_OLD_SETTING_KEYS, "deprecated_settings"}
    unknown = [
        name
        for name in own
        if isinstance(name, str)
        and not name.startswith("_")
        and not known.intersection((name, _without(prefix, name)))
    ]
    return {"prefix": prefix.upper(), "unknown": sorted(unknown)}


def shown(own: Any) -> dict[str, str]:
    """The values of an app's own settings by their new names, secrets masked as Celery does."""
    from celery.app.defaults import SETTING_KEYS
    from celery.app.utils import filter_hidden_settings

    names = {*SETTING_KEYS, *(name for name in own if str(name).startswith("celeriac_"))}
    found = {name: own[name] for name in names if name in own}
    return {name: _text(value) for name, value in filter_hidden_settings(found).items()}


def _without(prefix: str, name: str) -> str:
    if prefix and name.upper().startswith(prefix.upper()):
        return name[len(prefix) :].lower()
    return name


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        value = dict(value)
    try:
        return repr(value)
    except Exception as exc:  # the app's own class
        return f"<{type(value).__name__}: {type(exc).__name__}>"
