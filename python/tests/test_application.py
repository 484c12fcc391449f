"""Finding the app as ``celery -A`` finds it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from celeriac.host import application
from celeriac.host.errors import StartError

APP = "from celery import Celery\n"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Iterator[Path]:
    """A working directory whose modules are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def write(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def find(name: str):
    application.put_workdir_on_path()
    return application.find_app(name)


@pytest.mark.parametrize(
    "file, text, name",
    [
        ("one.py", "app = Celery('found')", "one"),
        ("one.py", "celery = Celery('found')", "one"),
        ("one.py", "anything = Celery('found')", "one"),
        ("one.py", "other = Celery('other'); mine = Celery('found')", "one:mine"),
        ("one.py", "mine = Celery('found')", "one.mine"),
        ("package/celery.py", "app = Celery('found')", "package"),
        ("package/celery.py", "app = Celery('found')", "package.celery"),
        ("package/deep/tasks.py", "app = Celery('found')", "package.deep.tasks:app"),
    ],
)
def test_every_spelling_of_an_app_is_found(folder, file, text, name):
    if "/" in file:
        write(folder, "package/__init__.py", "")
        write(folder, "package/deep/__init__.py", "")
    write(folder, file, f"{APP}{text}\n")
    assert find(name).main == "found"


def test_a_proxy_is_looked_through(folder):
    write(folder, "proxied.py", f"{APP}from celery.local import Proxy\nreal = Celery('found')\n")
    with open(folder / "proxied.py", "a") as file:
        file.write("app = Proxy(lambda: real)\n")
    found = find("proxied")
    assert type(found).__name__ == "Celery"
    assert found is sys.modules["proxied"].real


@pytest.mark.parametrize("name", ["one:nothere", "one.nothere", "pack:nothere", "pack.nothere"])
def test_a_missing_attribute_is_named(folder, name):
    write(folder, "one.py", "from celery import Celery\napp = Celery('found')\n")
    write(folder, "pack/__init__.py", "from celery import Celery\napp = Celery('found')\n")
    with pytest.raises(StartError, match="nothere") as caught:
        find(name)
    assert caught.value.exit_status == 2
    assert caught.value.traceback is None
    assert caught.value.hint


@pytest.mark.parametrize("name", ["nothing", "nothing.at.all", "nothing:app"])
def test_a_missing_module_is_named(folder, name):
    with pytest.raises(StartError, match=r"The module nothing was not found") as caught:
        find(name)
    assert caught.value.exit_status == 2
    assert caught.value.traceback is None
    assert str(folder) in caught.value.hint


@pytest.mark.parametrize(
    "text, name, message",
    [
        ("x = 1", "one", "has no attribute 'celery'"),
        ("x = 1", "one:app", "has no attribute 'app'"),
        ("x = 1", "one:x", "one:x is an int, not a Celery app"),
    ],
)
def test_a_missing_app_is_named(folder, text, name, message):
    write(folder, "one.py", text)
    with pytest.raises(StartError, match=message) as caught:
        find(name)
    assert caught.value.exit_status == 2
    assert "name the app's variable: -A " in caught.value.hint


@pytest.mark.parametrize(
    "text, last",
    [
        ("import no_such_thing", "ModuleNotFoundError: No module named 'no_such_thing'"),
        ("raise ValueError('theirs')", "ValueError: theirs"),
        ("None.app", "AttributeError: 'NoneType' object has no attribute 'app'"),
        ("import sys; sys.exit('enough')", "SystemExit: enough"),
        ("def broken(:", "SyntaxError: invalid syntax"),
    ],
)
def test_an_error_of_the_app_comes_with_its_traceback_alone(folder, text, last):
    write(folder, "one.py", f"{text}\n")
    with pytest.raises(StartError, match="the following error occurred") as caught:
        find("one")
    lines = caught.value.traceback.splitlines()
    assert lines[-1] == last
    files = [line for line in lines if line.startswith('  File "')]
    assert len(files) == 1 and str(folder / "one.py") in files[0]
    assert caught.value.exit_status == 2
    assert "import one" in caught.value.hint


@pytest.mark.parametrize("name", ["one", "one:app", "one.app", "pack", "pack.celery:app"])
@pytest.mark.parametrize("error", ["ValueError", "AttributeError", "KeyError"])
def test_the_error_of_a_module_that_the_app_imports_is_shown_with_both_alone(folder, name, error):
    write(folder, "inner.py", f"def fail():\n    raise {error}('theirs')\n\nfail()\n")
    write(folder, "one.py", "import inner\n")
    write(folder, "pack/__init__.py", "")
    write(folder, "pack/celery.py", "import inner\n")
    with pytest.raises(StartError) as caught:
        find(name)
    shown = caught.value.traceback
    assert "theirs" in shown.splitlines()[-1]
    files = [line.split('"')[1] for line in shown.splitlines() if line.startswith("  File ")]
    outer = folder / ("one.py" if name.startswith("one") else "pack/celery.py")
    assert files == [str(outer), *[str(folder / "inner.py")] * 2]
    assert shown.count("Traceback (most recent call last)") == 1


def test_the_cause_that_the_app_gave_is_shown(folder):
    write(
        folder,
        "one.py",
        "try:\n    open('/no/such/file')\nexcept OSError as exc:\n"
        "    raise ValueError('no settings') from exc\n",
    )
    with pytest.raises(StartError) as caught:
        find("one")
    shown = caught.value.traceback
    assert shown.index("FileNotFoundError") < shown.index("ValueError: no settings")
    files = {line.split('"')[1] for line in shown.splitlines() if line.startswith("  File ")}
    assert files == {str(folder / "one.py")}


def test_an_error_that_is_its_own_cause_is_shown(folder):
    write(folder, "one.py", "exc = RuntimeError('theirs')\nexc.__cause__ = exc\nraise exc\n")
    with pytest.raises(StartError) as caught:
        find("one")
    assert caught.value.traceback.endswith("RuntimeError: theirs")
