"""`mlxd service ...` with the real systemd: installed, changed, told of and taken away."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.daemon import free_port
from tests.support.systemd_machine import Machine, Unavailable, machine

pytestmark = [pytest.mark.system, pytest.mark.xdist_group("systemd")]

POLICY = "etc/mlxd/policies/server.yaml"
UNIT = "etc/systemd/system/mlxd.service"


@pytest.fixture
def booted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    try:
        with machine(tmp_path_factory.mktemp("machine")) as found:
            yield found
    except Unavailable as why:
        pytest.skip(str(why))


def mlxd(on: Machine, *words: str) -> tuple[int, str]:
    done = on.run("mlxd", "service", *words)
    return done.returncode, done.stdout + done.stderr


def install(on: Machine, grace: int, listen: str) -> str:
    on.write(POLICY, f"schema: mlxd/v1\nlisten: {{{listen}}}\ndrain: {{grace: {grace}s}}\n")
    ended, said = mlxd(on, "install", "--system", "--now", "--program", "/usr/bin/mlxd")
    assert ended == 0, said + on.told()
    return said


def status(on: Machine) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(mlxd(on, "status", "--json")[1])
    return found


@pytest.mark.slow
def test_a_service_from_its_install_to_its_end(booted: Machine) -> None:
    listen = f"port: {free_port()}"
    assert "start mlxd.socket mlxd.service" in install(booted, 30, listen)
    first = status(booted)
    assert (first["running"], first["enabled"], first["ours"]) == (True, True, True)
    assert first["daemon"]["pid"] == first["pid"]
    said = install(booted, 12, f"{listen}, inherit: never")
    assert "disable --now mlxd.socket" in said
    assert "restart mlxd.service" in said
    assert booted.show("mlxd.socket", "ActiveState")["ActiveState"] == "inactive"
    assert "TimeoutStopSec=59" in (booted.root / UNIT).read_text()
    assert status(booted)["pid"] not in {None, first["pid"]}
    ended, said = mlxd(booted, "uninstall", "--system")
    assert (ended, "remove /etc/systemd/system/mlxd.service" in said) == (0, True)
    assert booted.show("mlxd.service", "LoadState")["LoadState"] == "not-found"
