"""What a daemon decides, followed over HTTP, posted, and found again after it was killed."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.conftest import NO_LIMITS, Lend
from tests.integration.talking import ENDLESS, eventually, generate, held, say, workers_of
from tests.support import command
from tests.support.daemon import Daemon, daemon
from tests.support.sse import silent_follower, stream

pytestmark = pytest.mark.mlx

Json = dict[str, Any]
Start = Callable[..., Daemon]
FULL = "concurrency: {max_in_flight: 1}\nrate_limit: []\n"


def mlxd(running: Daemon, *arguments: str, status: int = 0) -> str:
    """A command's output."""
    done = command.mlxd(*arguments, "--state", running.state)
    assert done.returncode == status, done.stderr
    return done.stdout


def kept(running: Daemon, **query: str) -> list[Json]:
    """As a list, over TCP."""
    answer = running.http.get("/api/events", params=query, headers={"Accept": "application/json"})
    assert answer.status_code == 200
    found: list[Json] = answer.json()
    return found


class TestStream:
    @pytest.mark.slow
    def test_it_tells_of_loads_deaths_and_edits_as_they_happen(self, start: Start) -> None:
        running = start()
        with stream(running.http) as follower:
            say(running, ENDLESS, "warm", tokens=1)
            assert follower.until("worker_up")["data"]["model"] == ENDLESS
            pid = workers_of(running)[ENDLESS]
            os.kill(pid, signal.SIGKILL)
            down = follower.until("worker_down")
            assert (down["data"]["pid"], down["data"]["reason"]) == (pid, "SIGKILL")
            assert "stderr" not in down["data"]
            running.edit("limits", FULL)
            applied = follower.until("reload", result="applied")
            assert [change["new"] for change in applied["data"]["changes"]] == ["1"]
            ids = [record["id"] for record in follower.seen]
            assert ids == list(range(ids[0], ids[0] + len(ids)))

    def test_who_comes_back_misses_nothing_and_hears_nothing_twice(self, lend: Lend) -> None:
        running = lend()
        with stream(running.http) as follower:
            running.reload()
            first = follower.until("reload", trigger="admin")
        for _ in range(3):
            running.reload()
        headers = {"Last-Event-ID": str(first["id"])}
        with stream(running.http, "/api/events?since=0", headers) as again:
            ids = [again.until("reload", trigger="admin")["id"] for _ in range(3)]
        assert ids == [first["id"] + n for n in (1, 2, 3)]

    @pytest.mark.slow
    def test_only_the_types_that_are_asked_for_come(self, start: Start) -> None:
        running = start()
        say(running, ENDLESS, "warm", tokens=1)
        assert {event["type"] for event in kept(running, types="load,worker_up")} == {
            "load", "worker_up",
        }  # fmt: skip

    @pytest.mark.parametrize("query", ["since=x", "since=-1", "since=" + "9" * 40, "types=nope"])
    def test_what_makes_no_sense_is_refused(self, served: Daemon, query: str) -> None:
        answer = served.http.get(f"/api/events?{query}")
        assert answer.status_code == 400
        assert answer.headers["x-mlxd-code"] == "invalid_request"

    def test_a_head_is_answered_at_once(self, served: Daemon) -> None:
        one = httpx.Limits(max_connections=1)
        with httpx.Client(base_url=served.url, limits=one, timeout=10) as http:
            answer = http.head("/api/events")
            assert answer.status_code == 200
            assert answer.headers["content-type"] == "text/event-stream"
            assert http.get("/livez").status_code == 200

    def test_a_page_of_this_machine_may_follow_and_a_foreign_one_may_not(
        self, served: Daemon
    ) -> None:
        origin = "http://localhost:3000"
        with stream(served.http, headers={"Origin": origin}) as follower:
            assert follower.response.headers["access-control-allow-origin"] == origin
        ask = {"Origin": origin, "Access-Control-Request-Headers": "Last-Event-ID"}
        allowed = served.http.options("/api/events", headers=ask)
        assert "last-event-id" in allowed.headers["access-control-allow-headers"].lower()
        foreign = served.http.get("/api/events", headers={"Origin": "https://evil.example"})
        assert foreign.status_code == 403

    def test_it_can_only_be_read(self, served: Daemon) -> None:
        for method in ("POST", "DELETE", "PUT"):
            assert served.http.request(method, "/api/events").status_code == 405

    @pytest.mark.slow
    def test_it_tells_of_a_drain_to_its_end(self, start: Start) -> None:
        running = start({"server": "drain: {grace: 300ms, not_ready_delay: 0s}\n"})
        with held(running, tokens=60_000), stream(running.http) as follower:
            running.process.send_signal(signal.SIGTERM)
            for stage in ("not_ready", "closed", "cancelled"):
                follower.until("drain", stage=stage)
            assert follower.ended.wait(20)
            assert running.process.wait(30) == 0

    @pytest.mark.slow
    def test_the_owner_is_told_more(self, start: Start) -> None:
        running = start({"limits": FULL})
        with held(running):
            refused = running.http.post("/api/generate", json=generate(ENDLESS, "x", tokens=1))
            assert refused.status_code == 503
        (mine,) = running.admin.get("/admin/events", types="reject")["events"]
        (theirs,) = kept(running, types="reject")
        assert mine["data"].pop("client") == "127.0.0.1"
        assert mine == theirs
        data = theirs["data"]
        assert isinstance(data.pop("numbers"), dict)
        assert {"would_pass", "retry_after"} <= data.keys()
        assert data | {"retry_after": 1, "would_pass": ""} == {
            "code": "overloaded", "status": 503, "model": ENDLESS, "retry_after": 1, "count": 1,
            "policy": "limits.concurrency.max_in_flight", "place": "policies/limits.yaml:2",
            "would_pass": "",
        }  # fmt: skip


class TestFollowers:
    @pytest.mark.slow
    def test_two_hundred_hurt_nobody(self, start: Start) -> None:
        running = start({"server": "http: {max_connections: 1000}\n"})
        expected = say(running, ENDLESS, "same", tokens=20)
        limits = httpx.Limits(max_connections=300)
        with httpx.Client(base_url=running.url, limits=limits) as http, ExitStack() as stack:
            followers = [stack.enter_context(stream(http)) for _ in range(200)]
            assert say(running, ENDLESS, "same", tokens=20) == expected
            assert running.health()["active_requests"] == 0
            running.reload()
            ids = {follower.until("reload", trigger="admin")["id"] for follower in followers}
            assert len(ids) == 1
        eventually(lambda: connections_of(running) < 50, "they have left")

    @pytest.mark.slow
    def test_they_leave_connections_to_others(self, start: Start) -> None:
        running = start({"server": "http: {max_connections: 20}\n"})
        limits = httpx.Limits(max_connections=20)
        with httpx.Client(base_url=running.url, limits=limits) as http:
            with ExitStack() as stack:
                for _ in range(5):
                    stack.enter_context(stream(http))
                refused = running.http.get("/api/events")
                assert refused.status_code == 503
                assert refused.headers["x-mlxd-code"] == "overloaded"
                assert int(refused.headers["retry-after"]) > 0
                assert "server.http.max_connections" in refused.json()["error"]
                assert running.http.get("/readyz").status_code == 200
                assert kept(running) != []
                listed = running.admin.get("/admin/events")["events"]
                assert listed != []

            def room() -> bool:
                with http.stream("GET", "/api/events") as answer:
                    return answer.status_code == 200

            eventually(room, "one that leaves makes room")

    @pytest.mark.slow
    def test_one_that_reads_nothing_is_cut_off(self, start: Start) -> None:
        """Each refused edit is told with fifty reasons: the system's own buffers are soon full."""
        running = start({"timeouts": "client_write: 1s\n"})
        running.edit("limits", "".join(f"{'no' * 99}_{n}: 1\n" for n in range(50)))
        with silent_follower(running.port) as sock:
            name = sock.getsockname()[1]
            eventually(lambda: name in peers_of(running), "it follows")
            for _ in range(300):
                running.reload()
                if name not in peers_of(running):
                    break
            eventually(lambda: name not in peers_of(running), "it is cut off", within=10.0)
        assert "a client reads nothing of its answer" in running.log_text()
        assert running.http.get("/livez").status_code == 200


def peers_of(running: Daemon) -> set[int]:
    import psutil

    found = psutil.Process(running.pid).net_connections("tcp")
    return {one.raddr.port for one in found if one.status == "ESTABLISHED"}


def connections_of(running: Daemon) -> int:
    return len(peers_of(running))


class Receiver:
    """A program that is posted to: it fails with `failures` first."""

    def __init__(self, failures: int) -> None:
        self.taken: list[tuple[int, dict[str, str], bytes]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status = 500 if len(outer.taken) < failures else 204
                outer.taken.append((status, dict(self.headers), body))
                self.send_response(status)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/hook"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver(failures=2)
    yield receiver
    receiver.server.shutdown()
    receiver.server.server_close()


@pytest.mark.slow
def test_a_receiver_that_fails_twice_gets_each_event_signed_and_in_order(
    start: Start, receiver: Receiver, tmp_path: Path
) -> None:
    (tmp_path / "hook").write_text("k3y\n")
    running = start(environment={"CREDENTIALS_DIRECTORY": str(tmp_path)})
    running.edit(
        "supervision",
        f"events: {{webhook: {{url: '{receiver.url}', secret: 'credential:hook',"
        " events: [worker_up, worker_down]}}\n",
    )
    eventually(lambda: running.health()["policy"]["generation"] > 1, "it is in force")
    say(running, ENDLESS, "warm", tokens=1)
    os.kill(workers_of(running)[ENDLESS], signal.SIGKILL)
    eventually(lambda: len(receiver.taken) >= 4, "all are posted", within=30.0)
    bodies = [json.loads(body) for _, _, body in receiver.taken]
    assert [one["type"] for one in bodies[:4]] == ["worker_up"] * 3 + ["worker_down"]
    assert len({one["id"] for one in bodies[:3]}) == 1
    for _, headers, body in receiver.taken:
        expected = "sha256=" + hmac.new(b"k3y", body, hashlib.sha256).hexdigest()
        assert headers["X-Mlxd-Signature"] == expected
    metrics = running.http.get("/metrics").text
    assert 'mlxd_webhook_posts_total{result="failed"} 2.0' in metrics
    assert 'mlxd_webhook_posts_total{result="delivered"} 2.0' in metrics
    assert "k3y" not in running.log_text()


def flown(running: Daemon) -> dict[str, str] | None:
    """Each model of the flight record, and what it does."""
    try:
        record = json.loads((running.state / "flight.json").read_text())
    except FileNotFoundError:
        return None
    return {worker["model"]: worker["state"] for worker in record["workers"]}


class TestAfterwards:
    """What was running is known after it was killed."""

    def test_a_daemon_killed_while_it_generates_is_told_of_by_the_next_and_ids_go_on(
        self, zoo: Path, tmp_path: Path
    ) -> None:
        with daemon(tmp_path, models=zoo, policies={"limits": NO_LIMITS}) as first:
            record = first.state / "flight.json"
            with held(first, tokens=60_000), held(first, prompt="two", tokens=60_000):
                eventually(
                    lambda: json.loads(record.read_text())["workers"][0]["running"] == 2,
                    "it is written down",
                )
                first.process.kill()
                first.process.wait()
        words = f"the last run ended while {ENDLESS} generated for 2 requests ("
        with daemon(tmp_path, models=zoo, policies={"limits": NO_LIMITS}) as second:
            assert any(one.startswith(words) for one in second.health()["warnings"])
            (event,) = kept(second, types="unclean_end")
            assert event["data"]["pid"] == first.pid
            assert words in second.log_text()
            eventually(lambda: words in mlxd(second, "crashes"), "it is recorded")
            assert words in mlxd(second, "status")
            last = kept(second)[-1]["id"]
        assert words in mlxd(second, "crashes", "-n", "1")
        with daemon(tmp_path, models=zoo, policies={"limits": NO_LIMITS}) as third:
            assert not any(one.startswith("the last run") for one in third.health()["warnings"])
            assert kept(third, types="unclean_end") == []
            self.check_that_ids_go_on(third, last)

    def check_that_ids_go_on(self, restarted: Daemon, last: int) -> None:
        restarted.reload()
        with stream(restarted.http, headers={"Last-Event-ID": str(last)}) as follower:
            lost = follower.next()
            assert (lost["type"], lost["data"]) == ("lost", {"count": None})
            rest = follower.next()
        assert rest["id"] > last

    @pytest.mark.slow
    def test_an_idle_daemon_writes_nothing(self, start: Start) -> None:
        running = start()
        say(running, ENDLESS, "warm", tokens=1)
        record = running.state / "flight.json"
        eventually(lambda: flown(running) == {ENDLESS: "idle"}, "the end of work is written down")
        time.sleep(1.0)
        before = record.stat().st_mtime_ns
        time.sleep(2.5)
        assert record.stat().st_mtime_ns == before

    @pytest.mark.slow
    def test_a_workers_death_is_a_record(self, start: Start) -> None:
        running = start()
        with held(running, tokens=60_000) as answer:
            answer.read(20)
            pid = workers_of(running)[ENDLESS]
            os.kill(pid, signal.SIGSEGV)
            eventually(
                lambda: json.loads(mlxd(running, "crashes", "--json"))["crashes"], "a record"
            )
        (crash,) = json.loads(mlxd(running, "crashes", "--json"))["crashes"]
        assert crash.keys() >= {"at", "stderr", "status"}
        wanted = {"kind": "worker", "model": ENDLESS, "pid": pid, "reason": "SIGSEGV", "running": 1}
        assert crash | wanted == crash
        assert crash["step"] > 0
        assert crash["memory"] > 0
        assert (running.state / "crashes.jsonl").stat().st_mode & 0o777 == 0o600
        running.stop()
        assert "ended: SIGSEGV\n    1 request, " in mlxd(running, "crashes")

    @pytest.mark.slow
    def test_a_state_folder_that_cannot_be_written_stops_no_service(self, start: Start) -> None:
        running = start()
        eventually(lambda: flown(running) == {}, "it is written")
        (running.state / "flight.json").unlink()
        (running.state / "flight.json").mkdir()
        say(running, ENDLESS, "warm", tokens=1)
        words = "the flight record cannot be written: "
        eventually(
            lambda: any(one.startswith(words) for one in running.health()["warnings"]),
            "it is a warning",
        )
        assert running.log_text().count(words) == 1
        (running.state / "flight.json").rmdir()


class TestCommand:
    """`mlxd events`."""

    def test_it_lists_what_is_kept_after_an_id(self, lend: Lend) -> None:
        running = lend()
        before = kept(running)[-1]["id"]
        for _ in range(2):
            running.reload()
        lines = mlxd(running, "events").splitlines()
        assert len(lines) == len(kept(running))
        assert mlxd(running, "events", "--since", str(before)).splitlines() == lines[-2:]
        first = kept(running)[-2]["id"]
        assert mlxd(running, "events", "--since", str(first)).splitlines() == lines[-1:]
        told = mlxd(running, "events", "--json", "--since", str(before)).splitlines()
        records = [json.loads(line) for line in told]
        assert [record["type"] for record in records] == ["reload"] * 2
        assert "by" in records[1]["data"]
        assert mlxd(running, "events", "--since", str(before), "--types", "breaker") == ""

    def test_whoever_follows_holds_up_no_end_and_is_told_and_afterwards_there_is_nobody(
        self, start: Start
    ) -> None:
        """A client of the stream, and the command on a terminal."""
        server = "listen: {port: 1}\ndrain: {grace: 30s, not_ready_delay: 0s}\n"
        running = start({"server": server})
        with stream(running.http) as follower, self.on_a_terminal(running) as (process, terminal):
            eventually(lambda: running.health()["active_requests"] == 0, "it is no request")
            began = time.monotonic()
            assert running.stop() == 0
            assert time.monotonic() - began < 10
            assert follower.ended.wait(5)
            assert process.wait(20) == 0
            assert b"the daemon has stopped" in os.read(terminal, 4096)
        environment = {**os.environ, "MLX_API_PORT": "1"}
        done = command.mlxd("events", "--state", running.state, environment=environment)
        assert (done.returncode, done.stdout) == (1, "")
        assert "no answer from the daemon" in done.stderr
        assert mlxd(running, "crashes") == f"no crash is recorded in {running.state}\n"

    @contextmanager
    def on_a_terminal(self, running: Daemon) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
        """The command, once it has told of a reload."""
        ours, theirs = pty.openpty()
        command = [sys.executable, "-m", "mlxd", "events", "--follow", "--types", "reload"]
        process = subprocess.Popen(
            [*command, "--state", str(running.state)], stdout=theirs, stderr=theirs
        )
        os.close(theirs)
        told = b""
        for lines in (1, 2):
            while told.count(b"\n") < lines:
                told += os.read(ours, 4096)
            if lines == 1:
                running.reload()
        assert b"reload" in told.splitlines()[1]
        yield process, ours
        os.close(ours)

    @pytest.mark.slow
    def test_a_daemon_that_is_killed_is_a_failure(self, start: Start) -> None:
        running = start()
        command = [sys.executable, "-m", "mlxd", "events", "--follow"]
        process = subprocess.Popen(
            [*command, "--state", str(running.state)], stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        assert "reload" in process.stdout.readline()
        running.process.kill()
        _, errors = process.communicate(timeout=20)
        assert (process.returncode, "no answer from the daemon" in errors) == (1, True), errors

    @pytest.mark.slow
    def test_without_its_admin_socket_it_asks_over_tcp(self, zoo: Path, tmp_path: Path) -> None:
        (tmp_path / "state" / "admin.sock").mkdir(parents=True)
        with daemon(tmp_path, models=zoo, policies={}) as running:
            running.address()
            assert "reload" in mlxd(running, "events")

    def test_wrong_usage_ends_with_2(self, served: Daemon) -> None:
        mlxd(served, "events", "--types", "nope", status=2)
        mlxd(served, "events", "--since", "x", status=2)
        mlxd(served, "crashes", "-n", "0", status=2)
