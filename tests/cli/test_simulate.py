"""`mlxd policy simulate`: what it says, for people and programs, and its exit status."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mlxd.cli import main
from mlxd.daemon.traffic import FOLDER
from tests.support.daemon import write_policies
from tests.support.traffic import opening, refused, served, write

Run = Callable[..., tuple[int, str, str]]
LINES = [
    served(0.0, tenant="agents"),
    refused(0.1, "overloaded", 503, tenant="agents"),
    served(9.0, address="b", wished="low", klass="low"),
]


@pytest.fixture
def new(tmp_path: Path) -> Path:
    text = "concurrency:\n  max_in_flight: 1\n  max_waiting: 5\n"
    return write_policies(tmp_path / "new", {"limits": text})


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return write(tmp_path / "log.jsonl", LINES)


@pytest.fixture
def run(new: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str) -> tuple[int, str, str]:
        places = ["--policies", str(new), "--state", str(tmp_path / "state")]
        status = main(["policy", "simulate", *arguments, *places])
        said = capsys.readouterr()
        return status, said.out, said.err

    return call


def test_before_is_what_was_recorded(run: Run, log: Path, new: Path) -> None:
    status, out, err = run("--traffic", str(log))
    assert (status, err) == (0, "")
    assert f"before: as it was; after: simulated under {new}" in out
    lines = out.splitlines()
    agents = next(n for n, line in enumerate(lines) if line.startswith("agents"))
    before, after = lines[agents], lines[agents + 1]
    assert before.endswith("overloaded 1")
    assert after.split()[:3] == ["after", "2", "2"]


def test_before_may_be_other_policies(run: Run, log: Path, tmp_path: Path) -> None:
    two = {"limits": "concurrency:\n  max_in_flight: 2\n"}
    old = write_policies(tmp_path / "old", two)
    status, out, _ = run("--traffic", str(log), "--baseline", str(old), "--json")
    told = json.loads(out)
    assert (status, told["before"]["name"]) == (0, f"simulated under {old}")
    everybody = told["groups"][-1]
    assert (everybody["before"]["wait_p99"], everybody["after"]["wait_p99"]) == (0.0, 2.4)


def test_the_state_folders_log_is_the_one_without_a_name(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "state" / FOLDER
    folder.mkdir(parents=True)
    write(folder, LINES)
    status, out, _ = run("--json")
    assert (status, json.loads(out)["requests"]) == (0, 3)


def test_an_objective_that_is_missed_fails(run: Run, log: Path, tmp_path: Path) -> None:
    expect = tmp_path / "expect.yaml"
    expect.write_text(
        "schema: mlxd-expect/v1\nexpect:\n"
        '  - {tenant: agents, wait_p99: "<3s", refused: "=0%"}\n'
        '  - {ttft_p99: "<2s"}\n'
    )
    status, out, _ = run("--traffic", str(log), "--expect", str(expect))
    assert status == 1
    assert out.splitlines()[-3:] == [
        f"held    {expect}:3: tenant agents: wait_p99 <3s: 2.4 s",
        f"held    {expect}:3: tenant agents: refused =0%: 0 %",
        f"MISSED  {expect}:4: all requests: ttft_p99 <2s: 2.9 s, 900 ms over",
    ]
    status, out, _ = run("--traffic", str(log), "--expect", str(expect), "--json")
    told = json.loads(out)
    assert (status, told["held"]) == (1, False)
    assert [one["held"] for one in told["expect"]] == [True, True, False]
    expect.write_text(expect.read_text().replace("<2s", "<3s"))
    assert run("--traffic", str(log), "--expect", str(expect))[0] == 0


def test_a_picture_on_request(run: Run, log: Path, tmp_path: Path) -> None:
    image = tmp_path / "day.svg"
    assert run("--traffic", str(log), "--image", str(image))[0] == 0
    assert image.read_text().startswith("<svg ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--traffic", "{tmp}/gone"], "gone: cannot be read: No such file"),
        (["--traffic", "{tmp}"], "there is no traffic.jsonl in this folder"),
        (["--traffic", "{tmp}/log.jsonl", "--expect", "{tmp}/gone"], "gone: cannot be read"),
        (["--traffic", "{tmp}/log.jsonl", "--expect", "{tmp}/log.jsonl"], "log.jsonl:2"),
        (["--traffic", "{tmp}/log.jsonl", "--baseline", "{tmp}/gone"], "gone"),
        (["--traffic", "{tmp}/log.jsonl", "--image", "day.png"], "expected a name that ends with"),
        (["--traffic", "{tmp}/log.jsonl", "--image", "{tmp}/no/day.svg"], "cannot be written"),
    ],
)
def test_what_is_wrong_is_said(
    run: Run, log: Path, tmp_path: Path, arguments: list[str], words: str
) -> None:
    places = [argument.format(tmp=tmp_path) for argument in arguments]
    status, out, err = run(*places)
    assert (status, out) == (2, "")
    assert words in err
    status, out, _ = run(*places, "--json")
    assert (status, json.loads(out)["valid"]) == (2, False)


def test_wrong_policies_are_refused(run: Run, log: Path, new: Path) -> None:
    write_policies(new, {"limits": "concurrency:\n  max_waitin: 9\n"})
    status, _, err = run("--traffic", str(log))
    assert status == 2
    assert "limits.concurrency.max_waitin: unknown key" in err


def test_long_logs_show_how_far_it_is(run: Run, tmp_path: Path) -> None:
    many = [refused(n / 10, judged=None) for n in range(20_000)]
    file = write(tmp_path / "many", many, opening(models={}))
    status, _, err = run("--traffic", str(file))
    assert status == 0
    assert err.splitlines()[0] == "read 20000"
    assert err.splitlines()[-1] == "simulated 20000"
