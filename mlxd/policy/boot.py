"""The first policies of a run: the folder's, or the last good ones where its files are broken."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mlxd.policy import rollback
from mlxd.policy.files import PolicyFiles, read
from mlxd.policy.history import History
from mlxd.policy.load import Override, PolicyError, PolicyErrors, PolicySet, judge
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
    numbered = replace(policies, generation=_number(policies, history))
    return Boot(PolicyStore(numbered), found, found)


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


def _number(policies: PolicySet, history: History) -> int:
    """The same values as in the last run are the same generation; others are the next one."""
    last = next(iter(history.newest_first()), None)
    if last is not None and last.digest == policies.digest:
        return last.number
    return max(history.numbers(), default=0) + 1
