"""celeriac's result backends, without a worker around them: the example ``backend-peer`` of the
crate ``celeriac-backend``."""

from __future__ import annotations

import json
import os
import select
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from harness.processes import die_with_parent

#: Longer than any answer takes.
_PATIENCE = 60
_ROOT = Path(__file__).parents[2]


@cache
def program() -> str:
    """The program: the one that ``CELERIAC_BACKEND_PEER`` names, or a build of it."""
    given = os.environ.get("CELERIAC_BACKEND_PEER")
    if given:
        return given
    built = subprocess.run(
        [
            *("cargo", "build", "--locked", "--package", "celeriac-backend"),
            *("--example", "backend-peer", "--features", "mongodb,s3"),
            "--message-format=json",
        ],
        cwd=_ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    artifacts = (json.loads(line) for line in built.stdout.splitlines())
    found = [
        artifact["executable"]
        for artifact in artifacts
        if artifact.get("executable") and artifact["target"]["name"] == "backend-peer"
    ]
    return str(found[-1])


class PeerError(Exception):
    """What celeriac's backend refuses, and what it says to do."""

    def __init__(self, kind: str, message: str, hint: str | None) -> None:
        super().__init__(f"{kind}: {message} ({hint})")
        self.kind = kind
        self.message = message
        self.hint = hint


class Peer:
    """One backend, in a process of its own."""

    def __init__(self, url: str, **opened: Any) -> None:
        self._process = subprocess.Popen(
            [program()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            preexec_fn=die_with_parent,
        )
        self.begin({"url": url, **opened})
        self.url = self.end()

    def begin(self, question: dict[str, Any]) -> None:
        """Asks, and waits for no answer."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()

    def end(self) -> Any:
        """The answer to what was asked."""
        assert self._process.stdout
        ready, _, _ = select.select([self._process.stdout], [], [], _PATIENCE)
        assert ready, "the peer does not answer"
        answer = json.loads(self._process.stdout.readline())
        if "error" in answer:
            raise PeerError(**answer["error"])
        return answer.get("answer", answer.get("url"))

    def ask(self, what: str, **arguments: Any) -> Any:
        self.begin({"ask": what, **arguments})
        return self.end()

    def store(self, *documents: dict[str, Any], reply_to: str | None = None) -> None:
        self.ask("store", documents=documents, reply_to=reply_to)

    def get(self, task_id: str) -> Any:
        return self.ask("get", ids=[task_id])[0]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
