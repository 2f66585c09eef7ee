"""Sends made-up requests, and says which answers are not what the document says."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

import jsonschema
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis import APIOperation, Case, GenerationMode
from schemathesis.checks import load_all_checks
from schemathesis.core.failures import FailureGroup
from schemathesis.core.result import Ok
from schemathesis.specs.openapi import checks

from tests.contract.aiming import MODELS, REQUEST, Aim
from tests.contract.wire import SOCKET, session
from tests.support.closed import closed
from tests.support.daemon import Daemon

CHECKS = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
_STREAMS = ("text/event-stream", "application/x-ndjson")

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Broken:
    """An answer that the document does not promise."""

    operation: str
    what: str
    curl: str

    def __str__(self) -> str:
        return f"{self.operation}: {self.what}\n{self.curl}"


class Contract:
    """A running daemon, and what its document says; nothing beside that is allowed."""

    def __init__(self, daemon: Daemon) -> None:
        load_all_checks()
        self._daemon = daemon
        self._session = session(daemon.address().admin)
        self.document: Json = closed(daemon.http.get("/openapi.json").json())
        self._schema = schemathesis.openapi.from_dict(self.document)
        self.operations = {one.label: one for one in self._each()}
        self.statuses: dict[str, Counter[int]] = defaultdict(Counter)
        """How many answers there were of each, by operation."""
        self._aim = Aim(self._kept)
        self._ask()

    def _each(self) -> Iterator[APIOperation[Any, Any, Any, Any]]:
        for result in self._schema.get_all_operations():
            assert isinstance(result, Ok), result
            yield result.ok()

    def cases(self, label: str, count: int, start: int = 0) -> list[Broken]:
        """Of so many, from one seed; always the same."""
        operation, broken = self.operations[label], list[Broken]()
        chance = Random(f"{label} {start}")

        @seed(start)
        @settings(
            max_examples=count,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(st.data())
        def each(data: st.DataObject) -> None:
            case = data.draw(_either(operation))
            self._aim.at(case, chance)
            broken.extend(self.look_at(case))

        each()
        return broken

    def look_at(self, case: Case) -> Iterator[Broken]:
        """One request, and its answer."""
        url = self._url(case.operation.path)
        try:
            answer = case.call(base_url=url, session=self._session, timeout=20.0)
        except requests.RequestException as error:
            yield self._broken(case, url, f"no answer: {error!r}")
            return
        self.statuses[case.operation.label][answer.status_code] += 1
        try:
            case.validate_response(answer, checks=CHECKS)
        except FailureGroup as group:
            for failure in group.exceptions:
                yield self._broken(case, url, f"{failure.title}: {failure.message}")
        said = answer.headers.get("x-mlxd-code", [""])[0]
        for what in self._wrong(case, answer.status_code, said):
            yield self._broken(case, url, f"{answer.status_code}: {what}: {answer.text[:300]}")
        kind = answer.headers.get("content-type", [""])[0].partition(";")[0]
        if kind in _STREAMS and answer.content:
            for what in self._records(case, kind, answer.content):
                yield self._broken(case, url, what)

    def ask(self, method: str, path: str) -> requests.Response:
        """Something by hand."""
        return self._session.request(method, self._url(path) + path, timeout=20.0)

    def _url(self, path: str) -> str:
        return SOCKET if path.startswith("/admin") else self._daemon.url

    def _broken(self, case: Case, url: str, what: str) -> Broken:
        return Broken(case.operation.label, what, case.as_curl_command(base_url=url))

    def _wrong(self, case: Case, status: int, code: str) -> Iterator[str]:
        """What no shape says."""
        told = self._told(case)
        if status == 500:
            yield "a defect"
        if code and code not in told["x-mlxd-codes"]:
            yield f"{code} is not among its codes"
        if status > 500 and not code and case.operation.path != "/readyz":
            yield "it does not say why"

    def _records(self, case: Case, kind: str, content: bytes) -> Iterator[str]:
        told = self._told(case)["responses"]["200"]["content"][kind]
        whole = {**told["x-itemSchema"], "components": self.document["components"]}
        validator = jsonschema.Draft202012Validator(whole)
        for record in _records(kind, content):
            for error in validator.iter_errors(record):
                yield f"a record of the stream: {error.message}: {json.dumps(record)[:300]}"

    def _told(self, case: Case) -> Json:
        found: Json = self.document["paths"][case.operation.path][case.operation.method]
        return found

    def _ask(self) -> None:
        """So that there is a request to ask about, and models in memory."""
        for model in MODELS:
            body = {"model": model, "prompt": "hi"}
            asked = self._daemon.http.post(
                "/api/generate", json=body, headers={"X-Request-Id": REQUEST}
            )
            assert asked.status_code == 200, asked.text

    def _kept(self) -> str:
        body = {"model": MODELS[0], "input": "hi", "max_output_tokens": 2}
        answered: str = self._daemon.http.post("/v1/responses", json=body).json()["id"]
        return answered


def _either(operation: APIOperation[Any, Any, Any, Any]) -> st.SearchStrategy[Case]:
    """As the document has it, or not."""
    right = operation.as_strategy(GenerationMode.POSITIVE)
    takes = operation.body or operation.query or operation.headers or operation.path_parameters
    if not takes:
        return right
    return st.one_of(right, operation.as_strategy(GenerationMode.NEGATIVE))


def _records(kind: str, content: bytes) -> Iterator[Any]:
    """What each of them holds."""
    for line in content.decode().split("\n"):
        if kind == "application/x-ndjson" and line:
            yield json.loads(line)
        elif line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line.removeprefix("data: "))
