"""A server of S3's protocol: moto's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from harness.processes import die_with_parent
from harness.servers import free_port, is_listened_on
from harness.wait import wait_until

#: Longer than a start takes: it imports much.
_START = 60


class S3Server:
    """Keeps objects in memory; whoever comes is let in."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._log = folder / "moto.log"
        program = Path(sys.executable).with_name("moto_server")
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                [str(program), "--host", "127.0.0.1", "--port", str(self.port)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,
            )
        wait_until(lambda: is_listened_on(self.port), "moto answers", _START, self._text)
        self._buckets = 0

    def _text(self) -> str:
        return self._log.read_text(errors="replace")

    def settings(self) -> dict[str, str]:
        """The settings of a bucket that nobody has used."""
        self._buckets += 1
        settings = {
            "s3_bucket": f"results-{self._buckets}",
            "s3_base_path": "some/where/",
            "s3_endpoint_url": f"http://127.0.0.1:{self.port}",
            "s3_region": "us-east-1",
            "s3_access_key_id": "somebody",
            "s3_secret_access_key": "secret",
        }
        self._client(settings).create_bucket(Bucket=settings["s3_bucket"])
        return settings

    def _client(self, settings: dict[str, str]) -> Any:
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=settings["s3_endpoint_url"],
            region_name=settings["s3_region"],
            aws_access_key_id=settings["s3_access_key_id"],
            aws_secret_access_key=settings["s3_secret_access_key"],
        )

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
