"""Every field of every file: its words, its default, its example, and what may not be quoted."""

from __future__ import annotations

from collections.abc import ItemsView
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pydantic
import pytest

from mlxd.policy import keys
from mlxd.policy.load import PolicyErrors, load
from mlxd.policy.policy_set import PolicySet
from mlxd.policy.schema import KINDS, Policies, Reload
from mlxd.policy.strict_yaml import dotted
from mlxd.policy.units import Duration, Ratio, Size, Written, written
from tests.support.each import each
from tests.support.policies import entry, flow

FIELDS = [key for key in keys.table().values() if key.owner is not None and not key.section]
SECRETS = [key for key in FIELDS if key.secret]
UNITS = {Duration: "duration", Ratio: "ratio", Size: "size"}


def refused(folder: Path, kind: str, text: str) -> str:
    (folder / f"{kind}.yaml").write_text(f"schema: mlxd/v1\n{text}\n", encoding="utf-8")
    with pytest.raises(PolicyErrors) as caught:
        load(folder)
    return str(caught.value)


def test_the_files_are_these_in_this_order() -> None:
    assert (
        *("server", "limits", "timeouts", "models", "memory", "supervision", "clients"),
    ) == KINDS


@each(FIELDS, lambda key: key.name)
def test_a_field_says_all_about_itself(key: keys.Key) -> None:
    assert key.description.endswith(".")
    assert key.example
    assert key.extra("reload") in get_args(Reload)
    assert "|" not in key.description + key.example, "it would break the reference's table"


@each(FIELDS, lambda key: key.name)
def test_a_field_with_a_unit_names_it(key: keys.Key) -> None:
    kinds = get_args(key.annotation) or (key.annotation,)
    for kind in kinds:
        if isinstance(kind, type) and issubclass(kind, Written):
            named = [name for base, name in UNITS.items() if issubclass(kind, base)]
            assert key.extra("unit") == (named[0] if named else kind.unit)


@each(FIELDS, lambda key: key.name)
def test_an_example_is_accepted_and_changes_its_key_alone(key: keys.Key, tmp_path: Path) -> None:
    path = entry(key.path)
    folder = tmp_path / key.name
    folder.mkdir()
    text = f"schema: mlxd/v1\n{flow(path[1:], key.example)}\n"
    (folder / f"{path[0]}.yaml").write_text(text, encoding="utf-8")
    found = load(folder)
    value = written(found.value(dotted(path)))
    assert (value == key.default) == (key.example == key.default)
    changed = _leaves(found).items() - _defaults()
    assert all(name.startswith(dotted(path[: _depth(path)])) for name, _ in changed)


def _depth(path: tuple[str | int, ...]) -> int:
    """How much of a path was there before: an entry or item comes with all its fields."""
    inside = [n for n, part in enumerate(path) if part in (0, "example")]
    return inside[0] if inside else len(path)


@cache
def _defaults() -> ItemsView[str, str]:
    return _leaves(load()).items()


def _leaves(found: PolicySet) -> dict[str, str]:
    return {dotted(path): written(value) for path, value in found.leaves()}


@pytest.mark.parametrize(
    ("key", "default"),
    [
        ("limits.concurrency.max_in_flight", "5"),
        ("limits.concurrency.mode", "enforce"),
        ("limits.rate_limit[0].algorithm", "sliding_window"),
        ("limits.adaptive.enabled", "false"),
        ("server.listen.linger", "30s"),
        ("models.preload", "[]"),
        ("models.load.retry.max", "2"),
        ("memory.check_interval", "10s"),
        ("memory.eviction.keep", "1"),
        ("memory.reserve.system", "auto"),
        ("supervision.worker.health.interval", "10s"),
        ("supervision.worker.health.failures_down", "3"),
        ("supervision.worker.budget", "[{max: 5, per: 300s}]"),
        ("supervision.worker.backoff.base", "2s"),
        ("supervision.worker.backoff.max", "60s"),
        ("supervision.worker.backoff.reset_after", "300s"),
        ("supervision.worker.breaker.failures", "auto"),
        ("supervision.worker.breaker.open", "60s"),
        ("supervision.worker.breaker.probes", "5"),
        ("supervision.replay.attempts", "1"),
        ("supervision.quarantine", "{kills: 2, for: 1h}"),
        ("supervision.daemon.max_restarts", "10"),
        ("clients.auth.required", "auto"),
        ("clients.priorities.high.weight", "8"),
        ("clients.priorities.high.queue", "auto"),
        ("clients.priorities.medium.weight", "3"),
        ("clients.priorities.low.weight", "1"),
        ("clients.priorities.low.shed_at", "critical"),
    ],
)
def test_the_documented_defaults_hold(key: str, default: str) -> None:
    assert load().line(key).value == default


@pytest.mark.parametrize("key", ["models.defaults.context", "models.models.<name>.context"])
def test_a_context_changes_without_a_new_worker(key: str) -> None:
    assert keys.table()[tuple(key.split("."))].extra("reload") == "live"
    assert keys.table()[("models", "models", "<name>", "path")].extra("reload") == "rolling"


def test_a_key_that_is_a_word_of_python_is_written_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "memory.yaml").write_text(
        "schema: mlxd/v1\nwatermarks: {critical: {for: 90s}}\n", encoding="utf-8"
    )
    found = load(tmp_path)
    assert found.memory.watermarks.critical.held == 90.0
    assert str(found.line("memory.watermarks.critical.for")).startswith(
        "memory.watermarks.critical.for: 90s ("
    )
    assert "for: 90s" in written(found.memory.watermarks)
    assert keys.find(("memory", "watermarks", "critical", "for")) is not None
    assert keys.children(("supervision", "quarantine")) == ["kills", "for"]


def test_a_default_is_written_as_the_value_that_it_becomes() -> None:
    table = keys.table()
    assert table[("supervision", "worker", "budget")].default == "[{max: 5, per: 300s}]"
    assert table[("clients", "tenants", "<name>", "window")].default == "60s"
    assert table[("clients", "tenants", "<name>")].default == ""


def test_the_names_of_a_section_are_worked_out_once_and_for_all() -> None:
    """They are asked for with each of thousands of values."""
    names: Any = Policies.attributes()
    with pytest.raises(TypeError):
        names["more"] = "more"
    assert Policies.attributes() is names


def test_nothing_changes_once_it_is_loaded() -> None:
    with pytest.raises(pydantic.ValidationError):
        load().supervision.worker.backoff.factor = 3


class TestSecrets:
    """What was pasted into the wrong place must not end up in a log."""

    def test_there_are_these(self) -> None:
        assert [key.name for key in SECRETS] == [
            "server.traces.endpoint",
            "supervision.events.webhook.url",
            "supervision.events.webhook.secret",
            "clients.auth.keys_file",
        ]

    def test_a_section_with_one_is_one_itself(self) -> None:
        assert keys.table()[("clients", "auth")].secret
        assert keys.table()[("supervision", "events")].secret
        assert not keys.table()[("clients", "hosts")].secret

    @pytest.mark.parametrize("key", SECRETS, ids=lambda key: key.name)
    @pytest.mark.parametrize(
        "value",
        [
            *(
                "hunter2",
                '" hunter2"',
                "[hunter2]",
                "{hunter2: 1}",
                "8008135",
                "credential:hunter2/",
            ),
            *("https://hunter2@a.example", "https://a.example/?key=hunter2", "http://hunter2:x/"),
            *(
                "https://a.example/#hunter2",
                "https://a.example/hunter2 hunter2",
                "'https://[hunter2'",
            ),
            *('"/hunter2\\n"', "~/hunter2", "./hunter2", "true", "1.5"),
        ],
    )
    def test_a_refusal_does_not_quote_it(self, key: keys.Key, value: str, tmp_path: Path) -> None:
        said = refused(tmp_path, key.path[0], flow(key.path[1:], value))
        assert said.startswith(f"{key.path[0]}.yaml:2:")
        assert "(not shown)" in said
        assert "hunter2" not in said
        assert "8008135" not in said

    @pytest.mark.parametrize("key", SECRETS, ids=lambda key: key.name)
    @pytest.mark.parametrize("value", ["credential:hook", "credential:a.B-c_9"])
    def test_a_reference_is_taken(self, key: keys.Key, value: str) -> None:
        assert _one(key, value) == value

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("clients.auth.keys_file", "/etc/mlxd/api keys"),
            ("supervision.events.webhook.secret", "/run/secrets/hook"),
            ("supervision.events.webhook.url", "http://127.0.0.1:9000/hook"),
            ("supervision.events.webhook.url", "https://[::1]/"),
        ],
    )
    def test_a_path_is_taken_and_a_url_for_the_webhook(self, name: str, value: str) -> None:
        assert _one(keys.table()[tuple(name.split("."))], value) == value


def _one(key: keys.Key, value: Any) -> Any:
    """The value in force once only this one is set."""
    data = value
    for part in reversed(key.path):
        data = {part: data}
    found: Any = Policies.model_validate(data)
    for part in key.path:
        found = getattr(found, part)
    return found


class TestNetworks:
    @pytest.mark.parametrize("text", ["127.0.0.1", "10.0.0.0/8", "fd00::/8", "::1", "0.0.0.0/0"])
    def test_addresses_and_networks_are_taken(self, text: str) -> None:
        found = Policies.model_validate({"clients": {"trusted_proxies": [text]}})
        assert found.clients.trusted_proxies == (text,)

    @pytest.mark.parametrize(
        "text",
        ["", "10.0.0.1/8", "10.0.0.0/33", "10.0.0.0/255.0.0.0", "fe80::1%en0", "a.b", "10/8"],
    )
    def test_others_are_not(self, text: str) -> None:
        with pytest.raises(pydantic.ValidationError):
            Policies.model_validate({"clients": {"trusted_proxies": [text]}})


def test_rules_between_fields_are_told_all_at_once(tmp_path: Path) -> None:
    text = (
        "worker:\n  backoff: {base: 2m}\n  breaker: {open: 2h}\n  health: {timeout: 11s}\n"
        "  budget: [{per: 1m}, {per: 60s}]"
    )
    assert [
        line.split(": ")[1] for line in refused(tmp_path, "supervision", text).splitlines()
    ] == [
        "supervision.worker.backoff.base",
        "supervision.worker.breaker.open",
        "supervision.worker.health.timeout",
        "supervision.worker.budget[1].per",
    ]


@pytest.mark.parametrize(
    ("key", "value", "taken"),
    [
        *(
            ("hosts.allow", host, True)
            for host in ("studio", "*.Example", "own-names", "*", "fd00::1", "fd00::*")
        ),
        *(("hosts.allow", host, True) for host in ("fd00:*", "2001:db8:1:*", "fd00:*:1", "10.*")),
        *(
            ("hosts.allow", host, False)
            for host in ("a.example:1", "http://a", "10.0.0.0/8", "[::1]")
        ),
        *(("hosts.allow", host, False) for host in ("a.example:*", "10.0.0.1:*", "*:8080")),
        *(
            ("cors.allow_origins", origin, True)
            for origin in ("*", "null", "https://*.a:*", "app://*")
        ),
        *(("cors.allow_origins", origin, True) for origin in ("*.a.example", "file://", "*://a")),
        *(("cors.allow_origins", origin, False) for origin in ("a.example", "https://a/", "a:80")),
    ],
)
def test_what_would_fit_no_client_is_refused(
    key: str, value: str, taken: bool, tmp_path: Path
) -> None:
    section, _, name = key.partition(".")
    text = f'schema: mlxd/v1\n{section}: {{{name}: ["{value}"]}}\n'
    (tmp_path / "clients.yaml").write_text(text, encoding="utf-8")
    if taken:
        assert getattr(getattr(load(tmp_path).clients, section), name) == (value,)
        return
    with pytest.raises(PolicyErrors, match=rf"clients\.yaml:2:\d+: clients\.{key}\[0\]: .*such as"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("limits", "adaptive: {min: 5, max: 5}"),
        ("limits", 'rate_limit: [{name: a, key: client_ip}, {name: b, mode: "off"}]'),
        ("memory", "watermarks: {warning: {enter: 40%}, critical: {clear: 94.9%}}"),
        ("supervision", "worker: {backoff: {base: 5s, max: 5s}, health: {timeout: 10s}}"),
        ("clients", "priorities: {high: {weight: 1}, medium: {weight: 1}}"),
        ("clients", "tenants: {a: {max_in_flight: 5, max_output: 8192}, b: {}}"),
        ("clients", "tenants: {a: {max_priority: low}, b: {priority: high}}"),
        ("clients", "tenants: {a: {priority: low, max_priority: low}}"),
        ("clients", "cors: {allow_origins: ['https://a'], allow_credentials: true}"),
        ("models", "models: {a: {draft: b}, b: {}}"),
    ],
)
def test_what_just_keeps_a_rule_is_accepted(kind: str, text: str, tmp_path: Path) -> None:
    (tmp_path / f"{kind}.yaml").write_text(f"schema: mlxd/v1\n{text}\n", encoding="utf-8")
    assert load(tmp_path).policies != load().policies
