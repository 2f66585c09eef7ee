"""Several models: one load for all, one copy per folder, who is evicted, what `default` is."""

from __future__ import annotations

import json
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Lend
from tests.integration.talking import (
    AT_ONCE,
    ENDLESS,
    ask,
    body_for,
    cached,
    eventually,
    generate,
    held,
    idle,
    say,
    spawned,
    unload,
    workers_of,
)
from tests.support import model_maker
from tests.support.daemon import Daemon

pytestmark = pytest.mark.mlx

GUIDE = "mlxd-guide"


def _tags(daemon: Daemon) -> dict[str, Any]:
    models = daemon.http.get("/api/tags").json()["models"]
    return {tag["name"].removesuffix(":latest"): tag for tag in models}


def _meaning(daemon: Daemon, name: str) -> str:
    """The model that a name stands for."""
    shown = daemon.http.post("/api/show", json={"model": name}).json()
    return str(shown["model_info"]["general.basename"])


@pytest.mark.slow
def test_fifty_requests_on_a_cold_model_load_it_once(start: Any) -> None:
    daemon: Daemon = start()
    body = generate("tiny-a", "herd", tokens=3)
    with ThreadPoolExecutor(50) as pool:
        texts = {a["response"] for a in pool.map(lambda _: ask(daemon, body), range(50))}
    assert len(texts) == 1
    assert spawned(daemon, "tiny-a") == 1
    assert cached(daemon)["tiny-a"]["use_count"] == 50
    assert len(daemon.workers()) == 1


@pytest.mark.slow
def test_two_models_answer_side_by_side_from_workers_of_their_own(served: Daemon) -> None:
    alone = {model: say(served, model, "two", tokens=30) for model in ("tiny-b", ENDLESS)}
    assert alone["tiny-b"] != alone[ENDLESS]
    names = ["tiny-b", ENDLESS] * 4
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda model: say(served, model, "two", tokens=30), names))
    assert texts == [alone[name] for name in names]
    pids = workers_of(served)
    assert pids["tiny-b"] != pids[ENDLESS]


@pytest.mark.slow
def test_a_link_and_an_alias_share_the_worker_of_their_folder(
    start: Any, models: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "linked"
    folder.mkdir()
    (folder / "real").symlink_to(models / "tiny-a")
    (folder / "other-name").symlink_to(models / "tiny-a")
    policy = f"dirs: [{folder}]\nmodels:\n  real: {{aliases: [nick]}}\n"
    daemon: Daemon = start({"models": policy})
    texts = {say(daemon, name, "one", tokens=10) for name in ("real", "other-name", "nick", "NICK")}
    assert len(texts) == 1
    assert len(daemon.workers()) == 1


@pytest.mark.slow
def test_the_least_recently_used_is_evicted_and_one_in_use_never(start: Any, zoo: Path) -> None:
    daemon: Daemon = start({"models": f"dirs: [{zoo}]\nmax_loaded: 1\n", "memory": AT_ONCE})
    say(daemon, "tiny-a", "x", tokens=2)
    with held(daemon) as stream:
        assert set(cached(daemon)) == {ENDLESS}, "the idle one made room"
        for path in ("/api/generate", "/v1/chat/completions"):
            refused = daemon.http.post(path, json=body_for(path, "tiny-b", "x", tokens=2))
            assert refused.status_code == 503
            assert refused.headers["x-mlxd-code"] == "models_busy"
            assert "models.max_loaded" in refused.text
            assert "models.yaml:3" in refused.text
            assert int(refused.headers["retry-after"]) >= 1
        stream.read(3)
        assert set(cached(daemon)) == {ENDLESS}
    idle(daemon)
    say(daemon, "tiny-b", "x", tokens=2)
    assert set(cached(daemon)) == {"tiny-b"}
    assert len(daemon.workers()) == 1


@pytest.mark.slow
def test_of_two_idle_models_the_one_used_longer_ago_goes(start: Any, zoo: Path) -> None:
    daemon: Daemon = start({"models": f"dirs: [{zoo}]\nmax_loaded: 2\n", "memory": AT_ONCE})
    for model in ("tiny-a", "tiny-b", "tiny-a"):
        say(daemon, model, "x", tokens=2)
    say(daemon, ENDLESS, "x", tokens=2)
    assert set(cached(daemon)) == {"tiny-a", ENDLESS}
    assert set(workers_of(daemon)) == {"tiny-a", ENDLESS}


@pytest.mark.slow
def test_an_idle_model_is_unloaded_after_the_time_that_policy_gives(start: Any, zoo: Path) -> None:
    policy = f"dirs: [{zoo}]\ndefaults: {{ttl: 300ms}}\nmodels: {{tiny-b: {{ttl: never}}}}\n"
    daemon: Daemon = start({"models": policy})
    say(daemon, "tiny-b", "x", tokens=2)
    with held(daemon) as stream:
        stream.read(200)
        assert ENDLESS in cached(daemon), "a model in use has no idle time"
    eventually(lambda: set(cached(daemon)) == {"tiny-b"}, "the idle one is unloaded")
    eventually(lambda: len(daemon.workers()) == 1, "its worker is gone")


@pytest.mark.slow
def test_a_request_that_comes_while_its_model_unloads_is_served(served: Daemon) -> None:
    say(served, "tiny-b", "x", tokens=1)
    served.http.post("/api/generate", json={"model": "tiny-b", "keep_alive": 0})
    assert say(served, "tiny-b", "x", tokens=1)


@pytest.mark.slow
def test_default_is_the_first_model_by_name_and_stays_until_it_disappears(
    start: Any, models: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "growing"
    folder.mkdir()
    shutil.copytree(models / "tiny-b", folder / "middle")
    daemon: Daemon = start({"models": f"dirs: [{folder}]\n"})
    eventually(lambda: daemon.health()["default_model"] == "middle", "middle is the default")
    shutil.copytree(models / "tiny-a", folder / "first")
    eventually(lambda: "first" in _tags(daemon), "the new folder is listed")
    assert daemon.health()["default_model"] == "middle"
    assert _meaning(daemon, "default") == "middle"
    shutil.rmtree(folder / "middle")
    eventually(lambda: "middle" not in _tags(daemon), "the folder is gone")
    assert daemon.health()["default_model"] == "first"


@pytest.mark.slow
def test_a_new_folder_is_served_without_a_restart(start: Any, models: Path, tmp_path: Path) -> None:
    folder = tmp_path / "growing"
    folder.mkdir()
    daemon: Daemon = start({"models": f"dirs: [{folder}]\n"})
    assert list(_tags(daemon)) == [GUIDE]
    assert daemon.health()["default_model"] == GUIDE
    shutil.copytree(models / "tiny-a", folder / "late")

    def served() -> bool:
        body = generate("late", "x", tokens=2)
        return daemon.http.post("/api/generate", json=body).status_code == 200

    eventually(served, "the new model answers")
    assert list(_tags(daemon)) == ["late", GUIDE]
    assert daemon.health()["default_model"] == "late"


def test_a_declared_chain_is_what_default_means(served: Daemon) -> None:
    assert _meaning(served, "default") == "tiny-b"
    assert say(served, "default", "x", tokens=4) == say(served, "tiny-b", "x", tokens=4)
    empty = served.http.post("/api/generate", json=generate("reasoning", "x", tokens=2))
    assert empty.status_code == 404
    assert "models.chains.reasoning" in empty.json()["error"]


def test_health_names_what_a_declared_chain_makes_the_default(served: Daemon) -> None:
    assert served.health()["default_model"] == "tiny-b"


@pytest.mark.slow
def test_models_are_found_one_folder_deeper_and_by_their_last_name(
    start: Any, models: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "hub"
    (folder / "someone").mkdir(parents=True)
    (folder / "someone" / "nice").symlink_to(models / "tiny-a")
    daemon: Daemon = start({"models": f"dirs: [{folder}]\n"})
    assert "someone/nice" in _tags(daemon)
    assert _meaning(daemon, "nice") == "someone/nice"
    assert daemon.http.get("/v1/models/someone/nice").json()["id"] == "someone/nice"
    assert daemon.http.get("/v1/models/someone%2Fnice").status_code == 200


def test_mlxd_models_names_folders_too(start: Any, models: Path) -> None:
    daemon: Daemon = start({"models": "max_loaded: 1\n"}, environment={"MLXD_MODELS": str(models)})
    assert {"tiny-a", "tiny-b"} <= set(_tags(daemon))


def _break_files(folder: Path, whole: Path) -> None:
    """More models, each with one file that is not what its name says."""
    names = ("overlap", "missing-shard", "pipe", "looped-file", "dangling-blob", "short-by-one")
    for name in (*names, "needs-code", "changed-bytes"):
        shutil.copytree(whole, folder / name)
    weights = {name: folder / name / "model.safetensors" for name in names}
    raw = weights["overlap"].read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    moved = re.sub(rb'"data_offsets":\[[1-9]', rb'"data_offsets":[0', raw[8:end], count=1)
    weights["overlap"].write_bytes(raw[:8] + moved + raw[end:])
    index = {"weight_map": {"w": "model.safetensors", "x": "model-00002-of-00002.safetensors"}}
    (folder / "missing-shard" / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in ("pipe", "looped-file", "dangling-blob"):
        weights[name].unlink()
    os.mkfifo(weights["pipe"])
    weights["looped-file"].symlink_to("model.safetensors")
    weights["dangling-blob"].symlink_to("../blobs/gone")
    weights["short-by-one"].write_bytes(raw[:-1])
    config = folder / "needs-code" / "config.json"
    config.write_text(config.read_text().replace("{", '{"model_file": "own.py",', 1))
    (folder / "needs-code" / "own.py").touch()
    (folder / "changed-bytes" / "SHA256SUMS").write_text(f"{'0' * 64}  model.safetensors\n")
    (folder / "a-gguf").mkdir()
    (folder / "a-gguf" / "x.gguf").touch()


@pytest.fixture
def broken(models: Path, tmp_path: Path) -> Path:
    """A folder with one good model and one of each kind of broken ones."""
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "good").symlink_to(models / "tiny-a")
    (folder / "dangling").symlink_to(tmp_path / "not-there")
    for name in ("truncated", "no-config", "bad-config", "huge-header", "no-weights", "odd-type"):
        shutil.copytree(models / "tiny-a", folder / name)
    weights = folder / "truncated" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    (folder / "no-config" / "config.json").unlink()
    (folder / "bad-config" / "config.json").write_text("{")
    header = folder / "huge-header" / "model.safetensors"
    header.write_bytes((2**62).to_bytes(8, "little") + b"{}")
    (folder / "no-weights" / "model.safetensors").unlink()
    _break_files(folder, models / "tiny-a")
    config = folder / "odd-type" / "config.json"
    config.write_text(config.read_text().replace('"llama"', '"no-such-architecture"'))
    return folder


UNAVAILABLE = [
    *("truncated", "no-config", "bad-config", "huge-header", "no-weights", "dangling", "overlap"),
    *("missing-shard", "pipe", "looped-file", "dangling-blob", "short-by-one", "needs-code"),
    "a-gguf",
]


@pytest.mark.slow
def test_broken_folders_are_listed_as_unavailable_and_the_others_work(
    start: Any, broken: Path
) -> None:
    patient = "first_byte: 60s\n"  # a stream's status line waits for the load, however slow
    daemon: Daemon = start({"models": f"dirs: [{broken}]\n", "timeouts": patient})
    tags = _tags(daemon)
    for name in UNAVAILABLE:
        assert tags[name]["unavailable"], name
        assert str(broken) not in tags[name]["unavailable"]
        refused = daemon.http.post("/api/generate", json=generate(name, "x", tokens=2))
        assert refused.status_code == 503, name
        assert refused.headers["x-mlxd-code"] == "model_load_failed"
        assert str(broken) not in refused.text
    warnings = "\n".join(daemon.health()["warnings"])
    told = sum(f"model {name} is unavailable" in warnings for name in UNAVAILABLE[:-1])
    more = len(UNAVAILABLE) - 1 - told
    assert told == 10
    assert f"{more} more models are unavailable" in warnings
    assert "a-gguf" not in warnings, "nothing is wrong with it"
    listed = [model["id"] for model in daemon.http.get("/v1/models").json()["data"]]
    assert "good" in listed
    assert not set(UNAVAILABLE) & set(listed)
    assert not daemon.workers(), "a broken model was given to a worker"
    assert say(daemon, "good", "x", tokens=3)
    assert say(daemon, "changed-bytes", "x", tokens=3), "no policy asks for every byte"
    for path in ("/api/generate", "/v1/chat/completions"):
        body = body_for(path, "odd-type", "x", tokens=2) | {"stream": True}
        refused = daemon.http.post(path, json=body)
        assert refused.status_code == 503, "a failed load has a status of its own"
        assert refused.headers["x-mlxd-code"] == "model_load_failed"
        assert "Traceback" not in refused.text
        assert str(broken) not in refused.text
    assert say(daemon, "good", "x", tokens=3)


@pytest.mark.slow
def test_where_policy_wants_every_byte_checked_a_changed_one_is_not_loaded(
    start: Any, broken: Path
) -> None:
    policy = f"dirs: [{broken}]\ndefaults: {{verify: sha256}}\n"
    daemon: Daemon = start({"models": policy})
    refused = daemon.http.post("/api/generate", json=generate("changed-bytes", "x", tokens=2))
    assert refused.status_code == 503
    assert "recorded checksum" in refused.json()["error"]
    assert "recorded checksum" in _tags(daemon)["changed-bytes"]["unavailable"]
    assert not daemon.workers()
    assert say(daemon, "good", "x", tokens=3)


def _hub_cache(root: Path, repository: str, model: Path) -> None:
    """As huggingface_hub lays out one revision: its files are links to blobs."""
    folder = root / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0123abcd")
    (folder / "blobs").mkdir()
    for number, file in enumerate(sorted(model.iterdir())):
        shutil.copy(file, folder / "blobs" / f"{number}")
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")


@pytest.mark.slow
def test_names_as_people_type_them_are_served(start: Any, models: Path, tmp_path: Path) -> None:
    """A short name, a hub's cache, aliases with `*`, and what two models could mean."""
    folder, hub = tmp_path / "mine", tmp_path / "hub"
    folder.mkdir()
    for size in ("1B", "3B"):
        (folder / f"Tiny-Llama-{size}-Instruct-4bit").symlink_to(models / "tiny-a")
    (folder / "Tiny-Llama-3B-Instruct-8bit").symlink_to(models / "tiny-b")
    _hub_cache(hub, "some-org/Small-Coder-0.5B-Instruct-8bit", models / "tiny-b")
    policy = (
        f"dirs: [{folder}, {hub}]\nmodels:\n"
        "  'tiny-llama:1b': {aliases: ['claude-*'], sampling: {temperature: 0, top_k: 5}}\n"
        "chains: {coding: ['small-coder:0.5b']}\n"
    )
    daemon: Daemon = start({"models": policy})
    first = say(daemon, "Tiny-Llama-1B-Instruct-4bit", "one", tokens=8)
    other = say(daemon, "some-org/Small-Coder-0.5B-Instruct-8bit", "one", tokens=8)
    assert first != other
    for name in ("tiny-llama:1b", "claude-opus-4.5", "TinyLlama:1b"):
        assert say(daemon, name, "one", tokens=8) == first, name
    for name in ("small-coder:0.5b", "small-coder", "coding"):
        assert say(daemon, name, "one", tokens=8) == other, name
    assert len(daemon.workers()) == 2
    for path in ("/api/generate", "/v1/chat/completions"):
        body = body_for(path, "tiny-llama:3b", "x", tokens=2)
        refused = daemon.http.post(path, json=body)
        assert refused.status_code == 404
        both = "Tiny-Llama-3B-Instruct-4bit or Tiny-Llama-3B-Instruct-8bit"
        assert both in refused.text
    shown = daemon.http.post("/api/show", json={"model": "claude-x"}).json()
    assert (shown["short_name"], shown["aliases"]) == ("tiny-llama:1b", ["claude-*"])
    assert shown["source"] == "folder"
    assert "top_k" in shown["parameters"]
    told = daemon.http.get("/api/models/small-coder:0.5b")
    assert (told.json()["path"], told.json()["source"]) == (
        "Small-Coder-0.5B-Instruct-8bit",
        "huggingface",
    )
    assert str(tmp_path) not in told.text
    assert str(tmp_path) not in str(shown)


@pytest.mark.slow
def test_sampling_that_policy_gives_a_model_counts_where_a_request_says_nothing(
    start: Any, zoo: Path
) -> None:
    policy = f"dirs: [{zoo}]\nmodels: {{tiny-b: {{sampling: {{temperature: 0}}}}}}\n"
    daemon: Daemon = start({"models": policy})
    greedy = say(daemon, "tiny-b", "same", tokens=24)
    body = {"model": "tiny-b", "prompt": "same", "options": {"num_predict": 24}}
    assert ask(daemon, body)["response"] == greedy
    hot = body | {"options": {"num_predict": 24, "temperature": 50, "seed": 1}}
    assert ask(daemon, hot)["response"] != greedy, "the client's word comes first"


@pytest.mark.slow
def test_a_truncated_folder_can_be_used_once_it_is_whole(
    start: Any, broken: Path, models: Path
) -> None:
    daemon: Daemon = start({"models": f"dirs: [{broken}]\n"})
    assert _tags(daemon)["truncated"]["unavailable"]
    whole = models / "tiny-a" / "model.safetensors"
    shutil.copyfile(whole, broken / "truncated" / "model.safetensors")

    def usable() -> bool:
        return "unavailable" not in _tags(daemon)["truncated"]

    eventually(usable, "the mended model can be used")


@pytest.mark.slow
def test_weights_that_are_replaced_are_loaded_once_the_old_ones_have_left(
    start: Any, models: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(models / "tiny-a", tmp_path / "dir" / "m"))
    other = model_maker.make_model(tmp_path / "other", seed=9)
    daemon: Daemon = start({"models": f"dirs: [{folder.parent}]\n"})
    options = {"num_predict": 24, "temperature": 0}
    body = {"model": "m", "prompt": "same", "options": options}

    def warned() -> bool:
        daemon.http.get("/api/tags")
        return any("m is served as it was loaded" in told for told in daemon.health()["warnings"])

    before = ask(daemon, body)["response"]
    assert not warned()
    (other / "model.safetensors").replace(folder / "model.safetensors")
    eventually(warned, "it is told")
    assert ask(daemon, body)["response"] == before
    for worker in daemon.workers():
        os.kill(worker.pid, 9)
    assert ask(daemon, body)["response"] != before
    assert not warned()


@pytest.mark.slow
def test_a_link_that_leads_to_itself_hides_no_other_model(
    start: Any, models: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "looped"
    folder.mkdir()
    (folder / "good").symlink_to(models / "tiny-a")
    (folder / "looping").symlink_to(folder / "looping")
    daemon: Daemon = start({"models": f"dirs: [{folder}]\n"})
    tags = _tags(daemon)
    assert "good" in tags
    assert tags["looping"]["unavailable"]


def test_a_folder_that_may_not_be_read_hides_no_other_model(
    start: Any, models: Path, tmp_path: Path
) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    folder = tmp_path / "guarded"
    folder.mkdir()
    (folder / "good").symlink_to(models / "tiny-a")
    shutil.copytree(models / "tiny-b", folder / "closed")
    (folder / "closed").chmod(0)
    try:
        tags = _tags(start({"models": f"dirs: [{folder}]\n"}))
    finally:
        (folder / "closed").chmod(0o700)
    assert "unavailable" not in tags["good"]
    assert tags["closed"]["unavailable"]


def test_code_in_a_models_folder_is_never_run(lend: Lend, models: Path, tmp_path: Path) -> None:
    folder = tmp_path / "coded"
    shutil.copytree(models / "tiny-a", folder / "coded")
    ran = tmp_path / "ran"
    (folder / "coded" / "model.py").write_text(f"open({str(ran)!r}, 'w')\n")
    config = folder / "coded" / "config.json"
    extra = '{"model_file": "model.py", "auto_map": {"AutoTokenizer": "model.X"},'
    config.write_text(config.read_text().replace("{", extra, 1))
    daemon = lend({"models": f"dirs: [{folder}]\n"})
    daemon.http.post("/api/generate", json=generate("coded", "x", tokens=2))
    assert not ran.exists()
    assert daemon.http.get("/livez").status_code == 200


def change(daemon: Daemon, models: str) -> None:
    daemon.edit("models", models)
    daemon.reload()


@pytest.mark.slow
def test_a_model_is_drafted_for_or_says_why_not_and_answers_the_same(
    start: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "drafts"
    for name in ("large", "small"):
        model_maker.make_model(folder / name, model_maker.Shape(spread=3.0))
    model_maker.make_model(folder / "hybrid", model_maker.HYBRID)
    dirs = f"dirs: [{folder}]\nmodels: {{large: "
    daemon: Daemon = start({"models": f"{dirs}{{}}}}\n"})
    plain = say(daemon, "large", "hello", tokens=60)
    change(daemon, f"{dirs}{{draft: small, draft_tokens: 4}}}}\n")
    assert say(daemon, "large", "hello", tokens=60) == plain
    metrics = daemon.http.get("/metrics").text
    drafted = re.search(r'mlxd_draft_tokens_total\{kind="accepted",model="large"\} (\d+)', metrics)
    assert drafted is not None
    assert int(drafted[1]) > 30
    change(daemon, f"{dirs}{{draft: hybrid}}}}\n")
    assert say(daemon, "large", "hello", tokens=60) == plain
    warnings = daemon.http.get("/health").json()["warnings"]
    assert any("no model drafts for large" in words for words in warnings), warnings
    change(daemon, f"{dirs}{{draft: nobody}}}}\n")
    assert say(daemon, "large", "hello", tokens=60) == plain


@pytest.mark.slow
def test_requests_for_a_model_whose_caches_do_not_merge_take_turns(
    start: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "serial"
    model_maker.make_model(folder / "serial", model_maker.UNMERGEABLE)
    daemon: Daemon = start({"models": f"dirs: [{folder}]\n"})
    alone = [say(daemon, "serial", f"n{n}", tokens=12) for n in range(3)]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda n: say(daemon, "serial", f"n{n}", tokens=12), range(3)))
    assert together == alone
    assert "cannot be batched" in daemon.log_text()


def test_unloading_waits_for_the_streams_that_run(served: Daemon) -> None:
    say(served, "tiny-b", "x", tokens=1)
    body = generate("tiny-b", "unloaded meanwhile", tokens=60)
    expected = ask(served, body)["response"]
    with held(served, "tiny-b", "unloaded meanwhile", tokens=60) as stream:
        served.http.post("/api/generate", json={"model": "tiny-b", "keep_alive": 0})
        found = stream.rest()
    assert found[-1]["done"] is True
    assert stream.text == expected
    eventually(lambda: "tiny-b" not in cached(served), "tiny-b is unloaded")
    unload(served, "tiny-b")
