"""The disk behind the store, as the loop and its requests see it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from mlxd.ipc.messages import TOKEN_BYTES, PrefixRules, WarmPrompt, packed
from mlxd.worker.engine import Prompt
from mlxd.worker.job import Fetched, Job
from mlxd.worker.prefix.disk import Disk, Restored
from mlxd.worker.prefix.fetching import Fetching
from mlxd.worker.prefix.keeping import Keeping, system_text
from mlxd.worker.prefix.report import WAITING_SHARE
from mlxd.worker.prefix.spill import is_worth_it
from mlxd.worker.prefix.store import Store
from mlxd.worker.sampling import greedy


class Backing:
    """On the engine's thread."""

    def __init__(
        self,
        store: Store,
        disk: Disk | None,
        keeping: Keeping,
        post: Callable[[Fetched], None],
    ) -> None:
        """`post` puts into the inbox, from any thread. Without a disk only `keeping` matters."""
        self._store = store
        self._disk = disk
        self._keeping = keeping
        self._post = post
        self._fetching = Fetching(post)
        self._unwanted: set[str] = set()
        self._warm: list[str] = []
        """Texts of system prompts that are read before anybody asks: they are kept, too."""
        if disk is not None:
            store.on_evict = lambda entry: disk.evicted(entry, store.limit // WAITING_SHARE)

    @property
    def keeps(self) -> bool:
        """Whether there is any room to keep something."""
        return self._store.keeps

    def wait(self, job: Job) -> bool:
        """Whether it waits for what is on disk for it."""
        if self._disk is None or not self.keeps:
            return False
        prompt = _prompt_of(job)
        known = self._store.reach(prompt)
        name = self._disk.find(prompt.ids, job.owner, beyond=known, most=self._store.limit)
        if name is None:
            return False
        if self._fetching.wait(job, name):
            self._disk.read(name, lambda read: self._post(Fetched(name, read)))
        return True

    def arrived(self, fetched: Fetched) -> list[Job]:
        """Those who have waited for it: what came is in the store now."""
        jobs = self._fetching.arrived(fetched.name)
        unwanted = fetched.name in self._unwanted
        self._unwanted.discard(fetched.name)
        if self._disk is not None and jobs and fetched.read is not None and not unwanted:
            restored = self._disk.restored(fetched.read)
            if restored is not None:
                self._adopt(restored)
        return jobs

    def forget(self) -> None:
        """What is on its way is not wanted any more; those who wait for it still wait."""
        self._unwanted = self._fetching.names()

    def distrust(self) -> None:
        """As `Disk.distrust`."""
        self.forget()
        if self._disk is not None:
            self._disk.distrust()

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits for what is on its way."""
        return len(self._fetching) > 0

    def leave(self, id: int) -> bool:
        """Whether it waited here; it no longer does."""
        return self._fetching.leave(id)

    def tend(self, *, idle: bool) -> bool:
        """Have what is worth it written. Says whether there is more to come."""
        if self._disk is None or self._disk.off:
            return False
        self._disk.tend(self._store, idle=idle)
        return any(map(is_worth_it, self._store))

    def apply(self, wanted: PrefixRules) -> None:
        """What leaves last, and how much there may be on disk."""
        if wanted.warm is not None:
            self._warm = list(_texts(wanted.warm))
        if self._keeping.apply([*wanted.keep, *self._warm]):
            self._store.rule(lambda entry: self._keeping.keeps(entry.ids))
        if self._disk is not None:
            self._disk.apply(wanted.disk_bytes, self._store)

    def close(self, seconds: float) -> None:
        """As `Disk.close`."""
        if self._disk is not None:
            self._disk.close(self._store, seconds)

    def _adopt(self, restored: Restored) -> None:
        if restored.kept:
            self._keeping.always(restored.ids)
        entry = self._store.adopt(
            restored.ids,
            restored.caches,
            restored.kind,
            restored.owner,
            len(restored.ids) // TOKEN_BYTES if restored.public else 0,
        )
        if entry is not None and entry.ids == restored.ids:
            entry.stored = True


def _prompt_of(job: Job) -> Prompt:
    """Enough of it to look for."""
    ids = job.packed + packed(job.earlier)
    tokens = job.tokens + job.earlier if job.earlier else job.tokens
    return Prompt(tokens, 1, greedy, owner=job.owner, ids=ids, shared=job.outline.shared)


def _texts(prompts: Iterable[WarmPrompt]) -> Iterator[str]:
    for warm in prompts:
        if text := system_text(warm.request):
            yield text
