"""celeriac's client, as a process that calls what it is told to: ``examples/call.rs``."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any

from harness.processes import die_with_parent

ROOT = Path(__file__).resolve().parents[2]


def program() -> str:
    """The one that ``CELERIAC_CALL`` names; it is built where that is not set."""
    given = os.environ.get("CELERIAC_CALL")
    if given:
        return given
    subprocess.run(
        ["cargo", "build", "-q", "-p", "celeriac-client", "--example", "call"],
        cwd=ROOT,
        check=True,
    )
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    return str(target / "debug" / "examples" / "call")


class RustClient:
    """A client with these settings. A context, which ends it."""

    def __init__(self, program: str, **settings: Any) -> None:
        self._process = subprocess.Popen(
            [program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=die_with_parent,
        )
        self.use(**settings)

    def use(self, **settings: Any) -> None:
        answer = self.ask({"settings": settings})
        assert answer == {}, answer

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the client has ended with {self._process.wait()}"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def call(
        self,
        canvas: dict[str, Any],
        args: list[Any] | None = None,
        wait: int | None = 30,
        **options: Any,
    ) -> dict[str, Any]:
        """Calls a canvas; the answer has its value, or its error."""
        return self.ask(
            {"call": {"build": canvas, "args": args or [], "options": options, "wait": wait}}
        )

    def value(self, canvas: dict[str, Any], args: list[Any] | None = None, **options: Any) -> Any:
        answer = self.call(canvas, args, **options)
        assert "value" in answer, answer
        return answer["value"]

    def __enter__(self) -> RustClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
