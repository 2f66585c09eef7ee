"""What a connection is told that ends before there is a request: as much as any other."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from mlxd.core.clock import ManualClock
from mlxd.policy.load import load
from mlxd.policy.store import PolicyStore
from mlxd.server.addresses import Addresses
from mlxd.server.connections import GuardedServer
from mlxd.server.errors import in_anthropic
from mlxd.server.farewells import EACH, too_slow
from mlxd.telemetry.events import Events
from mlxd.telemetry.rejections import EACH as EVENTS
from mlxd.telemetry.rejections import Rejections
from tests.support.daemon import write_policies

FAR = "10.0.0.7"


async def _answer(_: web.BaseRequest) -> web.StreamResponse:
    return web.Response()


class Bench:
    """A server whose connections are all taken."""

    def __init__(self, folder: Path, limits: str) -> None:
        self.folder = folder
        self.store = PolicyStore(self.policies(limits))
        clock = ManualClock()
        self.events = Events(clock)
        addresses = Addresses(self.store, clock)
        self.server = GuardedServer(_answer, self.store, clock, addresses=addresses)
        self.server.farewells.rejections = Rejections(self.events)
        self.server._is_full = lambda others: "max_connections" in limits  # type: ignore[method-assign]
        self.server._addresses.connect(FAR)  # type: ignore[union-attr]

    def policies(self, limits: str) -> Any:
        return load(write_policies(self.folder, {"server": f"http: {{{limits}}}\n"}))

    def rejected(self) -> list[dict[str, Any]]:
        return [dict(event.data) for event in self.events.since(0) if event.type == "reject"]


def parsed(said: bytes) -> tuple[int, dict[str, str], Any]:
    head, _, body = said.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    assert int(headers["content-length"]) == len(body)
    return int(status.split()[1]), headers, json.loads(body)


@pytest.mark.parametrize(("key", "most"), [("max_connections", 4), ("per_ip", 1)])
async def test_whoever_is_one_too_many_is_told_by_which_line(
    tmp_path: Path, key: str, most: int
) -> None:
    bench = Bench(tmp_path, f"{key}: {most}")
    status, headers, body = parsed(bench.server.refusal(FAR))
    assert status == 503
    assert headers["x-mlxd-code"] == "overloaded"
    assert headers["x-mlxd-policy-key"] == f"server.http.{key}"
    assert headers["x-mlxd-policy-place"].endswith("/server.yaml:2")
    assert headers["x-mlxd-policy"] == str(bench.store.current.generation)
    assert (headers["retry-after"], headers["connection"]) == ("1", "close")
    assert f"Policy: server.http.{key}: " in body["error"]
    assert "Would pass: the same request once another connection" in body["error"]
    (event,) = bench.rejected()
    assert (event["policy"], event["client"], event["count"]) == (f"server.http.{key}", FAR, 1)
    await bench.server.shutdown()


async def test_a_flood_of_them_is_a_few_lines_and_events_and_each_has_an_id_of_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mlxd.access")
    bench = Bench(tmp_path, "per_ip: 1")
    said = [parsed(bench.server.refusal(FAR))[1]["x-request-id"] for _ in range(500)]
    assert len(set(said)) == 500
    lines = [one for one in caplog.records if one.name == "mlxd.access"]
    assert [one.__dict__["request"] for one in lines] == said[:EACH]
    await bench.server.shutdown()
    last = caplog.records[-1].getMessage()
    assert last == f"a connection 503 (server.http.per_ip), and {500 - EACH} more like it"
    assert len(bench.rejected()) == EVENTS
    bench.server.farewells.rejections.close()  # type: ignore[union-attr]
    assert bench.rejected()[-1]["count"] == 500 - EVENTS


async def test_an_edit_holds_for_the_next(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "per_ip: 1")
    assert "per_ip: 1 " in parsed(bench.server.refusal(FAR))[2]["error"]
    bench.server._addresses.connect(FAR)  # type: ignore[union-attr]
    bench.store.commit(bench.policies("per_ip: 2"), [])
    assert "per_ip: 2 " in parsed(bench.server.refusal(FAR))[2]["error"]
    await bench.server.shutdown()


async def test_where_there_is_no_file_no_policy_is_to_blame(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "per_ip: 1")
    status, headers, body = parsed(bench.server.no_room(""))
    assert (status, headers["x-mlxd-code"]) == (503, "overloaded")
    assert "too many files open" in body["error"]
    assert "x-mlxd-policy-key" not in headers
    await bench.server.shutdown()


async def test_a_header_that_comes_too_slowly_is_told_in_the_words_of_its_api(
    tmp_path: Path,
) -> None:
    bench = Bench(tmp_path, "header_timeout: 7s")
    policies = bench.store.current
    said = bench.server.farewells.own(too_slow(policies, scarce=False), policies, in_anthropic, FAR)
    status, headers, body = parsed(said)
    assert (status, headers["x-mlxd-code"]) == (408, "request_timeout")
    assert headers["x-mlxd-policy-key"] == "server.http.header_timeout"
    assert "server.http.header_timeout: 7s" in body["error"]["message"]
    assert body["request_id"] == headers["x-request-id"]
    assert bench.rejected() == [], "it is the client that is slow"
    assert too_slow(policies, scarce=True).policy is None
    await bench.server.shutdown()
