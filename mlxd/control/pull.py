"""Pulls models from a hub: who may have what, one download for all who want the same, its progress.

The bytes are fetched by a process of its own (mlxd/hub); the daemon needs no network.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from fnmatch import fnmatchcase
from typing import Any

from mlxd.control import builds
from mlxd.control.catalog import Catalog
from mlxd.control.model_settings import settings_of
from mlxd.control.own_names import OwnName, OwnNames
from mlxd.control.progress import Board, Progress
from mlxd.control.pulled import PulledModels
from mlxd.control.pulling import Fetch, pulling
from mlxd.core.counts import form, plural
from mlxd.core.errors import (
    AFTER_DRAIN,
    Draining,
    Forbidden,
    InsufficientStorage,
    InternalError,
    InvalidRequest,
    MlxdError,
    ModelNotFound,
    Overloaded,
    PullFailed,
)
from mlxd.core.models import without_library
from mlxd.core.threads import Threads
from mlxd.ipc.pulling import Failed, Fetched, Part, Planned, Pulled, Told, Verifying, Writing
from mlxd.policy.policy_set import PolicySet

log = logging.getLogger(__name__)

Record = Callable[[str, str, Mapping[str, Any]], object]
"""Told of what happened: its type, words, data."""

_HUBS = ("hf.co/", "huggingface.co/", "https://hf.co/", "https://huggingface.co/")
_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_SHOWN_DIGITS = 12
_RETRY_SECONDS = 30.0


class Puller:
    """One download at a time of each repository."""

    def __init__(
        self,
        pulled: PulledModels,
        own_names: OwnNames,
        catalog: Catalog,
        record: Record,
        *,
        fetch: Fetch = pulling,
    ) -> None:
        self._pulled = pulled
        self._own_names = own_names
        self._catalog = catalog
        self._record = record
        self._fetch = fetch
        self._threads = Threads("pulled models")
        self._pulls: dict[str, _Pull] = {}
        self._ending: dict[str, set[asyncio.Task[None]]] = {}
        """Downloads that nobody watches any more, until their processes are gone."""
        self._tidying = asyncio.Lock()
        self._draining = False

    @asynccontextmanager
    async def watch(self, name: str, policies: PolicySet) -> AsyncIterator[AsyncIterator[Progress]]:
        """Pull `name`, or join whoever does; to the last line, which says `success`.

        When the last watcher leaves, the download ends; what it fetched is kept. Raises
        InvalidRequest, ModelNotFound, Forbidden, Draining, Overloaded at once; InsufficientStorage,
        PullFailed, ModelNotFound as the lines end.
        """
        repo = self.repository(name)
        _check_allowed(repo, policies)
        if self._draining:
            raise Draining("the daemon is stopping", retry_after=5.0, would_pass=AFTER_DRAIN)
        pull = self._pulls.get(repo.lower())
        if pull is None:
            self._check_room(repo, policies)
            pull = self._begun(repo, policies)
        if "/" not in (asked := without_library(name)):
            pull.short_names.add(asked)
        pull.watchers += 1
        try:
            yield pull.board.watch()
        finally:
            pull.watchers -= 1
            if pull.watchers == 0:
                self._forget(pull)
                await _ended(pull)

    def _check_room(self, repo: str, policies: PolicySet) -> None:
        """Raises Overloaded. What is ending makes way for the same model."""
        under_way = len({*self._pulls, *self._ending} - {repo.lower()})
        most = policies.models.pull.max_parallel
        if under_way >= most:
            raise Overloaded(
                f"{plural(under_way, 'model')} {form(under_way, 'is', 'are')} pulled already",
                retry_after=_RETRY_SECONDS,
                policy=policies.line("models.pull.max_parallel"),
                numbers={"pulls": under_way, "allowed": most},
                would_pass="the same pull once one of them is over",
            )

    def _begun(self, repo: str, policies: PolicySet) -> _Pull:
        earlier = frozenset(self._ending.get(repo.lower(), ()))
        pull = self._pulls[repo.lower()] = _Pull(repo, earlier)
        pull.task = asyncio.create_task(self._run(pull, policies), name=f"pull {repo}")
        pull.task.add_done_callback(lambda task: self._done(pull, task))
        return pull

    def _forget(self, pull: _Pull) -> None:
        """Whoever wants it now begins anew, as soon as its process is gone."""
        key = pull.repo.lower()
        if self._pulls.get(key) is pull:
            del self._pulls[key]
            if pull.task is not None and not pull.task.done():
                self._ending.setdefault(key, set()).add(pull.task)

    def _done(self, pull: _Pull, task: asyncio.Task[None]) -> None:
        self._forget(pull)
        ending = self._ending.get(pull.repo.lower(), set())
        ending.discard(task)
        if not ending:
            self._ending.pop(pull.repo.lower(), None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("the pull of %s ended: a defect of mlxd", pull.repo, exc_info=error)
            pull.board.close(InternalError("an internal error ended the pull; the log has it"))

    def repository(self, name: str) -> str:
        """ORGANISATION/NAME that `name` stands for. Raises InvalidRequest, ModelNotFound."""
        asked = without_library(name)
        for hub in _HUBS:
            asked = asked.removeprefix(hub)
        asked = asked.removesuffix(":latest")
        if "/" in asked:
            if not _REPO.fullmatch(asked) or ".." in asked:
                raise InvalidRequest(
                    f"invalid model name {name[:200]!r}: expected ORGANISATION/NAME", param="model"
                )
            return asked
        known = builds.shipped()
        found = known.repository(asked)
        if found is None:
            near = ", ".join(known.near(asked))
            hint = f"; did you mean {near}?" if near else "; any other is ORGANISATION/NAME"
            raise ModelNotFound(name, f" among the builds that mlxd knows{hint}")
        return found

    def is_pulling(self, repo: str) -> bool:
        return repo.lower() in self._pulls

    async def tidy(self) -> None:
        """Remove what is left of models that nobody pulls any more."""
        async with self._tidying:
            await self._threads.run(self._pulled.tidy, {*self._pulls, *self._ending})

    async def close(self) -> None:
        """End every download; their watchers are told."""
        self._draining = True
        pulls = [*self._pulls.values()]
        for pull in pulls:
            words = "the daemon is stopping; the pull goes on from here later"
            pull.board.close(Draining(words, would_pass=AFTER_DRAIN))
        await asyncio.gather(*(_ended(pull) for pull in pulls))

    async def _run(self, pull: _Pull, policies: PolicySet) -> None:
        """From the first line to the last; whatever goes wrong is told to the watchers."""
        try:
            if pull.earlier:
                await asyncio.wait(pull.earlier)
            pull.board.post(Progress("pulling manifest"))
            await self.tidy()
            repo = await self._threads.run(self._pulled.spelled, pull.repo)
            verdict = await self._fetched(pull, repo, policies)
            await self._name(pull, repo, policies)
        except MlxdError as error:
            self._failed(pull, error)
            return
        words = f"{repo} was pulled" if verdict.fetched_bytes else f"{repo} was there already"
        data = {"model": repo, "bytes": verdict.fetched_bytes, "revision": verdict.revision}
        self._record("model_pulled", words, data)
        pull.board.post(Progress("success"))
        pull.board.close()

    async def _fetched(self, pull: _Pull, repo: str, policies: PolicySet) -> Pulled:
        endpoint = policies.models.pull.endpoint
        own = settings_of(repo, policies.models)
        code = own is not None and own.trust_remote_code
        into = self._pulled.folder
        async with self._fetch(
            repo, into, endpoint="" if endpoint == "auto" else endpoint, code=code
        ) as lines:
            async for told in lines:
                if isinstance(told, Failed):
                    raise _error_of(told, repo)
                if isinstance(told, Pulled):
                    return told
                pull.post(told)
        raise PullFailed(f"the pull of {repo} ended without a word")

    async def _name(self, pull: _Pull, repo: str, policies: PolicySet) -> None:
        """From here on it is known, and a name that it was asked for by means it, whatever else
        will be there.
        """
        for name in pull.short_names:
            own = self._own_names.get(name)
            if own is not None and own.model == repo:
                continue
            try:
                await self._threads.run(self._own_names.put, OwnName(name, repo, "pull"))
            except OSError as error:
                log.warning("%s: its name %s is not kept: %s", repo, name, error.strerror)
        await self._catalog.rescanned(policies)

    def _failed(self, pull: _Pull, error: MlxdError) -> None:
        words = f"the pull of {pull.repo} failed: {error.message}"
        self._record("pull_failed", words, {"model": pull.repo, "code": error.code})
        pull.board.close(error)


class _Pull:
    """One download under way."""

    def __init__(self, repo: str, earlier: frozenset[asyncio.Task[None]]) -> None:
        self.repo = repo
        self.earlier = earlier
        """Those of the same model that had not ended when it began."""
        self.board = Board()
        self.task: asyncio.Task[None] | None = None
        self.watchers = 0
        self.short_names: set[str] = set()
        self._parts: dict[str, Part] = {}

    def post(self, told: Told) -> None:
        """In Ollama's words."""
        match told:
            case Planned(parts=parts):
                self._parts = {part.digest: part for part in parts}
                for digest in self._parts:
                    self._post_part(digest, 0)
            case Fetched(digest=digest, bytes=have) if digest in self._parts:
                self._post_part(digest, have)
            case Verifying():
                self.board.post(Progress("verifying sha256 digest"))
            case Writing():
                self.board.post(Progress("writing manifest"))
            case _:
                pass

    def _post_part(self, digest: str, have: int) -> None:
        short = digest.partition(":")[2][:_SHOWN_DIGITS]
        self.board.post(Progress(f"pulling {short}", digest, self._parts[digest].size, have))


async def _ended(pull: _Pull) -> None:
    """Stop it, if it has not stopped, and wait for its process to be gone."""
    if pull.task is not None:
        pull.task.cancel()
        await asyncio.gather(pull.task, return_exceptions=True)


def _check_allowed(repo: str, policies: PolicySet) -> None:
    """Raises Forbidden."""
    allowed = policies.models.pull.allow
    if not any(fnmatchcase(repo.lower(), pattern.lower()) for pattern in allowed):
        raise Forbidden(
            f"{repo} may not be pulled",
            policy=policies.line("models.pull.allow"),
            would_pass="a repository that one of those patterns names",
        )


def _error_of(failed: Failed, repo: str) -> MlxdError:
    if failed.kind == "not_found":
        return ModelNotFound(repo, f": {failed.message}")
    if failed.kind == "no_space":
        return InsufficientStorage(failed.message)
    return PullFailed(failed.message)
