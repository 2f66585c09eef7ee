"""The first policies of a run: the folder's, or the last good ones where its files are broken."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mlxd.policy import rollback
from mlxd.policy.diff import Change, changes
from mlxd.policy.files import PolicyFiles, read
from mlxd.policy.history import Generation, History
from mlxd.policy.load import Override, PolicyError, PolicyErrors, judge
from mlxd.policy.policy_set import PolicySet
from mlxd.policy.store import PolicyStore

Demand = Callable[[PolicySet], None]


@dataclass(frozen=True, slots=True)
class Boot:
    """What a run starts with. The store alone holds the policies: a later set frees them."""

    store: PolicyStore
    files: PolicyFiles
    """Those in force."""
    seen: PolicyFiles
    """Those in the folder; the same, unless they are broken."""
    errors: tuple[PolicyError, ...] = ()
    """Why the folder's own files are not in force."""
    changes: tuple[Change, ...] = ()
    """What these files changed since the last run."""

    @property
    def policies(self) -> PolicySet:
        """Those in force now."""
        return self.store.current


def boot(
    folder: Path | None,
    overrides: Sequence[Override],
    history: History,
    *,
    strict: bool = False,
    demand: Demand = lambda _: None,
) -> Boot:
    """Raises PolicyErrors: the files are broken, and nothing good is known, or `strict`.

    `demand` judges what is beside the files: it raises PolicyErrors too. Nothing falls back then:
    the files say what is wanted.
    """
    history.tidy()
    rollback.finish(history)
    found = read(folder)
    try:
        policies = judge(found, overrides)
    except PolicyErrors as refused:
        known = None if strict else _last_good(folder, overrides, history, demand)
        if known is None:
            raise
        good, files = known
        return Boot(PolicyStore(good), files, found, refused.errors)
    demand(policies)
    last = next(history.newest_first(), None)
    if last is not None and last.digest == policies.digest:
        same = replace(policies, generation=last.number)
        return Boot(PolicyStore(same), found, found)
    following = replace(policies, generation=max(history.numbers(), default=0) + 1)
    edited = _edited(last, following, overrides)
    return Boot(PolicyStore(following), found, found, changes=edited)


def _last_good(
    folder: Path | None, overrides: Sequence[Override], history: History, demand: Demand
) -> tuple[PolicySet, PolicyFiles] | None:
    """The newest generation of the same folder that this version still accepts: one that lets
    clients in without a key only if the newest of all did.
    """
    needs_keys = False
    for generation in history.newest_first():
        if generation.folder != str(folder or ""):
            continue
        files = generation.files()
        try:
            policies = judge(files, overrides)
            if needs_keys and not policies.keys_required:
                continue
            needs_keys = policies.keys_required
            demand(policies)
        except PolicyErrors:
            continue
        return replace(policies, generation=generation.number, lkg=True), files
    return None


def _edited(
    last: Generation | None, policies: PolicySet, overrides: Sequence[Override]
) -> tuple[Change, ...]:
    """What the files changed since the last run: what that was told beside them is not known."""
    if last is None:
        return ()
    try:
        return changes(judge(last.files(), overrides), policies)
    except PolicyErrors:  # another version accepted them
        return ()
