"""One test of many small cases: each made a test would cost more than what is tested."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

Case = TypeVar("Case")


def each(
    cases: Iterable[Case], called: Callable[[Case], str] = str
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run a test with each case as its first argument; all that fail are told, with their names.

    Not for one that changes what its fixtures give: the cases share them.
    """
    known = list(cases)
    assert known, "nothing would be tested"

    def whole(test: Callable[..., None]) -> Callable[..., None]:
        def run(**fixtures: Any) -> None:
            failed: list[Exception] = []
            for case in known:
                try:
                    test(case, **fixtures)
                except Exception as error:  # noqa: BLE001 - all of them are told, below
                    error.add_note(f"of {called(case)}")
                    failed.append(error)
            if failed:
                raise ExceptionGroup(f"{len(failed)} of {len(known)} cases", failed)

        _, *others = inspect.signature(test).parameters.values()
        run.__name__, run.__doc__, run.__module__ = test.__name__, test.__doc__, test.__module__
        run.__signature__ = inspect.Signature(others)  # type: ignore[attr-defined]
        return run

    return whole
