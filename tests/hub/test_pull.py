"""The process that pulls, against a hub on loopback."""

from __future__ import annotations

import io
import json
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event

import httpx2
import pytest
from huggingface_hub import constants

from mlxd.control.pulling import _LONGEST_LINE
from mlxd.core import manifest
from mlxd.hub.__main__ import ended
from mlxd.hub.failure import PullFailure
from mlxd.hub.fetch import Fetcher
from mlxd.hub.listing import _MOST_FILES, Remote, list_model
from mlxd.hub.patience import Patience
from mlxd.hub.session import Walls, open_hub
from mlxd.hub.telling import Telling
from mlxd.ipc.pulling import (
    Failed,
    Fetched,
    Part,
    Planned,
    Pulled,
    Told,
    Verifying,
    Writing,
    decode,
    encode,
)
from tests.support.hub import Hub, hub
from tests.support.pulling import Pulling, safetensors

REPO = "org/small"
WEIGHTS = "model.safetensors"
WANTED = {"config.json", "tokenizer.json", WEIGHTS}


def test_a_pulled_model_has_the_files_that_a_model_needs_and_no_code(
    pulling: Pulling, remote: Hub
) -> None:
    told = pulling.run(REPO)
    there = pulling.there(REPO)
    assert there.keys() == WANTED | {manifest.FILE}
    assert {name: there[name] for name in WANTED} == {
        name: remote.repos[REPO].files[name] for name in WANTED
    }
    assert isinstance(told[0], Planned)
    assert [type(one) for one in told[-2:]] == [Writing, Pulled]
    assert {part.name for part in told[0].parts} == WANTED


def test_code_comes_along_where_it_is_trusted(pulling: Pulling) -> None:
    pulling.run(REPO, "--code")
    assert "modeling_evil.py" in pulling.there(REPO)


def test_the_manifest_says_what_every_file_must_be(pulling: Pulling, remote: Hub) -> None:
    told = pulling.run(REPO)
    check_progress(told)
    written = manifest.read(pulling.into / REPO)
    assert written is not None
    assert (written.repo, written.revision) == (REPO, remote.repos[REPO].commit)
    assert {f.name: f.size for f in written.files} == {
        name: len(remote.repos[REPO].files[name]) for name in WANTED
    }
    assert all(len(file.sha256) == 64 for file in written.files)


def check_progress(told: Sequence[Told]) -> None:
    """It told how far each file was, and then that it verified it."""
    assert isinstance(told[0], Planned)
    sizes = {part.digest: part.size for part in told[0].parts}
    last = {one.digest: one.bytes for one in told if isinstance(one, Fetched)}
    assert last == sizes
    assert [one.digest for one in told if isinstance(one, Verifying)] == list(sizes)


def test_a_model_that_is_there_is_not_fetched_again(pulling: Pulling, remote: Hub) -> None:
    pulling.run(REPO)
    assert [path.name for path in pulling.into.iterdir()] == ["org"], "left beside the model"
    before = remote.sent(WEIGHTS)
    told = pulling.run(REPO)
    assert told == [Pulled(remote.repos[REPO].commit, 0)]
    assert remote.sent(WEIGHTS) == before


class TestResume:
    def test_a_broken_connection_is_taken_up_where_it_broke(
        self, pulling: Pulling, remote: Hub
    ) -> None:
        remote.cut_after[WEIGHTS] = [100_000, 50_000]
        last = pulling.run(REPO)[-1]
        size = len(remote.repos[REPO].files[WEIGHTS])
        assert remote.ranges(WEIGHTS) == ["", "bytes=100000-", "bytes=150000-"]
        assert remote.sent(WEIGHTS) == size
        assert isinstance(last, Pulled)
        assert pulling.there(REPO)[WEIGHTS] == remote.repos[REPO].files[WEIGHTS]

    def test_a_killed_process_is_followed_by_one_that_goes_on(
        self, pulling: Pulling, remote: Hub
    ) -> None:
        remote.gate.clear()
        process = pulling.start(REPO)
        pulling.wait_for_bytes(REPO, remote.repos[REPO].files[WEIGHTS])
        process.send_signal(signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            assert pipe is not None
            pipe.close()
        assert pulling.there(REPO) == {}
        remote.gate.set()
        pulling.run(REPO)
        assert pulling.there(REPO)[WEIGHTS] == remote.repos[REPO].files[WEIGHTS]
        assert remote.ranges(WEIGHTS)[-1].startswith("bytes=")

    def test_its_end_comes_with_the_end_of_its_stdin(self, pulling: Pulling, remote: Hub) -> None:
        remote.gate.clear()
        process = pulling.start(REPO)
        assert remote.waiting.wait(20)
        process.communicate(timeout=20)
        assert process.returncode == 1

    @pytest.mark.slow
    def test_a_hub_without_ranges_sends_the_whole_file_again(
        self, pulling: Pulling, remote: Hub
    ) -> None:
        remote.without_ranges = True
        remote.cut_after[WEIGHTS] = [100_000]
        pulling.run(REPO)
        assert pulling.there(REPO)[WEIGHTS] == remote.repos[REPO].files[WEIGHTS]

    @pytest.mark.slow
    def test_what_is_longer_than_the_file_is_thrown_away(
        self, pulling: Pulling, remote: Hub
    ) -> None:
        remote.cut_after[WEIGHTS] = [100_000] + [0] * 9
        pulling.fails(REPO)
        (blob,) = (
            path
            for path in (pulling.into / ".partial" / REPO / "blobs").iterdir()
            if path.stat().st_size == 100_000
        )
        blob.write_bytes(b"x" * 400_000)
        remote.cut_after.clear()
        pulling.run(REPO)
        assert pulling.there(REPO)[WEIGHTS] == remote.repos[REPO].files[WEIGHTS]

    @pytest.mark.slow
    def test_a_new_commit_reuses_the_files_that_have_not_changed(
        self, pulling: Pulling, remote: Hub
    ) -> None:
        pulling.run(REPO)
        before = remote.sent(WEIGHTS)
        remote.repos[REPO].files["config.json"] = b'{"model_type": "qwen3"}'
        told = pulling.run(REPO)
        assert remote.sent(WEIGHTS) == before
        assert pulling.there(REPO)["config.json"] == b'{"model_type": "qwen3"}'
        assert pulling.there(REPO)[WEIGHTS] == remote.repos[REPO].files[WEIGHTS]
        assert told[-1] == Pulled(remote.repos[REPO].commit, 23)

    def test_a_new_commit_in_the_middle_drops_what_it_does_not_need(
        self, pulling: Pulling, remote: Hub
    ) -> None:
        remote.cut_after[WEIGHTS] = [100_000] + [0] * 9
        pulling.fails(REPO)
        blobs = pulling.into / ".partial" / REPO / "blobs"
        before = {path.name for path in blobs.iterdir()}
        remote.repos[REPO].files[WEIGHTS] = safetensors(200_000, seed=7)
        remote.cut_after[WEIGHTS] = [100_000] + [0] * 9
        pulling.fails(REPO)
        assert len(before) == len([*blobs.iterdir()])
        remote.cut_after.clear()
        pulling.run(REPO)
        assert pulling.there(REPO)[WEIGHTS] == remote.repos[REPO].files[WEIGHTS]


class TestRefusals:
    def test_other_bytes_than_promised_are_refused_and_thrown_away(
        self, pulling: Pulling, remote: Hub
    ) -> None:
        repo = remote.repos[REPO]
        repo.served[WEIGHTS] = bytes(reversed(repo.files[WEIGHTS]))
        failed = pulling.fails(REPO)
        assert failed.kind == "corrupt"
        assert WEIGHTS in failed.message
        assert pulling.there(REPO) == {}
        repo.served.clear()
        pulling.run(REPO)
        assert pulling.there(REPO)[WEIGHTS] == repo.files[WEIGHTS]

    @pytest.mark.slow
    def test_a_small_file_is_checked_too(self, pulling: Pulling, remote: Hub) -> None:
        remote.repos[REPO].served["config.json"] = b'{"model_type": "LLAMA"}'
        assert pulling.fails(REPO).kind == "corrupt"

    @pytest.mark.slow
    def test_more_bytes_than_promised_are_not_taken(self, pulling: Pulling, remote: Hub) -> None:
        repo = remote.repos[REPO]
        repo.served[WEIGHTS] = repo.files[WEIGHTS] + b"more"
        failed = pulling.fails(REPO)
        assert (failed.kind, "more of" in failed.message) == ("corrupt", True)

    def test_weights_that_lie_about_themselves_are_refused(
        self, pulling: Pulling, remote: Hub
    ) -> None:
        repo = remote.repos[REPO]
        repo.files[WEIGHTS] = repo.files[WEIGHTS] + b"tail"
        failed = pulling.fails(REPO)
        assert (failed.kind, "header" in failed.message) == ("corrupt", True)
        assert pulling.there(REPO) == {}

    def test_a_repository_that_is_not_there(self, pulling: Pulling) -> None:
        failed = pulling.fails("org/absent")
        assert (failed.kind, "org/absent" in failed.message) == ("not_found", True)

    @pytest.mark.slow
    def test_a_repository_without_a_model(self, pulling: Pulling, remote: Hub) -> None:
        del remote.repos[REPO].files[WEIGHTS]
        assert pulling.fails(REPO).kind == "no_model"

    def test_a_gated_one_needs_a_token_that_is_not_told_to_others(
        self, pulling: Pulling, remote: Hub
    ) -> None:
        remote.repos[REPO].gated = True
        assert pulling.fails(REPO).kind == "denied"
        with hub() as elsewhere:
            elsewhere.repos = remote.repos
            remote.elsewhere = elsewhere.url.replace("127.0.0.1", "localhost")
            pulling.run(REPO, environment={"HF_TOKEN": "hf_right"})
            assert {asked.authorization for asked in remote.asked[-1:]} == {"Bearer hf_right"}
            assert {asked.authorization for asked in elsewhere.asked} == {""}

    def test_a_file_that_the_hub_names_like_a_path_is_not_written(
        self, pulling: Pulling, remote: Hub
    ) -> None:
        remote.repos[REPO].files["../../evil.json"] = b"{}"
        remote.repos[REPO].files[".hidden.json"] = b"{}"
        pulling.run(REPO)
        assert pulling.there(REPO).keys() == WANTED | {manifest.FILE}
        assert not list(pulling.into.parent.rglob("evil.json"))

    def test_a_hub_that_falters_is_asked_again(self, pulling: Pulling, remote: Hub) -> None:
        remote.statuses = {"api": [503, 429], WEIGHTS: [429, 500]}
        pulling.run(REPO)
        assert pulling.there(REPO).keys() == WANTED | {manifest.FILE}

    def test_a_folder_that_was_not_pulled_is_left_alone(self, pulling: Pulling) -> None:
        (pulling.into / REPO).mkdir(parents=True)
        assert pulling.fails(REPO).kind == "occupied"
        assert pulling.there(REPO) == {}

    def test_two_processes_do_not_pull_the_same_model(self, pulling: Pulling, remote: Hub) -> None:
        remote.gate.clear()
        first = pulling.start(REPO)
        assert remote.waiting.wait(20)
        assert pulling.fails(REPO).kind == "occupied"
        remote.gate.set()
        output, _ = first.communicate(timeout=20)
        assert b'"failed"' not in output or first.returncode == 1


def listed(**changes: object) -> bytes:
    """A listing of a model, with one thing changed."""
    files = [
        {"rfilename": "config.json", "size": 2, "blobId": "a" * 40},
        {"rfilename": WEIGHTS, "size": 9, "lfs": {"sha256": "a" * 64, "size": 9}},
    ]
    return json.dumps({"id": REPO, "sha": "c" * 40, "siblings": files, **changes}).encode()


class TestHostileHubs:
    @pytest.fixture(autouse=True)
    def online(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    @pytest.fixture
    def ask(self, remote: Hub) -> Callable[[], str]:
        """What pulling says, in this process: the refusal's words."""

        def asked() -> str:
            connected = open_hub(remote.url)
            with pytest.raises(PullFailure) as caught:
                list_model(connected, REPO, code=False, patience=Patience(first=0.01))
            assert caught.value.kind == "refused"
            return caught.value.message

        return asked

    @pytest.mark.parametrize(
        "answer",
        [
            b"[" * 200_000,
            b"[]",
            b"null",
            b"\xff",
            b"",
            listed(id=5),
            listed(sha=5),
            listed(siblings=[1, 2]),
            listed(siblings=5),
            listed(siblings=[{"rfilename": 5, "size": 5, "blobId": "a" * 40}]),
            listed(siblings=[{"rfilename": WEIGHTS, "lfs": {"sha256": [], "size": 1}}]),
        ],
        ids=lambda answer: answer[:40].decode("latin-1"),
    )
    def test_an_answer_of_another_shape_is_no_hubs(
        self, remote: Hub, ask: Callable[[], str], answer: bytes
    ) -> None:
        remote.listing = answer
        assert ask() == "what answers there is no hub"

    def test_another_repositorys_listing_is_told_of_in_few_words(
        self, remote: Hub, ask: Callable[[], str]
    ) -> None:
        remote.listing = listed(id="x" * 2**20)
        assert len(ask()) < 300

    def test_a_listing_that_does_not_end_is_not_read_on(
        self, pulling: Pulling, remote: Hub
    ) -> None:
        remote.endless = True
        failed = pulling.fails(REPO, most_memory=2 * 2**20)
        assert (failed.kind, "does not end" in failed.message) == ("refused", True)

    def test_a_redirect_with_a_body_that_does_not_end_is_not_followed(
        self, remote: Hub, fetch: Callable[[], PullFailure]
    ) -> None:
        remote.redirect = "self"
        remote.endless = True
        assert "too many words" in fetch().message

    def test_more_files_than_can_be_told_of_are_refused(
        self, remote: Hub, ask: Callable[[], str]
    ) -> None:
        files = [{"rfilename": f"f{i}.json", "size": 2, "blobId": f"{i:040x}"} for i in range(2001)]
        remote.listing = listed(siblings=files)
        assert "more files" in ask()

    def test_as_many_files_as_are_taken_fit_the_daemons_longest_line(self) -> None:
        part = Part("n" * 200, 2**48, "sha256:" + "a" * 64)
        assert len(encode(Planned("c" * 40, (part,) * _MOST_FILES))) < _LONGEST_LINE

    @pytest.fixture
    def fetch(self, remote: Hub, tmp_path: Path) -> Callable[[], PullFailure]:
        """How fetching a file ends; no second try is needed to see it."""

        def fetched() -> PullFailure:
            def never(_: float) -> None:
                raise AssertionError("it is asked again")

            patience = Patience(pause=never)
            fetcher = Fetcher(open_hub(remote.url), REPO, "main", patience, Event())
            with pytest.raises(PullFailure) as caught:
                fetcher.fetch(Remote(WEIGHTS, 9, ""), tmp_path / "blob", lambda _: None)
            assert caught.value.kind == "refused"
            return caught.value

        return fetched

    @pytest.mark.parametrize(
        "where",
        [
            "self",
            "file:///etc/passwd",
            "ftp://hub.example/a",
            "http://a:99999/x",
            "http://[::1",
            "http://a:b/",
            "http://169.254.169.254/latest",
            "http://[fe80::1]/",
        ],
    )
    def test_a_redirect_that_leads_nowhere_is_refused_at_once(
        self, remote: Hub, fetch: Callable[[], PullFailure], where: str
    ) -> None:
        remote.redirect = where
        assert "the hub sends us" in fetch().message

    def test_whatever_else_ends_it_is_told_without_its_words(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def breaks() -> None:
            raise ZeroDivisionError("https://hub.example/?signature=secret")

        out = io.BytesIO()
        assert ended(breaks, Telling(out)) == 1
        told = decode(out.getvalue())
        assert told == Failed("refused", "the hub answers what cannot be understood")
        said = capsys.readouterr().err
        assert said.startswith("ZeroDivisionError in ")
        assert "secret" not in said

    def test_an_address_that_is_none_is_said_so(self) -> None:
        for endpoint in ("http://a:99999", "ftp://a", "a.example"):
            with pytest.raises(PullFailure, match="no http or https URL"):
                open_hub(endpoint)


class TestDisk:
    @pytest.mark.slow
    def test_a_model_larger_than_the_disk_is_not_begun(self, pulling: Pulling, remote: Hub) -> None:
        remote.repos[REPO].sizes[WEIGHTS] = 2**47
        failed = pulling.fails(REPO)
        assert (failed.kind, str(2**47)[:3] in failed.message) == ("no_space", True)
        assert remote.sent(WEIGHTS) == 0

    def test_a_disk_that_fills_up_leaves_nothing_half_and_lets_it_go_on(
        self, pulling: Pulling, remote: Hub
    ) -> None:
        failed = pulling.fails(REPO, largest_file=150)
        assert failed.kind == "no_space"
        assert pulling.there(REPO) == {}
        pulling.run(REPO)
        assert pulling.there(REPO)[WEIGHTS] == remote.repos[REPO].files[WEIGHTS]
        assert remote.sent(WEIGHTS) < 2 * len(remote.repos[REPO].files[WEIGHTS])


def test_nobody_listening_is_said_in_words_without_an_address(tmp_path: Path) -> None:
    nowhere = Pulling(Hub("http://127.0.0.1:9"), tmp_path)
    failed = nowhere.fails(REPO)
    assert isinstance(failed, Failed)
    assert failed.message == (
        "the hub cannot be reached: nothing listens there, or its name is unknown"
    )


@pytest.mark.parametrize(
    ("endpoint", "url", "fits"),
    [
        ("https://hub.example", "https://hub.example/a", True),
        ("https://hub.example", "http://hub.example/a", False),
        ("https://hub.example", "https://127.0.0.1/a", False),
        ("https://hub.example", "https://[::1]/a", False),
        ("https://hub.example", "https://169.254.169.254/latest", False),
        ("https://hub.example", "https://93.184.215.14/a", True),
        ("http://127.0.0.1:9", "http://localhost:8/a", True),
        ("http://127.0.0.1:9", "http://169.254.169.254/latest", False),
        ("http://10.0.0.1", "http://[::ffff:169.254.169.254]/latest", False),
        ("http://127.0.0.1:9", "http://[fe80::1]/a", False),
        ("http://127.0.0.1:9", "file:///etc/passwd", False),
        ("http://127.0.0.1:9", "http://a:99999/", False),
    ],
)
def test_a_redirect_leads_neither_into_this_network_nor_down_from_https(
    endpoint: str, url: str, fits: bool
) -> None:
    def check() -> None:
        Walls(endpoint).check(httpx2.Request("GET", url))

    if fits:
        check()
    else:
        with pytest.raises(PullFailure):
            check()
