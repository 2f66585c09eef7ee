"""Traffic logs are read in any order; what is broken is counted, what is no log is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlxd.simulate.traffic.reading import NoTraffic, read
from mlxd.telemetry.traffic import Known, Loaded, Missing
from tests.support.traffic import ZERO, opening, refused, served, write


def test_rotated_files_are_one_log_in_the_order_of_their_requests(tmp_path: Path) -> None:
    write(tmp_path / "traffic.jsonl.1", [served(5.0), served(1.0)])
    write(tmp_path / "traffic.jsonl", [served(9.0), served(3.0)], opening(at=ZERO + 3))
    log = read([tmp_path])
    assert [one.at - ZERO for one in log.requests] == [1.0, 3.0, 5.0, 9.0]
    assert (log.files, log.broken, log.began) == (2, 0, ZERO)
    assert log.seconds == pytest.approx(10.5)


def test_the_order_is_that_of_judgement(tmp_path: Path) -> None:
    """A body that comes slowly is judged late."""
    log = read([write(tmp_path, [served(1.0, judged=5.0), served(2.0, judged=0.25)])])
    assert [one.at - ZERO for one in log.requests] == [2.0, 1.0]


def test_repetitions_of_one_line_come_evenly_over_its_time(tmp_path: Path) -> None:
    flood = refused(1.0, repeats=5, last=ZERO + 3.0)
    once = refused(2.25, repeats=1, last=ZERO + 2.25)
    requests = read([write(tmp_path, [flood, once])]).requests
    assert [one.at - ZERO for one in requests] == [1.0, 1.5, 2.0, 2.25, 2.5, 3.0]
    assert {(one.code, one.repeats) for one in requests} == {("rate_limited", 0)}


def test_a_file_that_is_named_twice_counts_once(tmp_path: Path) -> None:
    file = write(tmp_path, [served(1.0)])
    assert len(read([tmp_path, file, file]).requests) == 1


def test_broken_lines_are_counted_and_lost_ones_are_known(tmp_path: Path) -> None:
    file = write(tmp_path, [served(1.0), Missing(at=ZERO, count=4), served(2.0)])
    file.write_bytes(file.read_bytes() + b'\n\xff\xfe\n{"line":"request","at"')
    log = read([file])
    assert (len(log.requests), log.broken, log.lost) == (2, 2, 4)
    assert list(log.warnings()) == [
        "2 lines cannot be read: they are left out",
        "4 lines were lost while the log was written",
    ]


def test_one_such_line_is_told_as_one(tmp_path: Path) -> None:
    file = write(tmp_path, [served(1.0), Missing(at=ZERO, count=1)])
    file.write_bytes(file.read_bytes() + b"\xff\xfe\n")
    assert list(read([file]).warnings()) == [
        "1 line cannot be read: it is left out",
        "1 line was lost while the log was written",
    ]


def test_hashes_of_different_salts_are_different_clients(tmp_path: Path) -> None:
    one = write(tmp_path / "one", [served(1.0, user="u", headers={"x": "h"}), served(2.0)])
    other = write(tmp_path / "other", [served(3.0, user="u")], opening(salt="t"))
    first, second, third = read([one, other]).requests
    assert first.address == second.address != third.address
    assert first.user != third.user
    assert second.user == ""
    assert first.headers == {"x": "h:s"}


def test_what_is_known_of_models(tmp_path: Path) -> None:
    known = {"tiny": Known(bytes=10, seconds=4.0), "old": Known(bytes=7, seconds=2.0)}
    loads = [Loaded(at=ZERO + n, model="tiny", bytes=n, seconds=float(n)) for n in (5, 11, 30)]
    log = read([write(tmp_path, [served(1.0), *loads], opening(models=known, memory=99))])
    assert log.memory == 99
    assert [log.load_seconds(name) for name in ("tiny", "old", "none")] == [11.0, 2.0, None]
    assert [log.size(name) for name in ("tiny", "old", "none")] == [30, 7, 0]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no request is recorded"),
        (b"hello\n", "no request is recorded"),
        (b'{"line":"request","at":1.0}\n', "does not say what it is: mlxd-traffic/v1"),
        (
            b'{"line":"file","schema":"mlxd-traffic/v2","mlxd":"9","at":1,"memory":0,"salt":"",'
            b'"models":{}}\n',
            "expected mlxd-traffic/v1, got mlxd-traffic/v2",
        ),
    ],
)
def test_what_is_no_log_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "log"
    file.write_bytes(content)
    with pytest.raises(NoTraffic, match=words):
        read([file])


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NoTraffic, match="there is no"):
        read([tmp_path])
    with pytest.raises(NoTraffic, match="gone: cannot be read: No such file"):
        read([tmp_path / "gone"])


def test_long_logs_tell_how_far_they_are(tmp_path: Path) -> None:
    told: list[tuple[str, int]] = []
    file = write(tmp_path, [refused(float(n)) for n in range(20_001)])
    read([file], lambda done, number: told.append((done, number)))
    assert told == [("read", 20_000)]
