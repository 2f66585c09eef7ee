"""`mlxd bench` against a daemon, and what that makes of it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE
from typing import Any
from xml.etree import ElementTree

import psutil
import pytest

from mlxd.cli.admin import Refused
from tests.integration.talking import ENDLESS, held, idle
from tests.support import command
from tests.support.daemon import Daemon, daemon

pytestmark = pytest.mark.mlx

SLOTS = "concurrency: {max_in_flight: 2}\nrate_limit: [{requests: 5, window: 60s}]\n"
FEW = ("--prompt", 32, "--tokens", 8, "--rounds", 1)


def bench(running: Daemon, *options: object) -> tuple[int, str, str]:
    done = command.mlxd("bench", ENDLESS, "--state", running.state, *options)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def running(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """It lets a client ask five times a minute."""
    policies = {"limits": SLOTS, "timeouts": "first_token: 5s\n"}
    with daemon(tmp_path_factory.mktemp("benched"), models=zoo, policies=policies) as running:
        yield running


def test_it_measures_beside_raw_and_the_daemon_knows(running: Daemon, tmp_path: Path) -> None:
    picture, figures = tmp_path / "a.svg", tmp_path / "a.json"
    files = ("--svg", picture, "--json", figures)
    status, said, err = bench(running, "--raw", "--streams", "1,2", *FEW, *files)
    assert status == 0, err
    assert said.startswith(f"{ENDLESS} on ")
    assert "round 1 of 1: raw, 2 streams" in err
    report: dict[str, Any] = json.loads(figures.read_text())
    assert [row["prompt"] for row in report["prefill"]] == [16, 32, 128]
    assert [row["streams"] for row in report["decode"]] == [1, 2]
    assert all(row["ratio"]["tokens_per_second"] > 0 for row in report["decode"])
    assert ElementTree.fromstring(picture.read_text()).tag.endswith("svg")

    kept = running.admin.get("/admin/bench", name=ENDLESS)["bench"]
    assert kept["decode"] == [[r["streams"], r["tokens_per_second"]] for r in report["decode"]]
    assert (running.state / "bench.json").exists()
    assert running.admin.get("/admin/health")["active_requests"] == 0

    status, said, _ = bench(running, "--streams", "1", *FEW, "--json", "-")
    assert status == 0
    assert "raw" not in json.loads(said)["decode"][0]


@pytest.mark.slow
def test_it_disturbs_nobody_and_goes_beyond_no_limit(running: Daemon) -> None:
    assert "8 streams: 2 answers at one time is the most" in bench(running, "--streams", "8")[2]
    assert "65536 tokens of prompt and answer" in bench(running, "--prompt", "99999")[2]
    assert "at least 2" in bench(running, "--tokens", "1")[2]
    with held(running):
        status, _, err = bench(running, *FEW)
        assert (status, "others are served (1)" in err) == (1, True)
        assert bench(running, "--beside", "--streams", "1", *FEW)[0] == 0


def test_what_was_benched_says_what_to_expect(running: Daemon) -> None:
    """Made-up figures: those of a test are no use to be compared with."""
    body = {"model": ENDLESS, "prompt": "a", "options": {"num_predict": 1}, "stream": False}
    assert running.http.post("/api/generate", json=body).status_code == 200  # a hold is learned
    admin = running.admin
    told = admin.post(
        "/admin/bench", {"model": ENDLESS, "prefill": [[100, 1.0]], "decode": [[1, 10]]}
    )
    assert told["warnings"][0].startswith(f"{ENDLESS}: a prompt of ")
    places = ("--state", running.state, "--policies", running.policies)
    assert told["warnings"][0] in command.mlxd("policy", "check", "--online", *places).stdout
    first, second = (held(running, prompt=f"{name} of many words", tokens=1000) for name in "ab")
    with first, second:
        answer = running.http.get("/health")
        waits = answer.json()["expected_wait_seconds"]
        assert waits["medium"] > 50  # 1000 tokens at 5 a second, for one of two to end
        (story, _) = admin.get("/admin/requests", n="2")["requests"]
        assert "s to read on this machine" in (story["slow_prompt"] or "")


@pytest.mark.slow
def test_an_interrupt_leaves_nothing_behind(running: Daemon) -> None:
    words = [
        "bench",
        ENDLESS,
        "--raw",
        "--prompt",
        "32",
        "--rounds",
        "1000",
        "--state",
        str(running.state),
    ]
    ended = [sys.executable, "-m", "mlxd", *words]
    with subprocess.Popen(ended, stdout=PIPE, stderr=PIPE, text=True) as bench:
        assert bench.stderr is not None
        said = list[str]()
        for line in bench.stderr:
            said.append(line)
            if "round 1 of 1000" in line:
                break
        assert "round 1 of 1000" in said[-1], said
        children = psutil.Process(bench.pid).children()
        bench.send_signal(signal.SIGINT)
        assert bench.wait(20.0) == 130
    assert len(children) == 1
    assert psutil.wait_procs(children, 10.0)[1] == []
    idle(running)


@pytest.mark.parametrize(
    "wrong",
    [
        {"prefill": [[100, 5.0]]},
        {"prefill": [], "decode": [[1, 1.0]]},
        {"prefill": [[100, "fast"]], "decode": [[1, 1.0]]},
        {"prefill": [[100, 10**310]], "decode": [[1, 1.0]]},
        {"prefill": [[True, 1.0]], "decode": [[1, 1.0]]},
    ],
)
def test_what_is_no_bench_is_refused(running: Daemon, wrong: dict[str, Any]) -> None:
    before = running.admin.get("/admin/bench", name=ENDLESS)
    with pytest.raises(Refused) as refused:
        running.admin.post("/admin/bench", {"model": ENDLESS, **wrong})
    assert refused.value.status == 400
    assert running.admin.get("/admin/bench", name=ENDLESS) == before
