"""The keys in force: they follow their file, and survive what is wrong with it."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from mlxd.control import keys as module
from mlxd.control.keys import Keys
from mlxd.core.clock import ManualClock, SystemClock
from mlxd.policy.keyring import Key, Keyring, digest_of
from mlxd.policy.keys_edit import edit
from mlxd.policy.keys_file import KeysFile, read
from mlxd.policy.load import Override, load
from mlxd.policy.store import PrepareFailed
from tests.support.few_files import no_files
from tests.support.few_threads import no_threads

OUTSIDE = [Override("server.listen.host", "0.0.0.0", "a test")]


def put(path: Path, *secrets: str) -> None:
    keys = tuple(Key(f"a-{secret}", "agents", digest_of(secret), 1.0) for secret in secrets)
    edit(KeysFile(str(path), path.name), lambda _: Keyring(keys))


def known(keys: Keys, *secrets: str) -> list[bool]:
    return [keys.find(secret) is not None for secret in secrets]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    put(tmp_path / "keys.yaml", "one")
    return tmp_path / "keys.yaml"


def followed(state: Path) -> Keys:
    return Keys(load(), state, ManualClock())


async def test_a_change_is_read_when_it_is_asked_for(file: Path) -> None:
    keys = followed(file.parent)
    assert known(keys, "one", "two") == [True, False]
    put(file, "two")
    assert known(keys, "one", "two") == [True, False]
    await keys.reload()
    assert known(keys, "one", "two") == [False, True]


async def test_a_change_is_noticed_without_being_asked(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.01)
    keys = followed(file.parent)
    following = asyncio.create_task(keys.follow())
    put(file, "two")
    async with asyncio.timeout(10):
        while not keys.find("two"):  # noqa: ASYNC110 - nobody tells of it
            await asyncio.sleep(0.01)
        file.unlink()
        while keys.find("two"):  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.01)
    following.cancel()


async def test_what_could_not_be_read_for_a_while_is_read_once_it_can(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the file does not change any more: a key may have been revoked meanwhile."""
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.01)
    keys = followed(file.parent)
    put(file, "another")
    with no_files():
        await keys.reload()
    assert "Too many open files" in keys.warnings(load())[0]
    following = asyncio.create_task(keys.follow())
    async with asyncio.timeout(5.0):
        while keys.warnings(load()):  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.01)
    assert known(keys, "another") == [True]
    following.cancel()


async def test_an_edit_while_there_is_no_thread_leaves_no_warning_about_keys(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.01)
    keys = followed(file.parent)
    with no_threads():
        (await keys.prepare(load(), load())).commit()
    assert "no thread" in keys.warnings(load())[0]
    following = asyncio.create_task(keys.follow())
    async with asyncio.timeout(5.0):
        while keys.warnings(load()):  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.01)
    following.cancel()


async def test_a_broken_file_leaves_the_last_good_keys_and_says_so(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = followed(file.parent)
    file.write_text("schema: mlxd-keys/v1\nkeys: [mlxd_SECRET]\n")
    with caplog.at_level(logging.INFO, "mlxd"):
        await keys.reload()
        await keys.reload()
    assert known(keys, "one") == [True]
    (warning,) = keys.warnings(load())
    assert "keys.yaml:2:8: keys[0]: expected a mapping; the last good ones stay" in warning
    assert str(file.parent) not in warning, "clients may read it"
    assert len(caplog.records) == 1
    assert "SECRET" not in warning + caplog.text
    put(file.with_name("new"), "two")
    file.with_name("new").replace(file)
    await keys.reload()
    assert known(keys, "one", "two") == [False, True]
    assert keys.warnings(load()) == []


async def test_who_needs_a_key_that_nobody_has_is_told(file: Path) -> None:
    keys = followed(file.parent)
    assert keys.warnings(load(None, OUTSIDE)) == []
    file.unlink()
    await keys.reload()
    (warning,) = keys.warnings(load(None, OUTSIDE))
    assert "all of them get 401 until `mlxd keys add NAME`" in warning
    assert keys.warnings(load()) == []


async def test_what_is_over_or_cannot_be_read_is_told_from_what_is_nobodys(file: Path) -> None:
    over = Key("b-1", "b", digest_of("b"), 1.0, expires=2.0)
    edit(KeysFile(str(file), file.name), lambda ring: Keyring((*ring.keys, over)))
    clock = ManualClock()
    clock.advance(5.0)
    keys = Keys(load(), file.parent, clock)
    assert [keys.over(secret) for secret in ("one", "b", "c")] == ["", "expired", ""]
    certain = [keys.certain]
    file.write_text("5")
    await keys.reload()
    certain.append(keys.certain)
    file.unlink()
    await keys.reload()
    assert [*certain, keys.certain] == [True, False, False]


def test_a_file_that_others_may_read_is_told(file: Path) -> None:
    file.chmod(0o644)
    assert "chmod 600" in followed(file.parent).warnings(load())[0]


async def test_another_file_comes_with_the_policies_that_name_it(
    file: Path, tmp_path: Path
) -> None:
    keys, old = followed(file.parent), load()
    put(tmp_path / "others", "two")
    new = load(None, [Override("clients.auth.keys_file", str(tmp_path / "others"), "a test")])
    prepared = await keys.prepare(old, new)
    assert known(keys, "one", "two") == [True, False]
    prepared.commit()
    assert known(keys, "one", "two") == [False, True]
    assert keys.file.reference == str(tmp_path / "others")
    prepared.undo()
    assert known(keys, "one", "two") == [True, False]


async def test_keys_of_another_file_do_not_stand_in_for_a_broken_one(
    file: Path, tmp_path: Path
) -> None:
    keys = followed(file.parent)
    (tmp_path / "others").write_text("5")
    new = load(None, [Override("clients.auth.keys_file", str(tmp_path / "others"), "a test")])
    (await keys.prepare(load(), new)).commit()
    assert known(keys, "one") == [False]


async def test_policies_that_need_a_key_are_not_prepared_without_one(file: Path) -> None:
    keys = followed(file.parent)
    await keys.prepare(load(), load(None, OUTSIDE))
    file.unlink()
    with pytest.raises(PrepareFailed, match="mlxd keys add NAME") as failed:
        await keys.prepare(load(), load(None, OUTSIDE))
    assert failed.value.key == "server.listen.host"
    assert known(keys, "one") == [True], "nothing that shows has changed"


@pytest.mark.parametrize("text", ["5", None])
async def test_an_edit_of_something_else_is_prepared_whatever_has_become_of_the_keys(
    file: Path, tmp_path: Path, text: str | None
) -> None:
    keys = followed(file.parent)
    old = load(None, OUTSIDE)
    file.unlink()
    if text is not None:
        file.write_text(text)
    more = Override("limits.concurrency.max_in_flight", "9", "a test")
    (await keys.prepare(old, load(None, [*OUTSIDE, more]))).commit()
    assert known(keys, "one") == [text is not None]
    other = Override("clients.auth.keys_file", str(tmp_path / "others"), "a test")
    with pytest.raises(PrepareFailed, match="there is no key"):
        await keys.prepare(old, load(None, [*OUTSIDE, other]))


@pytest.mark.parametrize("committed", [True, False])
async def test_a_key_that_was_revoked_since_an_edit_was_prepared_stays_so(
    file: Path, committed: bool
) -> None:
    keys = followed(file.parent)
    prepared = await keys.prepare(load(), load())
    put(file, "two")
    await keys.reload()
    if committed:
        prepared.commit()
        assert known(keys, "one", "two") == [False, True]
    prepared.undo()
    assert known(keys, "one", "two") == [False, True]


async def test_a_disk_that_hangs_holds_one_thread(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = Keys(load(), file.parent, SystemClock())
    hanging = 0

    def hang(_: object) -> asyncio.Future[object]:
        nonlocal hanging
        hanging += 1
        return asyncio.get_running_loop().create_future()

    monkeypatch.setattr(module, "READ_SECONDS", 0.01)
    monkeypatch.setattr(keys._threads, "run", lambda *_: hang(_))
    for _ in range(3):
        with pytest.raises(TimeoutError):
            await keys.reload()
    with pytest.raises(PrepareFailed, match="it does not answer"):
        await keys.prepare(load(), load(None, OUTSIDE))
    assert hanging == 1
    assert known(keys, "one") == [True]


async def test_a_disk_has_as_long_as_the_daemon_has_lived(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its clock stands still while it is stopped; the event loop's runs on."""
    keys = followed(file.parent)
    monkeypatch.setattr(module, "READ_SECONDS", 0.01)
    loop = asyncio.get_running_loop()
    slow = loop.create_future()
    monkeypatch.setattr(keys._threads, "run", lambda *_: slow)
    loop.call_later(0.1, slow.set_result, read(keys.file))
    await keys.reload()
    assert known(keys, "one") == [True]
