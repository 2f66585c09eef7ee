"""However many ask for a model that is not in memory, and by whatever name: it is loaded once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.integration.talking import PATHS, body_for, cached, spawned, whole_text, workers_of
from tests.support.daemon import Daemon
from tests.support.long import short

pytestmark = pytest.mark.mlx

Start = Callable[..., Daemon]
TOGETHER = 200
ROOM = {
    "limits": f"concurrency: {{max_in_flight: {TOGETHER}}}\nrate_limit: []\n",
    "server": f"http: {{max_connections: {TOGETHER * 2}, per_ip: {TOGETHER * 2}}}\n",
}


async def ask_at_once(daemon: Daemon, names: list[str]) -> list[httpx.Response]:
    """One question for each name, the endpoints by turns; nobody waits for another."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=daemon.url, timeout=50, limits=limits) as client:
        bodies = [
            (PATHS[n % len(PATHS)], body_for(PATHS[n % len(PATHS)], name, "hello", tokens=2))
            for n, name in enumerate(names)
        ]
        return await asyncio.gather(*(client.post(path, json=body) for path, body in bodies))


def texts(responses: list[httpx.Response]) -> list[set[str]]:
    """What each endpoint said, in the order of PATHS."""
    assert [answer.status_code for answer in responses] == [200] * len(responses)
    found: list[set[str]] = [set() for _ in PATHS]
    for n, answer in enumerate(responses):
        found[n % len(PATHS)].add(whole_text(PATHS[n % len(PATHS)], answer.json()))
    return found


@pytest.mark.parametrize("many", short([60, TOGETHER], 60))
async def test_many_requests_on_a_cold_model_cause_one_load(start: Start, many: int) -> None:
    daemon = start(ROOM)
    answers = await ask_at_once(daemon, ["tiny-a"] * many)
    assert all(len(same) == 1 for same in texts(answers))
    assert spawned(daemon, "tiny-a") == 1
    assert len(workers_of(daemon)) == 1


@pytest.mark.slow
async def test_all_names_of_one_folder_share_one_load(start: Start, zoo: Path) -> None:
    models = (
        f"dirs: [{zoo}]\n"
        "chains: {fast: [no-such, tiny-a]}\n"
        "models:\n"
        "  tiny-a: {aliases: [ay, first-letter]}\n"
        f"  by-path: {{path: {zoo / 'tiny-a'}}}\n"
    )
    daemon = start({**ROOM, "models": models})
    names = ["ay", "by-path", "first-letter", "tiny-a", "fast", "tiny-a:latest", "TINY-A"]
    texts(await ask_at_once(daemon, names * 8))
    assert len(workers_of(daemon)) == 1
    assert daemon.log_text().count("started, pid") == 1
    assert len(cached(daemon)) == 1


@pytest.mark.slow
async def test_the_wait_of_many_for_a_load_that_fails_ends_for_all_of_them(
    start: Start, zoo: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    for file in (zoo / "tiny-a").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"llama"', '"no-such-architecture"'))
    daemon = start({**ROOM, "models": f"dirs: [{zoo}]\nmodels: {{odd: {{path: {folder}}}}}\n"})
    answers = await ask_at_once(daemon, ["odd"] * 40)
    assert {answer.status_code for answer in answers} == {503}
    assert {answer.headers["x-mlxd-code"] for answer in answers} == {"model_load_failed"}
    assert spawned(daemon, "odd") <= 2, "many failures of one load are one failure"
