"""The traffic log: what is kept of a request and what never is, and that no disk holds one up."""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import msgspec
import pytest

from mlxd.core.caller import Caller
from mlxd.core.story import Story
from mlxd.daemon.traffic import FOLDER, Traffic
from mlxd.policy.load import Override, load
from mlxd.policy.policy_set import PolicySet
from mlxd.telemetry import traffic, traffic_log
from mlxd.telemetry.events import Event
from mlxd.telemetry.log_file import RotatedFile, Target
from mlxd.telemetry.traffic import (
    SCHEMA,
    Evicted,
    Known,
    Line,
    Loaded,
    Missing,
    Opening,
    Request,
    decode,
    encode,
    request_of,
    sealed,
)
from mlxd.telemetry.traffic_log import SALT, TrafficLog
from tests.support.few_threads import no_threads

CALLER = Caller("10.0.0.7", "ab12", "agents", {"x-team": "blue"})


def story(**facts: object) -> Story:
    told = Story("id-of-the-client", "/api/chat", CALLER, 3, 1000.0, lambda: 9.0, 0.0)
    for name, value in facts.items():
        setattr(told, name, value)
    return told


SERVED = {
    "model": "tiny", "want": "answer", "stream": True, "priority": "low", "wished": "high",
    "user": "kim", "requests": 2, "cost": 140.0, "max_tokens": 100, "keep_alive": -1.0,
    "judged": 0.25, "admitted": 1.25, "leased": 3.25, "loaded": True, "accepted": 3.5,
    "first_token": 4.0,
    "released": 6.0, "ended": 6.5, "prompt_tokens": 40, "cached_tokens": 8,
    "completion_tokens": 60, "prefill_seconds": 0.5, "decode_seconds": 2.0, "replays": 1,
    "status": 200,
}  # fmt: skip


def test_what_is_kept_of_a_request_that_was_served() -> None:
    assert request_of(story(**SERVED)) == Request(
        at=1000.0, tenant="agents", key="ab12", address="10.0.0.7", user="kim",
        headers={"x-team": "blue"}, model="tiny", want="answer", stream=True, wished="high",
        klass="low", choices=2, cost=140.0, max_tokens=100, keep_alive=-1.0, prompt=40, cached=8,
        completion=60, status=200, judged=0.25, waited=1.0, load=2.0, ttft=4.0, prefill=0.5,
        decode=2.0, held=4.75, lasted=6.5, replays=1, generation=3,
    )  # fmt: skip


def test_what_is_kept_of_one_that_was_refused() -> None:
    refused = story(want="answer", model="tiny", judged=0.1, ended=0.2, status=429,
                    code="rate_limited")  # fmt: skip
    line = request_of(refused)
    assert (line.waited, line.held, line.load, line.ttft) == (None, 0.0, 0.0, None)
    assert (line.status, line.code, line.lasted) == (429, "rate_limited", 0.2)


def test_a_line_names_nobody_and_no_request() -> None:
    written = encode(sealed(request_of(story(**SERVED)), b"salt")).decode()
    for secret in ("id-of-the-client", "10.0.0.7", "kim", "blue"):
        assert secret not in written


def test_whatever_a_story_learns_to_tell_is_no_part_of_a_line_by_itself() -> None:
    """A field that is added to stories is looked at here before it can be written."""
    unwritten = {"id", "path", "notes", "clock", "came", "accepted"}
    assert unwritten < {field.name for field in fields(Story)}
    assert not unwritten & set(msgspec.structs.asdict(request_of(story())))


def test_equal_stays_equal_under_one_salt_only() -> None:
    one, same = (sealed(request_of(story(**SERVED)), b"salt") for _ in range(2))
    other = sealed(request_of(story(**SERVED)), b"another")
    assert isinstance(one, Request)
    assert isinstance(other, Request)
    assert one == same
    assert one.address != other.address
    twice = sealed(request_of(story(user="10.0.0.7")), b"salt")
    assert isinstance(twice, Request)
    assert twice.user != twice.address


@pytest.mark.parametrize(
    "line",
    [
        Opening(schema=SCHEMA, mlxd="1", at=1.5, memory=7, salt="s", models={"m": Known(bytes=4)}),
        Loaded(at=1.0, model="tiny", bytes=5, seconds=0.5),
        Evicted(at=1.0, model="tiny", reason="load"),
        Missing(at=1.0, count=4),
        request_of(story(**SERVED)),
        Request(at=1.0),
    ],
)
def test_what_is_written_is_read(line: Line) -> None:
    assert decode(encode(line)) == line


def test_what_a_later_version_adds_is_left_out() -> None:
    assert decode(b'{"line":"request","at":1.0,"mood":"good"}') == Request(at=1.0)


@pytest.mark.parametrize("wrong", [b"", b"{", b'{"line":"request"}', b'{"line":"x","at":1}', b"[]"])
def test_what_is_no_line_is_refused(wrong: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - msgspec's words
        decode(wrong)


def opening() -> Opening:
    return Opening(schema=SCHEMA, mlxd="1", at=1.0, memory=0, salt="", models={})


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Callable[..., TrafficLog]]:
    logs: list[TrafficLog] = []

    def make(size: int = 10**6, keep: int = 2, folder: Path = tmp_path / FOLDER) -> TrafficLog:
        logs.append(TrafficLog(Target(folder / traffic.FILE, size, keep), opening))
        return logs[-1]

    yield make
    for log in logs:
        log.close()


def lines_of(file: Path) -> list[Line]:
    return [decode(line) for line in file.read_bytes().splitlines() if line]


def test_without_a_thread_lines_are_lost_and_counted_until_there_is_one(
    made: Callable[..., TrafficLog],
) -> None:
    with no_threads():
        log = made()
        log.add(Evicted(at=1.0, model="a"))
        assert (log.lost, log.failure) == (1, "the system has no thread for it")
    log.add(Evicted(at=2.0, model="b"))
    log.close()
    assert lines_of(log.target.path)[1:] == [
        Missing(at=2.0, count=1), Evicted(at=2.0, model="b"),
    ]  # fmt: skip
    assert log.failure == ""


def test_a_salt_that_is_a_pipe_holds_nobody_up(made: Callable[..., TrafficLog]) -> None:
    log = made()
    log.target.path.parent.mkdir()
    os.mkfifo(log.target.path.parent / SALT)
    log.add(Evicted(at=2.0, model="b"))
    log.close()
    assert lines_of(log.target.path)[1:] == [Evicted(at=2.0, model="b")]


def test_each_file_begins_with_what_its_lines_need(made: Callable[..., TrafficLog]) -> None:
    log = made(size=400)
    for number in range(12):
        log.add(Request(at=float(number), address="somebody"))
    log.close()
    folder = log.target.path.parent
    files = sorted(folder.glob("traffic.jsonl*"))
    assert len(files) == 3
    assert {type(lines_of(file)[0]) for file in files} == {Opening}
    assert {line.salt for file in files for line in lines_of(file) if isinstance(line, Opening)} \
        != {""}  # fmt: skip
    last = lines_of(log.target.path)[-1]
    assert isinstance(last, Request)
    assert (last.at, len(last.address)) == (11.0, 16)


def test_it_is_private_and_its_salt_stays(made: Callable[..., TrafficLog], tmp_path: Path) -> None:
    folder = tmp_path / FOLDER
    hashes = set()
    for _ in range(2):
        log = made()
        log.add(Request(at=1.0, address="somebody"))
        log.close()
        last = lines_of(folder / traffic.FILE)[-1]
        assert isinstance(last, Request)
        hashes.add(last.address)
    assert len(hashes) == 1
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE((folder / name).stat().st_mode) for name in (SALT, traffic.FILE)} == {
        0o600
    }


def test_a_salt_that_is_damaged_is_replaced_and_the_files_say_so(
    made: Callable[..., TrafficLog], tmp_path: Path
) -> None:
    folder = tmp_path / FOLDER
    for damage in (None, "abc", "äöü", "00" * 31):
        if damage is not None:
            (folder / SALT).write_text(damage, encoding="utf-8")
        log = made()
        log.add(Request(at=1.0))
        log.close()
    openings = [line for line in lines_of(folder / traffic.FILE) if isinstance(line, Opening)]
    assert len({line.salt for line in openings}) == 4


def test_a_run_goes_on_behind_a_line_that_was_cut_off(made: Callable[..., TrafficLog]) -> None:
    log = made()
    log.target.path.parent.mkdir()
    log.target.path.write_bytes(b'{"line":"request","at":1')
    log.add(Request(at=2.0))
    log.close()
    torn, *rest = log.target.path.read_bytes().splitlines()
    assert torn.endswith(b'"at":1')
    assert [type(decode(line)) for line in rest] == [Opening, Request]


def test_a_disk_that_takes_nothing_costs_lines_and_they_are_counted(
    made: Callable[..., TrafficLog], monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    failures: list[bytes] = []
    failed = threading.Event()
    really = RotatedFile.write

    def write(file: RotatedFile, line: bytes) -> None:
        if len(failures) == 3:
            really(file, line)
            return
        failures.append(line)
        if len(failures) == 3:
            failed.set()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RotatedFile, "write", write)
    log = made()
    for number in (1.0, 2.0, 3.0):
        log.add(Request(at=number))
    assert failed.wait(60)
    log.add(Request(at=4.0))
    log.close()
    assert log.lost == 3
    assert lines_of(log.target.path)[1:] == [Missing(at=4.0, count=3), Request(at=4.0)]
    assert caplog.text.count("No space left on device") == 1


def test_a_disk_that_hangs_holds_nobody_up(
    made: Callable[..., TrafficLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs = threading.Event()
    really = RotatedFile.write

    def write(file: RotatedFile, line: bytes) -> None:
        assert hangs.wait(60)
        really(file, line)

    monkeypatch.setattr(RotatedFile, "write", write)
    monkeypatch.setattr(traffic_log, "MOST_WAITING", 5)
    log = made()
    for number in range(20):
        log.add(Request(at=float(number)))
    assert 14 <= log.lost <= 15
    hangs.set()


def policies(folder: str = "auto", record: str = "true") -> PolicySet:
    return load(None, [
        Override("server.traffic.record", record, "a test"),
        Override("server.traffic.folder", folder, "a test"),
    ])  # fmt: skip


PRESENT: set[str] = set()
"""Models that are in memory."""


def until(fact: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not fact():
        assert time.monotonic() < end
        time.sleep(0.005)


class TestFollowed:
    @pytest.fixture
    def recorded(self, tmp_path: Path) -> Iterator[Traffic]:
        PRESENT.clear()
        recorded = Traffic(tmp_path, lambda: 77.0, lambda: 2**30, lambda: frozenset(PRESENT))
        yield recorded
        recorded.close()

    def test_want_of_a_thread_for_it_keeps_no_edit_from_its_force(
        self, recorded: Traffic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is written as soon as there is one."""

        def none(_thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", none)
            recorded.apply(policies())
            recorded.ended(story(**SERVED))
        recorded.ended(story(**SERVED))
        recorded.close()
        lines = (tmp_path / FOLDER / traffic.FILE).read_bytes().splitlines()
        assert len(lines) == 3, "what it begins with, and both"

    def test_nothing_is_written_unless_policy_says_so(
        self, recorded: Traffic, tmp_path: Path
    ) -> None:
        recorded.apply(policies(record="false"))
        recorded.ended(story(**SERVED))
        recorded.close()
        assert list(tmp_path.iterdir()) == []

    def test_it_follows_policy(self, recorded: Traffic, tmp_path: Path) -> None:
        recorded.happened(Event(1, 5.0, "load", "", {"model": "tiny", "bytes": 9, "seconds": 1.5}))
        recorded.apply(policies())
        recorded.ended(story(**SERVED))
        recorded.ended(story(status=200, want="unload", model="tiny"))
        recorded.happened(Event(2, 6.0, "evict", "", {"model": "tiny", "reason": "load"}))
        recorded.apply(policies(folder=str(tmp_path / "elsewhere")))
        recorded.ended(story(**SERVED))
        recorded.close()
        first, *lines = lines_of(tmp_path / FOLDER / traffic.FILE)
        assert isinstance(first, Opening)
        assert (first.at, first.memory) == (77.0, 2**30)
        assert [type(line) for line in lines] == [Request, Evicted]
        elsewhere, *lines = lines_of(tmp_path / "elsewhere" / traffic.FILE)
        assert isinstance(elsewhere, Opening)
        assert elsewhere.models == {"tiny": Known(bytes=9, seconds=1.5)}
        assert [type(line) for line in lines] == [Request]
        assert recorded.lost == 0

    def test_a_file_says_which_models_are_there_when_it_begins(
        self, recorded: Traffic, tmp_path: Path
    ) -> None:
        """One that idled out, or whose worker died, was not evicted."""
        for model in ("tiny", "other"):
            data = {"model": model, "bytes": 9, "seconds": 1.5}
            recorded.happened(Event(1, 5.0, "load", "", data))
        PRESENT.add("other")
        recorded.apply(policies())
        recorded.ended(story(**SERVED))
        recorded.close()
        first, *_ = lines_of(tmp_path / FOLDER / traffic.FILE)
        assert isinstance(first, Opening)
        known = Known(bytes=9, seconds=1.5)
        assert first.models == {"tiny": known, "other": msgspec.structs.replace(known, loaded=True)}

    def test_what_its_first_line_loads_was_not_there_before(
        self, recorded: Traffic, tmp_path: Path
    ) -> None:
        recorded.apply(policies())
        PRESENT.add("tiny")
        recorded.happened(Event(1, 5.0, "load", "", {"model": "tiny", "bytes": 9, "seconds": 1.5}))
        recorded.close()
        first, *_ = lines_of(tmp_path / FOLDER / traffic.FILE)
        assert isinstance(first, Opening)
        assert not first.models["tiny"].loaded

    def test_repetitions_of_a_refusal_are_one_line(self, recorded: Traffic, tmp_path: Path) -> None:
        recorded.apply(policies())
        refused = story(
            want="answer", model="tiny", judged=0.1, ended=0.2, status=503, code="overloaded"
        )
        recorded.repeated(refused, 7, 1001.0, 1002.5)
        recorded.repeated(story(want="load"), 7, 1001.0, 1002.5)
        recorded.close()
        _, line, *more = lines_of(tmp_path / FOLDER / traffic.FILE)
        assert isinstance(line, Request)
        assert (line.at, line.last, line.repeats) == (1001.0, 1002.5, 7)
        assert (line.judged, line.lasted, line.code) == (0.0, 0.0, "overloaded")
        assert more == []

    def test_what_earlier_logs_lost_stays_counted(self, recorded: Traffic, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        recorded.apply(policies(folder=str(tmp_path / "file")))
        recorded.ended(story(**SERVED))
        recorded._log.close()  # type: ignore[union-attr]
        recorded.apply(policies())
        assert recorded.lost == 1

    def test_a_folder_that_cannot_be_written_is_warned_of_until_it_can_be(
        self, recorded: Traffic, tmp_path: Path
    ) -> None:
        (tmp_path / "file").touch()
        recorded.apply(policies(folder=str(tmp_path / "file")))
        assert recorded.warnings() == []
        recorded.ended(story(**SERVED))
        until(lambda: recorded.lost)
        (warning,) = recorded.warnings()
        assert f"{tmp_path / 'file' / traffic.FILE} (server.traffic)" in warning
        (tmp_path / "file").unlink()
        recorded.ended(story(**SERVED))
        until(lambda: not recorded.warnings())
        (tmp_path / "other").touch()
        recorded.apply(policies(folder=str(tmp_path / "other")))
        recorded.ended(story(**SERVED))
        until(recorded.warnings)
        recorded.apply(policies(record="false"))
        assert recorded.warnings() == []
