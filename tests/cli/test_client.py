import json
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import pytest

from mlxd.cli import client
from mlxd.cli.client import NoAnswer, address_of, get_json
from mlxd.cli.watch import watch
from mlxd.core import places
from mlxd.core.claim import Claim
from mlxd.core.instance import Address, authority
from tests.support.command import mlxd
from tests.support.daemon import free_port, write_policies


def find(tmp_path, environ=None, policies=None):
    return places.find(policies, str(tmp_path / "state"), environ or {}, tmp_path)


def test_a_daemon_is_found_by_its_state_folder_first(tmp_path):
    claim = Claim(tmp_path / "state")
    claim.take()
    claim.announce(Address(os.getpid(), "0.0.0.0", 12001, "0"))
    assert address_of(find(tmp_path, {"MLX_API_URL": "http://other:9"})) == ("127.0.0.1", 12001)
    claim.release()
    assert address_of(find(tmp_path, {"MLX_API_URL": "http://other:9"})) == ("other", 9)


def test_then_by_the_port_variables_then_by_policy_then_by_default(tmp_path):
    folder = write_policies(tmp_path / "p", {"server": "listen: {port: 12002}\n"})
    named = {"policies": str(folder)}
    assert address_of(find(tmp_path, {"MLX_API_PORT": "12003"}, **named)) == ("127.0.0.1", 12003)
    assert address_of(find(tmp_path, {"MLXD_PORT": "12004"}, **named)) == ("127.0.0.1", 12004)
    assert address_of(find(tmp_path, **named)) == ("127.0.0.1", 12002)
    assert address_of(find(tmp_path)) == ("127.0.0.1", 11435)


@pytest.mark.timeout(10)
def test_a_pipe_in_place_of_server_yaml_is_not_waited_for(tmp_path):
    (tmp_path / "p").mkdir()
    os.mkfifo(tmp_path / "p" / "server.yaml")
    assert address_of(find(tmp_path, policies=str(tmp_path / "p"))) == ("127.0.0.1", 11435)


def test_a_port_where_nothing_answers_is_said_in_words():
    port = free_port()
    with pytest.raises(NoAnswer, match=f"no answer from http://127.0.0.1:{port}/health"):
        get_json(("127.0.0.1", port), "/health")


def test_an_ipv6_address_stands_in_brackets():
    with pytest.raises(NoAnswer, match=r"no answer from http://\[::1\]:1/health"):
        get_json(("::1", 1), "/health")


@contextmanager
def answering(said, path=None):
    """Somebody who says that, whatever he is asked, at a unix socket's `path`, or over TCP; the
    address.
    """
    at, family = (path, socket.AF_UNIX) if path else (("127.0.0.1", 0), socket.AF_INET)
    with socket.create_server(at, family=family) as listener, ThreadPoolExecutor(1) as pool:

        def answer():
            sock, _ = listener.accept()
            with sock:
                sock.recv(4096)
                sock.sendall(said)
                sock.shutdown(socket.SHUT_WR)
                while sock.recv(4096):  # a body comes by itself
                    pass

        told = pool.submit(answer)
        yield listener.getsockname()
        told.result()


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (b"220 mail.example ESMTP\r\n", "that is no HTTP"),
        (b"", "that is no HTTP"),
        (b"HTTP/1.1 200 OK\r\n\r\nhello", "Expecting value"),
        (b"HTTP/1.1 200 OK\r\n\r\n[1]", "is not mlxd"),
    ],
)
def test_what_answers_there_and_is_not_mlxd_is_told_apart(said, words):
    with answering(said) as address, pytest.raises(NoAnswer, match=words):
        get_json(address, "/health")


def test_a_program_that_asks_for_the_status_is_told_so_in_json(tmp_path):
    with answering(b'HTTP/1.1 200 OK\r\n\r\n{"service": "other"}') as address:
        environment = {"MLX_API_URL": f"http://{authority(*address)}"}
        done = mlxd("status", "--json", "--state", tmp_path, environment=environment)
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert told["status"] == "down"
    assert told["error"].endswith("is not mlxd")


ANOTHER = {"service": "mlxd", "version": "0.0.1", "status": "healthy", "active_requests": 1,
           "max_concurrent": 5, "memory": {}}  # fmt: skip
"""The health of another version."""


def test_a_status_that_lacks_something_is_shown_as_far_as_it_goes(tmp_path):
    """An upgrade has brought the command, and the daemon is to be restarted still."""
    with answering(b"HTTP/1.1 200 OK\r\n\r\n" + json.dumps(ANOTHER).encode()) as address:
        environment = {"MLX_API_URL": f"http://{authority(*address)}"}
        done = mlxd("status", "--state", tmp_path, environment=environment)
    assert done.returncode == 1
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["mlxd", "requests"]
    assert done.stderr.startswith("mlxd: the daemon's answer has no 'queue': it is of another")


FIT = {"model": "m", "verdict": "fits", "reason": "", "needed_bytes": 1, "context": 1,
       "available_bytes": 1, "evicts": [], "policy": {"key": "k", "value": "1"}}  # fmt: skip


def test_whoever_watches_goes_on_when_another_version_answers(tmp_path, monkeypatch, capsys):
    with answering(b"HTTP/1.1 200 OK\r\n\r\n" + json.dumps(ANOTHER).encode()) as address:
        monkeypatch.setenv("MLX_API_URL", f"http://{authority(*address)}")
        assert watch(None, str(tmp_path), rounds=1) == 0
    said = [line.split()[0] for line in capsys.readouterr().out.split("\n") if line]
    assert said == ["mlxd", "requests", "warning"]


@pytest.mark.parametrize(
    ("command", "said", "words"),
    [
        (
            ["models", "list"],
            b'200 OK\r\n\r\n{"models": [{"name": "m", "unavailable": ""}]}',
            "the daemon's answer has no 'size_bytes'",
        ),
        (
            ["models", "fit", "m"],
            b"200 OK\r\n\r\n" + json.dumps(FIT).encode(),
            "the daemon's answer has no 'place'",
        ),
        (
            ["cache", "stats"],
            b"404 Not Found\r\nServer: mlxd\r\nContent-Type: text/plain\r\n\r\n404 page",
            "the daemon does not know what this command asks for",
        ),
        (
            ["events"],
            b"405 Method\r\nServer: mlxd\r\nContent-Type: text/plain\r\n\r\n405 method",
            "the daemon does not know what this command asks for",
        ),
        (["events"], b'200 OK\r\n\r\n[{"id": 1}]', "the daemon's answer has no 'at'"),
        (
            ["events", "--follow"],
            b'200 OK\r\n\r\ndata: {"id": 1}\n\n',
            "the daemon's answer has no 'at'",
        ),
        (["pull", "m"], b'200 OK\r\n\r\n{"digest": "a"}\n', "the daemon's answer has no 'total'"),
        (
            ["pull", "m"],
            b"404 Not Found\r\nServer: mlxd\r\nContent-Type: text/plain\r\n\r\n404 page",
            "the daemon does not know what this command asks for",
        ),
    ],
)
def test_a_daemon_of_another_version_is_told_of_in_words(tmp_path, command, said, words):
    with another_version(tmp_path, said) as state:
        done = mlxd(*command, "--state", state)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"mlxd: {words}")


def test_what_needs_no_daemon_does_without_one_of_another_version(tmp_path):
    with another_version(tmp_path, b"200 OK\r\n\r\n{}") as state:
        done = mlxd("policy", "check", "--state", state)
    assert done.returncode == 0, done.stderr


@contextmanager
def another_version(tmp_path, said):
    """A daemon that says that on its admin socket; its state folder."""
    claim = Claim(tmp_path / "state")
    claim.take()
    socket_path = str(tmp_path / "admin.sock")
    claim.announce(Address(os.getpid(), "127.0.0.1", 1, "0.0.1", socket_path))
    with answering(b"HTTP/1.1 " + said, socket_path):
        yield claim.state
    claim.release()


def test_what_is_not_mlxd_is_not_told_to_be_restarted(tmp_path):
    said = b"HTTP/1.1 404 Not Found\r\nServer: nginx\r\nContent-Type: text/plain\r\n\r\n404 page"
    with answering(said) as address:
        environment = {"MLX_API_URL": f"http://{authority(*address)}"}
        done = mlxd("events", "--state", tmp_path, environment=environment)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("mlxd: no answer from the daemon at http://")


def test_where_the_log_is_nobody_guesses(tmp_path):
    """Over TCP a daemon does not tell."""
    with answering(b'HTTP/1.1 200 OK\r\n\r\n{"service": "mlxd"}') as address:
        environment = {"MLX_API_URL": f"http://{authority(*address)}"}
        done = mlxd("logs", "--state", tmp_path, environment=environment)
    assert (done.returncode, done.stdout) == (1, "")
    assert "on the admin socket" in done.stderr
    assert "stderr" not in done.stderr


def test_who_never_comes_to_an_end_is_not_heard_out(monkeypatch):
    monkeypatch.setattr(client, "MOST_BYTES", 1 << 16)
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:

        def speak():
            sock, _ = listener.accept()
            with sock, suppress(OSError):
                while True:
                    sock.sendall(b"abcdefgh" * 4096)

        told = pool.submit(speak)
        with pytest.raises(NoAnswer, match="does not come to an end"):
            get_json(listener.getsockname(), "/health")
        told.result(20)


def test_a_health_that_is_bad_is_told_too():
    said = b'HTTP/1.1 503 Service Unavailable\r\nContent-Length: 20\r\n\r\n{"service": "mlxd" }'
    with answering(said) as address:
        assert get_json(address, "/health") == {"service": "mlxd"}
