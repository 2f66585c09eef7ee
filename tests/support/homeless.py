"""A user without a home, as a container may have one."""

from __future__ import annotations

import pwd

import pytest


def homeless(patch: pytest.MonkeyPatch) -> None:
    """No HOME, and an id that is no account."""

    def none(uid: int) -> object:
        raise KeyError(uid)

    patch.delenv("HOME", raising=False)
    patch.setattr(pwd, "getpwuid", none)
