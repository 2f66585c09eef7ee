"""How a daemon begins and ends: alone, in order, and without leaving anything behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.integration.talking import (
    ENDLESS,
    body_for,
    eventually,
    generate,
    gone,
    held,
    say,
    workers_of,
)
from tests.support import sse
from tests.support.daemon import Daemon, free_port, write_policies
from tests.support.fleet import PACED
from tests.support.model_maker import Shape, make_model

pytestmark = pytest.mark.mlx

TAKEN = 75
AT_ONCE = 15.0
"""Seconds for what takes about one, on a machine that is busy."""
DRAIN = "drain: {not_ready_delay: 1s, grace: 40s}\n"


def _second(*arguments: object) -> tuple[subprocess.CompletedProcess[str], float]:
    command = [sys.executable, "-m", "mlxd", "serve", *map(str, arguments)]
    began = time.monotonic()
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)
    return done, time.monotonic() - began


def test_a_second_start_on_the_same_state_folder_names_the_first(
    served: Daemon, tmp_path: Path
) -> None:
    before = [worker.pid for worker in served.workers()]
    done, seconds = _second("--state", served.state, "--port", free_port(), "--policies", tmp_path)
    assert done.returncode == TAKEN
    assert str(served.pid) in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert seconds < AT_ONCE
    assert [worker.pid for worker in served.workers()] == before
    assert (served.state / "mlxd.pid").read_text().strip() == str(served.pid)
    assert served.http.get("/readyz").status_code == 200


def test_a_second_start_on_the_same_port_names_the_first(served: Daemon, tmp_path: Path) -> None:
    state = tmp_path / "state"
    done, seconds = _second("--state", state, "--port", served.port, "--policies", tmp_path)
    assert done.returncode == TAKEN
    assert str(served.pid) in done.stderr
    assert str(served.port) in done.stderr
    assert seconds < AT_ONCE
    assert not (state / "mlxd.pid").exists()
    assert served.http.get("/readyz").status_code == 200


def test_a_start_on_a_port_of_somebody_else_is_refused_with_its_pid(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done, _ = _second("--state", tmp_path / "s", "--port", port, "--policies", tmp_path)
    assert done.returncode == TAKEN
    assert str(os.getpid()) in done.stderr


@pytest.mark.slow
def test_an_idle_daemon_with_a_loaded_model_stops_within_three_seconds(start: Any) -> None:
    """With grace and delays that are far longer, so that a busy machine may take longer, too."""
    daemon: Daemon = start({"server": "drain: {not_ready_delay: 20s, grace: 30s}\n"})
    say(daemon, "tiny-a", "x", tokens=1)
    (worker,) = daemon.workers()
    began = time.monotonic()
    assert daemon.stop() == 0
    assert time.monotonic() - began < 12.0
    assert gone(worker.pid)
    assert not (daemon.state / "mlxd.pid").exists()
    assert not (daemon.state / "tmp").exists()


def test_a_stream_under_way_finishes_and_then_the_daemon_ends(
    start: Any, paced: dict[str, str]
) -> None:
    drain = {"server": "drain: {not_ready_delay: 300ms, grace: 40s}\n"}
    daemon: Daemon = start(drain | paced)
    with held(daemon, PACED, tokens=300) as stream, httpx.Client(base_url=daemon.url) as known:
        for client in (known, daemon.http):  # each on a connection of its own
            client.get("/livez")
        daemon.process.send_signal(signal.SIGTERM)
        eventually(lambda: "no new connection" in daemon.log_text(), "the delay is over")
        refused = known.post("/api/generate", json=generate(PACED, "x", tokens=1))
        assert refused.status_code == 503
        assert refused.headers["x-mlxd-code"] == "draining"
        assert refused.headers["retry-after"]
        health = daemon.http.get("/health")
        assert health.status_code == 200
        said = "the daemon is stopping: 1 under way, for 40s at most (server.drain.grace)"
        assert said in health.json()["warnings"]
        found = stream.rest()
    assert (found[-1]["done"], found[-1]["eval_count"]) == (True, 300)
    assert daemon.process.wait(30) == 0


def test_until_the_delay_is_over_requests_are_served_and_sent_elsewhere(start: Any) -> None:
    """Nothing is under way; somebody goes by /readyz, as a balancer does."""
    daemon: Daemon = start({"server": "drain: {not_ready_delay: 60s, grace: 40s}\n"})
    assert daemon.http.get("/readyz").status_code == 200
    daemon.process.send_signal(signal.SIGTERM)

    def draining() -> bool:
        return daemon.http.get("/readyz").status_code == 503

    eventually(draining, "/readyz says 503")
    served = daemon.http.post("/api/generate", json=generate(ENDLESS, "x", tokens=1))
    assert (served.status_code, served.headers["connection"]) == (200, "close")
    assert daemon.stop() == 0


def test_a_second_signal_ends_the_daemon_at_once(start: Any) -> None:
    daemon: Daemon = start({"server": DRAIN})
    with held(daemon) as stream:
        (worker,) = daemon.workers()
        daemon.process.send_signal(signal.SIGTERM)
        eventually(lambda: "draining" in daemon.log_text(), "it drains")
        began = time.monotonic()
        daemon.process.send_signal(signal.SIGTERM)
        daemon.process.wait(30)
        assert time.monotonic() - began < 12.0
        stream.rest()
        assert stream.records[-1].keys() == {"error", "code"}
        assert "the daemon is stopping" in stream.records[-1]["error"]
    assert gone(worker.pid)


@pytest.mark.slow
def test_a_stream_that_outlasts_the_grace_is_cut_and_the_daemon_ends(start: Any) -> None:
    daemon: Daemon = start({"server": "drain: {not_ready_delay: 0s, grace: 300ms}\n"})
    with held(daemon) as stream:
        daemon.process.send_signal(signal.SIGINT)
        assert daemon.process.wait(30) == 0
        stream.rest()
        assert "the daemon is stopping" in stream.records[-1]["error"]
        assert not any(record.get("done") for record in stream.records)
    assert "did not finish in time" in daemon.log_text()


def test_kill_9_takes_the_workers_along_and_the_next_start_works(start: Any, zoo: Path) -> None:
    daemon: Daemon = start()
    with held(daemon):
        (worker,) = daemon.workers()
        daemon.process.kill()
        daemon.process.wait(5)
        eventually(lambda: gone(worker.pid), "the worker is gone")
    assert (daemon.state / "mlxd.pid").exists(), "nobody could remove it"
    again = _again(daemon, zoo)
    try:
        eventually(lambda: _lives(again, daemon.port), "the next daemon lives", within=40)
        assert say(daemon, "tiny-a", "x", tokens=2)
        assert (daemon.state / "mlxd.pid").read_text().strip() == str(again.pid)
    finally:
        again.terminate()
        again.wait(20)


def _again(daemon: Daemon, zoo: Path) -> subprocess.Popen[bytes]:
    """Start on the same port and state folder."""
    policies = daemon.log.parent / "policies"
    assert str(zoo) in (policies / "models.yaml").read_text()
    command = [sys.executable, "-m", "mlxd", "serve", "--port", str(daemon.port)]
    command += ["--policies", str(policies), "--state", str(daemon.state)]
    with (daemon.log.parent / "again.log").open("wb") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def _lives(process: subprocess.Popen[bytes], port: int) -> bool:
    assert process.poll() is None, "the next daemon did not start"
    try:
        return httpx.get(f"http://127.0.0.1:{port}/livez").status_code == 200
    except httpx.TransportError:
        return False


def test_the_daemon_has_no_engine_in_it(served: Daemon) -> None:
    say(served, ENDLESS, "x", tokens=1)
    if not Path("/proc").is_dir():
        pytest.skip("needs /proc")
    maps = Path(f"/proc/{served.pid}/maps").read_text()
    for word in ("mlx/", "libmlx", "mlx_lm", "transformers", "numpy", "tokenizers"):
        assert word not in maps, word
    assert "libmlx" in Path(f"/proc/{served.workers()[0].pid}/maps").read_text()


@pytest.mark.slow
def test_the_daemon_stays_small(start: Any) -> None:
    daemon: Daemon = start()
    process = psutil.Process(daemon.pid)
    body = body_for("/api/generate", "tiny-a", "x", tokens=1)
    for _ in range(20):
        daemon.http.post("/api/generate", json=body)
    before = process.memory_info().rss
    assert before < 80e6
    for _ in range(180):
        assert daemon.http.post("/api/generate", json=body).status_code == 200
    after = process.memory_info().rss
    assert after < 80e6
    assert after - before < 4e6


def test_files_and_threads_do_not_pile_up(served: Daemon) -> None:
    process = psutil.Process(served.pid)
    body = body_for("/v1/completions", ENDLESS, "x", tokens=1)
    served.http.post("/v1/completions", json=body)
    before = process.num_fds(), process.num_threads()
    for _ in range(15):
        with httpx.Client(base_url=served.url) as client:
            client.post("/v1/completions", json=body)

    def back() -> bool:
        return process.num_fds() <= before[0] + 1 and process.num_threads() <= before[1] + 1

    eventually(back, "as many files and threads as before")


def test_the_limit_of_open_files_is_not_lowered(served: Daemon) -> None:
    if not hasattr(psutil.Process, "rlimit"):
        pytest.skip("limits of other processes cannot be read here")
    import resource

    say(served, ENDLESS, "x", tokens=1)
    ours = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, hard = psutil.Process(served.pid).rlimit(psutil.RLIMIT_NOFILE)
    assert hard == ours[1]
    assert soft >= ours[0]


def test_the_state_folder_is_private_and_tells_where_the_daemon_is(served: Daemon) -> None:
    assert served.state.stat().st_mode & 0o777 == 0o700
    address = json.loads((served.state / "daemon.json").read_text())
    assert (address["pid"], address["port"]) == (served.pid, served.port)


@pytest.mark.slow
def test_no_worker_outlives_a_killed_daemon_by_a_second(start: Any) -> None:
    """One in the middle of an answer, and one that is stopped and can notice nothing."""
    daemon: Daemon = start()
    say(daemon, "tiny-a", "x", tokens=1)
    with held(daemon):
        pids = [worker.pid for worker in daemon.workers()]
        assert len(pids) == 2
        os.kill(workers_of(daemon)["tiny-a"], signal.SIGSTOP)
        daemon.process.kill()
        daemon.process.wait(5)
        eventually(lambda: all(map(gone, pids)), "every worker is gone", within=4.0)


STUBBORN = """
import os, signal, subprocess, sys, time
from mlx_lm.models.llama import Model, ModelArgs
signal.signal(signal.SIGTERM, signal.SIG_IGN)
CHILD = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", CHILD])
_call = Model.__call__
def stubborn(self, inputs, cache=None, **more):
    try:
        asked = inputs.tolist()[0][-1] == 77
    except ValueError:
        asked = False
    while asked:
        time.sleep(1)
    return _call(self, inputs, cache=cache, **more)
Model.__call__ = stubborn
"""
STUBBORN_MODELS = "dirs: [{zoo}]\nmodels:\n  tiny-stubborn: {{trust_remote_code: true}}\n"


@pytest.fixture
def stubborn(tmp_path: Path) -> dict[str, Any]:
    """How to start a daemon with a model whose worker hears nothing once it is asked, and which has
    started a process of its own.
    """
    folder = tmp_path / "stubborn"
    make_model(folder / "tiny-stubborn", Shape(spread=3.0))
    (folder / "tiny-stubborn" / "code.py").write_text(STUBBORN)
    file = folder / "tiny-stubborn" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_file": "code.py"}))
    return {"models": folder, "policies": {"models": STUBBORN_MODELS.format(zoo=folder)}}


def _hang(daemon: Daemon) -> tuple[psutil.Process, psutil.Process]:
    """Have its worker hang; returns that and the worker's child."""
    say(daemon, "tiny-stubborn", "x", tokens=1)
    (worker,) = daemon.workers()
    (child,) = worker.children()
    body = {"model": "tiny-stubborn", "prompt": [77], "max_tokens": 5}
    with suppress(httpx.ReadTimeout):
        daemon.http.post("/v1/completions", json=body, timeout=1.0)
    return worker, child


@pytest.mark.slow
def test_a_worker_that_hears_nothing_is_killed_after_its_grace_with_all_it_has_started(
    start: Any, stubborn: dict[str, Any]
) -> None:
    timeouts = "shutdown: {term_grace: 3s}\nworker_cancel_ack: 60s\n"
    daemon: Daemon = start(
        {**stubborn["policies"], "timeouts": timeouts, "server": "drain: {grace: 0s}\n"},
        models=stubborn["models"],
    )
    worker, child = _hang(daemon)
    began = time.monotonic()
    daemon.process.send_signal(signal.SIGTERM)
    eventually(lambda: "the workers end" in daemon.log_text(), "the workers are told")
    eventually(lambda: gone(worker.pid), "it is killed")
    seconds = time.monotonic() - began
    assert 4.0 < seconds < 15.0, "a second for the word, then the grace"
    eventually(lambda: gone(child.pid), "so is what it started", within=5.0)
    assert daemon.process.wait(10) == 0


@pytest.mark.slow
def test_what_a_killed_daemons_worker_had_started_is_ended_by_the_next_one(
    start: Any, stubborn: dict[str, Any]
) -> None:
    daemon: Daemon = start(stubborn["policies"], models=stubborn["models"])
    worker, child = _hang(daemon)
    daemon.process.kill()
    daemon.process.wait(5)
    eventually(lambda: gone(worker.pid), "the worker is gone", within=5.0)
    assert not gone(child.pid)
    again = _again(daemon, stubborn["models"])
    try:
        eventually(lambda: _lives(again, daemon.port), "the next daemon lives", within=40)
        eventually(lambda: gone(child.pid), "the child is gone", within=5.0)
    finally:
        again.terminate()
        again.wait(20)


@pytest.mark.slow
def test_what_a_killed_daemon_left_is_replaced(start: Any, zoo: Path) -> None:
    daemon: Daemon = start()
    say(daemon, "tiny-a", "x", tokens=1)
    left = [daemon.state / name for name in ("admin.sock", "mlxd.pid", "daemon.json", "mlxd.lock")]
    private = list((daemon.state / "tmp").glob("worker-*"))
    daemon.process.kill()
    daemon.process.wait(5)
    assert all(file.exists() for file in left)
    assert private
    again = _again(daemon, zoo)
    try:
        eventually(lambda: _lives(again, daemon.port), "the next daemon lives", within=40)
        eventually(lambda: daemon.address().pid == again.pid, "it says where it is")
        assert daemon.admin.get("/admin/policy")["generation"] >= 1
        assert not any(folder.exists() for folder in private)
    finally:
        again.terminate()
        again.wait(20)


@pytest.mark.slow
def test_the_stages_of_an_end_are_logged_and_told(start: Any) -> None:
    daemon: Daemon = start({"server": "drain: {not_ready_delay: 500ms, grace: 1s}\n"})
    owner = httpx.HTTPTransport(uds=daemon.address().admin)
    with (
        httpx.Client(transport=owner, base_url="http://localhost") as admin,
        sse.stream(admin, "/admin/events") as told,
        held(daemon) as stream,
    ):
        daemon.process.send_signal(signal.SIGTERM)
        for stage in ("not_ready", "closed", "cancelled"):
            told.until("drain", stage=stage)
        assert told.ended.wait(20)
        stream.rest()
    assert daemon.process.wait(20) == 0
    assert [record["data"]["stage"] for record in told.seen if record["type"] == "drain"] == [
        "not_ready", "closed", "cancelled",
    ]  # fmt: skip
    log = daemon.log_text()
    order = [
        log.index(f"stopping: {words}") for words in ("clients are", "no new con", "1 request did")
    ]
    assert order == sorted(order)
    assert log.index("stopping: the workers end") > order[-1]


@pytest.mark.slow
def test_an_answer_that_is_still_read_at_the_end_is_not_cut(start: Any) -> None:
    """Its generation has ended long before."""
    daemon: Daemon = start({"server": "drain: {not_ready_delay: 0s, grace: 120s}\n"})
    body = body_for("/v1/chat/completions", ENDLESS, "x", tokens=300)
    body |= {"logprobs": True, "top_logprobs": 20}
    with _slow_reader(daemon, json.dumps(body).encode()) as client:
        received = client.recv(1000)
        daemon.process.send_signal(signal.SIGTERM)
        reading = "answers are still being read"
        eventually(lambda: reading in daemon.log_text(), "only the client is awaited")
        time.sleep(2.0)  # longer than a connection is left that is closed
        while more := client.recv(100_000):
            received += more
    answer = json.loads(received.partition(b"\r\n\r\n")[2])
    assert answer["usage"]["completion_tokens"] == 300
    assert daemon.process.wait(30) == 0


def _slow_reader(daemon: Daemon, body: bytes) -> socket.socket:
    """One that has asked, and for whom the kernel keeps little."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    client.settimeout(120)
    client.connect(("127.0.0.1", daemon.port))
    client.sendall(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    )
    return client


@pytest.mark.slow
def test_a_follower_of_events_who_reads_nothing_does_not_hold_up_an_end(start: Any) -> None:
    daemon: Daemon = start({"server": "drain: {not_ready_delay: 0s, grace: 120s}\n"})
    with sse.silent_follower(daemon.port):
        began = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - began < 30.0


DEFECTIVE = """
import os, signal, sys
from mlxd.cli import main
from mlxd.daemon import ending, life, stops
{defect}
sys.exit(main(sys.argv[1:]))
"""


def _serve(tmp_path: Path, defect: str) -> tuple[subprocess.Popen[bytes], Path, int]:
    """A daemon with a defect; its log and port."""
    port, log = free_port(), tmp_path / "log"
    policies = write_policies(tmp_path / "p", {"models": "dirs: []\n"})
    command = [sys.executable, "-c", DEFECTIVE.format(defect=defect), "serve", "--port", str(port)]
    command += ["--policies", str(policies), "--state", str(tmp_path / "s")]
    with log.open("wb") as sink:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink)
    return process, log, port


@pytest.mark.parametrize("number", ["SIGTERM", pytest.param("SIGINT", marks=pytest.mark.slow)])
def test_a_signal_during_the_start_is_no_unclean_end(tmp_path: Path, number: str) -> None:
    """It comes as soon as the start is written down."""
    defect = (
        "begun = life.begun\n"
        "def struck(*arguments):\n"
        "    ledger = begun(*arguments)\n"
        f"    os.kill(os.getpid(), signal.{number})\n"
        "    return ledger\n"
        "life.begun = struck\n"
    )
    process, log, _port = _serve(tmp_path, defect)
    try:
        assert process.wait(60) == 0, log.read_text()
    finally:
        process.kill()
    assert json.loads((tmp_path / "s" / "starts.json").read_text())["running"] is False


def test_to_be_told_to_reload_ends_no_start(tmp_path: Path) -> None:
    """By whoever finds mlxd.pid, as logrotate does."""
    defect = (
        "from mlxd.core.claim import Claim\n"
        "take = Claim.take\n"
        "def told(claim):\n"
        "    take(claim)\n"
        "    os.kill(os.getpid(), signal.SIGHUP)\n"
        "Claim.take = told\n"
    )
    process, log, _port = _serve(tmp_path, defect)
    try:
        said = tmp_path / "s" / "daemon.json"
        eventually(lambda: said.exists() or process.poll() is not None, "it starts", within=60)
        process.terminate()
        assert process.wait(60) == 0, log.read_text()
    finally:
        process.kill()


@pytest.mark.slow
def test_a_disk_that_hangs_during_the_start_does_not_hold_up_an_end(tmp_path: Path) -> None:
    """Where the daemon is can never be written down."""
    (tmp_path / "s").mkdir(mode=0o700)
    defect = f"os.mkfifo({str(tmp_path / 's')!r} + f'/.daemon.json.{{os.getpid()}}')\n"
    process, log, _port = _serve(tmp_path, defect)
    try:
        eventually((tmp_path / "s" / "admin.sock").exists, "it starts", within=60)
        process.terminate()
        assert process.wait(60) == 0, log.read_text()
        assert "the disk hangs" in log.read_text()
    finally:
        process.kill()


@pytest.mark.slow
def test_an_end_that_hangs_is_over_soon_after_a_second_signal(tmp_path: Path) -> None:
    defect = (
        "import asyncio\n"
        "stops._HASTE_SECONDS = -4.0\n"
        "ending.Ending.drain = lambda *_, **__: asyncio.sleep(600)\n"
    )
    process, log, port = _serve(tmp_path, defect)
    try:
        eventually(lambda: _lives(process, port), "it serves", within=60)
        process.terminate()
        eventually(lambda: "draining" in log.read_text(), "it has heard", within=30)
        process.terminate()
        assert process.wait(30) == 70
    finally:
        process.kill()


@pytest.mark.slow
def test_new_connections_are_accepted_until_the_delay_is_over(start: Any) -> None:
    daemon: Daemon = start({"server": "drain: {not_ready_delay: 6s, grace: 30s}\n"})
    with held(daemon) as stream:
        daemon.process.send_signal(signal.SIGTERM)
        began = time.monotonic()

        def unready() -> bool:
            return httpx.get(f"{daemon.url}/readyz").status_code == 503

        eventually(unready, "/readyz says 503 on a new connection", within=5.0)

        def refused() -> bool:
            try:
                httpx.get(f"{daemon.url}/livez")
            except httpx.ConnectError:
                return True
            return False

        eventually(refused, "no new connection is accepted")
        assert time.monotonic() - began >= 5.8
        stream.hang_up()
    assert daemon.process.wait(20) == 0


@pytest.mark.slow
def test_idle_connections_do_not_hold_up_an_end(start: Any) -> None:
    daemon: Daemon = start({"server": "drain: {not_ready_delay: 20s, grace: 30s}\n"})
    with ExitStack() as stack:
        for _ in range(20):
            client = stack.enter_context(httpx.Client(base_url=daemon.url))
            client.get("/livez")
        for _ in range(20):
            stack.enter_context(socket.create_connection(("127.0.0.1", daemon.port)))
        began = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - began < 10.0


@pytest.mark.slow
def test_a_request_that_waits_for_its_model_at_the_end_is_told(
    start: Any, stubborn: dict[str, Any]
) -> None:
    """Its load is cancelled when the grace is over; the client gets an answer, not a reset."""
    file = stubborn["models"] / "tiny-stubborn" / "code.py"
    file.write_text("import time; time.sleep(600)\n")
    daemon: Daemon = start(
        {**stubborn["policies"], "server": "drain: {not_ready_delay: 0s, grace: 1s}\n"},
        models=stubborn["models"],
    )
    body = body_for("/api/generate", "tiny-stubborn", "x", tokens=1)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(httpx.post, f"{daemon.url}/api/generate", json=body, timeout=30)
        eventually(daemon.workers, "it loads")
        assert daemon.stop() == 0
        refused = answer.result(5)
    assert (refused.status_code, refused.headers["x-mlxd-code"]) == (503, "draining")
