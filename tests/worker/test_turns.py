"""One engine steps at a time: threads with a lock of their own each, and processes."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mlxd.worker.turns import Turns


def exclusive(file: Path) -> Turns:
    turns = Turns(file)
    turns.exclusive = True
    return turns


def test_two_engines_alternate(tmp_path: Path):
    order: list[str] = []
    ready = threading.Barrier(2)

    def step(name: str) -> None:
        turns = exclusive(tmp_path / "turns")
        ready.wait()
        for _ in range(50):
            with turns.turn():
                order.append(name)
                threading.Event().wait(0.002)  # the step
        turns.end()

    threads = [threading.Thread(target=step, args=[name]) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    middle = "".join(order)[10:80]
    assert middle.count("ab") + middle.count("ba") >= 60


def test_where_the_file_cannot_be_had_no_step_fails_and_turns_begin_once_it_can(tmp_path: Path):
    folder = tmp_path / "tmp"
    turns = exclusive(folder / "turns")
    with turns.turn():
        pass
    folder.mkdir()
    (folder / "turns.next").mkdir()
    with turns.turn():
        pass
    (folder / "turns.next").rmdir()
    with turns.turn(), (folder / "turns").open() as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_without_locks_no_step_fails_or_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    stands: list[bool] = []
    turns = Turns(tmp_path / "turns", standing=stands.append)
    turns.exclusive = True

    def without_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("mlxd.worker.turns.fcntl.flock", without_locks)
    with turns.turn():
        assert stands == [True, False]


def test_no_two_are_inside_at_one_time(tmp_path: Path):
    inside: set[int] = set()
    most: list[int] = []

    def step(n: int) -> None:
        turns = exclusive(tmp_path / "turns")
        for _ in range(40):
            with turns.turn():
                inside.add(n)
                most.append(len(inside))
                threading.Event().wait(0.0005)
                inside.discard(n)
        turns.end()

    threads = [threading.Thread(target=step, args=[n]) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert set(most) == {1}
    assert len(most) == 160


HOLDER = """
import sys
from pathlib import Path
from mlxd.worker.turns import Turns
turns = Turns(Path(sys.argv[1]))
turns.exclusive = True
with turns.turn():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_killed_holder_frees_the_turn(tmp_path: Path):
    file = tmp_path / "turns"
    command = [sys.executable, "-c", HOLDER, str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        got = threading.Event()

        def take() -> None:
            with exclusive(file).turn():
                got.set()

        waiting = threading.Thread(target=take)
        waiting.start()
        assert not got.wait(0.2), "it is held"
        holder.kill()
        assert got.wait(10)
        waiting.join(10)


def test_engines_that_are_not_exclusive_take_no_lock(tmp_path: Path):
    file = tmp_path / "turns"
    with Turns(file).turn(), exclusive(file).turn(), Turns(file).turn(), Turns(None).turn():
        pass
    nobody = Turns(None)
    nobody.exclusive = True
    with nobody.turn(), nobody.turn():
        pass


def test_an_engine_that_is_alone_keeps_its_turn_and_what_it_began_goes_on(tmp_path: Path):
    done: list[str] = []
    file = tmp_path / "turns"
    turns = Turns(file, lambda: done.append("finished"))
    turns.exclusive = True
    for _ in range(3):
        with turns.turn():
            done.append("stepped")
    assert done == ["stepped"] * 3
    assert is_locked(file)
    turns.end()
    assert done == ["stepped"] * 3 + ["finished"]
    assert not is_locked(file)
    turns.end()
    assert done.count("finished") == 1


def test_a_turn_is_passed_on_once_its_step_is_done(tmp_path: Path):
    done: list[str] = []
    file = tmp_path / "turns"
    turns = Turns(file, lambda: done.append("finished"))
    with turns.turn():
        pass
    assert not done
    turns.exclusive = True

    def other() -> None:
        with exclusive(file).turn():
            done.append("other")

    waiting = threading.Thread(target=other)
    with turns.turn():
        waiting.start()
        while not is_locked(file.with_name("turns.next")):
            threading.Event().wait(0.001)
        done.append("stepped")
    waiting.join(10)
    assert done == ["stepped", "finished", "other"]


def test_a_turn_that_is_not_exclusive_any_more_is_given_up(tmp_path: Path):
    file = tmp_path / "turns"
    turns = exclusive(file)
    with turns.turn():
        pass
    turns.exclusive = False
    with turns.turn():
        assert not is_locked(file)


def test_a_step_that_fails_gives_its_turn_up(tmp_path: Path):
    file = tmp_path / "turns"
    turns = exclusive(file)
    with pytest.raises(RuntimeError), turns.turn():
        raise RuntimeError
    assert not is_locked(file)


def is_locked(file: Path) -> bool:
    with file.open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
