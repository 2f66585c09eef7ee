"""Flags over environment over mlxd.env, and what of it goes on as policy."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlxd.core.places import VARIABLES
from mlxd.policy.load import Override, load
from mlxd.settings import Settings, SettingsRefused


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty policy folder, and an environment that says nothing."""
    for name in (*VARIABLES, "STATE_DIRECTORY", "XDG_CONFIG_HOME", "HOMEBREW_PREFIX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / "policies"
    folder.mkdir()
    return folder


def test_nothing_said_overrides_nothing(folder: Path) -> None:
    settings = Settings.read(policies=folder)
    assert settings.overrides() == []
    assert settings.warnings() == []
    assert settings.policies is not None
    assert settings.policies.path == folder


def test_without_any_folder_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlxd.core.places._usual_folders", lambda *_: iter(()))
    assert Settings.read().policies is None


@pytest.mark.parametrize("name", ["MLXD_PORT", "MLX_API_PORT"])
def test_each_name_of_the_port_is_taken(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "12000")
    assert Settings.read(policies=folder).overrides() == [
        ("server.listen.port", "12000", f"environment {name}")
    ]


def test_both_names_may_agree(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLXD_PORT", "12000")
    monkeypatch.setenv("MLX_API_PORT", "12000")
    assert len(Settings.read(policies=folder).overrides()) == 2


def test_two_ports_are_refused_in_words(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLXD_PORT", "12000")
    (folder / "mlxd.env").write_text("MLX_API_PORT=13000\n")
    with pytest.raises(SettingsRefused) as caught:
        Settings.read(policies=folder)
    assert str(caught.value) == (
        "environment MLXD_PORT is 12000 and mlxd.env:1 MLX_API_PORT is 13000: "
        "both name the port to serve on; unset one, or make them equal"
    )


@pytest.mark.parametrize(("workers", "warned"), [("1", False), ("4", True), ("auto", True)])
def test_more_workers_are_refused_in_words_and_change_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, workers: str, warned: bool
) -> None:
    monkeypatch.setenv("MLX_API_WORKERS", workers)
    settings = Settings.read(policies=folder)
    assert settings.overrides() == []
    assert [w.startswith("environment MLX_API_WORKERS: ") for w in settings.warnings()] == (
        [True] if warned else []
    )


def test_precedence_is_flag_environment_env_file_policy_default(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def in_force(port: int | None = None) -> str:
        settings = Settings.read(policies=folder, port=port)
        found = load(folder, [Override(*override) for override in settings.overrides()])
        line = found.line("server.listen.port")
        return f"{found.server.listen.port} {line.place}"

    assert in_force() == "11435 built-in default; set it in policies/server.yaml"
    (folder / "server.yaml").write_text("schema: mlxd/v1\nlisten:\n  port: 12001\n")
    assert in_force() == "12001 policies/server.yaml:3"
    (folder / "mlxd.env").write_text("\nMLX_API_PORT=12002\n")
    assert in_force() == "12002 mlxd.env:2 MLX_API_PORT"
    monkeypatch.setenv("MLX_API_PORT", "12003")
    assert in_force() == "12003 environment MLX_API_PORT"
    assert in_force(port=12004) == "12004 --port"


def test_host_and_folders_are_policies_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLXD_HOST", "::1")
    monkeypatch.setenv("MLXD_MODELS", "/a:/b")
    settings = Settings.read(policies=folder, host="127.0.0.1")
    assert settings.overrides() == [
        ("server.listen.host", "::1", "environment MLXD_HOST"),
        ("models.dirs", "/a:/b", "environment MLXD_MODELS"),
        ("server.listen.host", "127.0.0.1", "--host"),
    ]


def test_the_state_folder_follows_its_flag(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLXD_STATE", "/from/environment")
    assert Settings.read(policies=folder).state.path == Path("/from/environment")
    assert Settings.read(policies=folder, state="/from/flag").state.path == Path("/from/flag")


def test_an_env_file_that_cannot_be_read_is_refused(folder: Path) -> None:
    (folder / "mlxd.env").write_text("what is this\n")
    with pytest.raises(SettingsRefused, match=r"mlxd\.env:1: expected NAME=value"):
        Settings.read(policies=folder)


def test_what_has_no_effect_is_a_warning(folder: Path) -> None:
    (folder / "mlxd.env").write_text("MLXD_PROT=5\n")
    assert Settings.read(policies=folder).warnings() == [
        "mlxd.env:1: MLXD_PROT is not known; did you mean MLXD_PORT?"
    ]


def test_settings_never_change(folder: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings.read(policies=folder).notes = ("x",)
