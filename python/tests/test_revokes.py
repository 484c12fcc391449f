"""What is stored and remembered of revoked tasks."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from celery import signals, states
from celery.worker import state


def status(app: Any, task_id: str) -> str:
    return app.backend.get_state(task_id)


@pytest.mark.parametrize("known", ["PENDING", "RECEIVED", "RETRY", "REJECTED"])
def test_a_task_that_waits_is_stored_as_revoked(hosted, quiet_app, known):
    if known != states.PENDING:
        quiet_app.backend.store_result("1", None, known)
    hosted.call("mark_revoked", ids=["1"])
    assert status(quiet_app, "1") == states.REVOKED
    # Its thread is not the one in which the set is changed and written.
    assert "1" not in state.revoked


@pytest.mark.parametrize("known", ["STARTED", "SUCCESS", "FAILURE", "OF THE TASK'S OWN"])
def test_a_task_that_somebody_has_begun_is_left_alone(hosted, quiet_app, known):
    quiet_app.backend.store_result("1", ValueError() if known == "FAILURE" else None, known)
    hosted.call("mark_revoked", ids=["1", "2"])
    assert status(quiet_app, "1") == known
    assert status(quiet_app, "2") == states.REVOKED


def test_a_task_may_have_a_backend_of_its_own(hosted, quiet_app):
    class Backend:
        stored: ClassVar[list[tuple[str, str]]] = []

        def get_state(self, task_id):
            return states.PENDING

        def mark_as_revoked(self, task_id, reason, store_result):
            assert store_result
            self.stored.append((task_id, reason))

    @quiet_app.task(name="own", shared=False)
    def own():
        pass

    own.backend = Backend()
    hosted.call("mark_revoked", ids=["1", "2"], names={"1": "own"})
    assert own.backend.stored == [("1", "revoked")]
    assert status(quiet_app, "2") == states.REVOKED


def test_a_backend_that_fails_is_told_of_and_the_others_are_stored(
    hosted, quiet_app, caplog, monkeypatch
):
    # Each thread has a backend object of its own.
    backend = type(quiet_app.backend)
    get_state = backend.get_state

    def fail(self, task_id):
        if task_id == "1":
            raise OSError("down")
        return get_state(self, task_id)

    monkeypatch.setattr(backend, "get_state", fail)
    hosted.call("mark_revoked", ids=["1", "2"])
    assert status(quiet_app, "2") == states.REVOKED
    (record,) = [one for one in caplog.records if one.name == "celery.worker.control"]
    assert record.getMessage() == "Failed to mark task 1 as revoked in backend: down"


def test_what_is_revoked_is_known_to_code_of_the_app(hosted):
    hosted.call("add_revoked", ids=["1"], headers={"who": ["a"]})
    hosted.call("add_revoked", ids=[], headers={"who": ["a", "b"], "what": ["c"]})
    assert list(state.revoked) == ["1"]
    assert state.revoked_stamps == {"who": ["a", "b"], "what": ["c"]}


@pytest.mark.parametrize("signum", [15, "SIGTERM"])
def test_a_terminated_task_is_announced_as_celery_does(hosted, quiet_app, signum):
    found = []

    @quiet_app.task(name="t", shared=False)
    def task():
        pass

    def receive(sender, request, terminated, signum, expired, **_):
        found.append((sender.name, request.id, terminated, signum, expired))

    signals.task_revoked.connect(receive)
    try:
        hosted.call(
            "task_revoked",
            b"[[], {}, {}]",
            message={
                "headers": {"task": "t", "id": "1", "lang": "py"},
                "properties": {"delivery_tag": "1"},
                "content_type": "application/json",
                "content_encoding": "utf-8",
                "delivery_info": {},
            },
            reason="terminated",
            terminated=True,
            signum=signum,
        )
    finally:
        signals.task_revoked.disconnect(receive)
    assert found == [("t", "1", True, signum, False)]
    assert status(quiet_app, "1") == states.REVOKED
    assert str(quiet_app.backend.get_result("1")) == "terminated"
