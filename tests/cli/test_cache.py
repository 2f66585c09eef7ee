"""`mlxd cache`: what a person sees, what a program gets, and what the admin socket serves."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from mlxd.cli import main
from mlxd.cli.cache import kept
from tests.support.daemon import Daemon

Json = dict[str, Any]

QWEN: Json = {
    "name": "qwen", "answered": True, "entries": 12, "tokens": 61000, "bytes": 1288490189,
    "budget_bytes": 4 * 2**30, "oldest_use_seconds": 185.2, "disk_entries": 3,
    "disk_bytes": 300 * 2**20, "lookups": {"whole": 7, "part": 3, "none": 2},
    "reused_tokens": 45210, "computed_tokens": 14790,
}  # fmt: skip
IDLE: Json = QWEN | {
    "name": "a-new-one", "entries": 0, "tokens": 0, "bytes": 0, "oldest_use_seconds": 0.0,
    "disk_entries": 0, "disk_bytes": 0, "lookups": {"whole": 0, "part": 0, "none": 0},
    "reused_tokens": 0, "computed_tokens": 0,
}  # fmt: skip
BUSY: Json = QWEN | {
    "name": "busy", "answered": False, "entries": None, "tokens": None,
    "oldest_use_seconds": None, "disk_entries": None, "disk_bytes": None,
}  # fmt: skip
TABLE = """\
MODEL      KEPT     OF       PROMPTS  UNUSED FOR  ON DISK  FOUND     SAVED
a-new-one  0 B      4.0 GiB  0                             0 of 0    0 of 0 tokens
busy       1.2 GiB  4.0 GiB  ?        ?           ?        10 of 12  45210 of 60000 tokens
qwen       1.2 GiB  4.0 GiB  12       3 min 5 s   300 MiB  10 of 12  45210 of 60000 tokens
"""


class Played:
    """A daemon that keeps what it is said to keep."""

    def __init__(self, *models: Json) -> None:
        self.models = list(models)
        self.asked: list[Json] = []
        self.disk = {"entries": 0, "bytes": 0}

    def get(self, target: str, **query: str) -> Json:
        self.asked.append({"get": target, **query})
        return {"models": self.models, "disk": self.disk}

    def delete(self, target: str, **query: str) -> Json:
        self.asked.append({"delete": target, **query})
        return {"models": self.models, "disk": self.disk}


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Played]:
    def made(*models: Json) -> Played:
        played = Played(*models)
        monkeypatch.setattr(kept, "asking", lambda p, s, ask, *, as_json: ask(played))
        return played

    return made


class TestStats:
    def test_a_line_for_each_model(
        self, play: Callable[..., Played], capsys: pytest.CaptureFixture[str]
    ) -> None:
        played = play(IDLE, BUSY, QWEN)
        assert main(["cache", "stats"]) == 0
        assert capsys.readouterr().out == TABLE
        assert played.asked == [{"get": "/admin/cache"}]

    def test_for_programs_it_is_what_the_daemon_says(
        self, play: Callable[..., Played], capsys: pytest.CaptureFixture[str]
    ) -> None:
        played = play(QWEN)
        assert main(["cache", "stats", "qwen", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {"models": [QWEN], "disk": played.disk}
        assert played.asked == [{"get": "/admin/cache", "model": "qwen"}]

    def test_nothing_in_memory(
        self, play: Callable[..., Played], capsys: pytest.CaptureFixture[str]
    ) -> None:
        played = play()
        assert (main(["cache", "stats"]), main(["cache", "stats", "qwen"])) == (0, 0)
        assert capsys.readouterr().out == "no model is in memory\nqwen is not in memory\n"
        played.disk = {"entries": 2, "bytes": 3 * 2**20}
        assert main(["cache", "stats"]) == 0
        assert capsys.readouterr().out == (
            "no model is in memory\non disk, of all models: 2 prompts, 3 MiB\n"
        )


class TestClear:
    def test_what_is_on_disk_of_a_model_that_is_not_in_memory_stays_and_that_is_said(
        self, play: Callable[..., Played], capsys: pytest.CaptureFixture[str]
    ) -> None:
        play()
        assert main(["cache", "clear", "qwen", "--disk"]) == 1
        assert "qwen is not in memory\nwhat is on disk of it stays" in capsys.readouterr().out
        assert main(["cache", "clear", "qwen"]) == 0

    def test_what_is_forgotten_is_said(
        self, play: Callable[..., Played], capsys: pytest.CaptureFixture[str]
    ) -> None:
        played = play(IDLE)
        assert main(["cache", "clear"]) == 0
        assert main(["cache", "clear", "a-new-one", "--disk"]) == 0
        assert main(["cache", "clear", "--disk"]) == 0
        assert capsys.readouterr().out == (
            "a-new-one keeps nothing in memory of the prompts that it has read\n"
            "a-new-one keeps nothing in memory or on disk of the prompts that it has read\n"
            "a-new-one keeps nothing in memory or on disk of the prompts that it has read\n"
            "nothing is left on disk, of models that are not in memory either\n"
        )
        assert played.asked == [
            {"delete": "/admin/cache"},
            {"delete": "/admin/cache", "model": "a-new-one", "disk": "1"},
            {"delete": "/admin/cache", "disk": "1"},
        ]

    def test_one_that_does_not_answer_is_no_success(
        self, play: Callable[..., Played], capsys: pytest.CaptureFixture[str]
    ) -> None:
        play(IDLE, BUSY)
        assert main(["cache", "clear"]) == 1
        assert capsys.readouterr().out.splitlines()[1] == (
            "busy is busy and will forget what it keeps after its present step"
        )


@pytest.mark.mlx
class TestTheAdminSocket:
    def test_it_tells_and_forgets(self, shared_daemon: Daemon) -> None:
        shared_daemon.http.post("/api/generate", json={"model": "tiny-a"})
        (found,) = shared_daemon.admin.get("/admin/cache", model="tiny-a")["models"]
        assert found.keys() == QWEN.keys()
        assert (found["name"], found["answered"]) == ("tiny-a", True)
        (cleared,) = shared_daemon.admin.delete("/admin/cache", model="tiny-a", disk="1")["models"]
        assert (cleared["entries"], cleared["bytes"], cleared["disk_bytes"]) == (0, 0, 0)
        names = [one["name"] for one in shared_daemon.admin.get("/admin/cache")["models"]]
        assert "tiny-a" in names

    def test_a_model_that_is_not_there(self, shared_daemon: Daemon) -> None:
        status = main(["cache", "stats", "nobody", "--state", str(shared_daemon.state)])
        assert status == 1

    def test_over_tcp_it_is_not_everybodys(self, shared_daemon: Daemon) -> None:
        assert shared_daemon.http.get("/admin/cache").status_code == 403
        assert shared_daemon.http.delete("/admin/cache").status_code == 403
