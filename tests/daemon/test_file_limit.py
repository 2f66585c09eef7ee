"""How many files may be open, on systems that refuse too much."""

from __future__ import annotations

import resource

import pytest

from mlxd.daemon.file_limit import raise_file_limit

BOUNDLESS = resource.RLIM_INFINITY


class System:
    """Takes no more than `most`."""

    def __init__(self, soft: int, hard: int, most: int) -> None:
        self.limits = (soft, hard)
        self.most = most

    def get(self, _what: int) -> tuple[int, int]:
        return self.limits

    def set(self, _what: int, limits: tuple[int, int]) -> None:
        if limits[0] > self.most:
            raise ValueError("Invalid argument")
        self.limits = limits


@pytest.mark.parametrize(
    ("soft", "hard", "most", "found", "warns"),
    [
        (256, BOUNDLESS, 10**9, 65536, False),
        (256, BOUNDLESS, 61440, 61440, False),
        (256, BOUNDLESS, 49152, 24576, False),
        (256, BOUNDLESS, 10240, 10240, False),
        (256, BOUNDLESS, 5000, 4096, False),
        (256, BOUNDLESS, 300, 256, True),
        (1024, BOUNDLESS, 300, 1024, False),
        (1024, 524288, 10**9, 524288, False),
        (256, 524288, 10240, 10240, False),
        (256, 512, 10**9, 512, True),
        (100000, BOUNDLESS, 10**9, 100000, False),
        (BOUNDLESS, BOUNDLESS, 10**9, BOUNDLESS, False),
    ],
)
def test_it_is_raised_as_far_as_the_system_goes(
    soft: int, hard: int, most: int, found: int, warns: bool
) -> None:
    system = System(soft, hard, most)
    warnings = raise_file_limit(system.get, system.set)
    assert system.limits == (found, hard)
    assert len(warnings) == warns
    assert all(str(found) in words for words in warnings)
