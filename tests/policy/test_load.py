"""Files and overrides in, a PolicySet or every reason against it out."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxd.policy import keys
from mlxd.policy.load import Override, PolicyErrors, load
from mlxd.policy.policy_set import FILES
from mlxd.policy.strict_yaml import MAX_BYTES, dotted
from tests.support.homeless import homeless

DATA = Path(__file__).parent.parent / "data" / "policies"
BAD = sorted(DATA.glob("*.bad.yaml"))
SAME_EVERY_TIME = settings(deadline=None, derandomize=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "policies"
    folder.mkdir()
    return folder


def write(folder: Path, kind: str, text: str) -> None:
    (folder / f"{kind}.yaml").write_text(f"schema: mlxd/v1\n{text}", encoding="utf-8")


def refused(folder: Path | None, *overrides: Override) -> list[str]:
    with pytest.raises(PolicyErrors) as caught:
        load(folder, overrides)
    return str(caught.value).splitlines()


@pytest.mark.parametrize("bad", BAD, ids=lambda file: file.name.removesuffix(".bad.yaml"))
def test_a_wrong_file_is_refused_in_these_words(bad: Path, folder: Path) -> None:
    (folder / f"{bad.name.partition('.')[0]}.yaml").write_bytes(bad.read_bytes())
    assert refused(folder) == bad.with_suffix(".txt").read_text(encoding="utf-8").splitlines()


def test_there_are_wrong_files_of_every_kind() -> None:
    assert len(BAD) >= 70
    assert {bad.name.partition(".")[0] + ".yaml" for bad in BAD} == set(FILES)


def test_without_a_folder_the_defaults_hold() -> None:
    found = load()
    assert found.server.listen.port == 11435
    assert found.server.http.keep_alive == 120.0
    assert found.limits.concurrency.max_in_flight == 5
    assert found.limits.concurrency.max_waiting == 0
    assert (found.limits.rate_limit[0].requests, found.limits.rate_limit[0].window) == (30, 60.0)
    assert found.timeouts.generation == 300.0
    assert found.models.defaults.ttl == 300.0
    assert found.memory.check_interval == 10.0
    assert found.folder is None
    assert found.generation == 1


def test_an_empty_folder_is_all_defaults(folder: Path) -> None:
    assert load(folder).policies == load().policies


def test_a_file_changes_what_it_says_and_nothing_else(folder: Path) -> None:
    write(folder, "limits", "concurrency: {max_in_flight: 9}\n")
    changed = load(folder)
    assert changed.limits.concurrency.max_in_flight == 9
    assert changed.limits.rate_limit == load().limits.rate_limit
    assert changed.server == load().server


def test_a_list_replaces_the_default_list(folder: Path) -> None:
    write(folder, "limits", "rate_limit: []\n")
    assert load(folder).limits.rate_limit == ()


def test_the_known_chains_are_always_there(folder: Path) -> None:
    write(folder, "models", "chains:\n  coding: [a, b]\n  vision: [c]\n")
    assert dict(load(folder).models.chains) == {
        "default": (),
        "reasoning": (),
        "coding": ("a", "b"),
        "fast": (),
        "tiny": (),
        "vision": ("c",),
    }


def test_folders_of_models_are_expanded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    write(folder, "models", "dirs: [~/mlx-models, /models]\n")
    assert load(folder).models.folders == (Path("/somewhere/mlx-models"), Path("/models"))


def test_without_a_home_they_stay_as_they_are_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    homeless(monkeypatch)
    write(folder, "models", "dirs: [~/mlx-models, /models]\n")
    assert load(folder).models.folders == (Path("~/mlx-models"), Path("/models"))


def test_names_that_older_yaml_guesses_at_are_names(folder: Path) -> None:
    write(folder, "models", "models:\n  on: {aliases: [yes, 017, 11:43]}\n")
    assert load(folder).models.models["on"].aliases == ("yes", "017", "11:43")


def test_a_model_may_have_its_own_name_without_latest_as_an_alias(folder: Path) -> None:
    write(folder, "models", 'models:\n  "writer:latest": {aliases: [writer, author]}\n')
    assert load(folder).models.models["writer:latest"].aliases == ("writer", "author")


def test_errors_of_all_files_come_at_once(folder: Path) -> None:
    write(folder, "limits", "concurrency: {max_in_flight: 0}\n")
    write(folder, "server", "listen: {port: x}\n")
    (folder / "timeouts.yaml").write_text("[")
    (folder / "limit.yaml").write_text("")
    assert [line.partition(":")[0] for line in refused(folder)] == [
        *("limit.yaml", "limits.yaml", "server.yaml", "timeouts.yaml"),
    ]


def test_a_file_whose_name_is_no_text_is_named_in_text(folder: Path) -> None:
    (folder / "limits\udcff.yaml").write_text("")
    (line,) = refused(folder)
    assert line.encode().startswith(b"limits\\udcff.yaml: unknown policy file")


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path / "none") == [
        f"{tmp_path}/none: cannot be read: No such file or directory"
    ]


def test_a_file_in_the_folders_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "policies").write_text("")
    assert refused(tmp_path / "policies")[0].endswith("cannot be read: Not a directory")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("limit.yaml", "limit.yaml: unknown policy file; did you mean limits.yaml?"),
        ("limits.yml", "limits.yml: unknown policy file; did you mean limits.yaml?"),
        (
            "zzz.yaml",
            "zzz.yaml: unknown policy file; known are server.yaml, limits.yaml, timeouts.yaml, "
            "models.yaml, memory.yaml, supervision.yaml, clients.yaml",
        ),
    ],
)
def test_a_file_that_would_be_overlooked_is_refused(folder: Path, name: str, message: str) -> None:
    (folder / name).write_text("")
    assert refused(folder) == [message]


def test_what_editors_and_tools_leave_behind_is_ignored(folder: Path) -> None:
    for name in (".limits.yaml.swp", ".#limits.yaml", "limits.yaml~", "README.md", "mlxd.env"):
        (folder / name).write_text("not: [policies")
    (folder / "tests").mkdir()
    assert load(folder).policies == load().policies


def test_a_directory_in_a_files_place_is_refused(folder: Path) -> None:
    (folder / "limits.yaml").mkdir()
    assert refused(folder) == ["limits.yaml: cannot be read: Is a directory"]


def test_a_dangling_link_is_refused(folder: Path) -> None:
    (folder / "limits.yaml").symlink_to(folder / "gone")
    assert refused(folder) == ["limits.yaml: cannot be read: No such file or directory"]


def test_a_pipe_is_refused_and_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "limits.yaml")
    assert refused(folder) == ["limits.yaml: cannot be read: not a regular file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_refused(folder: Path) -> None:
    write(folder, "limits", "")
    (folder / "limits.yaml").chmod(0)
    assert refused(folder) == ["limits.yaml: cannot be read: Permission denied"]


def test_an_oversized_file_is_refused(folder: Path) -> None:
    write(folder, "limits", "#" * MAX_BYTES)
    assert refused(folder) == ["limits.yaml:1:1: the file is larger than 256 KiB"]


class TestOverrides:
    def test_an_override_wins_over_the_file(self, folder: Path) -> None:
        write(folder, "server", "listen:\n  port: 12000\n")
        override = Override("server.listen.port", "13000", "environment MLX_API_PORT")
        found = load(folder, [override])
        assert found.server.listen.port == 13000
        assert found.line("server.listen.port").place == "environment MLX_API_PORT"

    def test_the_last_override_wins(self) -> None:
        found = load(
            None,
            [
                Override("server.listen.port", "12000", "environment MLXD_PORT"),
                Override("server.listen.port", "13000", "--port"),
            ],
        )
        assert str(found.line("server.listen.port")) == "server.listen.port: 13000 (--port)"

    def test_an_override_is_checked_by_the_same_types(self) -> None:
        override = Override("server.listen.port", "70000", "environment MLX_API_PORT")
        assert refused(None, override) == [
            "environment MLX_API_PORT: server.listen.port: "
            "expected an integer 1 to 65535, got 70000"
        ]

    def test_a_wrong_value_is_refused_in_the_file_even_under_an_override(
        self, folder: Path
    ) -> None:
        write(folder, "server", "listen:\n  port: x\n")
        assert refused(folder, Override("server.listen.port", "y", "--port")) == [
            'server.yaml:3:3: server.listen.port: expected an integer 1 to 65535, got "x"',
            '--port: server.listen.port: expected an integer 1 to 65535, got "y"',
        ]

    def test_units_are_read_in_overrides(self) -> None:
        override = Override("timeouts.generation", "7s", "a test")
        assert load(None, [override]).timeouts.generation == 7.0

    def test_text_stays_text(self) -> None:
        override = Override("server.listen.host", "1234", "--host")
        assert refused(None, override)[0].endswith('got "1234"')

    def test_folders_are_added_to_a_list(self, folder: Path) -> None:
        write(folder, "models", "dirs: [/a]\n")
        override = Override(
            "models.dirs", f"/b{os.pathsep}{os.pathsep}/c", "environment MLXD_MODELS"
        )
        found = load(folder, [override])
        assert found.models.dirs == ("/a", "/b", "/c")
        assert found.line("models.dirs").place == "models.yaml:2, environment MLXD_MODELS"

    def test_an_unknown_key_is_refused(self) -> None:
        override = Override("server.listen.prot", "1", "--set")
        assert refused(None, override) == [
            "--set: server.listen.prot: unknown key; did you mean port?"
        ]

    def test_an_override_inside_something_broken_adds_no_second_error(self, folder: Path) -> None:
        write(folder, "server", "listen: 5\n")
        assert refused(folder, Override("server.listen.port", "1", "--port")) == [
            "server.yaml:2:1: server.listen: expected a mapping, got 5"
        ]

    def test_loading_leaves_no_trace_of_an_override(self) -> None:
        before = load().models.dirs
        load(None, [Override("models.dirs", "/b", "environment MLXD_MODELS")])
        assert load().models.dirs == before != ("/b",)


class TestListening:
    @pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost", "a.localhost"])
    def test_loopback_needs_no_word(self, folder: Path, host: str) -> None:
        write(folder, "server", f'listen: {{host: "{host}"}}\n')
        assert load(folder).server.listen.loopback

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "fe80::1", "studio.local"])
    @pytest.mark.parametrize(
        ("required", "wanted"), [("auto", True), ("true", True), ("false", False)]
    )
    def test_beyond_it_clients_need_a_key_unless_a_false_is_written(
        self, folder: Path, host: str, required: str, wanted: bool
    ) -> None:
        write(folder, "server", f'listen: {{host: "{host}"}}\n')
        write(folder, "clients", f"auth: {{required: {required}}}\n")
        found = load(folder)
        assert found.keys_required is wanted
        assert any("whoever reaches it" in warning for warning in found.warnings()) is not wanted

    def test_keys_may_be_required_of_this_machine_too(self, folder: Path) -> None:
        write(folder, "clients", "auth: {required: true}\n")
        assert load(folder).keys_required
        assert not load().keys_required

    def test_a_written_false_opens_it_and_warns_for_ever(self, folder: Path) -> None:
        write(folder, "clients", "auth: {required: false}\n")
        found = load(folder, [Override("server.listen.host", "0.0.0.0", "--host")])
        assert (
            "server.listen.host 0.0.0.0 (--host) can be reached by other machines and "
            "clients.auth.required is false: whoever reaches it can use every model"
        ) in found.warnings()


@SAME_EVERY_TIME
@given(kind=st.sampled_from(FILES), raw=st.binary(max_size=300))
def test_whatever_the_bytes_only_policy_errors_come_out(
    tmp_path_factory: pytest.TempPathFactory, kind: str, raw: bytes
) -> None:
    folder = tmp_path_factory.mktemp("policies")
    (folder / kind).write_bytes(raw)
    with pytest.raises(PolicyErrors) as caught:
        load(folder)
    assert all(line.startswith(kind) for line in str(caught.value).splitlines())


_WORDS = st.sampled_from(
    sorted({part for path in keys.table() for part in path} | {"x", "5", "5s", "5MiB", "50%", "on"})
)
_TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_WORDS, inner, max_size=4),
    max_leaves=20,
)


@SAME_EVERY_TIME
@given(kind=st.sampled_from(FILES), tree=st.dictionaries(_WORDS, _TREES, max_size=4))
def test_whatever_the_keys_and_values_only_policy_errors_come_out(
    tmp_path_factory: pytest.TempPathFactory, kind: str, tree: dict[str, object]
) -> None:
    import yaml

    folder = tmp_path_factory.mktemp("policies")
    write(folder, kind.removesuffix(".yaml"), yaml.safe_dump(tree) if tree else "")
    with suppress(PolicyErrors):
        load(folder)


@SAME_EVERY_TIME
@given(key=st.sampled_from([key.name for key in keys.table().values()]), text=st.text(max_size=20))
def test_whatever_the_override_only_policy_errors_come_out(key: str, text: str) -> None:
    with suppress(PolicyErrors):
        load(None, [Override(key, text, "a test")])


def test_every_key_with_a_value_can_be_set_alone(folder: Path) -> None:
    """What a line says as its value is a value: it can be written down and means the same."""
    defaults = load()
    for path, key in keys.table().items():
        if len(path) == 1 or key.section or "<name>" in path or "[]" in path:
            continue
        text = defaults.line(dotted(path)).value
        lines = [f"{'  ' * depth}{part}:" for depth, part in enumerate(path[1:])]
        write(folder, path[0], "\n".join(lines) + f" {text}\n")
        again = load(folder)
        assert again.policies == defaults.policies
        assert again.line(dotted(path)).place == f"policies/{path[0]}.yaml:{len(path)}"
        (folder / f"{path[0]}.yaml").unlink()


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        (
            "limits",
            "concurrency: {retry_after: 5}",
            "got 5: write the unit, for instance 5s or 5ms",
        ),
        ("memory", "reserve: {system: 16}", "got 16: write the unit, for instance 16B or 16MiB"),
        ("memory", "reserve: {system: 16 gib}", 'got "16 gib": write 16GiB'),
        ("memory", "watermarks: {warning: {clear: 60}}", "got 60: write the unit, 60%"),
        ("models", "defaults: {ttl: -1}", "or a duration such as 0s, 5m or 1h30m, got -1"),
        ("server", "http: {keep_alive: 0}", "such as 300s, 5m, 250ms or 1h30m, got 0"),
        ("server", 'http: {keep_alive: "0"}', 'such as 300s, 5m, 250ms or 1h30m, got "0"'),
        ("server", "http: {max_body: 0 mb}", 'such as 16KiB, 8MiB or 1GB, got "0 mb"'),
        (
            "limits",
            "batching: {decode_share: 95%}",
            'expected a ratio above zero such as 85% or 0.85, at most 90%, got "95%"',
        ),
        (
            "models",
            "models: {m: {sampling: {temp: 1}}}",
            "models.models.m.sampling.temp: unknown key; known here are temperature, top_p, top_k, "
            "min_p, repeat_penalty",
        ),
        (
            "models",
            "models: {m: {sampling: {temprature: 1}}}",
            "models.models.m.sampling.temprature: unknown key; did you mean temperature?",
        ),
        ("models", "models: {m: {sampling: {top_p: 90%}}}", 'expected a number, got "90%"'),
        (
            "clients",
            "tenants: {a: {priority: high, max_priority: low}}",
            "clients.tenants.a.priority: expected at most max_priority (low), got high",
        ),
        (
            "models",
            "models: {m: {sampling: {top_k: 1.5}}}",
            "models.models.m.sampling: expected a top_k that is an integer, got 1.5",
        ),
        (
            "supervision",
            "worker: {budget: [{max: 0}]}",
            "supervision.worker.budget[0].max: expected an integer 1 to 10000, got 0",
        ),
    ],
)
def test_what_is_said_of_a_wrong_value_is_the_way_to_a_right_one(
    tmp_path: Path, kind: str, text: str, said: str
) -> None:
    (tmp_path / f"{kind}.yaml").write_text(f"schema: mlxd/v1\n{text}\n")
    with pytest.raises(PolicyErrors) as refused:
        load(tmp_path)
    (error,) = refused.value.errors
    assert str(error).endswith(said)


def test_a_limit_below_what_many_tenants_have_is_one_error_at_that_limit(tmp_path: Path) -> None:
    write(tmp_path, "limits", "concurrency: {max_in_flight: 2}\n")

    def errors(count: int) -> list[str]:
        tenants = "".join(f"  t{n}: {{max_in_flight: {4 + n}}}\n" for n in range(count))
        write(tmp_path, "clients", f"tenants:\n{tenants}")
        with pytest.raises(PolicyErrors) as refused:
            load(tmp_path)
        return [*map(str, refused.value.errors)]

    assert [error.partition(": expected")[0] for error in errors(5)] == [
        f"clients.yaml:{3 + n}:8: clients.tenants.t{n}.max_in_flight" for n in range(5)
    ]
    assert errors(300) == [
        "limits.yaml:2:15: limits.concurrency.max_in_flight: expected at least 303, got 2: 300"
        " tenants have more of their own, clients.tenants.t299.max_in_flight the most"
    ]
    (tmp_path / "limits.yaml").unlink()
    told = errors(300)
    assert all(error.startswith("clients.yaml:") for error in told), "nobody wrote it"
    assert len(told) == 298, "all at once: the default is 5"
