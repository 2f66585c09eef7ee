"""Words that nobody else says, and where in a daemon's belongings they turn up."""

from __future__ import annotations

import json
import secrets
import stat
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

KINDS = (
    "prompt", "system", "tool", "arguments", "schema", "stop", "template", "suffix", "model",
    "header", "agent", "cookie", "priority", "host", "origin", "wrong-key", "file", "path", "id",
    "broken", "earlier", "mark", "picture",
)  # fmt: skip
"""What a client may put somewhere."""


@dataclass(slots=True)
class Canaries:
    """One for each kind, and others that a test knows."""

    words: dict[str, str] = field(
        default_factory=lambda: {kind: f"canary{secrets.token_hex(9)}" for kind in KINDS}
    )

    def __getitem__(self, kind: str) -> str:
        return self.words[kind]

    def found_in(self, data: bytes) -> Iterator[str]:
        """The kinds of those that are there, however they are written."""
        for kind, word in self.words.items():
            if any(form in data for form in _forms(word)):
                yield kind

    def told_by(self, said: Mapping[str, str]) -> list[str]:
        """`WHERE: KIND` for each that is said somewhere."""
        return [
            f"{where}: {kind}"
            for where, text in said.items()
            for kind in self.found_in(text.encode("utf-8", "surrogateescape"))
        ]

    def kept_in(self, folder: Path) -> list[str]:
        """`FILE: KIND` for each that is in a file's bytes or name."""
        return [
            f"{file.relative_to(folder)}: {kind}"
            for file in files_of(folder)
            for kind in self.found_in(file.read_bytes() + str(file.relative_to(folder)).encode())
        ]


def files_of(folder: Path) -> list[Path]:
    """All that are files."""
    return [file for file in sorted(folder.rglob("*")) if stat.S_ISREG(file.lstat().st_mode)]


def _forms(word: str) -> set[bytes]:
    """As text, in a URL, in JSON, and as UTF-16: what is not ASCII is written in several ways."""
    escaped = json.dumps(word)[1:-1]
    return {
        word.encode(), escaped.encode(), json.dumps(escaped)[1:-1].encode(),
        urllib.parse.quote(word).encode(), word.encode("utf-16-le"),
        word.encode("unicode_escape"),
    }  # fmt: skip
