"""What differs between two sets of policies, and why a value is what it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlxd.policy import keys
from mlxd.policy.diff import changes, touches
from mlxd.policy.explain import NoSuchKey, explain
from mlxd.policy.load import Override, load
from mlxd.policy.policy_set import PolicySet
from mlxd.policy.strict_yaml import parts
from tests.support.daemon import write_policies


def of(folder: Path, **files: str) -> PolicySet:
    for old in folder.glob("*.yaml"):
        old.unlink()
    return load(write_policies(folder, files))


def test_values_are_compared_not_how_they_are_written(tmp_path: Path) -> None:
    before = of(tmp_path, timeouts="generation: 1m\n", memory="watermarks: {warning: {enter: 80%}}")
    after = of(tmp_path, timeouts="generation: 60s\n",
               memory="watermarks: {warning: {enter: 0.8}}")  # fmt: skip
    assert changes(before, after) == ()


def test_entries_come_and_go(tmp_path: Path) -> None:
    before = of(tmp_path, models="models: {a: {ttl: 1m}, b: {}}\n")
    after = of(tmp_path, models="models: {a: {ttl: 2m}, 'c:7b': {ttl: never}}\n")
    found = {change.key: (change.old, change.new) for change in changes(before, after)}
    assert found["models.models.a.ttl"] == ("1m", "2m")
    assert found['models.models["c:7b"].ttl'] == (None, "never")
    assert found["models.models.b.ttl"] == ("null", None)


def test_of_an_entry_that_comes_or_goes_what_was_written_is_told(tmp_path: Path) -> None:
    bare = of(tmp_path, models="models: {a: {ttl: 1m}}\n")
    more = of(
        tmp_path,
        models="models:\n  a: {ttl: 1m}\n  b: {aliases: [bee]}\n",
        limits="rate_limit: [{}, {name: b, requests: 4}]\n",
    )
    keys = ["limits.rate_limit[1].name", "limits.rate_limit[1].requests", "models.models.b.aliases"]
    assert [change.key for change in changes(bare, more)] == keys
    assert [change.key for change in changes(more, bare)] == keys
    first = changes(of(tmp_path), of(tmp_path, models="models: {a: {ttl: 1m}}\n"))
    assert [change.key for change in first] == ["models.models.a.ttl"]


def test_what_an_override_holds_is_told_with_its_place(tmp_path: Path) -> None:
    files = write_policies(tmp_path, {"models": "models:\n  a: {ttl: 1m, context: 9}\n"})
    before = load(files)
    override = Override("models.models", "{a: {ttl: 2m}}", "--set", yaml=True)
    ttl, context = changes(before, load(files, [override]))
    assert (ttl.key, ttl.new, ttl.place) == ("models.models.a.ttl", "2m", "--set")
    assert context.place.startswith("built-in default")


def test_a_list_with_fields_is_compared_item_by_item(tmp_path: Path) -> None:
    before = of(tmp_path, limits="rate_limit: [{requests: 3}, {name: b, requests: 4}]\n")
    after = of(tmp_path, limits="rate_limit: [{requests: 5}]\n")
    found = changes(before, after)
    assert str(found[0]).startswith("limits.rate_limit[0].requests: 3 -> 5 (live, ")
    assert {change.key for change in found[1:]} >= {"limits.rate_limit[1].name"}
    assert touches(found, "limits.rate_limit")
    assert not touches(found, "limits.rate")


def test_every_key_has_the_reload_class_of_its_change(tmp_path: Path) -> None:
    before = of(tmp_path)
    after = of(
        tmp_path, server="listen: {port: 1, inherit: never}\n", models="models: {a: {path: /a}}"
    )
    found = {change.key: change.reload for change in changes(before, after)}
    assert found["server.listen.port"] == "rebind"
    assert found["server.listen.inherit"] == "restart"
    assert found["models.models.a.path"] == "rolling"


def test_a_digest_is_of_the_values_alone(tmp_path: Path) -> None:
    plain = of(tmp_path, limits="concurrency: {max_in_flight: 9}\n")
    commented = of(tmp_path, limits="# hello\nconcurrency:\n  max_in_flight: 9\n")
    other = of(tmp_path, limits="concurrency: {max_in_flight: 8}\n")
    assert plain.digest == commented.digest != other.digest


def test_a_digest_knows_no_spelling_and_no_order(tmp_path: Path) -> None:
    one = of(tmp_path, timeouts="generation: 60s\n", models="chains: {coding: [a], fast: [b]}\n")
    other = of(tmp_path, timeouts="generation: 1m\n", models="chains: {fast: [b], coding: [a]}\n")
    assert changes(one, other) == ()
    assert one.digest == other.digest


class TestExplain:
    def test_a_value_is_explained_with_its_line_and_what_it_hides(self, tmp_path: Path) -> None:
        write_policies(tmp_path, {"server": "listen:\n  port: 11999\n"})
        (value,) = explain(load(tmp_path, [Override("server.listen.port", "1", "--port")]),
                           "server.listen.port")  # fmt: skip
        assert (value["value"], value["source"], value["reload"]) == ("1", "--port", "rebind")
        assert value["shadowed"] == [
            {"value": "11999", "source": "server.yaml:3", "file": "server.yaml", "line": 3,
             "column": 3}
        ]  # fmt: skip
        assert value["default"] == "11435"
        assert value["meaning"]

    def test_a_value_in_a_file_has_file_line_and_column(self, tmp_path: Path) -> None:
        write_policies(tmp_path, {"limits": "concurrency:\n  max_in_flight: 9\n"})
        (value,) = explain(load(tmp_path), "max_in_flight")
        assert (value["file"], value["line"], value["column"]) == ("limits.yaml", 3, 3)

    def test_a_last_part_is_the_key_that_is_no_tenants(self, tmp_path: Path) -> None:
        tenants = "tenants: {a: {max_in_flight: 2}, b: {max_in_flight: 3, weight: 2}}\n"
        write_policies(tmp_path, {"clients": tenants})
        (value,) = explain(load(tmp_path), "max_in_flight")
        assert value["key"] == "limits.concurrency.max_in_flight"
        (value,) = explain(load(tmp_path), "b.max_in_flight")
        assert value["key"] == "clients.tenants.b.max_in_flight"

    def test_what_thousands_of_values_have_in_common_is_worked_out_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tenants = "".join(f"  t{n}: {{weight: 2}}\n" for n in range(50))
        write_policies(tmp_path, {"clients": f"tenants:\n{tenants}"})
        asked: list[str] = []
        expected = keys.expected

        def noted(annotation: object, metadata: list[object]) -> str:
            asked.append(str(annotation))
            return expected(annotation, metadata)

        monkeypatch.setattr(keys, "expected", noted)
        values = explain(load(tmp_path), "clients.tenants")
        assert len(values) > 500
        assert len(asked) < 100

    def test_a_last_part_that_may_be_several_keys_names_them(self) -> None:
        with pytest.raises(NoSuchKey) as refused:
            explain(load(), "mode")
        said = str(refused.value)
        assert said.startswith("mode may be ")
        assert "limits.concurrency.mode" in said
        assert "there is no policy" not in said

    def test_a_group_is_all_its_values(self) -> None:
        assert len(explain(load(), "server.drain")) == 2
        everything = explain(load(), "")
        assert len(everything) == len(list(load().leaves()))

    def test_every_leaf_of_the_schema_can_be_explained(self) -> None:
        for path, _ in load().leaves():
            assert keys.find(path) is not None, path

    @pytest.mark.parametrize(
        ("key", "hint"),
        [
            ("limits.concurency.max_in_flight", "limits.concurrency.max_in_flight"),
            ("ttll", ""),
            ("limits.mode", "limits.concurrency.mode or"),
        ],
    )
    def test_an_unknown_key_is_said_to_be_one(self, key: str, hint: str) -> None:
        with pytest.raises(NoSuchKey, match="there is no policy") as refused:
            explain(load(), key)
        assert hint in str(refused.value)
        assert parts(key)
