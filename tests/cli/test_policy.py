"""`mlxd policy ...` on files alone: what it says, for people and programs, and its exit status."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlxd.cli import main
from mlxd.cli.policy import explain
from mlxd.policy.files import read
from mlxd.policy.history import Generation, history_of
from mlxd.policy.load import load
from tests.support.daemon import write_policies

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_policies(tmp_path / "policies", {"limits": "concurrency:\n  max_in_flight: 9\n"})


@pytest.fixture
def run(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str) -> tuple[int, str, str]:
        places = ["--policies", str(folder), "--state", str(tmp_path / "state")]
        status = main(["policy", *arguments, *places])
        said = capsys.readouterr()
        return status, said.out, said.err

    return call


def in_json(run: Run, *arguments: str) -> tuple[int, Any]:
    status, out, _ = run(*arguments, "--json")
    return status, json.loads(out)


def remember(tmp_path: Path, number: int, folder: Path) -> None:
    history_of(tmp_path / "state").record(
        Generation(
            number, str(folder), read(folder).contents, load(folder).digest, 0.0, "start", ""
        )
    )


def test_check_of_valid_files(run: Run, folder: Path) -> None:
    status, out, _ = run("check")
    assert status == 0
    assert out.startswith(f"{folder}: valid\n")
    status, report = in_json(run, "check")
    assert (status, report["valid"], report["errors"]) == (0, True, [])


def test_check_of_broken_files_says_everything_at_once(run: Run, folder: Path) -> None:
    write_policies(folder, {"limits": "concurrency:\n  max_waitin: 9\n", "server": "listen: x\n"})
    status, _, err = run("check")
    assert status == 2
    assert err.splitlines() == [
        "limits.yaml:3:3: limits.concurrency.max_waitin: unknown key; did you mean max_waiting?",
        'server.yaml:2:1: server.listen: expected a mapping, got "x"',
    ]
    status, report = in_json(run, "check")
    assert (status, report["valid"]) == (2, False)
    first = report["errors"][0]
    assert (first["file"], first["line"], first["column"]) == ("limits.yaml", 3, 3)
    assert first["key"] == "limits.concurrency.max_waitin"


def test_check_online_needs_a_daemon(run: Run) -> None:
    status, _, err = run("check", "--online")
    assert status == 1
    assert "no mlxd runs with the state folder" in err


def test_explain_a_value_and_a_group(run: Run) -> None:
    status, out, _ = run("explain", "limits.concurrency.max_in_flight")
    assert status == 0
    assert out.startswith(
        "limits.concurrency.max_in_flight: 9\n  set        policies/limits.yaml:3\n"
    )
    status, out, _ = run("explain", "server.drain")
    assert status == 0
    assert len(out.splitlines()) == 2
    status, report = in_json(run, "explain", "max_in_flight")
    assert report["values"][0]["default"] == "5"


def test_explain_an_unknown_key_names_the_nearest(run: Run) -> None:
    status, _, err = run("explain", "limits.concurrency.max_in_fligth")
    assert status == 2
    assert "did you mean limits.concurrency.max_in_flight" in err


def test_explain_says_the_first_of_many_reasons_why_an_edit_is_refused(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = [{"text": f"limits.yaml:{n}"} for n in range(300)]
    daemon = SimpleNamespace(get=lambda *_, **__: {"values": [], "errors": errors})
    monkeypatch.setattr(explain, "here", lambda *_: SimpleNamespace(follower=lambda: daemon))
    status, _, err = run("explain", "limits")
    assert status == 0
    assert len(err.splitlines()) == 11
    assert err.endswith("refused: for 290 more reasons: mlxd policy check tells all\n")


def test_diff_against_the_defaults(run: Run) -> None:
    status, out, _ = run("diff")
    assert status == 1
    assert out == (
        "~ limits.concurrency.max_in_flight: 5 -> 9  (live-drain, policies/limits.yaml:3)\n"
    )
    status, report = in_json(run, "diff", "defaults", "disk")
    assert (status, report["changes"][0]["new"]) == (1, "9")
    assert run("diff", "disk", "disk")[:2] == (0, "no value differs\n")


def test_diff_between_generations(run: Run, folder: Path, tmp_path: Path) -> None:
    remember(tmp_path, 1, folder)
    write_policies(folder, {"limits": "concurrency: {max_in_flight: 4}\n"})
    remember(tmp_path, 2, folder)
    status, out, _ = run("diff", "1", "2")
    assert status == 1
    assert "9 -> 4" in out
    assert run("diff", "1", "7")[0] == 2
    assert run("diff", "yesterday", "7")[0] == 2


def test_history_is_read_without_a_daemon(run: Run, folder: Path, tmp_path: Path) -> None:
    assert "no generation is kept" in run("history")[1]
    remember(tmp_path, 1, folder)
    status, out, _ = run("history")
    assert status == 0
    assert out.split() == ["1", "1970-01-01T00:00:00Z", "start", "limits.yaml"]
    assert in_json(run, "history")[1]["history"][0]["generation"] == 1


class TestPlan:
    def test_of_an_edited_copy(self, run: Run, tmp_path: Path) -> None:
        copy = write_policies(tmp_path / "copy", {"limits": "concurrency: {max_in_flight: 2}\n"})
        status, out, _ = run("plan", str(copy / "limits.yaml"))
        assert status == 0
        assert out.startswith("~ limits.concurrency.max_in_flight: 9 -> 2  (live-drain, ")
        assert "no daemon runs" in out

    def test_of_single_values(self, run: Run) -> None:
        status, report = in_json(run, "plan", "--set", "models.preload=['a:7b', b]")
        assert status == 0
        assert report["changes"][0]["new"] == "[a:7b, b]"

    def test_that_would_be_refused(self, run: Run) -> None:
        status, _, err = run("plan", "--set", "limits.concurrency.max_in_flight=none")
        assert status == 2
        assert err.startswith("--set: limits.concurrency.max_in_flight: expected an integer >= 1")
        status, report = in_json(run, "plan", "--set", "timeouts.queue=5")
        assert (status, report["valid"]) == (2, False)
        assert "write the unit" in report["errors"][0]["message"]

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["/nowhere/limits.yaml"], "cannot be read"),
            (["/nowhere/limit.yaml"], "call it like the file it would replace"),
            (["--set", "max_in_flight"], "expected KEY=VALUE"),
            (["--set", "limits.rate_limit[0].requests=3"], "an item of a list"),
            (["--set", "=5"], "expected KEY=VALUE"),
            (["--set", ".=5"], "expected KEY=VALUE"),
            (["--set", "limits.concurrency.max_in_flight.x=1"], "holds no other keys"),
            (["--set", "limits.concurrency.per_model.qwen2.5:7b=2"], "--set: limits.concurrency"),
            (["--set", "limits.concurrency.max_in_flight=2\nfoo: 3"], "one value in YAML"),
            (["/dev/null/limits.yaml"], "cannot be read"),
        ],
    )
    def test_that_cannot_be_understood(self, run: Run, arguments: list[str], words: str) -> None:
        status, _, err = run("plan", *arguments)
        assert status == 2
        assert words in err


def test_a_plan_of_two_files_of_one_name_is_refused(run: Run, tmp_path: Path) -> None:
    files = [
        str(write_policies(tmp_path / name, {"limits": "tokens: {}\n"}) / "limits.yaml")
        for name in ("a", "b")
    ]
    status, _, err = run("plan", *files)
    assert status == 2
    assert "another limits.yaml was given already" in err


@pytest.mark.parametrize("key", ["[", "]", "nope.nope", "", "limits", "\udcff"])
def test_explain_never_ends_in_a_trace(run: Run, key: str) -> None:
    assert run("explain", key)[0] in (0, 2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["explain", "nope.nope"], "there is no policy nope.nope"),
        (["diff", "yesterday"], "expected running, disk, defaults or a generation's number"),
        (["diff", "7"], "generation 7 is not kept"),
        (["plan", "--set", "x"], "expected KEY=VALUE"),
        (["schema", "limit"], "there is no policy file limit"),
        (["plan", "/nowhere/limits.yaml"], "cannot be read"),
    ],
)
def test_programs_are_told_in_json_what_cannot_be_understood(
    run: Run, arguments: list[str], words: str
) -> None:
    status, report = in_json(run, *arguments)
    assert (status, report["status"]) == (2, 400)
    assert words in report["error"]
    assert words in run(*arguments)[2]


def test_diff_of_an_endless_number_is_no_trace(run: Run) -> None:
    assert run("diff", "9" * 5000)[0] == 2


@pytest.mark.parametrize("arguments", [["reload"], ["rollback", "1"]])
def test_changing_needs_a_daemon(run: Run, arguments: list[str]) -> None:
    status, _, err = run(*arguments)
    assert status == 1
    assert "no mlxd runs with the state folder" in err
    status, report = in_json(run, *arguments)
    assert (status, list(report)) == (1, ["error", "status"])


def test_schema_of_one_file_and_of_all(run: Run) -> None:
    status, out, _ = run("schema", "limits")
    assert status == 0
    assert json.loads(out)["properties"]["concurrency"]
    assert set(json.loads(run("schema")[1])) >= {"limits", "supervision"}
    status, _, err = run("schema", "limit")
    assert status == 2
    assert "known are" in err


def test_tests_pass_fail_or_are_wrong(run: Run, folder: Path) -> None:
    tests = folder / "tests"
    tests.mkdir()
    case = (
        "schema: mlxd-test/v1\ntests:\n  - name: nine run\n    steps:\n"
        "      - {{at: 0s, start: {{n: {n}}}, expect: {{status: 200}}}}\n"
    )
    (tests / "mine.yaml").write_text(case.format(n=9))
    status, out, _ = run("test")
    assert status == 0
    assert "1 passed, 0 failed" in out
    (tests / "mine.yaml").write_text(case.format(n=10))
    assert in_json(run, "test")[0] == 1
    (tests / "mine.yaml").write_text("schema: mlxd-test/v1\ntests: [{nam: x}]\n")
    status, _, err = run("test", str(tests / "mine.yaml"))
    assert status == 2
    assert "mine.yaml:2:" in err


@pytest.mark.parametrize("port", ["11499", "none"])
def test_tests_are_of_the_folder_whatever_is_set_over_it(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, port: str
) -> None:
    (folder / "tests").mkdir()
    (folder / "tests" / "mine.yaml").write_text(
        "schema: mlxd-test/v1\ntests:\n  - name: where it listens\n    steps:\n"
        "      - check: {server.listen.port: 11435, server.listen.host: 127.0.0.1}\n"
    )
    (folder / "mlxd.env").write_text("MLXD_HOST=0.0.0.0\n")
    monkeypatch.setenv("MLXD_PORT", port)
    status, out, err = run("test")
    assert (status, err) == (0, "")
    assert "1 passed, 0 failed" in out


def test_init_writes_files_that_their_own_schemas_and_tests_accept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "new"
    assert main(["policy", "init", "--policies", str(folder)]) == 0
    capsys.readouterr()
    for file in folder.glob("*.yaml"):
        schema = file.read_text().splitlines()[0].partition("$schema=")[2]
        assert (folder / schema).is_file()
    assert main(["policy", "test", "--policies", str(folder), "--state", str(tmp_path)]) == 0
    assert main(["policy", "check", "--policies", str(folder), "--state", str(tmp_path)]) == 0
