"""The whole pull of one repository, on one page: list, fetch, verify, put in place."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from mlxd.core.manifest import File
from mlxd.hub.failure import PullFailure
from mlxd.hub.fetch import Fetcher, Stopped
from mlxd.hub.listing import Listing, Remote, list_model
from mlxd.hub.patience import Patience
from mlxd.hub.place import Place, no_space
from mlxd.hub.session import Hub
from mlxd.hub.telling import Telling
from mlxd.hub.weights import check_weights
from mlxd.ipc.pulling import Part, Planned, Pulled, Verifying, Writing

_AT_ONCE = 4
"""Files that are fetched side by side."""


@dataclass(frozen=True, slots=True)
class Pull:
    """One model, from a hub into the folder of pulled ones."""

    hub: Hub
    repo: str
    telling: Telling
    patience: Patience
    code: bool = False
    """Python files too."""

    def run(self, into: Path) -> None:
        """Have it in its place. Raises PullFailure."""
        place = Place(into, self.repo)
        try:
            with place.held():
                pulled = self._run(place)
                place.clear()
            self.telling.tell(pulled)
        except OSError as error:
            if no_space(error):
                words = f"the disk is full; {self.repo} goes on from here when it is not"
                raise PullFailure("no_space", words) from error
            raise PullFailure("refused", f"the disk refuses: {error.strerror}") from error

    def _run(self, place: Place) -> Pulled:
        listing = list_model(self.hub, self.repo, code=self.code, patience=self.patience)
        if place.is_there(listing):
            return Pulled(listing.revision, 0)
        parts = tuple(Part(file.name, file.size, file.digest) for file in listing.files)
        self.telling.tell(Planned(listing.revision, parts))
        place.reuse(listing)
        place.check_space(listing)
        came = self._fetch(place, listing)
        files = tuple(self._verified(place, file) for file in listing.files)
        self.telling.tell(Writing())
        place.put(listing, files)
        return Pulled(listing.revision, came)

    def _fetch(self, place: Place, listing: Listing) -> int:
        """All that is missing, several at once; the first failure ends it."""
        stop = Event()
        fetcher = Fetcher(self.hub, self.repo, listing.revision, self.patience, stop)
        different = {file.digest: file for file in listing.files}.values()
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="fetch") as threads:
            fetches = [
                threads.submit(
                    fetcher.fetch, file, place.blob(file),
                    self.telling.progress(file.digest, file.size),
                )
                for file in different
            ]  # fmt: skip
            for left in wait(fetches, return_when=FIRST_EXCEPTION).not_done:
                stop.set()
                left.cancel()
        return sum(fetch.result() for fetch in _culprits_first(fetches))

    def _verified(self, place: Place, file: Remote) -> File:
        self.telling.tell(Verifying(file.digest))
        verified = place.verify(file)
        if file.name.endswith(".safetensors"):
            check_weights(place.blob(file), file.name)
        return verified


def _culprits_first(fetches: Sequence[Future[int]]) -> list[Future[int]]:
    """Of those that failed, the one that stopped the others."""

    def was_stopped(fetch: Future[int]) -> bool:
        return fetch.cancelled() or isinstance(fetch.exception(), Stopped)

    return sorted(fetches, key=was_stopped)
