"""Test files are read strictly, and what is wrong with one is said all at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlxd.policy.load import PolicyErrors
from mlxd.simulate.cases import parse, read
from mlxd.simulate.steps import Call, Start

DATA = Path(__file__).parent.parent / "data" / "policy-tests"
BAD = sorted(DATA.glob("*.bad.yaml"))


@pytest.mark.parametrize("bad", BAD, ids=lambda file: file.name.removesuffix(".bad.yaml"))
def test_a_wrong_file_is_refused_in_these_words(bad: Path) -> None:
    with pytest.raises(PolicyErrors) as refused:
        parse(bad.read_bytes(), "t.yaml")
    assert str(refused.value) == bad.with_suffix(".txt").read_text().rstrip("\n")


def test_there_are_wrong_files_of_every_kind() -> None:
    assert len(BAD) >= 9


def test_a_file_that_cannot_be_read_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(PolicyErrors) as refused:
        read(tmp_path / "none.yaml")
    assert (
        str(refused.value) == f"{tmp_path / 'none.yaml'}: cannot be read: No such file or directory"
    )
    with pytest.raises(PolicyErrors, match="cannot be read"):
        read(tmp_path)


def test_a_step_without_a_time_follows_the_one_before() -> None:
    text = """
schema: mlxd-test/v1
tests:
  - name: x
    steps:
      - {start: {}}
      - {at: 5s, call: {n: 3, every: 2s}}
      - {start: {}}
      - {at: 1m, start: {}}
"""
    (case,) = parse(text.encode(), "t.yaml")
    assert [step.at for step in case.steps] == [0.0, 5.0, 9.0, 60.0]
    assert [type(step.kind) for step in case.steps] == [Start, Call, Start, Start]
    assert case.place(case.steps[1].path).line == 7


def test_a_step_may_follow_calls_whose_times_are_no_binary_fractions() -> None:
    text = """
schema: mlxd-test/v1
tests:
  - name: x
    steps:
      - {call: {n: 4, every: 100ms}}
      - {at: 300ms, start: {}}
"""
    (case,) = parse(text.encode(), "t.yaml")
    assert [step.at for step in case.steps] == [0.0, 0.3]
