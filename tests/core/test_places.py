"""Where things are: flags before the environment before mlxd.env before the usual folders."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlxd.core import places
from mlxd.core.places import BadEnvFile, Setting


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    return home


def made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def user(monkeypatch: pytest.MonkeyPatch, platform: str = "linux", uid: int = 501) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr("os.geteuid", lambda: uid)


class TestPolicyFolder:
    def test_the_flag_wins_whether_it_is_there_or_not(self, home: Path) -> None:
        environ = {"HOME": str(home), "MLXD_POLICIES": "/else"}
        found = places.policy_folder("/named", environ)
        assert found is not None
        assert (found.path, found.source) == (Path("/named"), "--policies")

    def test_the_environment_comes_next(self, home: Path) -> None:
        made(home / ".config/mlxd/policies")
        found = places.policy_folder(None, {"HOME": str(home), "MLXD_POLICIES": "~/mine"})
        assert found is not None
        assert (found.path, found.source) == (home / "mine", "environment MLXD_POLICIES")

    def test_the_usual_folders_are_searched_in_order(self, home: Path, tmp_path: Path) -> None:
        system, prefix = tmp_path / "system", tmp_path / "prefix"
        environ = {"HOME": str(home), "HOMEBREW_PREFIX": str(prefix)}
        wanted = [
            home / ".config/mlxd/policies",
            prefix / "etc/mlxd/policies",
            system / "opt/homebrew/etc/mlxd/policies",
            system / "usr/local/etc/mlxd/policies",
            system / "etc/mlxd/policies",
        ]
        assert places.policy_folder(None, environ, system) is None
        for folder in reversed(wanted):
            made(folder)
            found = places.policy_folder(None, environ, system)
            assert found is not None
            assert found.path == folder

    def test_xdg_config_home_is_honoured_when_absolute(self, home: Path, tmp_path: Path) -> None:
        mine = made(tmp_path / "xdg/mlxd/policies")
        usual = made(home / ".config/mlxd/policies")
        environ = {"HOME": str(home), "XDG_CONFIG_HOME": str(tmp_path / "xdg")}
        found = places.policy_folder(None, environ, tmp_path)
        assert found is not None
        assert found.path == mine
        found = places.policy_folder(None, environ | {"XDG_CONFIG_HOME": "relative"}, tmp_path)
        assert found is not None
        assert found.path == usual


class TestStateFolder:
    def test_flag_then_variable_then_systemd(self, monkeypatch: pytest.MonkeyPatch) -> None:
        user(monkeypatch)
        environ = {"HOME": "/home/u", "STATE_DIRECTORY": "/var/lib/a:/var/lib/b"}
        setting = {"MLXD_STATE": Setting("/mine", "mlxd.env:1 MLXD_STATE")}
        assert places.state_folder("/flag", setting, environ).path == Path("/flag")
        assert places.state_folder(None, setting, environ).path == Path("/mine")
        assert places.state_folder(None, setting, environ).source == "mlxd.env:1 MLXD_STATE"
        assert places.state_folder(None, {}, environ).path == Path("/var/lib/a")

    @pytest.mark.parametrize(
        ("platform", "uid", "environ", "path"),
        [
            ("darwin", 501, {"HOME": "/Users/u"}, "/Users/u/Library/Application Support/mlxd"),
            ("darwin", 0, {"HOME": "/var/root"}, "/var/root/Library/Application Support/mlxd"),
            ("linux", 501, {"HOME": "/home/u"}, "/home/u/.local/state/mlxd"),
            ("linux", 501, {"HOME": "/home/u", "XDG_STATE_HOME": "/x"}, "/x/mlxd"),
            ("linux", 501, {"HOME": "/home/u", "XDG_STATE_HOME": "x"}, "/home/u/.local/state/mlxd"),
            ("linux", 0, {"HOME": "/root"}, "/var/lib/mlxd"),
        ],
    )
    def test_each_platform_has_its_own(
        self,
        monkeypatch: pytest.MonkeyPatch,
        platform: str,
        uid: int,
        environ: dict[str, str],
        path: str,
    ) -> None:
        user(monkeypatch, platform, uid)
        found = places.state_folder(None, {}, environ)
        assert (found.path, found.source) == (Path(path), "default")

    def test_a_relative_one_is_made_absolute(self, tmp_path: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(tmp_path)
            assert places.state_folder(".state", {}, {}).path == tmp_path / ".state"


class TestEnvFile:
    @pytest.mark.parametrize("where", ["policies/mlxd.env", "mlxd.env"])
    def test_it_lies_in_the_policy_folder_or_next_to_it(self, tmp_path: Path, where: str) -> None:
        folder = made(tmp_path / "policies")
        (tmp_path / where).write_text("MLX_API_PORT=12000\nMLXD_STATE=/state\n")
        found = places.find(policies=str(folder), environ={})
        assert found.settings["MLX_API_PORT"] == Setting("12000", "mlxd.env:1 MLX_API_PORT")
        assert found.state.path == Path("/state")

    def test_it_is_found_where_policies_would_be(self, home: Path, tmp_path: Path) -> None:
        made(home / ".config/mlxd")
        (home / ".config/mlxd/mlxd.env").write_text("MLXD_HOST=::1\n")
        found = places.find(environ={"HOME": str(home)}, system=tmp_path)
        assert found.policies is None
        assert found.settings["MLXD_HOST"].text == "::1"

    def test_another_folders_file_is_not_read(self, home: Path, tmp_path: Path) -> None:
        made(home / ".config/mlxd/policies")
        (home / ".config/mlxd/mlxd.env").write_text("MLXD_HOST=::1\n")
        mine = made(tmp_path / "mine/policies")
        assert places.find(policies=str(mine), environ={"HOME": str(home)}).settings == {}

    def test_the_environment_wins(self, tmp_path: Path) -> None:
        (tmp_path / "mlxd.env").write_text("MLXD_PORT=1\nMLXD_HOST=::1\n")
        found = places.find(policies=str(tmp_path), environ={"MLXD_PORT": "2", "MLXD_HOST": ""})
        assert found.settings == {
            "MLXD_PORT": Setting("2", "environment MLXD_PORT"),
            "MLXD_HOST": Setting("::1", "mlxd.env:2 MLXD_HOST"),
        }

    @pytest.mark.parametrize(
        ("line", "text"),
        [
            ("MLXD_HOST=::1", "::1"),
            ("  export MLXD_HOST=::1  ", "::1"),
            ("MLXD_HOST='a b'", "a b"),
            ('MLXD_HOST="a # b" # why', "a # b"),
            ("MLXD_HOST=a # why", "a"),
            ("MLXD_HOST=a#b", "a#b"),
            ("MLXD_HOST=~/x y", "~/x y"),
            ("MLXD_HOST=", ""),
        ],
    )
    def test_values_are_read_as_a_shell_would(self, tmp_path: Path, line: str, text: str) -> None:
        file = tmp_path / "mlxd.env"
        file.write_text(f"# a comment\n; another\n\n{line}\n", encoding="utf-8")
        assert places.read_env(file) == {"MLXD_HOST": (text, 4)}

    @pytest.mark.parametrize(
        ("raw", "words"),
        [
            (b"MLXD_PORT 5\n", ":1: expected NAME=value, got 'MLXD_PORT 5'"),
            (b"\nMLXD_PORT='5\n", ":2: No closing quotation"),
            (b"MLXD_PORT=\xff\n", ": cannot be read"),
        ],
    )
    def test_what_cannot_be_read_is_refused(self, tmp_path: Path, raw: bytes, words: str) -> None:
        (tmp_path / "mlxd.env").write_bytes(raw)
        with pytest.raises(BadEnvFile) as caught:
            places.find(policies=str(tmp_path), environ={})
        assert words in str(caught.value)

    @pytest.mark.timeout(10)
    def test_a_pipe_that_has_just_taken_its_place_is_not_waited_for(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "mlxd.env")
        with pytest.raises(BadEnvFile, match="it is no file"):
            places.read_env(tmp_path / "mlxd.env")

    def test_what_has_no_effect_is_said(self, tmp_path: Path) -> None:
        (tmp_path / "mlxd.env").write_text(
            "MLXD_POLICIES=/x\nMLXD_PROT=5\nMLXD_QUANTISATION=1\nOTHER=1\n"
        )
        assert places.find(policies=str(tmp_path), environ={}).warnings == (
            "mlxd.env:1: MLXD_POLICIES has no effect here: set it before the start",
            "mlxd.env:2: MLXD_PROT is not known; did you mean MLXD_PORT?",
            "mlxd.env:3: MLXD_QUANTISATION is not known",
        )


def test_a_folder_that_may_not_be_looked_into_is_passed_over(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = made(tmp_path / "etc/mlxd/policies")
    is_dir = Path.is_dir

    def guarded(path: Path) -> bool:
        if path.is_relative_to(home):
            raise PermissionError(13, "Permission denied")
        return is_dir(path)

    monkeypatch.setattr(Path, "is_dir", guarded)
    found = places.policy_folder(None, {"HOME": str(home)}, tmp_path)
    assert found is not None
    assert found.path == last


class TestLogsFolder:
    """Where the log is a file only if somebody asks for that, or keeps no log himself."""

    @pytest.mark.parametrize(
        ("environ", "terminal", "found"),
        [
            ({}, False, None),
            ({"LOGS_DIRECTORY": "/var/log/mlxd:/var/log/more"}, False, Path("/var/log/mlxd")),
            ({"LOGS_DIRECTORY": "/var/log/mlxd", "JOURNAL_STREAM": "8:1"}, False, None),
            ({"LOGS_DIRECTORY": "/var/log/mlxd"}, True, None),
        ],
    )
    def test_by_the_service_manager(
        self, environ: dict[str, str], terminal: bool, found: Path | None
    ) -> None:
        assert places.logs_folder({}, environ, terminal=terminal) == found

    def test_by_name_whatever_the_manager_does(self) -> None:
        settings = {"MLXD_LOGS": Setting("~/logs", "environment MLXD_LOGS")}
        environ = {"HOME": "/home/me", "JOURNAL_STREAM": "8:1"}
        found = places.logs_folder(settings, environ, terminal=True)
        assert found == Path("/home/me/logs")

    @pytest.mark.parametrize(
        ("parent", "job", "there"),
        [(1, "dev.mlxd", True), (500, "dev.mlxd", False), (1, "0", False)],
    )
    def test_under_launchd(
        self, monkeypatch: pytest.MonkeyPatch, parent: int, job: str, there: bool
    ) -> None:
        """`0` is what a shell's orphan has."""
        user(monkeypatch, "darwin")
        monkeypatch.setattr("os.getppid", lambda: parent)
        environ = {"HOME": "/Users/me", "XPC_SERVICE_NAME": job}
        found = places.logs_folder({}, environ, terminal=False)
        assert found == (Path("/Users/me/Library/Logs/mlxd") if there else None)


def test_looking_costs_nothing_beyond_the_standard_library() -> None:
    code = (
        "import sys; before = set(sys.modules); import mlxd.core.places as p; p.find();"
        "new = {n.partition('.')[0] for n in set(sys.modules) - before};"
        "print(sorted(new - set(sys.stdlib_module_names)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "['mlxd']"
