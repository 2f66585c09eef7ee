"""What policies want kept of earlier prompts, as workers are told it: how much of the disk that may
take, what leaves last, and what is read before anybody asks.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from mlxd.control.model_settings import settings_for
from mlxd.control.reading import UnreadableModel, bytes_of
from mlxd.core import durable, places
from mlxd.core.models import ModelCard
from mlxd.core.request import GenerationRequest, Json, Message
from mlxd.core.threads import Threads
from mlxd.ipc import messages as ipc
from mlxd.policy.policy_set import PolicySet

log = logging.getLogger(__name__)

FOLDER = "prefixes"
"""In the state folder."""
ENTRY = ".prefix"
"""What names of beginnings on disk end with, as workers write them."""
_STAY = (
    "memory.prefix_cache.disk is off, and the disk does not let go of the beginnings of prompts"
    " that are there: that is tried again"
)
_ASKS = Message("user", "Hello")
"""Behind a system prompt: templates want somebody to speak."""
AGAIN_SECONDS = 30.0
"""Until what a disk did not let go is removed again."""
_ROLES = frozenset(("system", "user", "assistant", "tool"))


class Hears(Protocol):
    """A worker."""

    def value(self, rules: ipc.PrefixRules) -> None: ...


class _Turn(msgspec.Struct):
    role: str
    content: str


class _Conversation(msgspec.Struct):
    """What a file NAME.json of `prefixes.warm` says."""

    messages: list[_Turn]
    tools: list[Json] = []


_conversation = msgspec.json.Decoder(_Conversation)


class PrefixWishes:
    """Of the policies in force."""

    def __init__(self, state: Path, policies: PolicySet) -> None:
        self._folder = state / FOLDER
        self._policies = policies
        self._threads = Threads("warm prompts")
        self._tasks: set[asyncio.Task[None]] = set()
        self._unread: dict[str, list[str]] = {}
        """By model, what is wrong with its files."""
        self._removal = _Removal(self._folder)
        self._remove_if_off()

    def apply(self, new: PolicySet) -> None:
        """Whoever is told from now on follows `new`."""
        self._policies = new
        self._unread.clear()
        self._remove_if_off()

    def files(self, card: ModelCard) -> ipc.PrefixFiles:
        """For the launch of its worker."""
        return ipc.PrefixFiles(bytes(self._folder), card.digest, disk_bytes(self._policies))

    def tell(self, worker: Hears, card: ModelCard) -> None:
        """The worker hears at once what is known, and the rest when it is read."""
        policies = self._policies
        own = settings_for(card, policies.models)
        keep = list(own.prefixes.keep) if own is not None else []
        warm = own.prefixes.warm if own is not None else ()
        rules = ipc.PrefixRules(disk_bytes(policies), keep, None if warm else [])
        worker.value(rules)
        if warm:
            task = asyncio.create_task(self._read(worker, card.name, warm, rules, policies))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def on_disk(self) -> tuple[int, int]:
        """Of all models, in memory or not: how many beginnings, and their bytes."""
        return await self._threads.run(_counted, self._folder)

    async def clear(self) -> None:
        """Remove all that is on disk, of whatever model."""
        await self._threads.run(_removed, self._folder)

    def warnings(self) -> list[str]:
        """What an operator should know."""
        found = [words for problems in self._unread.values() for words in problems]
        return [*found, *self._removal.warnings()]

    async def _read(
        self,
        worker: Hears,
        name: str,
        files: Sequence[str],
        rules: ipc.PrefixRules,
        policies: PolicySet,
    ) -> None:
        warm, problems = [], []
        for file in files:
            try:
                warm.append(await self._threads.run(read_warm, file, name))
            except (UnreadableModel, OSError) as error:
                problems.append(f"models.models.{name}.prefixes.warm: {error}")
        if policies is not self._policies:
            return
        for words in problems:
            log.warning("%s", words)
        self._unread[name] = problems
        worker.value(msgspec.structs.replace(rules, warm=warm))

    def _remove_if_off(self) -> None:
        if disk_bytes(self._policies) != 0:
            self._removal.give_up()
        elif not self._removal.under_way:
            self._removal = _Removal(self._folder)
            self._removal.begin()


class _Removal:
    """Of all that is on disk, until it is gone, or wanted again. In a thread: a disk may hang, and
    nobody waits for that.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._thread = threading.Thread(target=self._run, name="prefixes", daemon=True)
        self._over = threading.Event()
        self._failed = False
        """The disk has not let all of it go."""

    def begin(self) -> None:
        try:
            self._thread.start()
        except RuntimeError as error:  # they go with the next start, or edit
            log.warning("beginnings on the disk are not removed: %s", error)

    @property
    def under_way(self) -> bool:
        return self._thread.is_alive() and not self._over.is_set()

    def give_up(self) -> None:
        self._over.set()

    def warnings(self) -> list[str]:
        return [_STAY] if self._failed and not self._over.is_set() else []

    def _run(self) -> None:
        while not self._over.is_set():
            _removed(self._folder)
            left = _is_left(self._folder)
            if left and not self._failed:
                log.warning("%s", _STAY)
            self._failed = left
            if not left:
                return
            self._over.wait(AGAIN_SECONDS)


def _is_left(folder: Path) -> bool:
    """Whether anything is, or may not be looked at."""
    try:
        return any(ENTRY in file.name for key in _inside(folder) for file in _inside(key))
    except OSError:
        return True


def _inside(folder: Path) -> list[Path]:
    """Raises OSError, where Path.glob would find nothing."""
    try:
        return [*folder.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _removed(folder: Path) -> None:
    """Also what an operator has laid elsewhere: the link stays, and nothing behind it."""
    if not folder.is_symlink():
        durable.remove_tree(folder)
        return
    for inner in folder.glob(f"*/*{ENTRY}*"):  # half-written ones, too
        with contextlib.suppress(OSError):
            inner.unlink()


def _counted(folder: Path) -> tuple[int, int]:
    count = size = 0
    for file in folder.glob(f"*/*{ENTRY}"):
        with contextlib.suppress(OSError):
            size += file.lstat().st_size
            count += 1
    return count, size


def disk_bytes(policies: PolicySet) -> int | None:
    """As `PrefixRules.disk_bytes`."""
    wanted = policies.memory.prefix_cache.disk
    if wanted == "auto":
        return None
    return 0 if wanted == "off" else int(wanted)


def read_warm(place: str, model: str) -> ipc.WarmPrompt:
    """May block. Raises UnreadableModel, in words that quote nothing of the file."""
    file = places.expanded(place)
    content = bytes_of(file)
    try:
        if file.suffix == ".json":
            messages, tools = _parts(_conversation.decode(content))
        else:
            messages, tools = [Message("system", content.decode("utf-8").rstrip("\r\n"))], []
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError):
        raise UnreadableModel(
            f"its {file.name} is neither a text nor messages with roles and contents"
        ) from None
    request = GenerationRequest(model, messages=(*messages, _ASKS), tools=tuple(tools))
    return ipc.WarmPrompt(file.name, request)


def _parts(said: _Conversation) -> tuple[list[Message], list[Json]]:
    """Raises ValueError."""
    if not said.messages or any(turn.role not in _ROLES for turn in said.messages):
        raise ValueError
    return [Message(turn.role, turn.content) for turn in said.messages], said.tools
