"""GET /openapi.json, behind the same walls as everything."""

from __future__ import annotations

import pytest

from mlxd.server.openapi.document import document
from tests.support.daemon import Daemon


def test_the_document_is_served(shared_daemon: Daemon) -> None:
    answer = shared_daemon.http.get("/openapi.json")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json; charset=utf-8"
    assert answer.json() == document()


def test_its_head_says_how_long_it_is(shared_daemon: Daemon) -> None:
    whole = shared_daemon.http.get("/openapi.json")
    head = shared_daemon.http.head("/openapi.json")
    assert head.headers["content-length"] == str(len(whole.content))


@pytest.mark.parametrize("header", [("Host", "evil.example"), ("Origin", "http://evil.example")])
def test_no_foreign_page_reads_it(shared_daemon: Daemon, header: tuple[str, str]) -> None:
    answer = shared_daemon.http.get("/openapi.json", headers=[header])
    assert answer.status_code == 403


def test_it_names_nothing_of_the_host(shared_daemon: Daemon) -> None:
    text = shared_daemon.http.get("/openapi.json").text
    for private in (
        str(shared_daemon.state),
        str(shared_daemon.policies),
        f":{shared_daemon.port}",
    ):
        assert private not in text
