import errno
import fcntl
import os
import subprocess
import sys

import pytest

from mlxd.core.claim import AlreadyRunning, Claim
from mlxd.core.instance import (
    ADDRESS,
    LOCK,
    PID,
    Address,
    absent,
    authority,
    is_claimed,
    pid_of,
    running,
)


def test_a_state_folder_is_claimed_once(tmp_path):
    first = Claim(tmp_path / "state")
    first.take()
    with pytest.raises(AlreadyRunning) as refused:
        Claim(tmp_path / "state").take()
    assert refused.value.pid == os.getpid()
    first.release()
    second = Claim(tmp_path / "state")
    second.take()
    second.release()


def test_a_command_that_looks_at_that_moment_is_no_daemon(tmp_path, monkeypatch):
    before = Claim(tmp_path)
    before.take()
    before.release()
    looking = os.open(tmp_path / LOCK, os.O_RDWR)
    fcntl.flock(looking, fcntl.LOCK_SH)
    assert not is_claimed(tmp_path), "who else looks holds it no more than we"
    monkeypatch.setattr("time.sleep", lambda _: fcntl.flock(looking, fcntl.LOCK_UN))
    claim = Claim(tmp_path)
    claim.take()
    assert is_claimed(tmp_path)
    claim.release()
    os.close(looking)


def test_a_disk_that_gives_no_locks_tells_of_no_daemon(tmp_path, monkeypatch):
    (tmp_path / LOCK).touch()
    monkeypatch.setattr("mlxd.core.instance.fcntl.flock", _without_locks)
    assert not is_claimed(tmp_path)
    assert running(tmp_path) is None
    assert "cannot be told: its disk gives no lock" in absent(tmp_path)
    monkeypatch.undo()
    assert absent(tmp_path) == f"no mlxd runs with the state folder {tmp_path}"


def test_a_disk_whose_server_is_gone_tells_of_no_daemon(tmp_path, monkeypatch):
    claim = Claim(tmp_path)
    claim.take()

    def stale(*_):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr("mlxd.core.instance.os.open", stale)
    assert not is_claimed(tmp_path)
    assert absent(tmp_path).endswith(f"cannot be told: {os.strerror(errno.ESTALE)}")
    monkeypatch.undo()
    claim.release()


def test_a_disk_that_gives_no_locks_any_more_costs_no_open_files(tmp_path, monkeypatch):
    """The daemon tries to have its lock anew every few seconds."""
    claim = Claim(tmp_path)
    claim.take()
    (tmp_path / LOCK).unlink()
    before = os.dup(0)
    os.close(before)
    with monkeypatch.context() as patched:
        patched.setattr("mlxd.core.claim.fcntl.flock", _without_locks)
        with pytest.raises(OSError, match=os.strerror(errno.ENOLCK)):
            claim.announce(Address(os.getpid(), "127.0.0.1", 11435, "0"))
    after = os.dup(0)
    os.close(after)
    assert after == before
    claim.announce(Address(os.getpid(), "127.0.0.1", 11435, "0"))
    assert is_claimed(tmp_path)
    claim.release()


def _without_locks(*_):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


def test_the_folder_is_private_and_says_where_the_daemon_is(tmp_path):
    claim = Claim(tmp_path / "state")
    claim.take()
    claim.announce(Address(os.getpid(), "127.0.0.1", 11435, "0"))
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
    assert pid_of(tmp_path / "state") == os.getpid()
    assert running(tmp_path / "state") == Address(os.getpid(), "127.0.0.1", 11435, "0")
    claim.release()
    assert running(tmp_path / "state") is None
    assert pid_of(tmp_path / "state") == 0


def test_what_a_killed_daemon_left_is_gone_though_nothing_can_be_written(tmp_path, monkeypatch):
    (tmp_path / PID).write_text("4242\n")
    (tmp_path / ADDRESS).write_text('{"pid": 4242, "host": "h", "port": 1, "version": "v"}\n')

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("mlxd.core.claim._write", full)
    claim = Claim(tmp_path)
    claim.take()
    assert (pid_of(tmp_path), running(tmp_path)) == (0, None)
    claim.release()


def test_what_a_killed_daemon_leaves_means_nothing(tmp_path):
    script = (
        "import os, sys; from pathlib import Path; from mlxd.core.claim import Address, Claim;"
        "i = Claim(Path(sys.argv[1])); i.take();"
        "i.announce(Address(os.getpid(), 'h', 1, 'v')); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert (tmp_path / "mlxd.pid").exists()
    assert not is_claimed(tmp_path)
    assert running(tmp_path) is None
    claim = Claim(tmp_path)
    claim.take()
    claim.release()


@pytest.mark.parametrize("said", ["[]", "3", "{", "null", '{"pid": 1}'])
def test_what_is_no_address_is_none(tmp_path, said):
    claim = Claim(tmp_path)
    claim.take()
    (tmp_path / ADDRESS).write_text(said)
    assert running(tmp_path) is None
    claim.release()


def test_a_lock_that_is_a_link_to_nothing_is_set_aside(tmp_path):
    (tmp_path / "mlxd.lock").symlink_to(tmp_path / "gone" / "mlxd.lock")
    claim = Claim(tmp_path)
    claim.take()
    assert is_claimed(tmp_path)
    assert (tmp_path / "mlxd.lock.set-aside-1").is_symlink()
    claim.release()


def test_a_link_to_a_lock_elsewhere_is_used(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "mlxd.lock").symlink_to(tmp_path / "elsewhere" / "mlxd.lock")
    claim = Claim(tmp_path)
    claim.take()
    assert (tmp_path / "mlxd.lock").is_symlink()
    assert is_claimed(tmp_path / "elsewhere")
    claim.release()


@pytest.mark.parametrize(
    ("host", "written"),
    [("127.0.0.1", "127.0.0.1:80"), ("studio.local", "studio.local:80"), ("::1", "[::1]:80")],
)
def test_an_ipv6_address_stands_in_brackets(host, written):
    assert authority(host, 80) == written


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a look of its own at a disk")
def test_a_daemon_whose_disk_has_become_read_only_is_found(tmp_path):
    claim = Claim(tmp_path)
    claim.take()
    claim.announce(Address(os.getpid(), "127.0.0.1", 11435, "0"))
    own = ["unshare", "--mount", *(() if os.geteuid() == 0 else ("--map-root-user",))]
    mounted = f"mount --bind {tmp_path} {tmp_path} && mount -o remount,bind,ro {tmp_path}"
    if subprocess.run([*own, "sh", "-c", mounted], check=False).returncode:
        pytest.skip("nothing can be mounted")
    look = "import sys; from pathlib import Path; from mlxd.core.instance import running; "
    look += "print(running(Path(sys.argv[1])).port)"
    script = f'{mounted} && exec "$@"'
    command = [*own, "sh", "-c", script, "sh", sys.executable, "-c", look, str(tmp_path)]
    said = subprocess.run(command, check=True, capture_output=True, text=True)
    assert said.stdout.strip() == "11435"
    claim.release()


def test_a_pipe_in_the_place_of_the_lock_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / LOCK)
    assert not is_claimed(tmp_path)
