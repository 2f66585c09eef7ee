"""A hub on loopback that speaks the real one's HTTP, and fails in the ways that the real one does.

Repositories are folders' contents at one commit. Large files are "in LFS": they are answered by a
redirect to where their bytes are, which takes ranges, as do small ones.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

_IN_LFS = (".safetensors", "tokenizer.json", ".model", ".bin")
_PIECE = 16 * 2**10


@dataclass(frozen=True, slots=True)
class Asked:
    """One request, and how many bytes of a body it was given."""

    method: str
    path: str
    range: str
    authorization: str
    sent: int


@dataclass(slots=True)
class Repo:
    """What a repository holds, and what is the matter with it."""

    files: dict[str, bytes]
    gated: bool = False
    sizes: dict[str, int] = field(default_factory=dict)
    """Sizes that it tells of, in place of the true ones."""
    served: dict[str, bytes] = field(default_factory=dict)
    """Bytes that it sends, in place of the true ones."""

    @property
    def commit(self) -> str:
        whole = hashlib.sha1()
        for name, content in sorted(self.files.items()):
            whole.update(name.encode() + b"\0" + content)
        return whole.hexdigest()


@dataclass(slots=True)
class Hub:
    """A running stand-in. Faults are lists that requests for bytes use up, one each."""

    url: str
    repos: dict[str, Repo] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    cut_after: dict[str, list[int]] = field(default_factory=dict)
    """File -> after how many bytes of an answer the connection breaks."""
    statuses: dict[str, list[int]] = field(default_factory=dict)
    """File, or `api` -> refusals before it answers."""
    without_ranges: bool = False
    elsewhere: str = ""
    """Where redirects for large files lead, in place of this server."""
    listing: bytes | None = None
    """What it answers to a question about a repository, in place of the truth."""
    endless: bool = False
    """Whether that answer, or a redirect's body, never ends."""
    redirect: str = ""
    """The Location in place of any file; `self`: the file itself, again."""
    gate: threading.Event = field(default_factory=threading.Event)
    """While it is not set, no byte of a large file goes out after the first piece."""
    waiting: threading.Event = field(default_factory=threading.Event)
    """Set when somebody waits at the gate."""

    def add(self, repo: str, folder: Path) -> Repo:
        """A repository with the files of a folder."""
        files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        self.repos[repo] = Repo(files)
        return self.repos[repo]

    def sent(self, name: str) -> int:
        """Bytes of a file's content that went out, over all requests."""
        return sum(asked.sent for asked in self.asked if asked.path.endswith(f"/{name}"))

    def ranges(self, name: str) -> list[str]:
        """What was asked of a file, request by request."""
        gets = [a for a in self.asked if a.method == "GET" and a.path.startswith("/bytes/")]
        return [asked.range for asked in gets if asked.path.endswith(f"/{name}")]

    def environment(self) -> Mapping[str, str]:
        """Points a daemon at it, as the library would be pointed."""
        return {"HF_ENDPOINT": self.url}


@contextmanager
def hub() -> Iterator[Hub]:
    """Serve until the end of the block."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    running = Hub(f"http://127.0.0.1:{server.server_address[1]}")
    running.gate.set()
    server.hub = running  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield running
    finally:
        running.gate.set()
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "hub-stand-in"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: Any) -> None:
        """Nothing on stderr."""

    @property
    def _hub(self) -> Hub:
        found: Hub = self.server.hub  # type: ignore[attr-defined]
        return found

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/([^/]+)", path):
            self._info(match[1], match[2])
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(match[1], match[2], match[3])
        elif match := re.fullmatch(r"/bytes/([^/]+/[^/]+)/(.+)", path):
            self._bytes(match[1], match[2])
        else:
            self._refuse(404, "EntryNotFound")

    def _repo(self, name: str) -> Repo | None:
        """As the real one: without a token a missing one cannot be told from a private one."""
        repo = self._hub.repos.get(name)
        if repo is None:
            self._refuse(401, "RepoNotFound")
            return None
        if repo.gated and self.headers.get("Authorization") != "Bearer hf_right":
            self._refuse(401, "GatedRepo")
            return None
        return repo

    def _falters(self, key: str) -> bool:
        statuses = self._hub.statuses.get(key)
        if not statuses:
            return False
        self._refuse(statuses.pop(0), "")
        return True

    def _info(self, name: str, revision: str) -> None:
        if self._falters("api") or (repo := self._repo(name)) is None:
            return
        if revision not in ("main", repo.commit):
            self._refuse(404, "RevisionNotFound")
            return
        if self._hub.listing is not None or self._hub.endless:
            self._send(200, {"Content-Type": "application/json"}, self._hub.listing or b"")
            return
        blobs = bool(parse_qs(urlsplit(self.path).query).get("blobs"))
        siblings = [_sibling(repo, file, blobs=blobs) for file in sorted(repo.files)]
        body = {"id": name, "modelId": name, "sha": repo.commit, "siblings": siblings,
                "private": False, "gated": "auto" if repo.gated else False, "tags": ["mlx"],
                "downloads": 0, "likes": 0}  # fmt: skip
        self._send(200, {"Content-Type": "application/json"}, json.dumps(body).encode())

    def _resolve(self, name: str, revision: str, file: str) -> None:
        if (repo := self._repo(name)) is None:
            return
        if self._hub.redirect:
            where = self.path if self._hub.redirect == "self" else self._hub.redirect
            self._send(302, {"Location": where}, b"")
            return
        if revision not in ("main", repo.commit):
            self._refuse(404, "RevisionNotFound")
            return
        if file not in repo.files:
            self._refuse(404, "EntryNotFound", {"X-Repo-Commit": repo.commit})
            return
        content = repo.files[file]
        headers = {"X-Repo-Commit": repo.commit, "Accept-Ranges": "bytes"}
        if not _in_lfs(file):
            self._content(
                file, repo.served.get(file, content), headers | {"ETag": f'"{_git(content)}"'}
            )
            return
        where = self._hub.elsewhere or self._hub.url
        headers |= {
            "X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Linked-Size": str(len(content)),
            "Location": f"{where}/bytes/{name}/{file}?signature=secret",
        }
        self._send(302, headers, b"")

    def _bytes(self, name: str, file: str) -> None:
        repo = self._hub.repos[name]
        content = repo.served.get(file, repo.files[file])
        self._content(file, content, {"ETag": f'"{hashlib.md5(content).hexdigest()}"'})

    def _content(self, file: str, content: bytes, headers: dict[str, str]) -> None:
        if self._falters(file):
            return
        start, status = 0, 200
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if match and not self._hub.without_ranges:
            start, status = int(match[1]), 206
            if start >= len(content):
                self._send(416, {"Content-Range": f"bytes */{len(content)}"}, b"")
                return
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        cuts = self._hub.cut_after.get(file)
        cut = cuts.pop(0) if cuts and self.command == "GET" else None
        self._send(status, headers, content[start:], cut, slow=_in_lfs(file))

    def _refuse(self, status: int, code: str, headers: Mapping[str, str] | None = None) -> None:
        found = {"X-Error-Code": code, "X-Error-Message": "as the hub words it", **(headers or {})}
        if status == 429:
            found["Retry-After"] = "0"
        self._send(status, {k: v for k, v in found.items() if v}, b'{"error":"no"}')

    def _send(
        self,
        status: int,
        headers: Mapping[str, str],
        body: bytes,
        cut: int | None = None,
        *,
        slow: bool = False,
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        endless = self._hub.endless and status != 206
        if not endless:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if endless:
            self.close_connection = True
            while self._write(b" " * _PIECE, slow=False):
                pass
        sent = 0
        try:
            if self.command == "GET":
                sent = self._write(body if cut is None else body[:cut], slow=slow)
        finally:
            path = unquote(urlsplit(self.path).path)
            self._hub.asked.append(
                Asked(self.command, path, self.headers.get("Range", ""),
                      self.headers.get("Authorization", ""), sent if status in (200, 206) else 0)
            )  # fmt: skip
        if cut is not None:
            self.close_connection = True

    def _write(self, body: bytes, *, slow: bool) -> int:
        sent = 0
        try:
            for start in range(0, len(body), _PIECE):
                self.wfile.write(body[start : start + _PIECE])
                sent += len(body[start : start + _PIECE])
                if slow and sent < len(body) and not self._hub.gate.is_set():
                    self._hub.waiting.set()
                    self._hub.gate.wait()
        except OSError:
            self.close_connection = True
        return sent


def _in_lfs(name: str) -> bool:
    return name.endswith(_IN_LFS)


def _git(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _sibling(repo: Repo, name: str, *, blobs: bool) -> dict[str, Any]:
    content = repo.files[name]
    entry: dict[str, Any] = {"rfilename": name}
    if blobs:
        size = repo.sizes.get(name, len(content))
        entry |= {"size": size, "blobId": _git(content)}
        if _in_lfs(name):
            sha256 = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"sha256": sha256, "size": size, "pointerSize": 134}
    return entry
