"""The command line's options as the worker's arguments."""

from __future__ import annotations

import click
import pytest

from celeriac.host import options
from celeriac.host.errors import StartError


def test_the_settings_count_where_no_option_is_given(app):
    app.conf.update(
        worker_concurrency=7,
        worker_pidfile="%n.pid",
        worker_state_db="%h.state",
        worker_prefetch_multiplier=9,
        worker_pool="threads",
    )
    made = options.worker_arguments(app, {"hostname": "one@host.example"})
    assert made["concurrency"] == 7
    assert made["pidfile"] == "one.pid"
    assert made["statedb"] == "host.example.state"
    assert made["prefetch_multiplier"] == 9
    assert made["pool_cls"].endswith("threads") or made["pool_cls"] == "threads"
    assert made["logfile"] is None


def test_options_count_over_the_settings(app):
    app.conf.update(worker_concurrency=7, worker_prefetch_multiplier=9, worker_pidfile="a.pid")
    given = {"concurrency": "3", "prefetch_multiplier": 1, "pidfile": "%n.pid", "hostname": "w@h"}
    made = options.worker_arguments(app, given)
    assert (made["concurrency"], made["prefetch_multiplier"]) == (3, 1)
    assert (made["pidfile"], made["hostname"]) == ("w.pid", "w@h")
    assert given["concurrency"] == "3"


def test_options_that_celery_does_not_have_are_settings(app):
    app.conf.celeriac_max_memory = 5
    app.conf.celeriac_soft_memory_per_child = 6
    made = options.worker_arguments(app, {"max_memory": 7, "hard_memory_per_child": 8})
    assert not made.keys() & set(options.OWN_OPTIONS)
    assert app.conf.celeriac_max_memory == 7
    assert app.conf.celeriac_hard_memory_per_child == 8
    assert app.conf.celeriac_soft_memory_per_child == 6


def test_settings_on_the_command_line_are_the_apps(app):
    options.worker_arguments(app, {"extra": ["worker.prefetch_multiplier=5", "task.acks_late=yes"]})
    assert app.conf.worker_prefetch_multiplier == 5
    assert app.conf.task_acks_late is True


@pytest.mark.parametrize(
    "extra", ["no.such.setting=1", "worker.prefetch_multiplier=many", "nothing"]
)
def test_a_wrong_setting_on_the_command_line_is_refused(app, extra):
    with pytest.raises(StartError, match="Unable to parse extra configuration") as caught:
        options.worker_arguments(app, {"extra": [extra]})
    assert caught.value.exit_status == options.EX_USAGE


@pytest.mark.parametrize("value", [None, "", "0"])
def test_no_concurrency_is_the_settings(app, value):
    app.conf.worker_concurrency = 5
    assert options.concurrency(app, value) == 5


@pytest.mark.parametrize("value, expected", [("4", 4), ("auto", "auto"), (" AUTO ", "auto")])
def test_a_concurrency_is_a_number_or_auto(app, value, expected):
    assert options.concurrency(app, value) == expected


@pytest.mark.parametrize("value", ["-1", "1.5", "many", "²"])
def test_another_concurrency_is_refused(app, value):
    with pytest.raises(StartError, match="--concurrency"):
        options.concurrency(app, value)


@pytest.mark.parametrize("value, expected", [(None, None), (18, 18), ("022", 18), ("0o77", 63)])
def test_a_umask_is_octal(value, expected):
    assert options.umask(value) == expected


def test_a_umask_that_is_not_octal_is_refused():
    with pytest.raises(StartError, match="'9' is no octal number"):
        options.umask("9")


def test_the_apps_own_options_are_read_by_click(app):
    app.user_options["worker"].add(click.Option(("--tenant",), default="none"))
    app.user_options["worker"].add(click.Option(("--deep",), is_flag=True))
    assert options.user_arguments(app, ["--tenant", "acme"]) == {"tenant": "acme", "deep": False}
    assert options.worker_arguments(app, {"user": ["--deep"]})["deep"] is True
    with pytest.raises(StartError, match="No such option"):
        options.user_arguments(app, ["--other"])


def test_words_that_nobody_knows_are_refused(app):
    with pytest.raises(StartError) as caught:
        options.user_arguments(app, ["word"])
    assert caught.value.exit_status == options.EX_USAGE


def test_a_user_that_does_not_exist_is_refused():
    with pytest.raises(StartError, match="no-such-user") as caught:
        options.drop_privileges({"uid": "no-such-user", "gid": None})
    assert caught.value.hint
