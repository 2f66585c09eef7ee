"""Names of models as an operator writes them, found by the models that they speak of."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from mlxd.core.models import canonical
from mlxd.core.short_names import short_key, short_name


class WrittenNames:
    """Some names, each worked out once: there may be hundreds, of hundreds of models.

    The whole name counts before its last part, that before the short name; of those in `whole`
    nothing else does. Of several that count alike it is the first by the alphabet: the order in a
    file says nothing.
    """

    def __init__(self, written: Iterable[str], whole: Collection[str] = ()) -> None:
        self._exact: dict[str, str] = {}
        self._free: dict[str, str] = {}
        self._short: dict[str, str] = {}
        for one in sorted(written):
            key = canonical(one)
            self._exact.setdefault(key, one)
            if one not in whole:
                self._free.setdefault(key, one)
                self._short.setdefault(short_key(key), one)

    def of(self, name: str) -> str | None:
        """The one that speaks of a model, as it is written."""
        wanted = canonical(name)
        found = self._exact.get(wanted) or self._free.get(wanted.rpartition("/")[2])
        if found is not None or not self._short:
            return found
        return self._short.get(short_key(short_name(wanted)))
