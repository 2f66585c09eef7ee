"""One download for all who want the same; the process that fetches is played."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from mlxd.control.catalog import Catalog
from mlxd.control.own_names import OwnName, OwnNames
from mlxd.control.progress import Progress
from mlxd.control.pull import Puller
from mlxd.control.pulled import PulledModels
from mlxd.core.clock import ManualClock
from mlxd.core.errors import (
    Draining,
    Forbidden,
    InsufficientStorage,
    InternalError,
    InvalidRequest,
    MlxdError,
    ModelNotFound,
    Overloaded,
    PullFailed,
)
from mlxd.ipc.pulling import Failed, Fetched, Part, Planned, Pulled, Told, Verifying, Writing
from mlxd.policy.load import load
from mlxd.policy.policy_set import PolicySet
from tests.support.daemon import write_policies

REPO = "mlx-community/Llama-3.2-3B-Instruct-4bit"
DIGEST = "sha256:" + "ab" * 32
STORY: tuple[Told, ...] = (
    Planned("c0ffee", (Part("model.safetensors", 100, DIGEST),)),
    Fetched(DIGEST, 40),
    Fetched(DIGEST, 100),
    Verifying(DIGEST),
    Writing(),
    Pulled("c0ffee", 100),
)


class Played:
    """Processes that tell what they are told to tell."""

    def __init__(self) -> None:
        self.running: list[asyncio.Queue[Told | Exception]] = []
        self.begun: list[tuple[str, str, bool]] = []
        self.may_end = asyncio.Event()
        self.may_end.set()
        self.ended = 0

    @asynccontextmanager
    async def __call__(
        self, repo: str, into: Path, *, endpoint: str, code: bool
    ) -> AsyncIterator[AsyncIterator[Told]]:
        self.begun.append((repo, endpoint, code))
        queue: asyncio.Queue[Told | Exception] = asyncio.Queue()
        self.running.append(queue)

        async def lines() -> AsyncIterator[Told]:
            while True:
                told = await queue.get()
                if isinstance(told, Exception):
                    raise told
                yield told

        try:
            yield lines()
        finally:
            await self.may_end.wait()
            self.ended += 1

    def tell(self, *told: Told | Exception, process: int = -1) -> None:
        for one in told:
            self.running[process].put_nowait(one)


class Watcher:
    """One client."""

    def __init__(self, puller: Puller, name: str, policies: PolicySet) -> None:
        self.lines: list[Progress] = []
        self.task = asyncio.create_task(self._watch(puller, name, policies))

    async def _watch(self, puller: Puller, name: str, policies: PolicySet) -> None:
        async with puller.watch(name, policies) as lines:
            async for line in lines:
                self.lines.append(line)

    async def leave(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


class Bench:
    """A puller, and what it works with."""

    def __init__(self, folder: Path) -> None:
        self.played = Played()
        self.pulled = PulledModels(folder / "models")
        self.own_names = OwnNames(folder / "models.d")
        self.events: list[str] = []
        catalog = Catalog(
            folder / "guide", ManualClock(), pulled=self.pulled.folder, names=self.own_names
        )
        self.puller = Puller(
            self.pulled, self.own_names, catalog,
            lambda type, words, data: self.events.append(type), fetch=self.played,
        )  # fmt: skip
        self._folder = folder / "policies"
        self.policies = self.under(f"dirs: [{folder}/none]\n")

    def under(self, models: str) -> PolicySet:
        """Policies with this models.yaml."""
        return load(write_policies(self._folder, {"models": models}))

    def watch(self, name: str = REPO) -> Watcher:
        return Watcher(self.puller, name, self.policies)

    async def error(self, name: str) -> MlxdError:
        with pytest.raises(MlxdError) as raised:
            await self.watch(name).task
        return raised.value


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


async def until(fact: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not fact():  # noqa: ASYNC110 - of many kinds
            await asyncio.sleep(0.001)


async def begun(bench: Bench, processes: int = 1) -> None:
    await until(lambda: len(bench.played.running) == processes)


async def test_progress_is_told_in_ollamas_words(bench: Bench) -> None:
    watcher = bench.watch()
    await begun(bench)
    for told in STORY:
        bench.played.tell(told)
        await asyncio.sleep(0)
    await watcher.task
    pulling = "pulling abababababab"
    assert watcher.lines[0] == Progress("pulling manifest")
    assert Progress(pulling, DIGEST, 100, 100) in watcher.lines
    assert [line.status for line in watcher.lines][-3:] == [
        "verifying sha256 digest", "writing manifest", "success",
    ]  # fmt: skip
    assert bench.events == ["model_pulled"]


async def test_all_who_want_it_watch_one_process_and_a_late_one_sees_where_it_is(
    bench: Bench,
) -> None:
    first = bench.watch()
    await begun(bench)
    bench.played.tell(*STORY[:3])
    await until(lambda: any(line.completed == 100 for line in first.lines))
    late = bench.watch(f"https://huggingface.co/{REPO.upper()}")
    await until(lambda: late.lines)
    bench.played.tell(*STORY[3:])
    await asyncio.gather(first.task, late.task)
    assert len(bench.played.begun) == 1
    assert late.lines[:2] == [
        Progress("pulling manifest"), Progress("pulling abababababab", DIGEST, 100, 100),
    ]  # fmt: skip


async def test_no_more_are_pulled_at_one_time_than_policy_has_it(bench: Bench) -> None:
    bench.policies = bench.under("pull: {max_parallel: 1}\n")
    first = bench.watch()
    await begun(bench)
    other = "mlx-community/another-4bit"
    refused = await bench.error(other)
    assert isinstance(refused, Overloaded)
    assert "models.pull.max_parallel: 1" in refused.explained()
    joined = bench.watch()
    await until(lambda: joined.lines)
    await joined.leave()
    bench.played.tell(*STORY)
    await first.task
    second = bench.watch(other)
    await begun(bench, 2)
    await second.leave()


async def test_only_the_last_who_leaves_ends_it(bench: Bench) -> None:
    first, second = bench.watch(), bench.watch()
    await begun(bench)
    await first.leave()
    assert bench.played.ended == 0
    await second.leave()
    assert bench.played.ended == 1
    assert bench.events == []


async def test_who_comes_while_it_ends_begins_anew_when_its_process_is_gone(bench: Bench) -> None:
    first = bench.watch()
    await begun(bench)
    bench.played.may_end.clear()
    leaving = asyncio.create_task(first.leave())
    await asyncio.sleep(0.01)
    second = bench.watch()
    await asyncio.sleep(0.01)
    meanwhile = len(bench.played.running)
    bench.played.may_end.set()
    assert meanwhile == 1
    await begun(bench, 2)
    bench.played.tell(*STORY)
    await asyncio.gather(second.task, leaving)
    assert second.lines[-1] == Progress("success")


@pytest.mark.parametrize("at_once", [False, True])
async def test_so_does_who_comes_behind_one_that_left_before_it_began(
    bench: Bench, at_once: bool
) -> None:
    """`at_once`: the third one comes while the second leaves."""
    first = bench.watch()
    await begun(bench)
    bench.played.may_end.clear()
    leaving = asyncio.create_task(first.leave())
    await asyncio.sleep(0.01)
    second = bench.watch()
    await asyncio.sleep(0.01)
    if at_once:
        second.task.cancel()
    else:
        await second.leave()
    third = bench.watch()
    await asyncio.sleep(0.01)
    meanwhile = len(bench.played.running)
    bench.played.may_end.set()
    assert meanwhile == 1
    await begun(bench, 2)
    bench.played.tell(*STORY)
    await asyncio.gather(third.task, leaving)
    assert third.lines[-1] == Progress("success")
    assert not bench.puller._ending


@pytest.mark.parametrize(
    ("told", "kind"),
    [
        (Failed("not_found", "the hub has no such thing"), ModelNotFound),
        (Failed("no_space", "the disk is full"), InsufficientStorage),
        (Failed("corrupt", "other bytes"), PullFailed),
        (PullFailed("it ended without a word"), PullFailed),
        (ValueError("a defect"), InternalError),
    ],
)
async def test_a_failure_is_told_to_whoever_watches(
    bench: Bench, told: Told | Exception, kind: type[MlxdError], caplog: pytest.LogCaptureFixture
) -> None:
    watcher = bench.watch()
    await begun(bench)
    bench.played.tell(told)
    with pytest.raises(kind):
        await watcher.task
    assert not bench.puller.is_pulling(REPO)


async def test_closing_ends_all_and_lets_nobody_begin(bench: Bench) -> None:
    watcher = bench.watch()
    await begun(bench)
    await bench.puller.close()
    with pytest.raises(Draining):
        await watcher.task
    assert bench.played.ended == 1
    assert isinstance(await bench.error(REPO), Draining)


async def test_policy_says_what_may_be_pulled_and_from_where(bench: Bench) -> None:
    bench.policies = bench.under(
        "pull: {allow: ['our-team/*', 'a/b'], endpoint: 'https://hub.example'}\n"
        "models: {our-team/x: {trust_remote_code: true}}\n"
    )
    refusal = await bench.error(REPO)
    assert isinstance(refusal, Forbidden)
    assert refusal.policy is not None
    assert refusal.policy.key == "models.pull.allow"
    assert isinstance(await bench.error("a/bc"), Forbidden)
    watchers = [bench.watch("Our-Team/X"), bench.watch("A/B")]
    await begun(bench, 2)
    assert sorted(bench.played.begun) == [
        ("A/B", "https://hub.example", False), ("Our-Team/X", "https://hub.example", True),
    ]  # fmt: skip
    for watcher in watchers:
        await watcher.leave()


async def test_the_names_that_it_was_asked_for_by_mean_it(bench: Bench) -> None:
    watchers = [bench.watch("llama3.2"), bench.watch("llama3.2:3b-instruct-q4_K_M"), bench.watch()]
    await begun(bench)
    bench.played.tell(*STORY)
    await asyncio.gather(*(watcher.task for watcher in watchers))
    assert bench.own_names.get("LLAMA3.2:latest") == OwnName("llama3.2", REPO, "pull")
    assert len(bench.own_names()) == 2


async def test_a_copy_that_means_it_already_stays_a_copy(bench: Bench) -> None:
    copy = OwnName("llama3.2", REPO, "copy")
    bench.own_names.put(copy)
    watcher = bench.watch("llama3.2")
    await begun(bench)
    bench.played.tell(*STORY)
    await watcher.task
    assert bench.own_names.get("llama3.2") == copy


@pytest.mark.parametrize("name", ["", "a/b/c", "../b", "a/..b", "a/b:tag", "a b/c", "/", "a/"])
async def test_what_is_no_name_of_a_repository_is_refused(bench: Bench, name: str) -> None:
    assert isinstance(await bench.error(name), InvalidRequest | ModelNotFound)
    assert bench.played.begun == []


async def test_it_is_pulled_as_it_is_spelled_on_the_disk(bench: Bench) -> None:
    (bench.pulled.folder / REPO).mkdir(parents=True)
    watcher = bench.watch(REPO.upper())
    await begun(bench)
    assert bench.played.begun[0][0] == REPO
    await watcher.leave()
