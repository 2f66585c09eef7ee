"""Runs the process that pulls a model, and says what it said."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from mlxd.ipc.pulling import Failed, Told, decode
from tests.support.hub import Hub


def safetensors(size: int, seed: int = 1) -> bytes:
    """A valid file with one tensor of `size` bytes that compress badly."""
    header = json.dumps(
        {"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
    ).encode()  # fmt: skip
    data = bytes((i * i * seed + (i >> 8)) & 255 for i in range(size))
    return struct.pack("<Q", len(header)) + header + data


@dataclass(frozen=True, slots=True)
class Pulling:
    """Pulls from one hub into one folder, each time in a process of its own."""

    hub: Hub
    into: Path

    def start(
        self,
        repo: str,
        *arguments: str,
        largest_file: int | None = None,
        most_memory: int | None = None,
        environment: dict[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:
        """`largest_file` in KiB: a disk that is full after so much; `most_memory` too."""
        limit = "" if largest_file is None else f"ulimit -f {largest_file}; "
        limit += "" if most_memory is None else f"ulimit -v {most_memory}; "
        return subprocess.Popen(
            ["bash", "-c", f'{limit}exec "$@"', "bash",
             sys.executable, "-P", "-m", "mlxd.hub", repo, "--into", str(self.into),
             "--endpoint", self.hub.url, "--wait", "0.01", *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, **(environment or {})},
        )  # fmt: skip

    def run(
        self,
        repo: str,
        *arguments: str,
        largest_file: int | None = None,
        most_memory: int | None = None,
        environment: dict[str, str] | None = None,
    ) -> list[Told]:
        """Everything it told of, to its end; what it says on stderr is a defect."""
        process = self.start(
            repo, *arguments,
            largest_file=largest_file, most_memory=most_memory, environment=environment,
        )  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        told = [decode(line) for line in process.stdout]
        assert process.stderr is not None
        stderr = process.stderr.read().decode()
        process.stdin.close()
        status = process.wait(20)
        process.stdout.close()
        process.stderr.close()
        assert stderr == "", stderr
        assert status == (1 if isinstance(told[-1], Failed) else 0)
        return told

    def fails(self, repo: str, *arguments: str, **options: object) -> Failed:
        """Run it to its failure."""
        last = self.run(repo, *arguments, **options)[-1]  # type: ignore[arg-type]
        assert isinstance(last, Failed), last
        return last

    def there(self, repo: str) -> dict[str, bytes]:
        """The model's files, by name; none when it is not in place."""
        folder = self.into / repo
        if not folder.exists():
            return {}
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    def wait_for_bytes(self, repo: str, content: bytes, within: float = 60.0) -> None:
        """Until a part of a file is on the disk."""
        digest = hashlib.sha256(content).hexdigest()
        blob = self.into / ".partial" / repo / "blobs" / f"sha256-{digest}"
        deadline = time.monotonic() + within
        while not (blob.exists() and blob.stat().st_size):
            assert time.monotonic() < deadline, f"no byte of {repo} came"
            time.sleep(0.01)
