"""docs/reference/http.md says what is served, how each error is answered, and with which keys."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from mlxd.core import errors
from mlxd.server.app import routes
from mlxd.server.errors import STATUS
from mlxd.server.openapi.document import operations
from mlxd.server.parts import Parts
from tests.support.daemon import Daemon

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "reference" / "http.md").read_text(encoding="utf-8")
ROUTE = re.compile(r"\b(GET|POST|PUT|DELETE) (/[\w./{}-]*(?:, /[\w./{}-]+)*)")


def served() -> set[tuple[str, str]]:
    """(method, path), with HEAD left out: it works wherever GET does."""
    table = routes(cast("Parts", None))
    entries = {path: methods for path, (methods, _) in table._exact.items()}
    entries |= {f"{path}*": methods for path, (methods, _) in table._below.items()}
    return {(method, path) for path, methods in entries.items() for method in methods - {"HEAD"}}


def documented() -> set[tuple[str, str]]:
    return {
        (method, re.sub(r"\{\w+\}", "*", path.rstrip(".") or "/"))
        for method, paths in ROUTE.findall(TEXT)
        for path in paths.split(", ")
    }


def test_every_route_is_documented_and_nothing_else() -> None:
    assert documented() == served()


def test_everything_on_the_admin_socket_is_documented() -> None:
    """Its table says them as `/admin/ps` (get)."""
    rows = re.findall(r"^\| ((?:`/admin/[^|]*)) \((get|post|delete)\) \|", TEXT, re.MULTILINE)
    listed = {
        (method.upper(), re.sub(r"\?.*", "", path))
        for paths, method in rows
        for path in re.findall(r"`([^`]+)`", paths)
    }
    described = {(one.method, one.path) for one in operations() if one.for_owners}
    assert listed == {one for one in described if one[0] != "HEAD"}


def test_head_works_wherever_get_does() -> None:
    table = routes(cast("Parts", None))
    for methods, _ in [*table._exact.values(), *table._below.values()]:
        assert "HEAD" in methods or "GET" not in methods


def every_error(root: type[errors.MlxdError]) -> Iterator[type[errors.MlxdError]]:
    for error in root.__subclasses__():
        yield error
        yield from every_error(error)


def test_every_error_is_in_the_table_of_status_codes() -> None:
    table = TEXT.partition("## Status codes")[2]
    rows = re.findall(r"^\| (\d{3}) \| (.*) \|$", table, re.MULTILINE)
    listed = {
        code: int(status)
        for status, codes in rows
        for code in re.sub(r" \(.*?\)", "", codes).split(", ")
    }
    assert listed == STATUS
    assert set(listed) == {error.code for error in every_error(errors.MlxdError)}


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/health",
        "/queue/stats",
        "/api/chat/status",
        "/api/models/tiny-a",
        "/api/chat/mlx/metrics",
    ],
)
def test_every_key_of_mlxds_own_answers_is_documented(shared_daemon: Daemon, path: str) -> None:
    """Two levels of them, with a model loaded; the keys of `active_model_requests` are names."""
    shared_daemon.http.post("/api/generate", json={"model": "tiny-a"})
    words = set(re.findall(r"\w+", TEXT))
    body: dict[str, Any] = shared_daemon.http.get(path).json()
    inner = [value for key, value in body.items() if key != "active_model_requests"]
    dicts = [value for value in inner if isinstance(value, dict)]
    dicts += [
        one for value in inner if isinstance(value, list) for one in value if isinstance(one, dict)
    ]
    assert {key for one in [body, *dicts] for key in one} - words == set()
