"""`mlxd doctor`: each thing that may be wrong is found, and nothing where all is well."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from mlxd.cli.doctor import daemon, files, service, system
from mlxd.cli.doctor.doctor import doctor
from mlxd.cli.doctor.finding import Finding
from mlxd.cli.doctor.system import System
from mlxd.cli.service.site import Site
from mlxd.core import places, starts
from mlxd.core.claim import Claim
from mlxd.core.clock import ManualClock
from mlxd.core.instance import Address
from mlxd.policy.load import load
from mlxd.policy.schema import Models
from mlxd.service.machine import Machine
from mlxd.service.manager import State
from tests.control.test_model_files import write_model
from tests.support.command import mlxd
from tests.support.daemon import write_policies
from tests.support.few_files import no_files
from tests.support.guarded import guarded, without_locks
from tests.support.managers import Scripted, scripted

SHIPPED = Path(__file__).parents[2] / "policies"
NOBODY = 11434
"""A port that is asked for Ollama, and that nobody has."""


def codes(found: Iterator[Finding]) -> list[str]:
    return [one.code for one in found]


@contextmanager
def answering(answer: Callable[[str], tuple[int, bytes]]) -> Iterator[int]:
    """A server of one's own: its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = answer(self.path)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def in_json(**answers: Any) -> Callable[[str], tuple[int, bytes]]:
    def answer(path: str) -> tuple[int, bytes]:
        said = answers.get(path.strip("/").replace("/", "_"))
        return (404, b"404 page not found") if said is None else (200, json.dumps(said).encode())

    return answer


class World:
    """Folders of a user, with a daemon's or without."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.state = root / "state"
        self.state.mkdir(mode=0o700)
        self.models = root / "models"
        write_model(self.models / "plain")
        self.write()

    def write(self, **texts: str) -> None:
        texts = {"models": f"dirs: [{self.models}]\n", **texts}
        self.policies = write_policies(self.root / "policies", texts)

    def places(self) -> places.Places:
        return places.find(str(self.policies), str(self.state), {})

    def files(self) -> list[str]:
        found = files.findings(self.places(), load(self.policies), self.root / "home")
        return codes(found)

    def daemon(self, ollama_port: int = NOBODY) -> list[str]:
        return codes(daemon.findings(self.places(), ollama_port))

    def whole(self, *, status: int) -> list[Any]:
        done = mlxd(
            "doctor", "--json", "--policies", self.policies, "--state", self.state,
            environment={"HOME": str(self.root / "home"), "PATH": os.defpath},
        )  # fmt: skip
        report = json.loads(done.stdout)
        assert done.returncode == status, report
        assert report["healthy"] == (status == 0)
        return [one["code"] for one in report["findings"]]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """On a machine that is well, whatever this one is."""
    monkeypatch.setattr(system, "System", lambda: WELL)
    return World(tmp_path)


def port_of(world: World, port: int) -> None:
    world.write(server=f"listen: {{port: {port}}}\n")


# -- policies


def test_of_a_healthy_machine_there_is_only_said_that_nothing_runs(world: World) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    port_of(world, port)
    assert set(world.whole(status=0)) <= {"daemon_down", "memory_of_group"}


def test_a_refused_policy_is_said_with_its_line(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.write(limits="concurrency: {max_in_flight: many}\n", queue="")
    assert "policy_refused" in world.whole(status=1)
    assert doctor(str(world.policies), str(world.state), as_json=False) == 1
    said = capsys.readouterr().out
    assert "problem   limits.yaml:2" in said
    assert "-> mend that line" in said
    assert said.rstrip().endswith("to consider")


def test_of_findings_of_one_kind_the_first_are_shown_and_how_many_more(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.write(limits="".join(f"strange_{n}: 1\n" for n in range(300)))
    assert doctor(str(world.policies), str(world.state), as_json=False) == 1
    said = capsys.readouterr().out
    assert said.count("limits.yaml:") == 10
    assert "290 more of policy_refused: mlxd doctor --json tells all" in said
    assert "300 to mend" in said


def test_a_variable_that_is_refused_is_said(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLXD_PORT", "11500")
    monkeypatch.setenv("MLX_API_PORT", "11600")
    from mlxd.cli.doctor import policies

    assert codes(iter(policies.judged(str(world.policies), str(world.state))[1])) == [
        "settings_refused"
    ]


def test_without_a_policy_folder_that_is_said(tmp_path: Path) -> None:
    done = mlxd("doctor", "--json", environment={"HOME": str(tmp_path), "PATH": os.defpath})
    assert "no_policies" in [one["code"] for one in json.loads(done.stdout)["findings"]]


def test_what_a_policy_warns_of_is_said(world: World) -> None:
    world.write(server="listen: {host: 0.0.0.0}\n", clients="auth: {required: false}\n")
    found = world.whole(status=0)
    assert "policy_warns" in found
    assert "keys_without_tls" not in found


def test_keys_beyond_loopback_without_tls_are_said(world: World) -> None:
    world.write(server="listen: {host: 0.0.0.0}\n")
    environment = {"HOME": str(world.root), "PATH": os.defpath}
    where = ("--policies", world.policies, "--state", world.state)
    assert mlxd("keys", "add", "me", *where, environment=environment).returncode == 0
    assert "keys_without_tls" in world.whole(status=0)


# -- the daemon


def test_a_port_that_somebody_else_has_is_said(world: World) -> None:
    with answering(in_json(health={"status": "fine"})) as port:
        port_of(world, port)
        assert world.daemon() == ["port_taken"]
    with socket.create_server(("127.0.0.1", 0)) as mute:
        mute.settimeout(0)
        port_of(world, mute.getsockname()[1])
        threading.Timer(0.2, mute.close).start()
        assert world.daemon() in (["port_taken"], ["daemon_down"])


def test_another_version_and_warnings_of_the_daemon_are_said(world: World) -> None:
    health = {"service": "mlxd", "version": "0.0.9", "warnings": ["a disk hangs"]}
    with answering(in_json(health=health)) as port:
        port_of(world, port)
        assert world.daemon() == ["older_daemon", "daemon_warns"]


def test_a_daemon_that_does_not_answer_is_said(world: World) -> None:
    claim = Claim(world.state)
    claim.take()
    claim.announce(Address(os.getpid(), "127.0.0.1", 9, "0.1"))
    try:
        assert world.daemon() == ["daemon_silent"]
    finally:
        claim.release()


def test_a_disk_that_gives_no_locks_says_nothing_of_a_daemon(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    (world.state / "mlxd.lock").touch()
    without_locks(monkeypatch)
    port_of(world, 9)
    assert world.daemon() == ["daemon_unknown"]


def test_ollama_beside_us_is_said_and_another_mlxd_is_not_taken_for_it(world: World) -> None:
    with answering(in_json(api_version={"version": "0.21.0"})) as port:
        assert "ollama_beside" in world.daemon(port)
    ours = in_json(api_version={"version": "0.1"}, health={"service": "mlxd"})
    with answering(ours) as port:
        assert "ollama_beside" not in world.daemon(port)
    with answering(in_json(api_version={"what": "else"})) as port:
        assert "ollama_beside" not in world.daemon(port)


# -- folders


def test_nothing_is_said_of_folders_that_are_well(world: World) -> None:
    assert world.files() == []


def test_a_state_folder_that_others_can_look_into_is_said(world: World) -> None:
    world.state.chmod(0o750)
    assert world.files() == ["state_open"]


@pytest.fixture
def no_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may do everything; this user may do what the bits of the owner say."""
    monkeypatch.setattr(os, "geteuid", lambda: 501)

    def access(path: Path, mode: int) -> bool:
        return Path(path).stat().st_mode >> 6 & mode == mode

    monkeypatch.setattr(os, "access", access)


@pytest.mark.usefixtures("no_root")
def test_a_state_folder_of_somebody_else_is_said(world: World) -> None:
    if world.state.stat().st_uid == 501:
        os.chown(world.state, 502, -1)
    assert world.files() == ["state_not_ours"]


@pytest.mark.usefixtures("no_root")
def test_a_state_folder_that_cannot_be_written_is_said(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: world.state.stat().st_uid)
    world.state.chmod(0o500)
    assert world.files() == ["state_not_writable"]


@pytest.mark.usefixtures("no_root")
@pytest.mark.parametrize(
    ("name", "code"),
    [("policies", "policies_unreadable"), ("models", "model_folder_unreadable")],
)
def test_a_folder_that_cannot_be_read_is_said(
    world: World, monkeypatch: pytest.MonkeyPatch, name: str, code: str
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: world.state.stat().st_uid)
    policies, found = load(world.policies), world.places()
    (world.root / name).chmod(0o300)
    said = codes(files.findings(found, policies, world.root / "home"))
    (world.root / name).chmod(0o700)
    assert code in said


def test_a_folder_of_models_that_is_not_there_is_said_where_somebody_added_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(world.root))
    world.write(models=f"dirs: [{world.models}, {world.root / 'gone'}]\n")
    assert world.files() == ["model_folder_missing"]
    world.write(models="")
    assert "model_folder_missing" not in world.files()
    shutil.copy(SHIPPED / "models.yaml", world.policies)
    assert "model_folder_missing" not in world.files()
    usual = ", ".join(Models().dirs)
    world.write(models=f"dirs: [{usual}]\n")
    assert "model_folder_missing" not in world.files(), "`mlxd policy init` writes them"
    world.write(models=f"dirs: [{usual}, {world.root / 'gone'}]\n")
    assert world.files().count("model_folder_missing") == 1


def test_models_that_cannot_be_used_are_said_with_the_reason(world: World) -> None:
    gguf = world.models / "gguf"
    gguf.mkdir()
    (gguf / "model.gguf").write_bytes(b"GGUF")
    (write_model(world.models / "cut") / "model.safetensors").write_bytes(b"\x00" * 4)
    found = list(files.findings(world.places(), load(world.policies), world.root))
    assert sorted(one.code for one in found) == ["model_foreign", "model_unusable"]
    (foreign,) = (one for one in found if one.code == "model_foreign")
    assert "GGUF" in foreign.words
    assert "mlxd pull mlx-community/gguf" in foreign.fix


def test_that_there_is_no_model_is_said(world: World) -> None:
    world.write(models=f"dirs: [{world.state}]\n")
    assert world.files() == ["no_model"]


def test_ollamas_own_blobs_are_said(world: World) -> None:
    (world.root / "home/.ollama/models/manifests").mkdir(parents=True)
    assert world.files() == ["ollamas_models"]


@pytest.mark.parametrize(
    ("state", "models", "home", "said"),
    [
        ("below", "models", "home", ["folder_guarded"]),
        ("state", "below", "home", ["folder_guarded"]),
        ("state", "models", "below", ["ollamas_guarded"]),
    ],
)
def test_what_may_not_be_looked_into_is_said(
    world: World, state: str, models: str, home: str, said: list[str]
) -> None:
    below = world.root / "guarded"
    below.mkdir()
    where = {"below": below / "x"}
    world.write(models=f"dirs: [{where.get(models, world.models)}]\n")
    policies = load(world.policies)
    with guarded(below):
        there = str(where.get(state, world.state))
        found = places.find(str(world.policies), there, {})
        told = codes(files.findings(found, policies, where.get(home, world.root / home)))
    assert [one for one in told if one.endswith("_guarded")] == said


def test_models_that_cannot_be_looked_at_are_said(world: World) -> None:
    policies, found = load(world.policies), world.places()
    with no_files():
        said = codes(files.findings(found, policies, world.root))
    assert said == ["models_unread"]


def test_a_full_disk_is_said(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LEAST_FREE", 2**62)
    assert set(world.files()) == {"disk_full"}


def test_a_disk_that_does_not_say_how_full_it_is_is_said(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(_: Path) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr("shutil.disk_usage", gone)
    assert set(world.files()) == {"disk_unknown"}


# -- the machine


def limits(**others: tuple[int, int]) -> Callable[[int], tuple[int, int]]:
    known = {getattr(resource, name): pair for name, pair in others.items()}
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    return lambda which: known.get(which, unlimited)


WELL = System(
    platform="linux",
    limit=limits(),
    installed={"mlx": "1", "mlx-lm": "2", "mlx-cpu": "1"},
    wanted={"mlx": "1", "mlx-lm": "2"},
    root=Path("/nowhere"),
)
MAC = replace(WELL, platform="darwin", sysctl=lambda _: 0)


def numbers(**known: int) -> Callable[[str], int]:
    return lambda name: known.get(name.rpartition(".")[2], 0)


def test_nothing_is_said_of_a_machine_that_is_well() -> None:
    assert codes(system.findings(WELL, {})) == []
    assert codes(system.findings(MAC, {})) == []
    assert "engine_version" not in codes(system.findings(System(), {})), "of this one"


@pytest.mark.parametrize(
    ("ill", "code"),
    [
        (replace(WELL, installed={**WELL.installed, "mlx": "9"}), "engine_version"),
        (replace(WELL, installed={"mlx": "1", "mlx-lm": "2"}), "no_backend"),
        (replace(MAC, sysctl=numbers(proc_translated=1)), "rosetta"),
        (replace(WELL, limit=limits(RLIMIT_NOFILE=(256, 1024))), "few_files"),
        (replace(WELL, limit=limits(RLIMIT_AS=(2**30, 2**30))), "memory_limit"),
        (replace(WELL, limit=limits(RLIMIT_DATA=(2**30, 2**30))), "memory_limit"),
        (replace(MAC, sysctl=numbers(wired_limit_mb=60000, memsize=64 << 30)), "gpu_limit_high"),
        (replace(MAC, sysctl=numbers(wired_limit_mb=20000, memsize=64 << 30)), "gpu_limit_low"),
        (replace(WELL, now=lambda: 0.0), "clock_wrong"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_with_a_machine_is_said(ill: System, code: str) -> None:
    assert codes(system.findings(ill, {})) == [code]


def test_a_limit_of_the_group_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlxd.control.memory import MemoryReading

    monkeypatch.setattr(system, "read_memory", lambda _: MemoryReading(2**30, 2**29, 0.5, 0.5))
    assert codes(system.findings(WELL, {})) == ["memory_of_group"]


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"http_proxy": "http://p:3128"}, ["proxy_catches_us"]),
        ({"ALL_PROXY": "http://p:3128", "NO_PROXY": "example.org"}, ["proxy_catches_us"]),
        ({"http_proxy": "http://p:3128", "no_proxy": "localhost, 127.0.0.1"}, []),
        ({"http_proxy": "http://p:3128", "NO_PROXY": "*"}, []),
    ],
)
def test_a_proxy_that_catches_clients_of_ours_is_said(
    environ: dict[str, str], said: list[str]
) -> None:
    assert codes(system.findings(WELL, environ)) == said


# -- the service


@pytest.fixture(params=["darwin", "linux"])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Scripted:
    found = scripted(tmp_path, request.param)
    found.tell("gui")
    return found


def site_of(machine: Machine) -> Site:
    return Site(state=str(machine.home / "state"), machine=machine)


def installed(made: Scripted) -> Path:
    site = site_of(made.machine)
    file = site.folder / site.main_file
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("")
    return file


def test_nothing_is_said_of_a_service_that_is_not_there(made: Scripted) -> None:
    assert codes(service.findings(site_of(made.machine))) == []


def test_a_service_that_its_manager_does_not_know_is_said(made: Scripted) -> None:
    installed(made)
    found = list(service.findings(site_of(made.machine)))
    assert "service_not_loaded" in [one.code for one in found]
    if made.machine.platform == "darwin":
        assert "errno 5" in found[0].words


def loaded(made: Scripted) -> None:
    file = installed(made)
    (made.told / "loaded").mkdir(exist_ok=True)
    made.tell("loaded/gui_501", str(file))
    made.tell(f"known/{file.name}", str(file))


def test_how_a_service_ended_is_said_with_what_to_do(made: Scripted) -> None:
    loaded(made)
    made.tell("code", "1")
    made.tell("status", "70")
    found = {one.code: one for one in service.findings(site_of(made.machine))}
    assert "exit 70" in found["service_failed"].words
    assert found["service_failed"].fix == "mlxd crashes"


def test_a_service_that_is_switched_off_is_said(tmp_path: Path) -> None:
    made = scripted(tmp_path, "darwin")
    made.tell("gui")
    loaded(made)
    made.tell("disabled")
    assert "service_disabled" in codes(service.findings(site_of(made.machine)))


def test_two_services_are_said(tmp_path: Path) -> None:
    made = scripted(tmp_path, "darwin")
    installed(made).with_name(service.BREWS_FILE).write_text("")
    assert "two_services" in codes(service.findings(site_of(made.machine)))


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("loaded", [True, False])
def test_services_of_a_home_that_may_not_be_looked_into_are_none(
    tmp_path: Path, loaded: bool, enabled: bool
) -> None:
    made = scripted(tmp_path, "linux")
    site = site_of(made.machine)
    made.machine.home.mkdir(exist_ok=True)
    with guarded(made.machine.home):
        assert codes(service._twice(site)) == []
        assert codes(service._of(site, State(loaded=loaded, enabled=enabled))) == []


def test_starts_that_are_held_are_said(made: Scripted) -> None:
    site = site_of(made.machine)
    site.state_folder.mkdir(parents=True)
    for _ in range(2):  # the first does not end cleanly
        ledger = starts.StartLedger(site.state_folder, ManualClock(), 0)
        ledger.begin()
        ledger.save()
    assert "starts_held" in codes(service.findings(site))


def test_every_finding_is_in_the_reference_and_has_a_test() -> None:
    here = Path(__file__)
    folder = here.parents[2] / "mlxd/cli/doctor"
    source = "".join(file.read_text() for file in folder.glob("*.py"))
    known = set(re.findall(r'(?:problem|advice)\(\s*"(\w+)"', source))
    text = (here.parents[2] / "docs/reference/doctor.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` ", text, re.MULTILINE)) == known
    tests = here.read_text()
    assert [code for code in known if f'"{code}"' not in tests] == []
