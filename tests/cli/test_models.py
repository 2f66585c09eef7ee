"""`mlxd models`, pull, cp, ps, load, unload: what a person sees, and what a program gets."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlxd.cli.models import fit, words
from mlxd.cli.models.pull import Told
from mlxd.core.counts import short
from tests.support import command
from tests.support.daemon import Daemon, daemon
from tests.support.hub import Hub, hub
from tests.support.model_maker import Shape, make_model

Json = dict[str, Any]
REPO = "mlx-community/Llama-3.2-3B-Instruct-4bit"
SHORT = "llama3.2:3b"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def part(completed: int, total: int = 2**30) -> Json:
    return {"status": "pulling abc", "digest": "sha256:abc", "total": total, "completed": completed}


class TestWords:
    def test_sizes_counts_and_durations(self) -> None:
        assert [words.size(n) for n in (7, 2**14, 3 * 2**20, 20.25 * 2**30)] == [
            "7 B", "16 KiB", "3 MiB", "20.2 GiB",
        ]  # fmt: skip
        assert [short(n) for n in (7, 32_800_000_000)] == ["7", "32.8B"]
        assert [words.duration(s) for s in (3, 120, 135, 7500)] == [
            "3 s", "2 min", "2 min 15 s", "2 h 5 min",
        ]  # fmt: skip

    def test_columns_are_as_wide_as_they_must_be(self) -> None:
        assert [*words.columns([("a", "b"), ("long", "")])] == ["a     b", "long"]


class TestProgress:
    def test_a_terminal_sees_one_line_that_moves(self) -> None:
        out, times = Terminal(), iter([0.0, 2.0])
        told = Told("m", out, lambda: next(times))
        told.tell({"status": "pulling manifest"})
        told.tell(part(0))
        told.tell(part(2**29))
        assert out.getvalue().count("\n") == 0
        assert out.getvalue().endswith("m: 50 % of 1.0 GiB, 256 MiB/s, 2 s left")
        told.tell({"status": "success"})
        assert out.getvalue().endswith("\r\x1b[Km is there, 1.0 GiB\n")

    def test_a_log_gets_a_line_now_and_then(self) -> None:
        out = io.StringIO()
        told = Told("m", out)
        told.tell({"status": "pulling manifest"})
        for percent in range(101):
            told.tell(part(percent, 100))
        for status in ("verifying sha256 digest", "verifying sha256 digest", "success"):
            told.tell({"status": status})
        lines = out.getvalue().splitlines()
        assert lines[:3] == ["m: pulling manifest", "m: 10 % of 100 B", "m: 20 % of 100 B"]
        assert lines[-3:] == [
            "m: 100 % of 100 B",
            "m: verifying sha256 digest",
            "m is there, 100 B",
        ]
        assert len(lines) == 13

    def test_an_error_begins_a_line(self) -> None:
        out = Terminal()
        told = Told("m", out, lambda: 0.0)
        told.tell(part(1))
        told.end()
        assert out.getvalue().endswith("\n")


REPORT: Json = {
    "model": "m", "verdict": "fits_after_eviction", "needed_bytes": 20 * 2**30,
    "available_bytes": 24 * 2**30, "context": 32768, "longest_context": 65536,
    "evicts": ["a", "b"], "wait_seconds": None, "confidence": "learned", "observations": 12,
    "error_percent": 4.4, "reason": "", "policy": None,
}  # fmt: skip


class TestFit:
    """`residency.fit` is played: the report is what it would say."""

    class Played:
        def __init__(self, report: Json) -> None:
            self.report = report
            self.asked: Json = {}

        def post(self, target: str, body: Json) -> Json:
            self.asked = body
            return self.report

    def seen(
        self,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        **changes: object,
    ) -> tuple[int, str]:
        played = self.Played(REPORT | changes)
        monkeypatch.setattr(fit, "asking", lambda p, s, ask, *, as_json: ask(played))
        status = fit.fit(None, None, "m", 32768, as_json=False)
        assert played.asked == {"model": "m", "context": 32768}
        return status, capsys.readouterr().out

    def test_it_is_said_in_plain_words(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        status, text = self.seen(capsys, monkeypatch)
        assert status == 0
        assert text.splitlines() == [
            "m fits, once others have left",
            "  needs            20.0 GiB for its weights and 32768 tokens of prompt and answer",
            "  available        24.0 GiB",
            "  would unload     a, b",
            "  longest context  65536 tokens",
            "  sure             corrected by 12 runs, off by 4 % on average",
        ]

    def test_what_never_fits_is_exit_status_1(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        status, text = self.seen(
            capsys, monkeypatch, verdict="never", longest_context=0, evicts=[],
            confidence="computed", error_percent=None, reason="memory has 16 GiB in all",
        )  # fmt: skip
        assert status == 1
        assert "m does not fit on this machine: memory has 16 GiB in all" in text
        assert "none: its weights alone do not fit" in text
        assert "no run of it has been measured yet" in text

    def test_the_line_that_decides_is_named(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        line = {"key": "models.max_loaded", "value": "1", "place": "policies/models.yaml:4"}
        text = self.seen(capsys, monkeypatch, verdict="fits_after_wait", policy=line)[1]
        assert "  policy           models.max_loaded: 1 (policies/models.yaml:4)" in text

    def test_a_wait_is_told(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        text = self.seen(capsys, monkeypatch, verdict="fits_after_wait", wait_seconds=25.0)[1]
        assert "  waits            25 s" in text
        text = self.seen(capsys, monkeypatch, verdict="fits_after_wait")[1]
        assert "until a model is not used any more" in text


def test_without_a_daemon_it_says_how_to_have_one(tmp_path: Path) -> None:
    done = call(tmp_path, "ps")
    assert done.returncode == 1
    assert "start it with: mlxd serve" in done.stderr
    assert json.loads(call(tmp_path, "ps", "--json").stdout)["status"] == 0


@pytest.mark.parametrize(
    "arguments",
    [("models",), ("models", "show"), ("models", "fit", "m", "--context", "0"), ("cp", "a")],
)
def test_wrong_usage_is_exit_status_2(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    assert call(tmp_path, *arguments).returncode == 2


def call(state: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return command.mlxd(*arguments, "--state", state)


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = make_model(tmp_path_factory.mktemp("remote") / "m", Shape(spread=3.0), seed=1)
    with hub() as running:
        running.add(REPO, folder)
        yield running


@pytest.fixture(scope="module")
def running(remote: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """Nobody may manage models over HTTP: the commands need no such thing."""
    folder = tmp_path_factory.mktemp("daemon")
    models = folder / "models"
    (models / "broken").mkdir(parents=True)
    (models / "broken" / "config.json").write_text("{}")
    with daemon(
        folder, models=models, policies={"clients": "manage_models: never\n"},
        environment=remote.environment(),
    ) as running:  # fmt: skip
        yield running


@pytest.mark.mlx
class TestOnADaemon:
    @pytest.fixture
    def mlxd(self, running: Daemon) -> Callable[..., subprocess.CompletedProcess[str]]:
        return lambda *arguments: call(running.state, *arguments)

    def test_the_life_of_a_model(
        self, mlxd: Callable[..., subprocess.CompletedProcess[str]]
    ) -> None:
        pulled = mlxd("pull", SHORT)
        assert (pulled.returncode, pulled.stderr) == (0, "")
        assert pulled.stdout.startswith(f"{SHORT}: pulling manifest\n")
        assert pulled.stdout.splitlines()[-1].startswith(f"{SHORT} is there, ")

        listed = mlxd("models", "list").stdout.splitlines()
        assert listed[0].split()[:2] == ["NAME", "SIZE"]
        assert any(line.startswith(REPO) for line in listed)
        assert any(line.startswith("broken") and "cannot be used: " in line for line in listed)
        shown = mlxd("models", "show", SHORT).stdout
        assert f"pulled from  {REPO}, commit " in shown

        assert mlxd("load", SHORT, "--keep-alive", "1h").stdout == f"{SHORT} is in memory\n"
        loaded = mlxd("ps").stdout.splitlines()
        assert len(loaded) == 2
        assert loaded[1].endswith(("in 1 h", "in 59 min 59 s", "in 59 min 58 s"))
        assert mlxd("unload", SHORT).returncode == 0

        assert mlxd("cp", SHORT, "mine").stdout == f"mine is another name for {SHORT}\n"
        kept = mlxd("models", "rm", REPO)
        assert (kept.returncode, "mine" in kept.stderr) == (1, True)
        assert mlxd("models", "rm", "mine").returncode == 0
        assert mlxd("models", "rm", SHORT).stdout == f"{SHORT} is removed\n"
        assert mlxd("models", "show", SHORT).returncode == 1

    @pytest.mark.parametrize(
        ("arguments", "status", "said"),
        [
            (("pull", "llama3.2:9b"), 1, "did you mean llama3.2:1b, llama3.2:3b?"),
            (("pull", "x/y"), 1, "models.pull.allow"),
            (("pull", "a/b/c"), 2, "expected ORGANISATION/NAME"),
            (("pull", "mlx-community/none"), 1, "the hub has no mlx-community/none"),
            (("load", "nobody"), 1, "model 'nobody' not found"),
            (("load", "mlxd-guide", "--keep-alive", "soon"), 2, "invalid duration"),
            (("models", "rm", "mlxd-guide"), 1, "was not pulled"),
        ],
    )
    def test_what_cannot_be_is_said_on_stderr_and_to_programs(
        self,
        mlxd: Callable[..., subprocess.CompletedProcess[str]],
        arguments: tuple[str, ...],
        status: int,
        said: str,
    ) -> None:
        done = mlxd(*arguments)
        assert (done.returncode, said in done.stderr) == (status, True), done.stderr
        done = mlxd(*arguments, "--json")
        assert done.returncode == status
        assert said in json.loads(done.stdout.splitlines()[-1])["error"]

    def test_programs_get_what_the_daemon_said(
        self, mlxd: Callable[..., subprocess.CompletedProcess[str]]
    ) -> None:
        names = {
            model["name"] for model in json.loads(mlxd("models", "list", "--json").stdout)["models"]
        }
        assert {"broken", "mlxd-guide"} <= names
        assert json.loads(mlxd("ps", "--json").stdout) == {"models": []}
        records = [json.loads(line) for line in mlxd("pull", REPO, "--json").stdout.splitlines()]
        assert records[0] == {"status": "pulling manifest"}
        assert records[-1] == {"status": "success"}
