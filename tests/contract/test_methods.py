"""A method that a path has not is 405, and says which it has."""

from __future__ import annotations

import pytest

from mlxd.server.openapi.document import operations
from tests.contract.holding import Contract

pytestmark = pytest.mark.mlx

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND")
HAS: dict[str, set[str]] = {}
for operation in operations():
    HAS.setdefault(operation.path, set()).add(operation.method)
# What is a path by itself is one of what has names in it, too.
HAS["/v1/responses/compact"] |= HAS["/v1/responses/{id}"]


@pytest.mark.parametrize("path", HAS)
def test_every_other_method_is_refused(contract: Contract, path: str) -> None:
    for method in [one for one in METHODS if one not in HAS[path]]:
        answer = contract.ask(method, path.replace("{", "").replace("}", ""))
        assert answer.status_code == 405, method
        assert set(answer.headers["Allow"].split(", ")) == HAS[path], method


@pytest.mark.parametrize("path", HAS)
def test_a_page_may_ask_first(contract: Contract, path: str) -> None:
    answer = contract.ask("OPTIONS", path)
    assert (answer.status_code, answer.content) == (204, b"")
