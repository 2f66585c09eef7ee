"""What was answered wrongly once is answered as it should be; and a short look for more.

`python benchmarks/fuzz.py` looks for longer, and `--keep` puts what it finds into tests/data/fuzz.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import pytest

from tests.fuzz import target as limits
from tests.fuzz.hunt import Hunt
from tests.fuzz.register import CORPUS, ENGINE, NAMES, corpus, target_of
from tests.fuzz.target import Target, flaw_of

CASES = 150
"""Of each target, beside its seeds: a look, no search."""
_FEWER = {
    "policies": 30, "policy_tests": 60, "templates": 60, "tool_calls": 40, "openai": 60, "keys": 60,
}  # fmt: skip


@pytest.fixture(
    scope="module", params=[pytest.param(n, marks=[pytest.mark.mlx] * (n in ENGINE)) for n in NAMES]
)
def target(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Target]:
    with target_of(request.param, tmp_path_factory.mktemp(request.param)) as made:
        yield made


def test_what_was_found_once_stays_mended(target: Target) -> None:
    flaws = {file.name: flaw_of(target, file.read_bytes()) for file in corpus(target.name)}
    assert not {name: flaw for name, flaw in flaws.items() if flaw}


def test_a_short_look_finds_nothing(target: Target) -> None:
    hunt = Hunt(target, seed=20)
    count = len(target.seeds) + _FEWER.get(target.name, CASES)
    for _ in islice(hunt.run(), count):
        pass
    assert hunt.cases == count
    assert not {finding.flaw: finding.case for finding in hunt.findings.values()}


def test_every_kept_case_has_a_target() -> None:
    assert {folder.name for folder in CORPUS.iterdir() if folder.is_dir()} <= {*NAMES}


def broken(case: bytes) -> None:
    """Reads in every wrong way, by the first letter."""
    match case[:1]:
        case b"c":
            raise KeyError("x")
        case b"w":
            raise ValueError("x" * 5000)
        case b"l":
            raise ValueError("File /home/x/y.py")
        case b"t":
            while True:
                pass
        case b"m":
            assert b"x" * 2**28
        case b"r":
            raise ValueError("no")
        case _:
            pass


@pytest.mark.parametrize(
    ("case", "flaw"),
    [
        (b"c", "KeyError in fuzz/test_corpus.py"),
        (b"w", "a refusal of 5000 characters"),
        (b"l", "a refusal that says '/home/'"),
        (b"t", "takes more than 0.2 s"),
        (b"m", "takes more than 16 MiB"),
        (b"r", ""),
        (b"", ""),
    ],
)
def test_what_is_wrong_is_seen(case: bytes, flaw: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MOST_SECONDS", 0.1)
    monkeypatch.setattr(limits, "MOST_GROWTH", 2**24)
    found = flaw_of(Target("broken", broken, (ValueError,), [case]), case)
    assert found.startswith(flaw)
    assert bool(found) == bool(flaw)


def test_a_hunt_finds_what_seeds_do_not_have() -> None:
    def run(case: bytes) -> None:
        if b"ab" in case and len(case) > 4:
            raise KeyError

    hunt = Hunt(Target("made", run, (), [b"ax", b"yb"], [b"abc"], ("/tests/fuzz/",)), seed=1)
    for _ in islice(hunt.run(), 500):
        pass
    [finding] = hunt.findings.values()
    assert len(finding.case) == 5, "it is made as short as it can be"
    assert b"ab" in finding.case
