"""`mlxd keys ...` on the file alone: what it says, where, and its exit status."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mlxd.cli import main
from mlxd.cli.keys.here import Place
from mlxd.cli.policy.here import Here
from mlxd.cli.service.install import _policies_with_keys
from mlxd.cli.service.site import Site
from mlxd.policy.keyring import Keyring, parse
from mlxd.policy.load import Override, load
from tests.support.daemon import write_policies

Run = Callable[..., tuple[int, str, str]]
SECRET = re.compile(r"mlxd_[0-9A-Za-z]{43}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_policies(tmp_path / "policies", {"clients": "tenants: {Agents: {weight: 2}}\n"})


@pytest.fixture
def run(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str) -> tuple[int, str, str]:
        places = ["--policies", str(folder), "--state", str(tmp_path / "state")]
        status = main(["keys", *arguments, *places])
        said = capsys.readouterr()
        return status, said.out, said.err

    return call


def in_json(run: Run, *arguments: str) -> Any:
    status, out, err = run(*arguments, "--json")
    assert (status, err.replace("no mlxd runs: the next start reads the file\n", "")) == (0, "")
    return json.loads(out)


def listed(run: Run) -> list[Any]:
    keys: list[Any] = in_json(run, "list")["keys"]
    return keys


def ring(tmp_path: Path) -> Keyring:
    return parse((tmp_path / "state" / "keys.yaml").read_bytes(), "keys.yaml")


def test_a_new_key_alone_is_on_stdout(run: Run, tmp_path: Path) -> None:
    status, out, err = run("add", "agents", "--note", "CI", "--expires", "90d")
    assert status == 0
    assert SECRET.fullmatch(out.rstrip("\n"))
    assert re.match(r"agents-[0-9a-f]{4} of tenant Agents, until 20", err)
    assert "no mlxd runs: the next start reads the file" in err
    assert "does not list" not in err
    assert not SECRET.search(err)
    (key,) = ring(tmp_path).keys
    assert (key.tenant, key.note) == ("Agents", "CI"), "spelt as policies spell it"
    assert key.expires is not None
    assert round(key.expires - key.created) == 90 * 86400
    assert out.strip() not in (tmp_path / "state" / "keys.yaml").read_text()
    found = ring(tmp_path).find(out.strip(), key.created)
    assert found == key


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_key_is_shown_before_a_daemon_is_told(
    run: Run, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    def hang(_: Place) -> Iterator[str]:
        raise KeyboardInterrupt

    made = in_json(run, "add", "a")
    monkeypatch.setattr(Place, "tell", hang)
    for arguments in (("add", "b"), ("rotate", made["id"])):
        status, out, _ = run(*arguments, *options)
        assert status != 0
        assert SECRET.search(out)


def test_a_key_may_be_of_a_tenant_of_another_name(run: Run) -> None:
    made = in_json(run, "add", "Anna's laptop", "--tenant", "anna")
    assert re.fullmatch(r"Anna-s-laptop-[0-9a-f]{4}", made["id"])
    assert made["tenant"] == "anna"
    assert SECRET.fullmatch(made["key"])
    assert "clients.tenants does not list anna: it has no limits of its own" in made["notes"]
    assert in_json(run, "add", "ANNA")["tenant"] == "anna", "one tenant, however written"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("anonymous",), "expected another name"),
        (("a", "--tenant", "Anonymous"), "expected another name"),
        (("10.0.0.1",), "got an address"),
        ((" ",), "expected a name"),
        (("a", "--expires", "soon"), "expected a duration"),
        (("a", "--expires", "0s"), "expected a duration"),
        (("a", "--note", "a\nb"), "--note: expected"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_written(
    run: Run, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    status, out, err = run("add", *arguments)
    assert (status, out) == (2, "")
    assert said in err
    assert not (tmp_path / "state" / "keys.yaml").exists()


def test_list_says_who_has_keys_and_never_a_hash(run: Run, tmp_path: Path) -> None:
    assert run("list")[:2] == (0, f"{tmp_path / 'state' / 'keys.yaml'}: no key yet\n")
    one = in_json(run, "add", "a", "--note", "first")
    two = in_json(run, "add", "bob")
    run("revoke", two["id"])
    status, out, _ = run("list")
    first, second = out.splitlines()
    assert status == 0
    assert re.fullmatch(rf"{one['id']} +a +valid +created \S+  first", first)
    assert re.fullmatch(rf"{two['id']} +bob +revoked +created \S+  since \S+", second)
    assert not re.search("[0-9a-f]{64}", out + json.dumps(listed(run)))
    assert [key["state"] for key in listed(run)] == ["valid", "revoked"]


def test_list_says_all_that_is_wrong_with_the_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    file = tmp_path / "state" / "keys.yaml"
    file.write_text("schema: mlxd-keys/v1\nkeys:\n  - {id: a}\n")
    file.chmod(0o644)
    status, out, err = run("list")
    assert status == 2
    assert "is refused" in out
    assert "keys.yaml:3:5: keys[0].tenant: expected a name" in err
    assert "keys.yaml:3:5: keys[0].sha256: expected" in err
    assert f"chmod 600 {file}" in err
    status, out, err = run("add", "a")
    assert (status, out) == (2, "")
    assert "keys.yaml:3:5: keys[0].tenant: expected a name" in err


def test_a_revoked_key_stays_revoked(run: Run, tmp_path: Path) -> None:
    made = in_json(run, "add", "a")
    status, out, _ = run("revoke", made["id"])
    assert status == 0
    assert out.startswith(f"{made['id']} is revoked\n")
    assert "no valid key is left" in out
    file = tmp_path / "state" / "keys.yaml"
    long_ago = re.sub('revoked: ".*"', 'revoked: "2026-01-01T00:00:00Z"', file.read_text())
    file.write_text(long_ago)
    run("revoke", made["id"])
    assert file.read_text() == long_ago
    assert ring(tmp_path).find(made["key"], 0.0) is None


def test_a_rotated_key_counts_for_a_while_beside_the_new_one(run: Run, tmp_path: Path) -> None:
    old = in_json(run, "add", "a", "--note", "CI", "--tenant", "T", "--expires", "10d")
    new = in_json(run, "rotate", old["id"], "--grace", "2h")
    assert re.fullmatch(r"a-[0-9a-f]{4}", new["id"])
    assert new["id"] != old["id"]
    before, after = ring(tmp_path).keys
    assert (after.tenant, after.note) == ("T", "CI")
    assert before.expires is not None
    assert after.expires is not None
    assert 7190 < before.expires - after.created <= 7200
    assert abs(after.expires - after.created - 10 * 86400) <= 2
    assert ring(tmp_path).find(old["key"], after.created)
    assert ring(tmp_path).find(new["key"], after.created)
    assert not ring(tmp_path).find(old["key"], before.expires)


def test_without_grace_the_old_one_is_over_at_once(run: Run) -> None:
    made = in_json(run, "add", "a")
    run("rotate", made["id"], "--grace", "0s")
    assert [key["state"] for key in listed(run)] == ["expired", "valid"]
    status, _, err = run("rotate", made["id"])
    assert status == 1
    assert f"{made['id']} is expired: make another" in err


def test_a_key_that_was_rotated_is_not_rotated_again(run: Run, tmp_path: Path) -> None:
    """Its end is no length that another key could have."""
    made = in_json(run, "add", "a")
    new = in_json(run, "rotate", made["id"])
    status, out, err = run("rotate", made["id"])
    assert (status, out) == (1, "")
    assert f"{made['id']} was rotated before" in err
    assert len(ring(tmp_path).keys) == 2
    assert in_json(run, "rotate", new["id"])["expires"] is None


def test_a_key_without_an_end_in_sight_is_listed_and_rotated(run: Run, tmp_path: Path) -> None:
    run("add", "agents", "--expires", "90d")
    file = tmp_path / "state" / "keys.yaml"
    said = re.sub(r'(expires: )"[^"]+"', r'\1"9999-12-31T23:59:59-05:00"', file.read_text())
    file.write_text(re.sub(r'(created: )"[^"]+"', r'\1"2020-01-01T00:00:00Z"', said))
    (old,) = listed(run)
    assert run("rotate", old["id"])[0] == 0
    assert [key["expires"] for key in listed(run)][1:] == ["9999-12-31T23:59:59Z"]


def test_a_rotation_prolongs_nothing(run: Run, tmp_path: Path) -> None:
    made = in_json(run, "add", "a", "--expires", "60s")
    run("rotate", made["id"], "--grace", "10d")
    before, after = ring(tmp_path).keys
    assert before.expires is not None
    assert before.expires - after.created < 61


@pytest.mark.parametrize("action", ["revoke", "rotate"])
def test_a_key_that_is_not_there_is_told(run: Run, action: str) -> None:
    status, out, err = run(action, "a-0000")
    assert (status, out) == (1, "")
    assert "no key is called 'a-0000'; see mlxd keys list" in err
    status, out, _ = run(action, "a-0000", "--json")
    assert "no key is called" in json.loads(out)["error"]


def test_the_file_is_the_one_that_policy_names(run: Run, folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "etc" / "api-keys"
    write_policies(folder, {"clients": f"auth: {{keys_file: {other}}}\n"})
    assert in_json(run, "add", "a")["file"] == str(other)
    assert len(parse(other.read_bytes(), "api-keys").keys) == 1
    assert not (tmp_path / "state" / "keys.yaml").exists()


def test_a_credential_is_read_and_not_written(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_json(run, "add", "a")
    write_policies(folder, {"clients": "auth: {keys_file: credential:keys}\n"})
    status, out, err = run("add", "b")
    assert (status, out) == (1, "")
    assert "only the service manager writes" in err
    status, out, err = run("list")
    assert (status, out) == (1, "credential:keys cannot be read from here\n")
    assert "no service manager has handed credentials over" in err
    assert "no mlxd runs" in err, "who could read it, or not, is asked"
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "state"))
    (tmp_path / "state" / "keys").symlink_to(tmp_path / "state" / "keys.yaml")
    assert [key["tenant"] for key in listed(run)] == ["a"]


def test_policies_that_are_broken_are_told(run: Run, folder: Path) -> None:
    write_policies(folder, {"limits": "x: 1\n"})
    status, out, err = run("add", "a")
    assert (status, out) == (2, "")
    assert "limits.yaml:2:1" in err


def test_policy_check_is_content_once_there_is_a_key(
    run: Run, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_policies(folder, {"server": "listen: {host: 0.0.0.0}\n"})
    check = ["policy", "check", "--policies", str(folder), "--state", str(tmp_path / "state")]
    assert main(check) == 2
    assert "mlxd keys add NAME" in capsys.readouterr().err
    in_json(run, "add", "a")
    assert main(check) == 0


class TestUnseen:
    """Keys that only the daemon can read are no error of the policies that name them."""

    @pytest.fixture
    def check(self, folder: Path, tmp_path: Path) -> Callable[[], int]:
        text = "auth: {required: true, keys_file: credential:keys}\n"
        write_policies(folder, {"clients": text})
        places = ["--policies", str(folder), "--state", str(tmp_path / "state")]
        return lambda: main(["policy", "check", *places])

    def test_without_a_daemon_that_is_a_note(
        self, check: Callable[[], int], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert check() == 0
        said = capsys.readouterr().out
        assert "warning: clients.auth.keys_file: it cannot be read: CREDENTIALS_DIRECTORY" in said
        assert "whether there is a key, mlxd says at its start" in said

    @pytest.mark.parametrize(
        ("errors", "same", "status", "noted"),
        [([], True, 0, False), ([{"text": "no key"}], True, 2, False), ([], False, 0, True)],
    )
    def test_a_daemon_on_the_same_folder_knows(
        self, check: Callable[[], int], capsys: pytest.CaptureFixture[str], folder: Path,
        monkeypatch: pytest.MonkeyPatch, errors: list[Any], same: bool, status: int, noted: bool,
    ) -> None:  # fmt: skip
        report = {"folder": str(folder) if same else "/elsewhere", "errors": errors}
        daemon = SimpleNamespace(post=lambda target: report)
        monkeypatch.setattr(Here, "the_daemon", lambda this: daemon)
        assert check() == status
        said = capsys.readouterr()
        assert ("cannot be read" in said.out) is noted
        assert ("no key" in said.err) is bool(errors)

    def test_a_service_is_installed_all_the_same(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        overrides = [
            Override("clients.auth.required", "true", "a test"),
            Override("clients.auth.keys_file", "credential:keys", "a test"),
        ]
        policies = load(None, overrides)
        site = SimpleNamespace(policies_on_disk=lambda: policies, state_folder=tmp_path)
        assert _policies_with_keys(cast("Site", site)) is policies
        assert "it cannot be read" in capsys.readouterr().out
