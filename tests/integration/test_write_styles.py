"""Whichever way a policy file is written: it is in force soon, and whole (R4)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from pathlib import Path

import pytest

from mlxd.policy.history import history_of
from mlxd.policy.settle import VANISHED_SECONDS
from tests.integration.talking import eventually
from tests.support import sabotage
from tests.support.daemon import Daemon, daemon, write_whole
from tests.support.long import short

RESCAN_SECONDS = 600
"""For a daemon that is told of edits: it finds none by looking."""
HINTED_SECONDS = 20.0
"""From the last byte until it is in force, where the system tells of it: far less than the rescan
needs. How soon it really is, benchmarks/policy_latency.py measures."""
POLLED_SECONDS = 6.0
"""The same where it does not."""
SLOW_SECONDS = 0.8
PIECES = 5 if sys.platform == "linux" else 16
"""Of a slow write. On Linux they are further apart than the quiet period, since there an open file
is waited for; elsewhere they must not be."""
TRUNCATED_SECONDS = 0.3
DELETED_SECONDS = 0.5
REALLY = "no inotify instance is left"
_NUMBERS = count(11)


def whole(number: int) -> str:
    """limits.yaml, in which every number is the same; each of its beginnings is valid YAML."""
    return (
        f"schema: mlxd/v1\n"
        f"concurrency:\n  max_in_flight: {number}\n  max_waiting: {number}\n"
        f"rate_limit:\n- requests: {number}\n  window: {number}s\n  max_keys: {number}\n"
        f"tokens:\n  max_prompt: {number}\n  max_output: {number}\n"
        f"adaptive:\n  min: {number}\n  max: {number}\n"
    )


class Written:
    """One daemon, and every text that was ever written for it."""

    def __init__(self, running: Daemon, within: float) -> None:
        self.daemon = running
        self.within = within
        self.texts: set[bytes | None] = {(running.policies / "limits.yaml").read_bytes()}
        """None: that there is no such file."""

    @property
    def file(self) -> Path:
        return self.daemon.policies / "limits.yaml"

    def next(self) -> str:
        text = whole(next(_NUMBERS))
        self.texts.add(text.encode())
        return text

    def in_force(self, text: str) -> None:
        """Until it is; what was in force on the way was whole."""
        last = time.monotonic()
        number = int(text.rpartition(" ")[2])

        def says_so() -> bool:
            return bool(self.daemon.health()["max_concurrent"] == number)

        eventually(says_so, f"{number} is in force", within=last + self.within - time.monotonic())
        self.assert_whole()

    def assert_whole(self) -> None:
        """Every generation that was ever in force is a text that was written, to the last byte."""
        history = history_of(self.daemon.state)
        current = self.daemon.generation()
        eventually(lambda: current in history.numbers(), "the generation is kept")
        for generation in history.newest_first():
            assert generation.contents.get("limits.yaml") in self.texts, generation.number


@pytest.fixture(scope="module")
def hinted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("hinted")
    prefix = [*_mortal(), sys.executable, sabotage.__file__, f"rescan:{RESCAN_SECONDS}"]
    with daemon(folder, policies=_policies(), prefix=prefix) as running:
        eventually(lambda: running.health()["policy"]["watching"], "the system tells of edits")
        yield running


def _policies() -> Mapping[str, str]:
    return {"limits": whole(10).removeprefix("schema: mlxd/v1\n")}


def _mortal() -> list[str]:
    """Root may read what nobody may; the daemon here may not."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        return []
    return ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]


@pytest.fixture
def written(hinted: Daemon) -> Written:
    """The folder holds plain files again, and they are in force."""
    folder = hinted.policies
    if folder.exists():
        for entry in folder.iterdir():
            if entry.name not in ("limits.yaml", "models.yaml") or entry.is_symlink():
                shutil.rmtree(
                    entry
                ) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    one = whole(next(_NUMBERS))
    write_whole(folder / "limits.yaml", one)
    assert hinted.reload()["result"] != "refused"
    shutil.rmtree(hinted.state / "lkg")
    return Written(hinted, HINTED_SECONDS)


# -- the styles; each returns after the last byte


def _in_place(written: Written, text: str) -> None:
    written.file.write_text(text)


def _slowly_in_place(written: Written, text: str) -> None:
    lines = text.splitlines(keepends=True)
    step = -(-len(lines) // PIECES)
    with written.file.open("w") as stream:
        for first in range(0, len(lines), step):
            stream.write("".join(lines[first : first + step]))
            stream.flush()
            time.sleep(SLOW_SECONDS / PIECES)


def _renamed(written: Written, text: str) -> None:
    write_whole(written.file, text)


def _by_sed(written: Written, text: str) -> None:
    """`sed -i` writes a file of its own and renames it; with a suffix, it does so everywhere."""
    old, new = (one.rpartition(" ")[2].strip() for one in (written.file.read_text(), text))
    script = f"s/{old}/{new}/"
    subprocess.run(["sed", "-i.bak", script, str(written.file)], check=True)
    assert written.file.read_text() == text


def _as_vim_does(written: Written, text: str) -> None:
    backup = written.file.with_name("limits.yaml~")
    written.file.rename(backup)
    written.file.write_text(text)
    backup.unlink()


def _truncated_first(written: Written, text: str) -> None:
    os.truncate(written.file, 0)
    time.sleep(TRUNCATED_SECONDS)
    with written.file.open("r+") as stream:
        stream.write(text)


def _deleted_first(written: Written, text: str) -> None:
    """A writer that is held up for long in between has really deleted it."""
    began = time.monotonic()
    written.file.unlink()
    time.sleep(DELETED_SECONDS)
    written.file.write_text(text)
    if time.monotonic() - began >= VANISHED_SECONDS:
        written.texts.add(None)


def _as_kubernetes_does(written: Written, text: str) -> None:
    """`..data` leads to the present folder of a ConfigMap, and is turned to the next one."""
    _turn_to(written, "..2026_1", written.file.read_text())
    _link(written.file, Path("..data/limits.yaml"))
    between = written.next()
    _turn_to(written, "..2026_2", between)
    written.in_force(between)
    _turn_to(written, "..2026_3", text)


def _turn_to(written: Written, name: str, text: str) -> None:
    folder = written.file.parent
    (folder / name).mkdir()
    (folder / name / "limits.yaml").write_text(text)
    _link(folder / "..data", Path(name))


def _link(file: Path, target: Path) -> None:
    temporary = file.with_name(".link")
    temporary.symlink_to(target)
    temporary.replace(file)


def _outside_a_link(written: Written, text: str) -> None:
    outside = written.daemon.state.parent / "elsewhere"
    outside.mkdir(exist_ok=True)
    _edit_behind_a_link(written, outside / "limits.yaml", text)


def _beside_the_folder(written: Written, text: str) -> None:
    _edit_behind_a_link(written, written.file.parent.parent / "limits-of-all.yaml", text)


def _edit_behind_a_link(written: Written, outside: Path, text: str) -> None:
    """Once what the link itself has stirred up is over."""
    between = written.next()
    outside.write_text(between)
    _link(written.file, outside)
    written.in_force(between)
    outside.write_text(text)


def _folder_made_again(written: Written, text: str) -> None:
    folder = written.file.parent
    rest = {file.name: file.read_text() for file in folder.iterdir() if file != written.file}
    shutil.rmtree(folder)
    folder.mkdir()
    for name, content in rest.items():
        (folder / name).write_text(content)
    written.file.write_text(text)


def _folder_moved_into_place(written: Written, text: str) -> None:
    folder = written.file.parent
    other = folder.with_name("policies.new")
    shutil.copytree(folder, other)
    (other / "limits.yaml").write_text(text)
    folder.rename(folder.with_name("policies.old"))
    other.rename(folder)
    shutil.rmtree(folder.with_name("policies.old"))


def _made_readable(written: Written, text: str) -> None:
    """Whole, but nobody's; then everybody's."""
    temporary = written.file.with_name(".new")
    temporary.write_text(text)
    temporary.chmod(0)
    temporary.replace(written.file)

    def refused() -> bool:
        errors = written.daemon.health()["policy"]["errors"]
        return any("ermission denied" in error for error in errors)

    eventually(refused, "the file cannot be read, and /health says so", within=written.within)
    written.file.chmod(0o644)


STYLES: dict[str, Callable[[Written, str], None]] = {
    "in place": _in_place,
    "slowly in place": _slowly_in_place,
    "renamed": _renamed,
    "sed -i": _by_sed,
    "vim": _as_vim_does,
    "truncated first": _truncated_first,
    "deleted first": _deleted_first,
    "kubernetes": _as_kubernetes_does,
    "outside a link": _outside_a_link,
    "beside the folder": _beside_the_folder,
    "folder made again": _folder_made_again,
    "folder moved into place": _folder_moved_into_place,
    "made readable": _made_readable,
}


@pytest.mark.parametrize("style", STYLES)
def test_an_edit_is_in_force_soon_after_its_last_byte_and_never_half(
    written: Written, style: str
) -> None:
    if style == "made readable" and os.geteuid() == 0 and not _mortal():
        pytest.skip("root may read everything")
    text = written.next()
    written.texts.add(written.file.read_bytes())
    STYLES[style](written, text)
    written.in_force(text)


# -- where the system tells of nothing


@pytest.fixture(scope="module", params=short([REALLY, "watchfiles says so"], REALLY))
def deaf(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Written]:
    """A daemon to whom the system refuses events (EMFILE): really, or as far as it can tell."""
    folder = tmp_path_factory.mktemp("deaf")
    environment: dict[str, str] = {}
    prefix: list[str] = []
    if request.param.startswith("watchfiles"):
        environment["PYTHONPATH"] = str(_without_events(folder))
    else:
        prefix = _without_inotify()
    with daemon(folder, policies=_policies(), environment=environment, prefix=prefix) as running:
        yield Written(running, POLLED_SECONDS)


def _without_events(folder: Path) -> Path:
    package = folder / "path" / "watchfiles"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        "def watch(*_, **__):\n    raise OSError(24, 'Too many open files')\n    yield\n"
    )
    return package.parent


def _without_inotify() -> list[str]:
    """A user namespace of its own, in which nobody may have an inotify instance."""
    script = 'echo 0 > /proc/sys/user/max_inotify_instances && exec "$@"'
    prefix = ["unshare", "--user", "--map-root-user", "sh", "-c", script, "sh"]
    try:
        subprocess.run([*prefix, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no user namespace can be had here")
    return prefix


@pytest.mark.parametrize("style", ["in place", "slowly in place", "renamed", "folder made again"])
def test_without_events_an_edit_is_in_force_within_six_seconds_and_never_half(
    deaf: Written, style: str
) -> None:
    text = deaf.next()
    STYLES[style](deaf, text)
    deaf.in_force(text)
    assert not deaf.daemon.health()["policy"]["watching"]
    assert "mlxd_policy_watcher_up 0" in deaf.daemon.http.get("/metrics").text
