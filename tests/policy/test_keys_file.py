"""Where the keys are; what is demanded of them; how their file is changed."""

from __future__ import annotations

import json
import os
import stat
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from unittest.mock import Mock

import pytest

from mlxd.control.keys import Keys
from mlxd.core import durable
from mlxd.policy import files, keys_edit
from mlxd.policy.boot import Boot, boot
from mlxd.policy.history import Generation, history_of
from mlxd.policy.keyring import Key, Keyring, KeysRefused, digest_of, parse
from mlxd.policy.keys_edit import NotEdited, edit
from mlxd.policy.keys_file import KeysFile, demand, demand_of_daemon, keys_file, read
from mlxd.policy.load import Override, PolicyErrors, load
from tests.support.daemon import write_policies
from tests.support.policy_agreement import checked
from tests.support.policy_daemon import HastyClock, holding

OUTSIDE = {"server": "listen: {host: 0.0.0.0}\n"}
REQUIRED = {"clients": "auth: {required: true}\n"}
AUTO = {**OUTSIDE, "clients": "auth: {required: auto}\n"}
OPEN = {**OUTSIDE, "clients": "auth: {required: false}\n"}
NO_KEY = "there is no key in"
OVER = "is valid any more"
BROKEN = "the keys cannot be read: "


def a_key(secret: str = "s", *, ends: float | None = None) -> Key:
    return Key(f"a-{digest_of(secret)[:4]}", "agents", digest_of(secret), 1.0, expires=ends)


def keep(state: Path, *keys: Key) -> KeysFile:
    file = keys_file(load(), state)
    edit(file, lambda ring: Keyring((*ring.keys, *keys)))
    return file


def nothing(state: Path) -> None:
    """No file at all."""


def one(state: Path) -> None:
    keep(state, a_key())


def one_that_is_over(state: Path) -> None:
    keep(state, a_key(ends=2.0))


def broken(state: Path) -> None:
    state.mkdir(exist_ok=True)
    (state / "keys.yaml").write_text("schema: mlxd-keys/v1\nkeys: 5\n")


@pytest.mark.parametrize(
    ("edit", "put", "said"),
    [
        ({}, nothing, ""),
        ({}, broken, ""),
        (OPEN, nothing, ""),
        (OUTSIDE, one, ""),
        (REQUIRED, one, ""),
        (OUTSIDE, nothing, f"server.yaml:2:10: server.listen.host: 0.0.0.0 can .*{NO_KEY}"),
        (OUTSIDE, one_that_is_over, OVER),
        (OUTSIDE, broken, f"{BROKEN}.*keys.yaml:2:1: keys: expected a list"),
        (REQUIRED, nothing, f"clients.yaml:2:8: clients.auth.required: clients need .*{NO_KEY}"),
        (REQUIRED, one_that_is_over, OVER),
        (REQUIRED, broken, BROKEN),
    ],
)  # fmt: skip
async def test_check_start_and_reload_demand_keys_in_the_same_words(
    tmp_path: Path, edit: Mapping[str, str], put: Callable[[Path], None], said: str
) -> None:
    folder, state = tmp_path / "policies", tmp_path / "state"
    write_policies(folder, {"limits": "concurrency: {max_in_flight: 7}\n"})
    put(state)
    async with holding(
        folder, state, HastyClock(), Keys(load(folder), state, HastyClock())
    ) as holder:
        write_policies(folder, edit)
        status, report = checked(folder, state)
        outcome = await holder.reloader.reload("admin")
    errors = [error["text"] for error in report["errors"]]
    assert errors == [str(error) for error in outcome.errors]
    assert (status, outcome.ok) == ((2, False) if said else (0, True))
    if not said:
        demand(load(folder), state)
        return
    with pytest.raises(PolicyErrors, match=f"(?s){said}") as refused:
        boot(folder, (), history_of(tmp_path / "new"), demand=lambda them: demand(them, state))
    assert str(refused.value).splitlines() == errors
    assert "mlxd keys add NAME" in errors[0] or put is broken


class TestStart:
    """What was good before does not stand in for a key that is not there."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return write_policies(tmp_path / "policies", OPEN)

    @pytest.fixture
    def start(self, folder: Path, tmp_path: Path) -> Callable[[], Boot]:
        history = history_of(tmp_path)
        return lambda: boot(folder, (), history, demand=lambda them: demand(them, tmp_path))

    @pytest.fixture
    def remember(self, folder: Path, tmp_path: Path) -> Callable[[int], None]:
        def record(number: int) -> None:
            contents, digest = files.read(folder).contents, load(folder).digest
            kept = Generation(number, str(folder), contents, digest, 0.0, "start", "")
            history_of(tmp_path).record(kept)

        return record

    def test_a_key_that_is_lacking_is_said_and_nothing_else_is_served(
        self, folder: Path, start: Callable[[], Boot], remember: Callable[[int], None]
    ) -> None:
        remember(1)
        write_policies(folder, AUTO)
        with pytest.raises(PolicyErrors, match=NO_KEY):
            start()

    def test_broken_files_fall_back_on_nothing_more_open_than_the_newest(
        self, folder: Path, tmp_path: Path, start: Callable[[], Boot],
        remember: Callable[[int], None],
    ) -> None:  # fmt: skip
        remember(1)
        write_policies(folder, AUTO)
        remember(2)
        write_policies(folder, {"limits": "x: 1\n"})
        with pytest.raises(PolicyErrors, match=r"limits\.yaml"):
            start()
        one(tmp_path)
        booted = start()
        assert (booted.policies.lkg, booted.policies.generation) == (True, 2)


def test_the_refusal_names_the_override(tmp_path: Path) -> None:
    with pytest.raises(PolicyErrors, match=r"^--host: server\.listen\.host: 0\.0\.0\.0 can"):
        demand(load(None, [Override("server.listen.host", "0.0.0.0", "--host")]), tmp_path)


def test_what_the_daemon_alone_may_read_is_a_note_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    required = load(None, [Override("clients.auth.required", "true", "a test")])
    assert demand_of_daemon(load(), tmp_path) == ""
    with pytest.raises(PolicyErrors, match=NO_KEY):
        demand_of_daemon(required, tmp_path)
    one(tmp_path)
    assert demand_of_daemon(required, tmp_path) == ""
    monkeypatch.setattr(durable, "read", Mock(side_effect=PermissionError(13, "Not for you")))
    assert "keys.yaml: it cannot be read: Not for you" in demand_of_daemon(required, tmp_path)
    with pytest.raises(PolicyErrors, match="Not for you"):
        demand(required, tmp_path)


def test_what_an_operator_wrote_for_a_file_is_not_quoted(tmp_path: Path) -> None:
    text = "auth: {required: true, keys_file: /mlxd_SECRET}\n"
    folder = write_policies(tmp_path / "policies", {"clients": text})
    with pytest.raises(PolicyErrors) as refused:
        demand(load(folder), tmp_path)
    assert "SECRET" not in str(refused.value)
    assert "clients.auth.keys_file" in str(refused.value)


class TestEditing:
    def test_only_its_owner_may_read_it_and_its_group_where_it_could(self, tmp_path: Path) -> None:
        file = keep(tmp_path / "state", a_key())
        kept = tmp_path / "state" / "keys.yaml"
        assert stat.S_IMODE(kept.stat().st_mode) == 0o600
        assert not read(file).shared
        for mode, after in ((0o640, 0o640), (0o660, 0o640), (0o644, 0o640), (0o604, 0o600)):
            kept.chmod(mode)
            assert read(file).shared is (mode != 0o640)
            keep(tmp_path / "state", a_key(f"{mode:o}"))
            assert stat.S_IMODE(kept.stat().st_mode) == after
            assert not read(file).shared
        assert [entry.name for entry in kept.parent.iterdir()] == ["keys.yaml"]

    def test_what_is_written_is_read(self, tmp_path: Path) -> None:
        keys = (
            Key("a-1", 'a "b": # c', digest_of("1"), 1.0, note="ключ ☃ \\ '", expires=5.0),
            Key("b-1", "true", digest_of("2"), 2.0, revoked=9.0, rotated=3.0),
        )
        file = keep(tmp_path, *keys)
        assert read(file).ring == Keyring(keys)
        edit(file, lambda _: Keyring())
        assert read(file).ring == Keyring()

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
    def test_root_writes_it_for_whom_the_folder_is(self, tmp_path: Path) -> None:
        state = tmp_path / "state"
        state.mkdir()
        os.chown(state, 4711, 4712)
        keep(state, a_key())
        found = (state / "keys.yaml").stat()
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (4711, 4712, 0o600)
        os.chown(state / "keys.yaml", 0, 4714)
        (state / "keys.yaml").chmod(0o640)
        keep(state, a_key("t"))
        found = (state / "keys.yaml").stat()
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (0, 4714, 0o640)

    def test_a_link_stays_one(self, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(tmp_path / "real")
        edit(KeysFile(str(tmp_path / "link"), "link"), lambda _: Keyring((a_key(),)))
        assert (tmp_path / "link").is_symlink()
        assert len(parse((tmp_path / "real").read_bytes(), "real").keys) == 1

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root writes for others")
    def test_root_follows_nobodys_link_but_its_own(self, tmp_path: Path) -> None:
        (tmp_path / "keys.yaml").symlink_to(tmp_path / "own")
        (tmp_path / "own").symlink_to(tmp_path / "elsewhere")
        keep(tmp_path, a_key())
        os.chown(tmp_path / "own", 4711, 4711, follow_symlinks=False)
        before = (tmp_path / "elsewhere").read_bytes()
        with pytest.raises(NotEdited, match="own is a link that is not root's"):
            keep(tmp_path, a_key("t"))
        assert (tmp_path / "elsewhere").read_bytes() == before

    def test_links_that_lead_nowhere_are_told(self, tmp_path: Path) -> None:
        (tmp_path / "keys.yaml").symlink_to(tmp_path / "keys.yaml")
        with pytest.raises(NotEdited, match="leads nowhere"):
            keep(tmp_path, a_key())

    def test_a_broken_file_stays_as_it_is(self, tmp_path: Path) -> None:
        broken(tmp_path)
        before = (tmp_path / "keys.yaml").read_bytes()
        with pytest.raises(KeysRefused):
            keep(tmp_path, a_key())
        assert (tmp_path / "keys.yaml").read_bytes() == before

    def test_a_credential_is_the_service_managers(self) -> None:
        with pytest.raises(NotEdited, match="only the service manager writes"):
            edit(KeysFile("credential:keys", "keys"), lambda ring: ring)

    def test_what_cannot_be_written_is_said(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(NotEdited, match="cannot be written"):
            edit(KeysFile(str(tmp_path / "file" / "keys"), "keys"), lambda ring: ring)
        with pytest.raises(NotEdited, match="cannot be used: it is no file"):
            edit(KeysFile(str(tmp_path), "keys"), lambda ring: ring)

    def test_too_many_are_refused_before_they_are_written(self, tmp_path: Path) -> None:
        file = keep(tmp_path, a_key())
        many = tuple(a_key(str(number)) for number in range(2000))
        with pytest.raises(NotEdited, match="too many keys"):
            edit(file, lambda _: Keyring(many))
        assert read(file).ring == Keyring((a_key(),))

    def test_of_two_at_once_none_is_lost(self, tmp_path: Path) -> None:
        def slowly(secret: str) -> None:
            def more(ring: Keyring) -> Keyring:
                time.sleep(0.02)
                return Keyring((*ring.keys, a_key(secret)))

            edit(keys_file(load(), tmp_path), more)

        threads = [threading.Thread(target=slowly, args=(str(n),)) for n in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        ring = read(keys_file(load(), tmp_path)).ring
        assert ring is not None
        assert len(ring.keys) == 5

    def test_nobody_waits_for_ever(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(keys_edit, "LOCK_SECONDS", 0.0)
        with keys_edit._alone(tmp_path), pytest.raises(NotEdited, match="another `mlxd keys`"):
            keep(tmp_path, a_key())


def test_a_file_holds_no_secret(tmp_path: Path) -> None:
    keep(tmp_path, a_key("mlxd_SECRET"))
    assert "SECRET" not in (tmp_path / "keys.yaml").read_text()
    assert json.dumps(digest_of("mlxd_SECRET")) in (tmp_path / "keys.yaml").read_text()
