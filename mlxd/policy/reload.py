"""From files to policies in force: read, judge, prepare, commit, remember; all of it or nothing.

One attempt at a time. Whoever asks for one gets the outcome of that very attempt. Nothing is
guessed from events: each attempt reads every file again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from mlxd.core.clock import Clock, within
from mlxd.core.errors import PolicyConflict, PolicyOutOfDate
from mlxd.core.threads import NoThread, Threads
from mlxd.policy.boot import Boot
from mlxd.policy.diff import Change, changes, reload_class
from mlxd.policy.files import PolicyFiles
from mlxd.policy.history import Generation, History
from mlxd.policy.load import Override, PolicyError, PolicyErrors, error_at, judge
from mlxd.policy.outcome import Outcome, Result, Trigger
from mlxd.policy.policy_set import PolicySet
from mlxd.policy.remembering import Remembering
from mlxd.policy.rollback import WriteBack
from mlxd.policy.settle import QUIET_SECONDS, observe, settled
from mlxd.policy.sharing import sharing
from mlxd.policy.store import Applier, PolicyStore, Prepared, PrepareFailed
from mlxd.policy.strict_yaml import Path as KeyPath
from mlxd.policy.strict_yaml import dotted
from mlxd.policy.units import written

log = logging.getLogger(__name__)
T = TypeVar("T")

READ_SECONDS = 10.0
"""A folder that does not answer for this long, on a network say, counts as unreadable."""
_CLOSE_SECONDS = 2.0


class Obstacle(PolicyErrors):
    """The policies are right, and something that may go away is in their way: a taken port."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What an edit would do."""

    old: PolicySet
    """In force when it was planned."""
    changes: tuple[Change, ...] = ()
    errors: tuple[PolicyError, ...] = ()
    policies: PolicySet | None = None
    """As they would be; None if they would be refused."""


class Reloader:
    """Puts new policies in force. The store's only writer."""

    def __init__(
        self,
        store: PolicyStore,
        history: History,
        clock: Clock,
        boot: Boot,
        *,
        overrides: Sequence[Override] = (),
        find_folder: Callable[[], Path | None] = lambda: None,
    ) -> None:
        self._store = store
        self._history = history
        self._clock = clock
        self._overrides = tuple(overrides)
        self._find_folder = find_folder
        self._appliers: list[Applier] = []
        self._readers: list[Callable[[PolicySet], None]] = []
        self._observers: list[Callable[[Outcome], None]] = []
        self._reading: asyncio.Future[tuple[bool, PolicyFiles]] | None = None
        self._threads = Threads("policies")
        self._remembering = Remembering(history, clock, self._threads)
        self._lock = asyncio.Lock()
        self._newest = max([store.current.generation, *history.numbers()])
        """The highest number of a generation; only attempts here make new ones."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self._edited = boot.changes
        """Between the last run and this one."""
        self._in_force = boot.files
        self._seen = boot.seen
        self._again = False
        """The last attempt failed for what may change without any file changing."""
        self._at_start = _restart_values(store.current)
        self._pending: dict[str, str] = {}
        self._attempts = 0
        self.last = self._outcome("start", "applied" if not boot.errors else "refused",
                                  clock.monotonic(), errors=boot.errors)  # fmt: skip

    @property
    def folder(self) -> Path | None:
        """Where the policies are looked for."""
        return self._seen.folder

    @property
    def history_failure(self) -> str:
        """Why a generation is not kept; empty: all are."""
        return self._remembering.failure

    def until_restart(self) -> Mapping[str, str]:
        """Keys that were changed since the start and wait for the next one: what each is until
        then, as YAML writes it.
        """
        return self._pending

    def use(self, *appliers: Applier) -> None:
        """Have these prepare and commit, in this order, at each change."""
        self._appliers += appliers

    def refresh(self, *readers: Callable[[PolicySet], None]) -> None:
        """Have these told of the same values in other places, which they name to people."""
        self._readers += readers

    def observe(self, observer: Callable[[Outcome], None]) -> None:
        """Have every outcome told; `observer` must not fail."""
        self._observers.append(observer)

    async def begin(self) -> None:
        """Keep what the run started with, and tell of it; before anything else is asked."""
        if self.last.ok:
            await self._remember(self.last, self._edited)
        self._tell(self.last)

    async def close(self) -> None:
        """Let an attempt that has begun come to its end; not for long."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=_CLOSE_SECONDS)
            for task in late:
                task.cancel()

    async def reload(self, trigger: Trigger, by: str = "", *, etag: str = "") -> Outcome:
        """Read the folder now and put it in force.

        Raises PolicyOutOfDate if other policies than `etag` are in force.
        """
        return await self._carried(partial(self._reload, trigger, by, etag))

    async def look(self) -> Outcome | None:
        """Reload if a file has changed since the last attempt; None if none has."""
        return await self._carried(self._reload_if_changed)

    async def check(self) -> Plan:
        """What a reload would come to, everything prepared and given back."""
        return await self._carried(self._check)

    async def plan(self, contents: Mapping[str, bytes], settings: Sequence[Override] = ()) -> Plan:
        """What the folder would change with these files in place of its own, and these values."""
        return await self._carried(partial(self._plan_edit, contents, settings))

    async def plan_rollback(self, number: int, *, force: bool = False) -> Plan:
        """What `rollback` would change. Raises PolicyConflict as it does."""
        return await self._carried(partial(self._plan_back, number, force))

    async def rollback(
        self, number: int, by: str = "", *, etag: str = "", force: bool = False
    ) -> Outcome:
        """Put an earlier generation's files back into the folder, and in force.

        Raises PolicyOutOfDate, and PolicyConflict: the generation is not kept or was of another
        folder; there is no folder; or (unless `force`) it had no files, or a file was changed since
        it was put in force.
        """
        return await self._carried(partial(self._roll_back, number, by, etag, force))

    async def _carried(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Do it under the lock. Whoever asked may go away: what has begun is carried through."""

        async def locked() -> T:
            async with self._lock:
                return await work()

        task = asyncio.create_task(locked())
        self._tasks.add(task)
        task.add_done_callback(self._heard)
        return await asyncio.shield(task)

    def _heard(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # whoever asked has it; if he has left, nobody needs it

    # -- inside; the lock is held

    async def _reload(self, trigger: Trigger, by: str, etag: str) -> Outcome:
        self._expect(etag)
        return await self._attempt(await self._settled(quiet=0.0), trigger, by)

    async def _reload_if_changed(self) -> Outcome | None:
        found = await self._read()
        if found.hash != self._seen.hash:
            found = await self._settled(quiet=QUIET_SECONDS)
        if found.hash == self._seen.hash and not self._again:
            await self._remembering.try_again()
            return None
        return await self._attempt(found, "watch", "")

    async def _check(self) -> Plan:
        found = await self._threads.run(self._planned, await self._read(), ())
        if found.policies is None or not found.changes:
            return found
        try:
            with ExitStack() as back:
                await self._prepare(found.policies, back)
        except Obstacle as obstacle:
            return replace(found, policies=None, errors=obstacle.errors)
        return found

    async def _plan_edit(self, contents: Mapping[str, bytes], settings: Sequence[Override]) -> Plan:
        files = await self._read()
        edited = files.with_contents({**files.contents, **contents})
        return await self._threads.run(self._planned, edited, tuple(settings))

    async def _roll_back(self, number: int, by: str, etag: str, force: bool) -> Outcome:
        self._expect(etag)
        folder, present, target = await self._earlier(number, force)
        back: dict[str, bytes | None] = {
            name: target.contents.get(name) for name in target.changed_from(present)
        }
        write = WriteBack(self._history, folder, present.contents, back) if back else None
        return await self._attempt(target, "rollback", by, write)

    async def _plan_back(self, number: int, force: bool) -> Plan:
        _, _, target = await self._earlier(number, force)
        return await self._threads.run(self._planned, target, ())

    async def _earlier(self, number: int, force: bool) -> tuple[Path, PolicyFiles, PolicyFiles]:
        """The folder, with its files as they are and as they were in that generation.

        Raises PolicyConflict.
        """
        generation = await self._kept(number)
        present = await self._read()
        if present.folder is None:
            raise PolicyConflict("no policy folder to write to: built-in defaults hold")
        self._may_roll_back(generation, present, force)
        return present.folder, present, present.with_contents(generation.contents)

    async def _kept(self, number: int) -> Generation:
        """Raises PolicyConflict."""
        try:
            async with within(self._clock, READ_SECONDS):
                generation = await self._threads.run(self._history.get, number)
                numbers = await self._threads.run(self._history.numbers)
        except TimeoutError:
            raise PolicyConflict("the state folder does not answer") from None
        if generation is None:
            kept = ", ".join(map(str, numbers)) or "none"
            raise PolicyConflict(f"generation {number} is not kept; kept are {kept}")
        return generation

    def _may_roll_back(self, generation: Generation, present: PolicyFiles, force: bool) -> None:
        """Raises PolicyConflict."""
        if generation.contents and generation.folder != str(present.folder):
            raise PolicyConflict(
                f"generation {generation.number} was of {generation.folder}, not of"
                f" {present.folder}"
            )
        if not generation.contents and present.contents and not force:
            raise PolicyConflict(
                f"generation {generation.number} had no policy files: --force removes those that"
                f" are there ({', '.join(present.contents)})"
            )
        edited = present.changed_from(self._in_force)
        if edited and not force:
            raise PolicyConflict(
                f"{', '.join(edited)} changed and not in force: save that edit elsewhere, or use"
                " --force to lose it"
            )

    def _expect(self, etag: str) -> None:
        present = self._store.current.etag
        if etag.strip('"') not in ("", "*", present.strip('"')):
            raise PolicyOutOfDate(f"the policies in force are {present}, not {etag}")

    async def _attempt(
        self,
        files: PolicyFiles,
        trigger: Trigger,
        by: str,
        write: WriteBack | None = None,
    ) -> Outcome:
        began = self._clock.monotonic()
        try:
            if trigger == "watch":
                self._refuse_emptied(files)
            found = await self._apply(files, write)
        except PolicyErrors as refused:
            if write is None:
                self._again = isinstance(refused, Obstacle)
            outcome = self._outcome(trigger, "refused", began, by=by, errors=refused.errors)
        else:
            self._again = False
            self._in_force = files
            result: Result = "unchanged" if found is None else "applied"
            outcome = self._outcome(trigger, result, began, by=by, changes=found or ())
        if write is None or outcome.ok:
            self._seen = files
        if self._still_in_the_way(outcome):
            return outcome  # which is no news
        if outcome.ok or write is None:
            self.last = outcome
        self._tell(outcome)
        if outcome.ok:
            await self._remember(outcome, outcome.changes)
        return outcome

    def _still_in_the_way(self, outcome: Outcome) -> bool:
        """The same obstacle as before, and nobody but the watcher asked."""
        again = self._again and outcome.trigger == "watch" and not outcome.ok
        return again and outcome.errors == self.last.errors

    def _refuse_emptied(self, files: PolicyFiles) -> None:
        """Files that are all gone at once were unmounted, or lost, rather than edited."""
        if len(self._in_force.contents) < 2 or files.contents or files.failures:
            return
        words = (
            "all policy files are gone: put them back, or have the defaults with"
            " `mlxd policy reload`"
        )
        raise PolicyErrors([PolicyError(str(files.folder), words)])

    async def _apply(
        self, files: PolicyFiles, write: WriteBack | None
    ) -> tuple[Change, ...] | None:
        """The changes that are now in force; None: it makes no difference. Raises PolicyErrors.

        Nothing is awaited after the commit: what is in force and what is said of it agree.
        """
        try:
            new, found, pending = await self._threads.run(self._judged, files, write is not None)
            if not found and write is None:
                self._store.refresh(new)
                for reader in self._readers:
                    reader(new)
                return None
            with ExitStack() as back:
                prepared = await self._prepare(new, back)
                if write is not None:
                    await self._write(write)
                    back.callback(write.undo)
                self._store.commit(new, prepared)
                back.pop_all()
        except PolicyErrors:
            raise
        except NoThread as error:
            words = f"could not be applied, and are tried again: {error.words}"
            raise Obstacle([PolicyError("mlxd", words)]) from error
        except Exception as defect:
            log.exception("policies could not be applied: a defect; nothing was changed")
            words = "could not be applied because of a defect of mlxd; the log has it"
            raise PolicyErrors([PolicyError("mlxd", words)]) from defect
        self._newest = new.generation
        self._pending = pending
        return found

    async def _write(self, write: WriteBack) -> None:
        """Raises PolicyErrors, and then the files are as they were."""
        try:
            await self._threads.run(write.write)
        except OSError as error:
            words = f"the policy folder cannot be written: {error.strerror}"
            raise PolicyErrors([PolicyError(str(self.folder), words)]) from error

    def _judged(
        self, files: PolicyFiles, anew: bool
    ) -> tuple[PolicySet, tuple[Change, ...], dict[str, str]]:
        """The next generation, what is new in it, and what of it waits for a restart.

        Without news it is the next one only if `anew`. In a thread, with all that is derived from
        it: nobody waits for that later.
        """
        old = self._store.current
        new = judge(files, self._overrides)
        found = changes(old, new)
        number = self._newest + 1 if found or anew else old.generation
        numbered = replace(sharing(new, old), generation=number)
        numbered.work_out()
        now, start = _restart_values(numbered), self._at_start
        pending = {
            dotted(path): written(start[path])
            for path, value in now.items()
            if start[path] != value
        }
        return numbered, found, pending

    async def _prepare(self, new: PolicySet, back: ExitStack) -> list[Prepared]:
        prepared: list[Prepared] = []
        for applier in self._appliers:
            try:
                one = await applier.prepare(self._store.current, new)
            except PrepareFailed as failed:
                raise Obstacle([error_at(new, failed.key, failed.message)]) from failed
            back.callback(one.undo)
            prepared.append(one)
        return prepared

    def _planned(self, files: PolicyFiles, settings: tuple[Override, ...]) -> Plan:
        """In a thread."""
        old = self._store.current
        try:
            new = judge(files, (*settings, *self._overrides))
        except PolicyErrors as refused:
            return Plan(old, errors=refused.errors)
        return Plan(old, changes(old, new), policies=new)

    async def _remember(self, outcome: Outcome, changed: tuple[Change, ...]) -> None:
        """Keep the generation; one whose values stay keeps its story and gets the new text."""
        current, files = self._store.current, self._in_force
        generation = Generation(
            number=current.generation,
            folder=str(files.folder or ""),
            contents=files.contents,
            digest=current.digest,
            at=outcome.at,
            trigger=outcome.trigger,
            by=outcome.by,
            changes=tuple(change.as_json() for change in changed),
        )
        await self._remembering.remember(generation)

    def _tell(self, outcome: Outcome) -> None:
        for observer in self._observers:
            observer(outcome)

    def _outcome(
        self,
        trigger: Trigger,
        result: Result,
        began: float,
        *,
        by: str = "",
        changes: tuple[Change, ...] = (),
        errors: tuple[PolicyError, ...] = (),
    ) -> Outcome:
        self._attempts += 1
        return Outcome(
            id=self._attempts,
            trigger=trigger,
            result=result,
            generation=self._store.current.generation,
            etag=self._store.current.etag,
            at=self._clock.wall(),
            seconds=self._clock.monotonic() - began,
            changes=changes,
            errors=errors,
            by=by,
        )

    async def _settled(self, quiet: float) -> PolicyFiles:
        return await settled(self._observe, self._in_force, self._clock, quiet=quiet)

    async def _read(self) -> PolicyFiles:
        return (await self._observe(()))[1]

    async def _observe(self, names: Collection[str]) -> tuple[bool, PolicyFiles]:
        """See `settle.observe`. A disk that hangs holds one thread, and holds up nobody else."""
        try:
            if self._reading is None or self._reading.done():
                self._reading = self._threads.run(self._observed, names)
            async with within(self._clock, READ_SECONDS):
                return await asyncio.shield(self._reading)
        except TimeoutError:
            reason = f"no answer within {READ_SECONDS:g} s"
        except NoThread as error:
            reason = error.words
        folder = self._seen.folder
        return False, PolicyFiles(folder, failures={str(folder): reason})

    def _observed(self, names: Collection[str]) -> tuple[bool, PolicyFiles]:
        folder = self._seen.folder or self._find_folder()
        try:
            return observe(folder, names)
        except Exception:  # the edge: an edit that cannot be read must not go unnoticed
            log.exception("the policy folder could not be read: a defect")
            reason = "a defect of mlxd; the log has it"
            return False, PolicyFiles(folder, failures={str(folder): reason})


def _restart_values(policies: PolicySet) -> dict[KeyPath, Any]:
    """What the next start alone would put in force."""
    return {path: value for path, value in policies.leaves() if reload_class(path) == "restart"}
