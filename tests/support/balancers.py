"""HAProxy and nginx in a test, with the files of etc/: only addresses and places are put in."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.support.daemon import free_port

ETC = Path(__file__).parents[2] / "etc"
ADDRESSES = ("10.0.0.11:11435", "10.0.0.12:11435", "10.0.0.13:11435")
"""The daemons' in both files."""
SERVERS = ("one", "two", "three")
"""What HAProxy calls them."""
_START_SECONDS = 30.0
_STOP_SECONDS = 30.0
_OPTIONAL = re.compile(r"^( +)#   (?=\S)", re.MULTILINE)
_NEEDS_ROOT = re.compile(r"^ +(chroot|user|group) .*\n", re.MULTILINE)
_AROUND_NGINX = """
{user}
daemon off;
worker_processes 2;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/mlxd.conf;
}}
"""


@dataclass(frozen=True)
class Certificate:
    """Signed by itself, for localhost and 127.0.0.1."""

    crt: Path
    key: Path
    pem: Path
    """Both in one file."""


@dataclass
class Balancer:
    """One that runs."""

    program: str
    process: subprocess.Popen[bytes]
    port: int
    tls_port: int
    folder: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def say(self, command: str) -> str:
        """HAProxy's answer to an administrator, as `socat` on its socket would show it."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(_START_SECONDS)
            sock.connect(str(self.folder / "admin.sock"))
            sock.sendall(f"{command}\n".encode())
            answer = b""
            while piece := sock.recv(65536):
                answer += piece
        return answer.decode().strip()

    def point_to(self, daemons: Sequence[int]) -> None:
        """nginx: read its file with other ports, as `nginx -s reload` has it do."""
        config = _nginx_config(daemons, self.port, self.tls_port, _certificate_in(self.folder))
        (self.folder / "mlxd.conf").write_text(config)
        self.process.send_signal(signal.SIGHUP)


def certificate(folder: Path) -> Certificate:
    """Made by openssl."""
    made = _certificate_in(folder)
    command = [
        *("openssl", "req", "-x509", "-nodes", "-newkey", "ec"),
        *("-pkeyopt", "ec_paramgen_curve:prime256v1", "-days", "2", "-subj", "/CN=localhost"),
        *("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
        *("-keyout", str(made.key), "-out", str(made.crt)),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=_START_SECONDS)
    made.pem.write_text(made.key.read_text() + made.crt.read_text())
    return made


def _certificate_in(folder: Path) -> Certificate:
    return Certificate(folder / "mlxd.crt", folder / "mlxd.key", folder / "mlxd.pem")


def absent(*programs: str) -> str:
    """Those of them that are not there, as a reason to skip; empty: none."""
    missing = [name for name in programs if program_at(name) is None]
    return f"not installed: {', '.join(missing)}" if missing else ""


def program_at(name: str) -> str | None:
    """Also where only administrators look for it."""
    return shutil.which(
        name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin"
    )


@contextmanager
def haproxy(
    folder: Path, daemons: Sequence[int], change: Callable[[str], str] = str
) -> Iterator[Balancer]:
    """In front of the daemons on these ports of 127.0.0.1; `change` makes another file of it."""
    port, tls_port = free_port(), free_port()
    file = folder / "haproxy.cfg"
    file.write_text(change(haproxy_config(folder, daemons, port, tls_port)))
    command = [str(program_at("haproxy")), "-db", "-dW", "-f", str(file)]
    with _running("haproxy", command, folder, port, tls_port) as balancer:
        yield balancer


@contextmanager
def nginx(
    folder: Path, daemons: Sequence[int], change: Callable[[str], str] = str
) -> Iterator[Balancer]:
    """As `haproxy`."""
    port, tls_port = free_port(), free_port()
    config = _nginx_config(daemons, port, tls_port, certificate(folder))
    (folder / "mlxd.conf").write_text(change(config))
    file = folder / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""  # else its processes cannot reach the folder
    file.write_text(_AROUND_NGINX.format(folder=folder, user=user))
    command = [str(program_at("nginx")), "-c", str(file), "-e", str(folder / "nginx.log")]
    with _running("nginx", command, folder, port, tls_port) as balancer:
        yield balancer


def haproxy_config(
    folder: Path, daemons: Sequence[int], port: int, tls_port: int, *, optional: bool = False
) -> str:
    """etc/haproxy.cfg, as it is; `optional`: with its examples that are commented out."""
    text = _filled(
        (ETC / "haproxy.cfg").read_text(),
        {
            **_daemons(daemons),
            "bind 127.0.0.1:11434": f"bind 127.0.0.1:{port}",
            "bind :443": f"bind 127.0.0.1:{tls_port}",
            "/etc/haproxy/mlxd.pem": str(certificate(folder).pem),
            "/run/haproxy/admin.sock": str(folder / "admin.sock"),
        },
    )
    if os.geteuid() != 0:
        text = _NEEDS_ROOT.sub("", text)
    return _OPTIONAL.sub(r"\1", text) if optional else text


def _nginx_config(daemons: Sequence[int], port: int, tls_port: int, made: Certificate) -> str:
    return _filled(
        (ETC / "nginx.conf").read_text(),
        {
            **_daemons(daemons),
            "listen 127.0.0.1:11434": f"listen 127.0.0.1:{port}",
            "listen 443": f"listen 127.0.0.1:{tls_port}",
            "/etc/nginx/mlxd.crt": str(made.crt),
            "/etc/nginx/mlxd.key": str(made.key),
        },
    )


def _daemons(ports: Sequence[int]) -> dict[str, str]:
    return {old: f"127.0.0.1:{port}" for old, port in zip(ADDRESSES, ports, strict=True)}


def _filled(text: str, values: Mapping[str, str]) -> str:
    for old, new in values.items():
        assert text.count(old) == 1, f"{old} stands there {text.count(old)} times"
        text = text.replace(old, new)
    return text


@contextmanager
def _running(
    program: str, command: Sequence[str], folder: Path, port: int, tls_port: int
) -> Iterator[Balancer]:
    log = folder / f"{program}.out"
    with log.open("wb") as sink:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink)
    balancer = Balancer(program, process, port, tls_port, folder)
    try:
        _wait_until_it_answers(balancer, log)
        yield balancer
    finally:
        process.send_signal(signal.SIGTERM)  # both end at once by it
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_it_answers(balancer: Balancer, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and balancer.process.poll() is None:
        try:
            if httpx.get(f"{balancer.url}/livez").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.02)
    raise AssertionError(f"{balancer.program} does not answer:\n{log.read_text()}")
