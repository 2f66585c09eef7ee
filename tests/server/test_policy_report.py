"""What /health tells of policies that something stronger hides."""

from __future__ import annotations

from pathlib import Path

from mlxd.policy.load import Override, load
from mlxd.server.policy_report import shadowed
from tests.support.daemon import write_policies

SOCKET = "socket http of systemd"


def test_a_line_that_says_the_same_as_what_hides_it_is_no_warning(tmp_path: Path) -> None:
    folder = write_policies(tmp_path, {"server": 'listen:\n  port: 12000\n  host: "::1"\n'})
    found = load(
        folder,
        [
            Override("server.listen.port", "12000", SOCKET),
            Override("server.listen.host", "127.0.0.1", SOCKET),
        ],
    )
    host = f'server.listen.host: "::1" (server.yaml:4) is shadowed by {SOCKET}'
    assert list(shadowed(found, chosen=True)) == [host]
    assert len(list(shadowed(found))) == 2
