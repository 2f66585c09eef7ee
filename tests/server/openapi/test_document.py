"""Every route has its operation, every operation its route, and the document is what it says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, cast

import pytest
from aiohttp.test_utils import make_mocked_request
from jsonschema import Draft202012Validator

from mlxd import __version__
from mlxd.server.admin import Admin
from mlxd.server.app import Routes, routes
from mlxd.server.catalog import Nowhere
from mlxd.server.errors import STATUS
from mlxd.server.openapi import headers
from mlxd.server.openapi.__main__ import text
from mlxd.server.openapi.document import document, encoded, operations
from mlxd.server.openapi.operation import Operation
from mlxd.server.page.token import HEADER
from mlxd.server.walls import _EXPOSED

ROOT = Path(__file__).parents[3]
DOCUMENT = document()
OPERATIONS = operations()
NOTHING = cast("Any", None)
CLIENT = routes(NOTHING)
ADMIN = Admin(NOTHING, NOTHING, NOTHING, NOTHING).routes()


def table_of(routes: Routes) -> set[tuple[str, str]]:
    exact = {path: methods for path, (methods, _) in routes._exact.items()}
    below = {f"{path}*": methods for path, (methods, _) in routes._below.items()}
    return {(method, path) for path, methods in {**exact, **below}.items() for method in methods}


def served_by(operation: Operation) -> Routes:
    return ADMIN if operation.for_owners else CLIENT


@pytest.mark.parametrize("routes", [CLIENT, ADMIN], ids=["client", "admin"])
def test_every_route_has_an_operation(routes: Routes) -> None:
    described = {
        (one.method, re.sub(r"\{\w+\}", "x", one.path))
        for one in OPERATIONS
        if served_by(one) is routes
    }
    missing = {
        (method, path)
        for method, path in table_of(routes)
        if not any(m == method and fnmatchcase(p, path) for m, p in described)
    }
    assert missing == set()


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda one: f"{one.method} {one.path}")
def test_every_operation_has_a_route(operation: Operation) -> None:
    path = re.sub(r"\{\w+\}", "x", operation.path)
    found = served_by(operation)(make_mocked_request(operation.method, path))
    assert not isinstance(found, Nowhere)


def test_no_operation_stands_there_twice() -> None:
    labels = [(one.method, one.path) for one in OPERATIONS]
    assert len(set(labels)) == len(labels)
    ids = [one["operationId"] for path in DOCUMENT["paths"].values() for one in path.values()]
    assert len(set(ids)) == len(ids) == len(OPERATIONS)


def test_the_parameters_of_a_path_are_those_in_it() -> None:
    for operation in OPERATIONS:
        named = {one.name for one in operation.parameters if one.place == "path"}
        assert named == set(re.findall(r"\{(\w+)\}", operation.path))


def test_the_file_is_current() -> None:
    written = (ROOT / "docs" / "reference" / "openapi.json").read_text(encoding="utf-8")
    assert written == text()
    assert json.loads(written) == DOCUMENT == json.loads(encoded())


def everything(value: Any) -> Iterator[Any]:
    yield value
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from everything(one)


def test_every_reference_leads_somewhere_and_everything_is_referred_to() -> None:
    found = {one["$ref"] for one in everything(DOCUMENT) if isinstance(one, dict) and "$ref" in one}
    there = {
        f"#/components/{kind}/{name}"
        for kind in ("schemas", "responses", "headers")
        for name in DOCUMENT["components"][kind]
    }
    assert found == there


def test_shapes_are_json_schemas() -> None:
    for shape in DOCUMENT["components"]["schemas"].values():
        Draft202012Validator.check_schema(shape)


def test_each_status_is_one_that_the_operation_may_answer() -> None:
    for operation in OPERATIONS:
        told = DOCUMENT["paths"][operation.path][operation.method.lower()]
        raised = {STATUS[code] for code in told["x-mlxd-codes"]}
        assert {int(status) for status in told["responses"]} == raised | {*operation.answers}


def test_the_admin_side_says_what_opens_it_over_tcp() -> None:
    """`{}` is for its socket, which the words say."""
    schemes = DOCUMENT["components"]["securitySchemes"]
    assert schemes["page"]["name"] == HEADER
    for operation in OPERATIONS:
        told = DOCUMENT["paths"][operation.path][operation.method.lower()]
        if operation.for_owners:
            assert told["security"] == [{}, *({name: []} for name in schemes)]
            assert "socket" in told["description"]
        else:
            assert {"page": []} not in told.get("security", ())


def test_every_header_that_pages_may_read_is_described() -> None:
    assert set(_EXPOSED.split(", ")) <= set(headers.headers())


def test_it_says_no_more_of_the_host_than_its_version() -> None:
    texts = [one for one in everything(DOCUMENT) if isinstance(one, str)]
    assert DOCUMENT["info"]["version"] == __version__
    assert not [one for one in texts if re.search(r"/(home|Users|root|tmp|var|usr|work)/", one)]
