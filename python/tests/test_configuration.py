"""Settings that the operator gives: over the app's own, wherever these come from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery

from celeriac.host.configuration import Given, describe, shown


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Iterator[Given]:
    # It is put back when the test is done.
    monkeypatch.setattr(Celery, "_load_config", Celery._load_config)
    made = Given({"result_expires": 2, "task_acks_late": True, "tenant": {"a": 1}})
    made.install()
    yield made


def make(**settings: Any) -> Any:
    return Celery("tested", broker="memory://", set_as_current=False, **settings)


def test_they_count_when_the_app_reads_its_configuration(given: Given) -> None:
    app = make(result_expires=1)
    heard: list[Any] = []

    def hear(source: Any, **_: Any) -> None:
        heard.append(source.result_expires)

    app.on_after_configure.connect(hear)
    app.config_from_object({"task_acks_late": False, "result_serializer": "yaml"})

    @app.task
    def late() -> None:
        pass

    assert late.acks_late is True
    assert (app.conf.result_expires, app.conf.tenant) == (2, {"a": 1})
    assert app.conf.result_serializer == "yaml"
    assert heard == [2]


def test_they_count_over_what_the_app_changes_later(given: Given) -> None:
    app = make()
    assert app.conf.result_expires == 2
    app.conf.result_expires = 1
    given.put_over(app)
    assert app.conf.result_expires == 2
    assert given.own(app)["result_expires"] == 1


def test_they_count_over_old_names(given: Given) -> None:
    app = make()
    app.conf.CELERY_TASK_RESULT_EXPIRES = 1
    app.conf.CELERY_ACKS_LATE = False
    app.conf.CELERY_TASK_SERIALIZER = "yaml"
    given.put_over(app)
    assert (app.conf.result_expires, app.conf.task_acks_late) == (2, True)
    assert app.conf.task_serializer == "yaml"


def test_they_count_over_a_namespace(given: Given) -> None:
    app = make()
    app.config_from_object({"CELERY_RESULT_EXPIRES": 1}, namespace="CELERY")
    given.put_over(app)
    assert app.conf.result_expires == 2
    assert given.own(app)["result_expires"] == 1


def test_nothing_given_changes_nothing() -> None:
    load = Celery._load_config
    given = Given({})
    given.install()
    assert Celery._load_config is load
    app = make()
    given.put_over(app)
    assert not app.configured


def test_the_apps_own_values_are_shown_without_secrets(given: Given) -> None:
    app = make(result_expires=1, redis_password="hidden", backend="redis://:hidden@there")
    given.put_over(app)
    own = shown(given.own(app))
    assert own == {
        "broker_url": "'memory://:********@localhost//'",
        "redis_password": "'********'",
        "result_backend": "'redis://:********@there'",
        "result_expires": "1",
    }


def test_a_value_that_can_not_be_shown_stops_no_report() -> None:
    class Silent:
        def __repr__(self) -> str:
            raise ValueError

    app = make(task_annotations=Silent())
    own = shown(Given({}).own(app))
    assert own["task_annotations"] == "<Silent: ValueError>"


def test_names_that_celery_does_not_know_are_told() -> None:
    app = make()
    app.conf.worker_concurency = 3
    app.conf.CELERY_TASK_ANNOTATIONS = {}
    app.conf.task_routes = {}
    told = describe(Given({"of_the_operator": 1}).own(app))
    assert told == {"prefix": "", "unknown": ["CELERY_TASK_ANNOTATIONS", "worker_concurency"]}


def test_names_in_a_namespace_are_told() -> None:
    app = make()
    settings = {
        "CELERY_TASK_ROUTES": {},
        "CELERY_BROKER_ULR": "",
        "CELERYD_CONCURRENCY": 2,
        "DEBUG": True,
    }
    app.config_from_object(settings, namespace="CELERY")
    told = describe(Given({}).own(app))
    assert told == {"prefix": "CELERY_", "unknown": ["CELERY_BROKER_ULR", "DEBUG"]}
