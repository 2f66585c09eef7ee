"""`mlxd doctor --prove`: what it shows of a daemon, what fails it, and that it leaves nothing."""

from __future__ import annotations

import errno
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from mlxd import __version__
from mlxd.cli.prove import command, mac, own, proof, report
from mlxd.cli.prove.answer import Answer, ask
from mlxd.cli.prove.mac import Looks
from mlxd.cli.prove.own import Own
from mlxd.cli.prove.proof import Proof, Seen
from mlxd.cli.prove.step import Step, Steps, Verdict, failed, shortened
from mlxd.cli.prove.subject import CannotProve, Subject, eventually
from tests.support.command import mlxd
from tests.support.daemon import Daemon, write_policies
from tests.support.homeless import homeless
from tests.support.long import in_turn

pytestmark = pytest.mark.timeout(180)
Start = Callable[..., Daemon]
MODEL = "tiny-a"
PROVED = "# mlxd is proved here"
NOT_PROVED = "# mlxd is not proved here"


def results(report: Path) -> dict[str, str]:
    """Of each step, without the name of the model."""
    rows = re.findall(r"^\| (.+?) \| (passed|failed|not applicable) \|", report.read_text(), re.M)
    return {name.replace(f"{MODEL} ", ""): result for name, result in rows}


def prove(running: Daemon, *more: object, model: str = MODEL) -> subprocess.CompletedProcess[str]:
    report = report_of(running)
    report.unlink(missing_ok=True)
    where = ("--policies", running.policies, "--state", running.state, "--report", report)
    return mlxd("doctor", "--prove", *((model,) if model else ()), *where, *more)


def report_of(running: Daemon) -> Path:
    return running.state.parent / "report.md"


def resident(running: Daemon) -> list[str]:
    return [one["name"] for one in running.admin.get("/admin/ps")["models"]]


# -- a real daemon


@pytest.mark.mlx
def test_a_running_daemon_is_proved_and_left_as_it_was(shared_daemon: Daemon) -> None:
    canary = "the-raven-said-nevermore"
    for model in resident(shared_daemon):
        shared_daemon.admin.post("/admin/unload", {"model": model})
    shared_daemon.http.post("/api/generate", json={"model": "tiny-b", "prompt": canary})
    done = prove(shared_daemon, "--yes")
    report = report_of(shared_daemon)
    text = report.read_text()
    assert done.returncode == 0, done.stdout + done.stderr
    assert text.startswith(PROVED)
    found = results(report)
    assert set(found.values()) == {"passed", "not applicable"}
    assert found["a stream outlives the SIGKILL of its worker"] == "passed"
    assert found["its tokens are those of the undisturbed answer"] == "passed"
    assert "workers end with a killed daemon" not in found
    assert MODEL not in resident(shared_daemon)
    for said in ("SIGKILL", "mlx-lm: ", "python: ", "first token", "tokens a second", "worker_up"):
        assert said in text
    for kept in (canary, "tiny-b", str(shared_daemon.state)):
        assert kept not in text
    assert "have the worker of tiny-a killed" in done.stdout
    assert str(report) in done.stdout


@pytest.mark.mlx
@pytest.mark.slow
def test_a_model_that_was_in_memory_is_so_afterwards(shared_daemon: Daemon) -> None:
    shared_daemon.admin.wait("/admin/load", {"model": MODEL})
    assert prove(shared_daemon, "--yes").returncode == 0
    assert "it was in memory" in report_of(shared_daemon).read_text()
    assert MODEL in resident(shared_daemon)


@pytest.mark.mlx
def test_without_a_terminal_or_a_yes_nothing_is_done(
    shared_daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    since = shared_daemon.admin.get("/admin/health")["recent_events"][-1]["id"]
    done = prove(shared_daemon)
    assert done.returncode == 1
    assert "say --yes, or run this on a terminal; nothing was done" in done.stderr
    ours, theirs = pty.openpty()
    os.write(ours, b"n\n")
    with os.fdopen(theirs) as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        done = prove(shared_daemon)
    os.close(ours)
    assert done.returncode == 1
    assert done.stdout.endswith("go on? [y/N] ")
    told = shared_daemon.admin.get("/admin/events", since=str(since))["events"]
    # what others have loaded may end meanwhile
    assert [one for one in told if one["type"] not in ("evict", "worker_down")] == []


@pytest.mark.mlx
@pytest.mark.slow
def test_a_daemon_that_does_not_replay_is_not_proved(
    start_daemon: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof, "_RECOVERY_SECONDS", 1.0)
    running = start_daemon({"supervision": 'replay: {when: "off"}\n'})
    assert prove(running, "--yes").returncode == 1
    found = results(report_of(running))
    assert found["a stream outlives the SIGKILL of its worker"] == "failed"
    assert found["its tokens are those of the undisturbed answer"] == "not applicable"
    assert report_of(running).read_text().startswith(NOT_PROVED)
    assert resident(running) == []


@pytest.mark.mlx
@pytest.mark.slow
def test_a_worker_that_does_not_come_back_is_said(
    start_daemon: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof, "_RECOVERY_SECONDS", 1.0)
    running = start_daemon({"supervision": "worker: {breaker: {failures: 1, open: 10m}}\n"})
    done = prove(running, "--yes")
    assert done.returncode == 1
    found = results(report_of(running))
    assert found["a stream outlives the SIGKILL of its worker"] == "failed", done.stdout
    assert found["health tells of the kill, and that it is over"] == "failed"


# -- a daemon of its own


@pytest.fixture
def alone(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Folders where no daemon runs; at the end none does, and there is nothing of it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    write_policies(tmp_path / "policies", {"models": f"dirs: [{models}]\n"})
    yield tmp_path
    assert list((tmp_path / "tmp").glob("mlxd-proof-*")) == []
    assert owned(tmp_path) == []


def owned(folder: Path) -> list[int]:
    """The processes that were started with its folders, or have them in their environment."""
    return [
        one.pid
        for one in psutil.process_iter()
        if one.pid != os.getpid() and str(folder / "tmp") in _words(one)
    ]


def _words(process: psutil.Process) -> str:
    try:
        return " ".join([*process.cmdline(), *process.environ().values()])
    except psutil.Error:
        return ""


def prove_alone(folder: Path, *more: object) -> subprocess.CompletedProcess[str]:
    return mlxd("doctor", "--prove", *more, *_where(folder))


def _where(folder: Path) -> tuple[str, ...]:
    pairs = (("policies", "policies"), ("state", "state"), ("report", "report.md"))
    return tuple(word for flag, name in pairs for word in (f"--{flag}", str(folder / name)))


@pytest.mark.mlx
@pytest.mark.slow
def test_where_none_runs_one_is_started_and_ended(alone: Path) -> None:
    done = prove_alone(alone)
    assert done.returncode == 0, done.stdout + done.stderr
    found = results(alone / "report.md")
    assert found["workers end with a killed daemon"] == "passed"
    assert "one of the proof's own" in (alone / "report.md").read_text()
    assert "model: tiny-" in (alone / "report.md").read_text(), "the smallest but the guide"
    assert not (alone / "state").exists()


@pytest.mark.mlx
def test_a_model_that_is_not_there_proves_nothing(alone: Path) -> None:
    done = prove_alone(alone, "no-such-model")
    assert done.returncode == 1
    assert "nothing is proved" in done.stderr
    assert "no-such-model" in done.stderr
    assert not (alone / "report.md").exists()


def test_policies_that_are_refused_are_said(alone: Path) -> None:
    write_policies(alone / "policies", {"limits": "concurrency: {max_in_flight: many}\n"})
    done = prove_alone(alone)
    assert done.returncode == 1
    assert "limits.yaml:2" in done.stderr


@pytest.mark.mlx
@pytest.mark.slow
def test_ctrl_c_ends_its_daemon(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(proof, "ask", interrupted)
    assert prove_alone(alone).returncode == 130


@pytest.mark.mlx
def test_so_does_sigterm(alone: Path) -> None:
    program = [sys.executable, "-m", "mlxd", "doctor", "--prove", MODEL, *_where(alone)]
    environment = {**os.environ, "TMPDIR": str(alone / "tmp")}
    with subprocess.Popen(program, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if b"is loaded ..." in line:
                break
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 130


@pytest.mark.mlx
def test_ctrl_c_unloads_what_was_not_in_memory(
    start_daemon: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = start_daemon()

    def interrupted(*_: object) -> None:
        assert resident(running) == [MODEL]
        raise KeyboardInterrupt

    monkeypatch.setattr(proof, "ask", interrupted)
    assert prove(running, "--yes").returncode == 130
    deadline = time.monotonic() + 20
    while resident(running):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_one_that_does_not_start_is_ended(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own, "_START_SECONDS", 0.0)
    done = prove_alone(alone)
    assert done.returncode == 1
    assert "nothing is proved" in done.stderr


# -- each step, of a daemon that follows a script


class Script:
    """A daemon as Subject has it, that does what the test wants of it."""

    own: Own | None = None

    def __init__(self) -> None:
        self.path = ""
        self.admin = self
        self.version = __version__
        self.mine = True
        self.returns = True
        self.available = 8.0
        self.freed = 0.0
        self.told: tuple[str, ...] = ("worker_down", "replay")
        self.replays = 1
        self.tokens = [[f"t{n}" for n in range(proof.TOKENS)] for _ in range(1 + 2 * proof._TRIES)]
        self.late = 0
        """Kills that come when the answer is over."""
        self.struck: list[int] = []
        self.left = False

    def health(self) -> dict[str, Any]:
        return {
            "version": self.version, "pid": 1, "status": "healthy", "cached_models": [],
            "memory": {"available_gb": self.available, "used_percent": 10.0},
        }  # fmt: skip

    def process(self, model: str) -> dict[str, Any]:
        return {} if self.left else {"pid": 11 + len(self.struck), "running": 0}

    def worker(self, model: str) -> dict[str, Any]:
        if self.struck and not self.returns:
            return {"state": "open", "pid": None, "restarts": 0, "reason": "it rests"}
        count = len(self.struck)
        return {"state": "serving", "pid": 11 + count, "restarts": count, "reason": ""}

    def resident(self, model: str) -> int:
        return int(self.process(model)["pid"])

    def owns(self, pid: int) -> bool:
        return self.mine

    def last_event(self) -> int:
        return 7

    def events(self, since: int) -> list[dict[str, Any]]:
        data = {
            "pid": self.struck[-1] if self.struck else 0,
            "model": MODEL,
            "stderr": "last words",
        }
        kinds = self.told if len(self.struck) > self.late else ("worker_down",)
        return [{"at": 0, "type": kind, "message": kind, "data": data} for kind in kinds]

    def story(self, id: str) -> dict[str, Any]:
        return {"decode_seconds": 0.01 * proof.TOKENS, "replays": self.replays}

    def wait(self, target: str, body: object) -> dict[str, Any]:
        self.left = False
        return {}

    def post(self, target: str, body: object) -> dict[str, Any]:
        self.left = True
        self.available += self.freed
        return {}

    def ask(self, path: str, model: str, tokens: int, watch: Callable[[int], None]) -> Answer:
        answer = Answer(finish="length")
        for index, token in enumerate(self.tokens.pop(0)):
            answer.tokens.append(token)
            answer.arrivals.append(0.01 * index)
            watch(index + 1)
        return answer


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    made = Script()
    monkeypatch.setattr(proof, "ask", made.ask)
    monkeypatch.setattr(proof, "gone", lambda _: True)
    monkeypatch.setattr(proof, "eventually", lambda true, _: true())
    monkeypatch.setattr(proof, "resident_of", lambda _: 2**28)
    monkeypatch.setattr(os, "kill", lambda pid, _: made.struck.append(pid))
    return made


def run(script: Any, *, gpu: bool = False) -> tuple[dict[str, Verdict], Proof]:
    """The verdicts by the steps' first words."""
    steps = Steps(lambda _: None)
    looks = Looks("", platform="linux", cuda=gpu)
    made = Proof(script, {"name": MODEL, "context": 4096}, steps, looks)
    made.run()
    return {
        one.name.replace(MODEL, "").split()[0]: one.outcome.verdict for one in steps.taken
    }, made


def test_where_all_is_well_all_passes(script: Script) -> None:
    found, made = run(script)
    assert set(found.values()) == {Verdict.PASSED}
    assert len(found) >= 6
    assert made.seen.stderr == "last words"
    assert script.struck == [11]


def test_another_version_ends_it_at_once(script: Script) -> None:
    script.version = "0.0.1"
    assert run(script)[0] == {"the": Verdict.FAILED}


@pytest.mark.parametrize(("late", "verdict"), [(1, Verdict.PASSED), (99, Verdict.FAILED)])
def test_tokens_that_come_all_together_again_and_again_fail(
    script: Script, monkeypatch: pytest.MonkeyPatch, late: int, verdict: Verdict
) -> None:
    """The first answer is only to warm it up."""
    asked = 0

    def together(*words: Any) -> Answer:
        nonlocal asked
        answer = script.ask(*words)
        if asked <= late:
            answer.arrivals = [1.0] * len(answer.arrivals)
        asked += 1
        return answer

    monkeypatch.setattr(proof, "ask", together)
    assert run(script)[0]["an"] is verdict
    assert bool(script.struck) is (verdict is Verdict.PASSED)


def test_what_is_no_worker_of_the_daemon_is_let_live(script: Script) -> None:
    script.mine = False
    found, _ = run(script)
    assert script.struck == []
    assert found["a"] is Verdict.FAILED
    assert found["health"] is Verdict.NOT_HERE


def test_a_kill_that_no_event_tells_of_fails(script: Script) -> None:
    script.told = ()
    assert run(script)[0]["a"] is Verdict.FAILED


def test_an_answer_that_was_over_before_its_worker_shows_nothing(script: Script) -> None:
    script.late = proof._TRIES
    assert run(script)[0]["a"] is Verdict.FAILED
    assert script.struck == [11, 12, 13]


def test_after_a_kill_that_came_late_there_is_another(script: Script) -> None:
    script.late = 1
    found, made = run(script)
    assert set(found.values()) == {Verdict.PASSED}
    assert script.struck == [11, 12]
    assert made.seen.stderr == "last words"


def test_the_replay_of_another_request_shows_nothing(script: Script) -> None:
    script.replays = 0
    assert run(script)[0]["a"] is Verdict.FAILED


@pytest.mark.parametrize(
    ("at", "gpu", "verdict"),
    [
        (100, False, Verdict.FAILED),
        (100, True, Verdict.NOT_HERE),
        (3, True, Verdict.FAILED),
        (None, True, Verdict.PASSED),
    ],
)
def test_another_token_fails_but_behind_the_kill_on_a_gpu(
    script: Script, at: int | None, gpu: bool, verdict: Verdict
) -> None:
    if at is not None:
        script.tokens[2][at] = "other"
    assert run(script, gpu=gpu)[0]["its"] is verdict


def test_a_token_that_is_said_twice_or_lost_fails_everywhere(script: Script) -> None:
    script.tokens[2].insert(50, script.tokens[2][50])
    assert run(script, gpu=True)[0]["its"] is Verdict.FAILED


def test_a_worker_that_rests_is_not_well(script: Script) -> None:
    script.returns = False
    assert run(script)[0]["health"] is Verdict.FAILED


def test_a_worker_that_stays_is_memory_that_does_not_come_back(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof, "gone", lambda _: False)
    assert run(script)[0]["memory"] is Verdict.FAILED


@pytest.mark.parametrize(("freed", "verdict"), [(0.5, Verdict.FAILED), (3.9, Verdict.PASSED)])
def test_much_memory_has_to_be_available_again(
    script: Script, monkeypatch: pytest.MonkeyPatch, freed: float, verdict: Verdict
) -> None:
    monkeypatch.setattr(proof, "resident_of", lambda _: 2**32)
    script.freed = freed
    assert run(script)[0]["memory"] is verdict


# -- parts


@contextmanager
def speaking(folder: Path, *, pieces: int, seconds: float) -> Iterator[str]:
    """One at a socket who thinks first, and then says all its tokens in so many pieces."""
    choice = {"finish_reason": "length", "logprobs": {"tokens": ["t"]}}
    record = b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"
    said = [record * (proof.TOKENS // pieces)] * pieces
    path = str(folder / "socket")
    with socket.socket(socket.AF_UNIX) as listener, ThreadPoolExecutor(1) as pool:
        listener.bind(path)
        listener.listen()

        def speak() -> None:
            asker, _ = listener.accept()
            with asker:
                while not asker.recv(1 << 16).endswith(b"}"):
                    pass
                time.sleep(seconds)
                asker.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
                for piece in said:
                    asker.sendall(piece)

        told = pool.submit(speak)
        yield path
        told.result(20)


@pytest.mark.parametrize(("pieces", "known"), in_turn([1, proof.TOKENS], [True, False]))
def test_an_answer_that_is_said_all_at_once_is_never_one_by_one(
    tmp_path_factory: pytest.TempPathFactory, pieces: int, known: bool
) -> None:
    for _ in range(4):
        folder = tmp_path_factory.mktemp("s")
        with speaking(folder, pieces=pieces, seconds=0.5) as path:
            found = ask(path, MODEL, proof.TOKENS)
        assert len(found.tokens) == proof.TOKENS
        assert not found.one_by_one(0.5 if known else 0.0)


@pytest.mark.parametrize("decoded", [1.9, 0.0])
def test_one_that_waits_long_for_its_first_token_is_one_by_one(decoded: float) -> None:
    late = 9.0 if decoded else 0.0
    found = Answer(tokens=["t"] * 192, arrivals=[late + 0.01 * n for n in range(192)])
    assert found.one_by_one(decoded)


@pytest.mark.parametrize("decoded", [1.0, 0.0])
def test_what_is_slowly_read_from_one_piece_is_not_one_by_one(decoded: float) -> None:
    found = Answer(tokens=["t"] * 192, arrivals=[1.0 + 1e-4 * n for n in range(192)])
    assert not found.one_by_one(decoded)


def test_two_bursts_are_not_one_by_one() -> None:
    arrivals = [1e-4 * n for n in range(96)]
    found = Answer(tokens=["t"] * 192, arrivals=arrivals + [2.0 + at for at in arrivals])
    assert not found.one_by_one(2.0)


def test_only_a_child_that_is_a_worker_is_a_worker_of_the_daemon() -> None:
    subject = Subject(None, os.getpid())  # type: ignore[arg-type]
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert not subject.owns(child.pid)
        child.kill()
    named = [sys.executable, "-c", "input()", "mlxd.worker"]
    with subprocess.Popen(named, stdin=subprocess.PIPE) as child:
        assert eventually(lambda: subject.owns(child.pid), 20)
        assert not Subject(None, 1).owns(child.pid)  # type: ignore[arg-type]
        child.kill()
    assert not subject.owns(2**22 + 1)


def test_without_a_model_that_answers_there_is_nothing_to_prove() -> None:
    class Admin:
        def get(self, target: str, **_: str) -> dict[str, Any]:
            model = {"name": "e", "size_bytes": 1, "unavailable": "", "capabilities": ["embedding"]}
            return {"models": [model, model | {"unavailable": "x", "capabilities": ["completion"]}]}

    with pytest.raises(CannotProve):
        Subject(Admin(), 1).chosen("")  # type: ignore[arg-type]


def test_where_nobody_can_tell_whether_a_daemon_runs_none_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its disk gives no locks: there may be one, beside which ours would prove nothing."""

    def without_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    def never(*_: object) -> None:
        raise AssertionError("it is looked at first")

    (tmp_path / "mlxd.lock").touch()
    monkeypatch.setattr("mlxd.core.instance.fcntl.flock", without_locks)
    monkeypatch.setattr(command, "own_daemon", never)
    told = pytest.raises(CannotProve, match="cannot be told: its disk gives no lock")
    with told, command._subject(None, str(tmp_path)):
        raise AssertionError("there is none")


@pytest.mark.parametrize("more", [(), ("--yes",)])
def test_a_report_that_is_there_is_not_overwritten(
    tmp_path: Path, more: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("it is looked at first")

    monkeypatch.setattr(command, "_subject", never)
    file = tmp_path / "report.md"
    file.write_text("mine")
    done = mlxd("doctor", "--prove", "--state", tmp_path, "--report", file, *more)
    assert done.returncode == 1
    assert "is there already, and is not overwritten" in done.stderr
    assert file.read_text() == "mine"


def test_of_a_proof_that_came_to_nothing_there_is_no_report(tmp_path: Path) -> None:
    file = tmp_path / "report.md"

    def interrupted() -> None:
        with command._new(file) as stream:
            stream.write("# half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not file.exists()
    with command._new(file):
        pass
    assert not file.exists()
    with command._new(file) as stream:
        stream.write("# whole")
    assert file.read_text() == "# whole"


def test_what_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with command._interruptible():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_users_folder_is_in_no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/Users/ann.b")
    said = "/Users/ann.b/x.plist: no\n/Users/ann.bert/y\n" + "z" * 150 + "/Users/ann.b/z"
    step = Step("lint", failed("see /Users/ann.b", said))
    text = report.report("m", Seen(stderr="/Users/ann.b/w"), [step], [], own=True, proved=False)
    assert "~/x.plist" in text
    assert "see ~ |" in text
    assert "~/w" in text
    assert "/Users/ann.b" not in text.replace("/Users/ann.bert", "")
    assert "/Users/ann." not in text.replace("/Users/ann.bert", "")


def test_of_a_user_without_a_home_nothing_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    homeless(monkeypatch)
    assert shortened("/srv/x.plist") == "/srv/x.plist"


def test_output_is_shortened() -> None:
    text = shortened("\n".join(["x" * 500, *map(str, range(20))]))
    assert text.splitlines()[0] == "(13 more)"
    assert len(text.splitlines()) == 9
    assert len(shortened("y" * 500)) == 160


@pytest.mark.parametrize(
    "words", [("--report", "x"), ("--yes",), ("--prove", "--json")], ids=" ".join
)
def test_flags_that_do_not_go_together_are_refused(words: tuple[str, ...]) -> None:
    assert mlxd("doctor", *words).returncode == 2


def test_a_report_that_cannot_be_written_is_said_before_anything_is_done(
    shared_daemon: Daemon,
) -> None:
    where = ("--state", shared_daemon.state, "--report", "/no/such/folder/r.md", "--yes")
    done = mlxd("doctor", "--prove", MODEL, *where)
    assert done.returncode == 1
    assert "there is no folder for the report" in done.stderr


def test_what_cannot_be_run_is_said() -> None:
    assert mac.run(["/no/such/program"]).status == 127
    assert mac.run([sys.executable, "-c", "print(1)"]) == mac.Said(0, "1\n")
