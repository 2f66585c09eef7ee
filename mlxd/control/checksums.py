"""Compares the bytes of a model's files with recorded checksums, where there are any.

Recorded they are by Hugging Face's cache (a large file is a link to one that is named by its
SHA-256), in what its client notes beside a download, and in a `SHA256SUMS` in the folder, as
sha256sum writes it.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable
from pathlib import Path

from mlxd.control.model_files import SUMS, fingerprint, is_read, read_of
from mlxd.control.reading import (
    UnreadableModel,
    in_words,
    opened,
    raise_if_out,
    readable,
    text_of,
)
from mlxd.core import manifest
from mlxd.core.models import ModelCard
from mlxd.core.threads import Threads

_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](?:\./)?([^/\n\0]+)")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CHUNK_BYTES = 4 * 2**20
_LONGEST_LIST = 2**20
_LONGEST_NOTE = 1000
_Files = tuple[str, str, float]
_Touched = tuple[str, str, str]


class Checksums:
    """What came of each comparison: right files are, as long as they are the same; wrong ones until
    any of them is touched, since a copy that keeps its times may have mended it.

    Files are hashed when somebody wants the model, in a thread, each model once.
    """

    def __init__(self, check: Callable[[Path], str] | None = None) -> None:
        self._check = check or damage_of
        self._threads = Threads("checksums")
        self.damaged = 0
        """How often bytes were found to be wrong, which earlier cards do not say."""
        self._right: set[_Files] = set()
        self._wrong: dict[_Touched, str] = {}
        self._running: dict[_Touched, asyncio.Task[str]] = {}

    def known(self, card: ModelCard) -> str:
        """Why its bytes are known to be wrong; empty where they are not known to be."""
        return self._wrong.get(_touched(card), "")

    async def damage(self, card: ModelCard) -> str:
        """As `known`, having compared them if nobody has yet. Raises OutOfFiles."""
        key = _touched(card)
        if _files(card) in self._right or key in self._wrong:
            return self.known(card)
        if key not in self._running:
            task = asyncio.create_task(self._compare(card), name="checksums of a model")
            self._running[key] = task
            task.add_done_callback(lambda _: self._running.pop(key))
        return await asyncio.shield(self._running[key])

    async def _compare(self, card: ModelCard) -> str:
        try:
            found = await self._threads.run(self._check, Path(card.path))
        except UnreadableModel as error:
            return str(error)  # for who waits now
        if found:
            self._wrong[_touched(card)] = found
            self.damaged += 1
        else:
            self._right.add(_files(card))
        return found


def _files(card: ModelCard) -> _Files:
    return card.path, card.digest, card.modified


def _touched(card: ModelCard) -> _Touched:
    return card.path, card.digest, card.touched


def damage_of(folder: Path) -> str:
    """Why a folder's files are not the recorded ones; empty where they are, or nothing is recorded.

    Blocks for as long as reading all of them takes. Raises OutOfFiles, and UnreadableModel for what
    cannot be told now: its disk may be one of a network.
    """
    try:
        before = fingerprint(folder)
        found = _difference(folder)
        if read_of(fingerprint(folder)) != read_of(before):
            raise UnreadableModel("its files change while they are read")
    except OSError as error:
        raise_if_out(error)
        raise UnreadableModel(in_words(error)) from error
    return found


def _difference(folder: Path) -> str:
    try:
        for name, wanted in recorded(folder).items():
            if is_read(name) and _sha256(folder / name) != wanted:
                return f"the bytes of its {readable(name)} are not those of the recorded checksum"
    except UnreadableModel as error:
        return str(error)
    return ""


def recorded(folder: Path) -> dict[str, str]:
    """File name to SHA-256 in lower case. Raises OSError, UnreadableModel."""
    found: dict[str, str] = {}
    for name, size, *_ in fingerprint(folder):
        if size >= 0 and (checksum := _of_blob(folder / name) or _noted(folder, name)):
            found[name] = checksum
    if pulled := manifest.read(folder):
        found |= {file.name: file.sha256 for file in pulled.files if file.sha256}
    if (folder / SUMS).is_file():
        for line in text_of(folder / SUMS, _LONGEST_LIST).splitlines():
            if entry := _LINE.fullmatch(line):
                found[entry[2]] = entry[1].lower()
    return found


def _of_blob(file: Path) -> str:
    """The name of the blob that a link of a hub's cache leads to, where it is a SHA-256."""
    if not file.is_symlink():
        return ""
    blob = file.readlink()
    return blob.name if blob.parent.name == "blobs" and _SHA256.fullmatch(blob.name) else ""


def _noted(folder: Path, name: str) -> str:
    """The ETag that a hub's client notes of a large file: its SHA-256."""
    note = folder / ".cache" / "huggingface" / "download" / f"{name}.metadata"
    if not note.is_file():
        return ""
    _, etag, *_ = [*text_of(note, _LONGEST_NOTE).splitlines(), "", ""]
    return etag if _SHA256.fullmatch(etag) else ""


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with opened(file) as (stream, _):
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
