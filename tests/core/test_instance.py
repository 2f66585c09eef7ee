import os
import subprocess
import sys

import pytest

from mlxd.core.instance import (
    Address,
    AlreadyRunning,
    Instance,
    authority,
    is_claimed,
    pid_of,
    running,
)


def test_a_state_folder_is_claimed_once(tmp_path):
    first = Instance(tmp_path / "state")
    first.claim()
    with pytest.raises(AlreadyRunning) as refused:
        Instance(tmp_path / "state").claim()
    assert refused.value.pid == os.getpid()
    first.release()
    second = Instance(tmp_path / "state")
    second.claim()
    second.release()


def test_the_folder_is_private_and_says_where_the_daemon_is(tmp_path):
    instance = Instance(tmp_path / "state")
    instance.claim()
    instance.announce(Address(os.getpid(), "127.0.0.1", 11435, "0"))
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
    assert pid_of(tmp_path / "state") == os.getpid()
    assert running(tmp_path / "state") == Address(os.getpid(), "127.0.0.1", 11435, "0")
    instance.release()
    assert running(tmp_path / "state") is None
    assert pid_of(tmp_path / "state") == 0


def test_what_a_killed_daemon_leaves_means_nothing(tmp_path):
    script = (
        "import os, sys; from pathlib import Path; from mlxd.core.instance import *;"
        "i = Instance(Path(sys.argv[1])); i.claim();"
        "i.announce(Address(os.getpid(), 'h', 1, 'v')); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert (tmp_path / "mlxd.pid").exists()
    assert not is_claimed(tmp_path)
    assert running(tmp_path) is None
    instance = Instance(tmp_path)
    instance.claim()
    instance.release()


@pytest.mark.parametrize(
    ("host", "written"),
    [("127.0.0.1", "127.0.0.1:80"), ("studio.local", "studio.local:80"), ("::1", "[::1]:80")],
)
def test_an_ipv6_address_stands_in_brackets(host, written):
    assert authority(host, 80) == written
