"""API keys: made, kept as hashes, known again; and what a file of them may say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from mlxd.policy.keyring import Key, Keyring, KeysRefused, digest_of, iso, new_secret, parse

NOW = 1_800_000_000.0
HEAD = "schema: mlxd-keys/v1\n"


def entry(**changes: object) -> str:
    """One key in YAML, with these fields in the place of its own; None leaves one out."""
    fields: dict[str, object] = {
        "id": "a-1", "tenant": "agents", "sha256": f'"{digest_of("s")}"',
        "created": "2026-01-31T12:00:00Z", **changes,
    }  # fmt: skip
    inner = ", ".join(f"{name}: {value}" for name, value in fields.items() if value is not None)
    return f"  - {{{inner}}}\n"


def said(text: str) -> list[str]:
    with pytest.raises(KeysRefused) as refused:
        parse(text.encode(), "keys.yaml")
    return str(refused.value).splitlines()


def a_key(secret: str = "s", **changes: object) -> Key:
    fields = {"id": "a-1", "tenant": "agents", "sha256": digest_of(secret), "created": NOW - 60}
    return Key(**{**fields, **changes})  # type: ignore[arg-type]


def test_a_secret_is_long_and_never_the_same() -> None:
    made = {new_secret() for _ in range(200)}
    assert len(made) == 200
    assert all(re.fullmatch("mlxd_[0-9A-Za-z]{43}", secret) for secret in made)


def test_a_key_is_known_by_its_secret_alone() -> None:
    ring = Keyring((a_key("one", id="a-1"), a_key("two", id="b-1", tenant="b")))
    found = ring.find("two", NOW)
    assert found is not None
    assert (found.id, found.tenant) == ("b-1", "b")
    for other in ("", "One", "one ", digest_of("one"), "one" * 500, "\udcff"):
        assert ring.find(other, NOW) is None
    assert Keyring().find("one", NOW) is None
    assert Keyring((a_key("x" * 600),)).find("x" * 600, NOW) is None, "not even hashed"


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({}, "valid"),
        ({"expires": NOW + 1}, "valid"),
        ({"expires": NOW}, "expired"),
        ({"revoked": NOW - 5}, "revoked"),
        ({"revoked": NOW + 5}, "revoked"),
    ],
)
def test_one_that_is_over_is_unknown(changes: dict[str, Any], state: str) -> None:
    key = a_key(**changes)
    assert key.state(NOW) == state
    assert (Keyring((key,)).find("s", NOW) is key) is (state == "valid")
    assert bool(Keyring((key,)).valid(NOW)) is (state == "valid")


def test_neither_a_key_nor_a_ring_shows_its_hash() -> None:
    assert digest_of("s") not in repr(Keyring((a_key(),)))


def test_a_file_says_who_has_keys() -> None:
    text = (
        f"{HEAD}keys:\n"
        + entry()
        + entry(id="b-1", tenant='"Agents"', sha256=f'"{digest_of("t")}"', note="laptop",
                expires="2027-01-31T12:00:00+01:00", revoked="2026-02-01T00:00:00Z")
    )  # fmt: skip
    first, second = parse(text.encode(), "keys.yaml").keys
    assert (first.id, first.tenant, first.note, first.expires) == ("a-1", "agents", "", None)
    assert (second.tenant, second.note) == ("agents", "laptop"), "one tenant, however written"
    assert second.expires == 1_801_393_200.0
    assert parse(f"{HEAD}keys: []\n".encode(), "keys.yaml") == Keyring()


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("9999-12-31T23:59:59-05:00", "9999-12-31T23:59:59Z"),
        ("0001-01-01T00:00:00+05:00", "0001-01-01T00:00:00Z"),
    ],
)
def test_a_time_beyond_all_years_is_the_last_or_the_first(written: str, shown: str) -> None:
    (key,) = parse(f"{HEAD}keys:\n{entry(expires=written)}".encode(), "keys.yaml").keys
    assert key.expires is not None
    assert iso(key.expires) == shown


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": None}, "keys[0].id: expected 1 to 64 letters, digits"),
        ({"id": '"a b"'}, "keys[0].id: expected 1 to 64 letters, digits"),
        ({"tenant": "Anonymous"}, "keys[0].tenant: expected another name"),
        ({"tenant": "local"}, "keys[0].tenant: expected another name"),
        ({"tenant": '"10.0.0.1"'}, "keys[0].tenant: expected a name, got an address"),
        ({"tenant": '"fd00::/64"'}, "keys[0].tenant: expected a name, got an address"),
        ({"tenant": '" a"'}, "keys[0].tenant: expected a name of 1 to 350"),
        ({"sha256": "mlxd_SECRET"}, "keys[0].sha256: expected the SHA-256 of a key"),
        ({"sha256": None}, "keys[0].sha256: expected the SHA-256 of a key"),
        ({"created": "2026-01-31"}, "keys[0].created: expected a time such as"),
        ({"expires": "90d"}, "keys[0].expires: expected a time such as"),
        ({"note": "[a]"}, "keys[0].note: expected at most 350 printable"),
        ({"mlxd_SECRET": "a"}, "keys[0]: unknown key; known here are id, tenant"),
    ],
)
def test_a_wrong_entry_is_refused_at_its_place_without_a_quote(
    changes: dict[str, object], message: str
) -> None:
    (line,) = said(f"{HEAD}keys:\n{entry(**changes)}")
    assert re.match(r"keys\.yaml:3:\d+: ", line)
    assert message in line
    assert "SECRET" not in line


@pytest.mark.parametrize(
    "text",
    [
        "mlxd_SECRET: 1\nmlxd_SECRET: 2\n",
        "keys: [&mlxd_SECRET a]\n",
        "keys: [*mlxd_SECRET]\n",
        "keys: [!mlxd_SECRET a]\n",
        "keys: [!mlxd_SECRET!x a]\n",
        "&mlxd_SECRET a: 1\n",
        "%TAG !mlxd_SECRET! x\n",
        "%mlxd_SECRET\n",
        'a: "\\mlxd_SECRET"\n',
        "mlxd_SECRET\n",
        "a: @mlxd_SECRET\n",
        "a: 'mlxd_SECRET\n",
        "? [mlxd_SECRET]\n: 1\n",
    ],
)
def test_what_is_no_such_yaml_is_not_quoted_either(text: str) -> None:
    lines = said(HEAD + text) + said(text)
    assert lines
    assert "SECRET" not in "".join(lines)


def test_ids_and_hashes_are_of_one_key_each() -> None:
    found = said(f"{HEAD}keys:\n{entry()}{entry()}")
    assert [line.partition(": ")[2] for line in found] == [
        "keys[1].id: keys[0] has the same",
        "keys[1].sha256: keys[0] has the same",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("keys: []\n", "schema: expected mlxd-keys/v1"),
        ("schema: mlxd/v1\nkeys: []\n", "schema: expected mlxd-keys/v1"),
        (HEAD, "keys: expected a list of keys"),
        (f"{HEAD}keys: {{}}\n", "keys: expected a list of keys"),
        (f"{HEAD}keys: [5]\n", "keys[0]: expected a mapping"),
        (f"{HEAD}keys: []\nkey: 1\n", "unknown key; known here are schema, keys"),
        ("a: [", "not valid YAML"),
    ],
)
def test_a_wrong_file_is_refused(text: str, message: str) -> None:
    assert message in said(text)[0]


def test_all_errors_are_told_at_once(tmp_path: Path) -> None:
    assert len(said(f"{HEAD}keys:\n{entry(id='5')}{entry(created='x', tenant='local')}")) == 3
