"""Objectives: read strictly, each wrong thing at its line; judged one by one."""

from __future__ import annotations

import pytest

from mlxd.policy.load import PolicyErrors
from mlxd.simulate.traffic.expect import judge, parse
from mlxd.simulate.traffic.outcome import Outcome
from mlxd.simulate.traffic.report import Side

HEAD = "schema: mlxd-expect/v1\nexpect:\n"


def after() -> Side:
    agents = [Outcome("agents", "high", "tiny", "", float(n), n + 0.5) for n in range(10)]
    people = [Outcome("people", "low", "big", "queue_full") for _ in range(1)]
    people += [Outcome("people", "low", "big", "", 0.25, 0.5, loaded=True) for _ in range(3)]
    return Side("", [*agents, *people], 0, 0)


def verdicts(*lines: str) -> list[str]:
    text = HEAD + "".join(f"  - {line}\n" for line in lines)
    return [str(one) for one in judge(parse(text.encode(), "e.yaml"), after())]


@pytest.mark.parametrize(
    "line",
    [
        '{ttft_p99: "<=9.5s"}',
        '{tenant: agents, class: high, wait_p50: "<4001ms", wait_p99: "<9.5s"}',
        '{tenant: people, refused: "<=25%", served: ">= 75%", requests: "=4", loads: "<4"}',
        '{tenant: agents, refused: "=0%"}',
        '{model: big, ttft_p50: "<1s"}',
        '{requests: ">10"}',
    ],
)
def test_what_holds(line: str) -> None:
    assert all(one.startswith("held ") for one in verdicts(line))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            '{tenant: agents, class: high, ttft_p99: "<2s"}',
            "MISSED  e.yaml:3: tenant agents, class high: ttft_p99 <2s: 9.5 s, 7.5 s over",
        ),
        ('{refused: "<1%"}', "MISSED  e.yaml:3: all requests: refused <1%: 7.14 %, 6.14 % over"),
        ('{served: ">95%"}', "MISSED  e.yaml:3: all requests: served >95%: 92.9 %, 2.14 % under"),
        (
            '{tenant: agent, wait_p50: "<9s"}',
            "MISSED  e.yaml:3: tenant agent: wait_p50 <9s: no such request was measured",
        ),
        (
            '{tenant: agent, refused: "<1%"}',
            "MISSED  e.yaml:3: tenant agent: refused <1%: no such request was measured",
        ),
    ],
)
def test_what_is_missed_and_by_how_much(line: str, words: str) -> None:
    assert verdicts(line) == [words]


def test_every_bound_of_every_objective_is_judged() -> None:
    told = verdicts('{wait_p50: "<0.1s", ttft_p50: "<100s"}', '{requests: "=14"}')
    assert [one[:13] for one in told] == ["MISSED  e.yam", "held    e.yam", "held    e.yam"]
    assert "e.yaml:4:" in told[2]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the file is empty"),
        ("expect: []\n", "schema: expected mlxd-expect/v1, it is missing"),
        ("schema: mlxd-test/v1\nexpect: [{loads: '=0'}]\n", 'got "mlxd-test/v1"'),
        ("schema: mlxd-expect/v1\n", "missing: expected a list of objectives"),
        (HEAD.replace("expect:", "expects:") + "  - {}\n", "did you mean expect?"),
        (HEAD + "  - {tenant: a}\n", "e.yaml:3:5: expect[0]: it expects nothing"),
        (HEAD + "  - {wait_p5: '<1s'}\n", "unknown key; did you mean wait_p50?"),
        (HEAD + "  - {wait_p50: 2s}\n", 'expected a comparison with a duration, such as "<2s"'),
        (HEAD + "  - {wait_p50: '<2'}\n", 'expected a comparison with a duration, such as "<2s"'),
        (HEAD + "  - {refused: '<1'}\n", 'expected a comparison with a share, such as "<1%"'),
        (HEAD + "  - {refused: '<101%'}\n", 'expected a comparison with a share, such as "<1%"'),
        (HEAD + "  - {loads: '<1.5'}\n", 'expected a comparison with a number, such as "<=10"'),
        (HEAD + "  - {class: urgent, loads: '=0'}\n", "expected high, medium or low"),
        (HEAD + "  - {klass: low, loads: '=0'}\n", "unknown key; did you mean class?"),
        (HEAD + "  - loads\n", 'expected a mapping, got "loads"'),
        (HEAD + "  - {loads: '=0'}\n  - {loads: '=0', loads: '=1'}\n", "e.yaml:4"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_place(text: str, words: str) -> None:
    with pytest.raises(PolicyErrors) as refused:
        parse(text.encode(), "e.yaml")
    assert words in str(refused.value)
    assert str(refused.value).startswith("e.yaml")


def test_of_what_is_no_yaml_nothing_else_is_said() -> None:
    with pytest.raises(PolicyErrors) as refused:
        parse(b"schema: [\n", "e.yaml")
    (only,) = refused.value.errors
    assert only.message.startswith("not valid YAML")
