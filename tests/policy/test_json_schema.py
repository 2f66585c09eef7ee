"""The schemas for editors agree with the daemon: they refuse nothing that it accepts."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from mlxd.policy import json_schema, keys, reference, strict_yaml
from mlxd.policy.schema import KINDS, Policies
from tests.support.each import each
from tests.support.policies import entry, flow

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "policies" / "schema"
LEAVES = [key for key in keys.table().values() if len(key.path) > 1 and not key.section]
SAME_EVERY_TIME = settings(deadline=None, derandomize=True, max_examples=100)


@cache
def validator(kind: str) -> Draft202012Validator:
    return Draft202012Validator(json_schema.editor_schema(kind))


def parsed(text: str) -> dict[str, Any] | None:
    """What a file says; None where it is no policy YAML at all."""
    document = strict_yaml.parse(f"schema: mlxd/v1\n{text}\n".encode("utf-8", "surrogatepass"))
    return None if document.problems else document.data


def accepted(kind: str, data: dict[str, Any]) -> bool:
    """By the daemon's types."""
    said = {name: value for name, value in data.items() if name != "schema"}
    try:
        Policies.model_validate({kind: said})
    except pydantic.ValidationError:
        return False
    return True


editor_schema = cache(json_schema.editor_schema)


@pytest.mark.parametrize("kind", KINDS)
def test_the_committed_schema_is_current(kind: str) -> None:
    text = (FOLDER / f"{kind}.schema.json").read_text(encoding="utf-8")
    assert text == json_schema.text(kind), "write it anew: python -m mlxd.policy.reference"
    assert json.loads(text) == json_schema.editor_schema(kind)


def test_nothing_else_is_committed() -> None:
    assert {file.name for file in FOLDER.iterdir()} == {f"{kind}.schema.json" for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_a_schema(kind: str) -> None:
    schema = json_schema.editor_schema(kind)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("kind", KINDS)
def test_the_shipped_file_names_its_schema_and_passes_it(kind: str) -> None:
    lines = reference.shipped(kind).splitlines()
    named = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", lines[0])
    assert named is not None
    assert (ROOT / "policies" / named[1]).samefile(FOLDER / f"{kind}.schema.json")
    document = strict_yaml.parse("\n".join(lines).encode())
    validator(kind).validate(document.data)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_needs_its_version(kind: str) -> None:
    assert not validator(kind).is_valid({})
    assert not validator(kind).is_valid({"schema": "mlxd/v2"})
    assert validator(kind).is_valid({"schema": "mlxd/v1"})


@each(keys.table().values(), lambda key: key.name)
def test_every_key_is_there_and_says_what_the_reference_says(key: keys.Key) -> None:
    here: Any = editor_schema(key.path[0])
    for part in key.path[1:]:
        here = _under(here, part)
    assert key.description in here.get("description", "")
    if key.owner is None or key.section:
        return
    assert (here["x-unit"], here["x-reload"]) == (key.extra("unit"), key.extra("reload"))
    assert f"Reload: {here['x-reload']}." in here["description"]
    assert Draft202012Validator(here).is_valid(here["default"])
    assert Draft202012Validator(here).is_valid(here["examples"][0])


def _under(schema: dict[str, Any], part: str) -> Any:
    within = {keys.ENTRY: "additionalProperties", keys.ITEM: "items"}
    return schema[within[part]] if part in within else schema["properties"][part]


def test_a_section_takes_no_unknown_key() -> None:
    for kind in KINDS:
        for schema in _objects(json_schema.editor_schema(kind)):
            assert schema["additionalProperties"] is False or "propertyNames" in schema


def _objects(schema: Any) -> list[dict[str, Any]]:
    inner = schema.values() if isinstance(schema, dict) else schema
    found = [one for part in inner if isinstance(part, (dict, list)) for one in _objects(part)]
    return (
        [schema, *found] if isinstance(schema, dict) and schema.get("type") == "object" else found
    )


_WORDS = [
    *(
        "0",
        "1",
        "5",
        "-1",
        "1.5",
        "0.5",
        "1.0",
        "-0.0",
        "1e3",
        "70000",
        "0x10",
        "017",
        ".nan",
        ".inf",
    ),
    *("true", "false", "null", "yes", "on", "never", "auto", "off", "inherit", "enforce", "''"),
    *(
        "0s",
        "5s",
        "250ms",
        "1h30m",
        "30m1h",
        "5 s",
        "5S",
        "0h0s",
        "1.5s",
        "1d2h3m4s5ms",
        "400d",
        "5",
    ),
    *("0B", "8MiB", "1.5GiB", "8mib", "8 MiB", "2kB", "1TiB", "0.1B", "0%", "85%", "110%", "-5%"),
    *("[]", "{}", "[a]", "[a, b]", "[5]", "[[a]]", "{a: 1}", "{a: {}}", "{a: []}", "{a: [b]}"),
    *("[{}]", "[{}, {max: 1}]", "[{name: x}]", "[true]"),
    *(
        "/a",
        "~/a",
        "~",
        "./a",
        "a/b",
        "127.0.0.1",
        "'::1'",
        "localhost",
        "http://a/",
        "a b",
        "'a\\nb'",
    ),
    *("10.0.0.0/8", "10.0.0.1/8", "fd00::/8", "[10.0.0.0/8]", "[a.b]", "[127.0.0.1]", "[::1/129]"),
    *("credential:a", "'credential:'", "https://a/b", "https://a/?b", "https://u@a/", "https:///"),
    *("header:x-a", "'header:'", "client_ip", "api_key", "[x-api-key]", "['x:']"),
]
_VALUES = (
    st.sampled_from(_WORDS)
    | st.sampled_from([key.example for key in LEAVES if key.example])
    | st.integers(-10, 10**6).map(str)
    | st.from_regex(r"[0-9]{1,3}(\.[0-9]{1,2})?(ms|s|m|h|d|B|MiB|%)", fullmatch=True)
    | st.text(max_size=12).map(lambda text: json.dumps(text, ensure_ascii=False))
)


@SAME_EVERY_TIME
@given(key=st.sampled_from(LEAVES), value=_VALUES)
def test_what_the_daemon_accepts_an_editor_does_not_mark(key: keys.Key, value: str) -> None:
    kind, *path = entry(key.path)
    data = parsed(flow(tuple(path), value))
    if data is None:
        return
    marked = not validator(str(kind)).is_valid(data)
    assert not (marked and accepted(str(kind), data))


@each(LEAVES, lambda key: key.name)
def test_an_editor_marks_every_value_of_a_wrong_kind(key: keys.Key) -> None:
    """Lists, mappings, numbers, true and nothing: here both always agree."""
    kind, *path = entry(key.path)
    for value in ("[]", "[[]]", "{}", "{a: {}}", "5", "0", "-1", "1.5", "true", "null", "''"):
        data = parsed(flow(tuple(path), value))
        assert data is not None
        assert validator(str(kind)).is_valid(data) == accepted(str(kind), data), value


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("server", "listen: {prot: 1}"),
        ("server", "listen: {port: 70000}"),
        ("server", "listen: {host: 'http://a'}"),
        ("limits", "concurrency: {mode: warn}"),
        ("limits", "rate_limit: [{window: 60}]"),
        ("timeouts", "generation: 5 minutes"),
        ("timeouts", "generation: 30m1h"),
        ("timeouts", "generation: 0s"),
        ("models", "dirs: [models]"),
        ("models", "models: {a: {ttl: 5}}"),
        ("memory", "watermarks: {warning: {enter: 110}}"),
        ("memory", "watermarks: {warning: {held: 1s}}"),
        ("memory", "watermarks: {critical: {actions: [reboot]}}"),
        ("supervision", "worker: {budget: []}"),
        ("supervision", "events: {webhook: {url: 'https://a/?key=x'}}"),
        ("clients", "auth: {keys_file: sk-1}"),
        ("clients", "trusted_proxies: [proxy.example]"),
        ("clients", "tenants: {a: {weight: 0}}"),
        ("clients", "auth:"),
    ],
)
def test_an_editor_marks_common_mistakes(kind: str, text: str) -> None:
    data = parsed(text)
    assert data is not None
    assert not validator(kind).is_valid(data)
    assert not accepted(kind, data)
