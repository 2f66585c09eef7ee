"""The short forms run from end to end and say everything; what they say is not judged here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[2]
FIGURES = (
    "tokens_per_second", "cpu_ms_per_token", "ttft_p50_ms", "ttft_p99_ms", "gap_p50_ms",
    "gap_p99_ms", "records_per_token", "held", "held_longer",
)  # fmt: skip
WHOLE_FIGURES = FIGURES[:2]


_LEFT_OUT = 3


def run(program: str, out: Path, *options: str) -> dict[str, Any]:
    """Skips where the system cannot do what the program needs."""
    command = [sys.executable, str(ROOT / "benchmarks" / program), "--out", str(out), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=230, check=False)
    if done.returncode == _LEFT_OUT:
        pytest.skip(done.stderr.splitlines()[-1])
    assert done.returncode == 0, done.stdout + done.stderr
    [report] = out.glob("*.json")
    page = report.with_suffix(".md").read_text()
    assert page in done.stdout
    found: dict[str, Any] = json.loads(report.read_text())
    return found


@pytest.mark.mlx
@pytest.mark.timeout(240)
@pytest.mark.slow
@pytest.mark.parametrize("api", ["openai", "ollama"])
def test_throughput_says_every_figure(tmp_path: Path, api: str) -> None:
    report = run(
        "throughput.py", tmp_path,
        "--api", api, "--rounds", "1", "--streams", "1", "3", "--tokens", "24", "--only", "mlxd",
    )  # fmt: skip

    found = {(row["contestant"], row["mode"], row["streams"]) for row in report["rows"]}
    assert found == {
        (name, mode, streams)
        for name, mode in (("raw", "raw"), ("mlxd", "whole"), ("mlxd", "streamed"))
        for streams in (1, 3)
    }
    for row in report["rows"]:
        expected = WHOLE_FIGURES if row["mode"] == "whole" else FIGURES
        assert {name for name in FIGURES if row[name] is not None} == set(expected)
        assert row["ratio"]["tokens_per_second"] > 0
        assert row["mode"] == "whole" or row["records_per_token"] >= 0.95
    assert report["machine"]["cores"]
    assert report["versions"]["mlxd"]
    ElementTree.parse(next(tmp_path.glob("*.svg")))


@pytest.mark.mlx
@pytest.mark.timeout(240)
@pytest.mark.slow
def test_startup_says_every_figure(tmp_path: Path) -> None:
    report = run(
        "startup.py", tmp_path,
        "--starts", "1", "--loads", "1", "--requests", "16", "--seconds", "0.5", "--idle", "1",
        "--kills", "1",
    )  # fmt: skip

    assert set(report["figures"]) == {
        "livez_seconds", "livez_cpu_seconds", "rss_start_mb", "rss_after_mb",
        "health_loading_p99_ms", "health_streaming_p99_ms", "idle_core_percent",
        "cli_status_ms", "cli_version_ms", "cli_check_ms",
        "kill_without_spare_seconds", "kill_without_spare_worst_seconds",
        "kill_with_spare_seconds", "kill_with_spare_worst_seconds",
    }  # fmt: skip
    assert all(value >= 0 for value in report["figures"].values())


@pytest.mark.mlx
@pytest.mark.timeout(240)
@pytest.mark.slow
def test_policy_latency_says_every_figure(tmp_path: Path) -> None:
    """R18 is judged by the full form."""
    report = run(
        "policy_latency.py", tmp_path,
        "--edits", "4", "--swaps", "4", "--requests", "60", "--stream", "2", "--reloads", "4",
    )  # fmt: skip

    assert {row["while"] for row in report["latency"]} == {"idle", "4 streams run"}
    assert all(row["p50_ms"] <= row["p99_ms"] <= row["max_ms"] for row in report["latency"])
    assert report["lookup_us"] > 0
    assert report["swaps"]["misfits"] == 0
    assert report["stream"]["exact"] is True


@pytest.mark.timeout(240)
@pytest.mark.slow
def test_policy_sweeps_say_every_figure(tmp_path: Path) -> None:
    run("policy_sweeps.py", tmp_path, "--points", "2", "--sets", "10", "--reloads", "10")


@pytest.mark.mlx
@pytest.mark.timeout(240)
@pytest.mark.slow
def test_two_models_that_do_not_fit_together_answer_by_turns(tmp_path: Path) -> None:
    found = run("alternate.py", tmp_path, "--short")

    assert found["failures"] == found["contended_failures"] == []
    assert (found["spawns"], found["together"]) == (found["requests"], 0)
    assert 0 < found["swap_p50"] <= found["swap_p99"] <= found["swap_max"]


@pytest.mark.mlx
@pytest.mark.timeout(240)
@pytest.mark.slow
def test_no_request_is_lost_behind_a_balancer(tmp_path: Path) -> None:
    found = run("balancers.py", tmp_path, "--short")

    assert [row["failures"] for row in found["rows"]] == [[]] * 8
    assert all((row["excused"] == 0) == (row["event"] != "kill -9") for row in found["rows"])


@pytest.mark.mlx
@pytest.mark.timeout(240)
@pytest.mark.slow
def test_nothing_is_killed_under_a_memory_limit(tmp_path: Path) -> None:
    found = run("memory_limit.py", tmp_path, "--short")

    assert (found["kernel_kills"], found["killed_in_log"]) == (0, 0)
    assert found["crashed"] == found["unexplained"] == []
    assert found["made"] == found["requests"]
    assert found["kinds"]["answered"] > found["requests"] / 2
    assert found["limit_bytes"] > 0


@pytest.mark.mlx
@pytest.mark.timeout(240)
@pytest.mark.slow
def test_load_beside_says_every_figure(tmp_path: Path) -> None:
    """Its ratio is judged by the full form."""
    found = run("load_beside.py", tmp_path, "--short")

    assert found["loads"] >= 1
    assert min(found["gaps_alone"], found["gaps_loading"]) > 0
    assert 0 <= found["step_p50"] <= found["alone_p99"] <= found["alone_max"]
    assert found["ratio_p99"] > 0


@pytest.mark.mlx
@pytest.mark.timeout(240)
@pytest.mark.slow
def test_groups_says_every_figure(tmp_path: Path) -> None:
    """Its times are judged by the full form."""
    found = run("groups.py", tmp_path, "--short")

    for part in ("engine", "daemon"):
        assert min(found[part][load] for load in ("short", "long", "together", "ratio")) > 0
    assert found["engine"]["groups"] == 2
    assert found["engine"]["padded_bytes"] > 3 * found["engine"]["bytes"]


@pytest.mark.mlx
@pytest.mark.timeout(240)
@pytest.mark.slow
@pytest.mark.parametrize("faults", [4, 20])
def test_streams_survive_the_faults_of_their_workers(tmp_path: Path, faults: int) -> None:
    """Its times are judged by the full form."""
    options = ("--short", "--faults", str(faults), "--family", "full", "hybrid")
    found = run("faults.py", tmp_path, *options)

    assert found["faults"] == faults
    assert all(row["faults"] == faults // 4 for row in found["by_kind"].values())
    assert found["interrupted"]["count"] > 0
    for met in ("interrupted", "late", "calm"):
        assert found[met]["wrong"] == found[met]["else"] == 0
    assert found["calm"]["exact"] == found["calm"]["count"] > 0
    assert min(found["gaps_quiet"], found["gaps_beside"], found["polls"]) > 0


@pytest.mark.mlx
@pytest.mark.timeout(240)
@pytest.mark.slow
def test_nothing_is_left_of_requests_reloads_and_kills(tmp_path: Path) -> None:
    """How memory grows is judged by the full form."""
    found = run("soak.py", tmp_path, "--short")

    assert (found["requests"], found["reloads"]) == (60, 60)
    assert found["rate_refused"] == found["rate_expected"] > 0
    assert sum(found["kills"].values()) > 0
    assert sum(found["came"].values()) == 60
    assert found["misses"] == []


@pytest.mark.mlx
@pytest.mark.timeout(240)
@pytest.mark.slow
def test_what_a_grammar_costs_is_said(tmp_path: Path) -> None:
    """The ratio is judged by the full form."""
    found = run("grammar.py", tmp_path, "--short")

    assert {(row["schema"], row["streams"]) for row in found["rows"]} >= {("long text", 1)}
    assert all(row["free_ms"] > 0 and row["ratio"] > 0 for row in found["rows"])


@pytest.mark.mlx
@pytest.mark.timeout(240)
@pytest.mark.slow
def test_answers_that_end_are_what_their_schemas_ask_for(tmp_path: Path) -> None:
    found = run("schemas.py", tmp_path, "--short")

    [row] = found["rows"]
    assert (row["answers"], row["refused"], row["invalid"]) == (16, 0, 0)
    assert row["share"] >= 0.95


@pytest.mark.mlx
@pytest.mark.timeout(240)
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs the whole of 127.0.0.0/8 for clients")
def test_recorded_traffic_is_simulated_as_it_was(tmp_path: Path) -> None:
    """Exit status 1 would say that it is not."""
    found = run("simulation.py", tmp_path, "--short")

    assert found["requests"] > 10
    assert found["was"]["rate"] == found["simulated"]["rate"]
    assert found["problems"] == []


@pytest.mark.mlx
@pytest.mark.timeout(240)
@pytest.mark.slow
def test_drafts_are_timed_and_change_nothing(tmp_path: Path) -> None:
    """Exit status 1 would say that they do."""
    found = run("drafts.py", tmp_path, "--short")

    assert len(found["rows"]) == 6
    assert all(row["same"] for row in found["rows"])
    always = [row for row in found["rows"] if row["agree"] == "always"]
    assert all(row["drafted"] == row["accepted"] > 0 for row in always)


@pytest.mark.mlx
@pytest.mark.timeout(240)
@pytest.mark.slow
def test_those_who_wait_are_told_and_served(tmp_path: Path) -> None:
    """What they cost is judged by the full form."""
    found = run("waiting.py", tmp_path, "--short")

    assert (found["streams"], found["left"], found["served"]) == (30, 3, 27)
    assert found["health"]["waiting"]["asked"] > 0


@pytest.mark.mlx
@pytest.mark.timeout(240)
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["429", "503"])
def test_streams_beside_refusals_are_measured(tmp_path: Path, kind: str) -> None:
    """What they keep of their speed is judged by the full form."""
    found = run("refusals.py", tmp_path, "--short", "--kind", kind)

    assert [window["kind"] for window in found["windows"]] == ["quiet", "flood", "quiet", "few"]
    assert set(found["windows"][1]["flood"]["statuses"]) == {kind}
    assert found["daemon_us_per_refusal"] > 0
    assert len(found["ratios"]) == 1


@pytest.mark.mlx
@pytest.mark.timeout(240)
@pytest.mark.slow
def test_a_refusal_in_a_flood_costs_a_small_part_of_an_ordinary_one(tmp_path: Path) -> None:
    found = run("request_cost.py", tmp_path, "--requests", "200")

    assert set(found["kinds"]) == {"200", "429", "503"}
    for kind in ("429", "503"):
        for costs in found["kinds"][kind].values():
            assert costs["flood"] < costs["ordinary"] / 3


def test_how_near_a_guessed_key_came_is_measured(tmp_path: Path) -> None:
    """Whether that can be told is judged by the full form, where nothing else runs."""
    found = run("key_timing.py", tmp_path, "--short", "--keys", "50")
    for one in found["rounds"]:
        assert set(one["median_ns"]) == {"far", "half", "near", "right"}
        assert all(0 <= p <= 1 for p in one["p"].values())
    assert set(found["told_apart"]) == {"half", "near"}


@pytest.mark.mlx
@pytest.mark.timeout(240)
@pytest.mark.slow
def test_steady_says_what_stays_behind(tmp_path: Path) -> None:
    found = run("steady.py", tmp_path, "--short")
    assert [one["requests"] for one in found["looks"]][-1] == 160
    assert all(one["daemon"] > 10 and one["worker"] > 10 for one in found["looks"])
    assert {"daemon_slope", "worker_slope"} <= set(found)


@pytest.mark.mlx
@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("count", [60, 500])
def test_wrong_requests_disturb_nobody(tmp_path: Path, count: int) -> None:
    found = run("bad_requests.py", tmp_path, "--short", "--requests", str(count))
    assert found["requests"] >= count
    assert found["streams"] > 4
    assert found["problems"] == []
    kinds = found["statuses"]
    assert len(kinds) == 8
    refused = {"400", "403", "404", "405", "413", "415"}
    assert all(refused & {*kinds[kind]} or kind == "cut off" for kind in kinds), kinds


@pytest.mark.slow
def test_whoever_asks_is_answered_beside_slow_clients(tmp_path: Path) -> None:
    """Its times are judged by the full form."""
    found = run("slow.py", tmp_path, "--short", "--modes", "H", "B")

    assert [row["mode"] for row in found["rows"]] == ["H", "B"]
    for row in found["rows"]:
        assert row["failures"] == []
        assert row["asked"] > 0
        assert row["most_at_once"] > 256


@pytest.mark.mlx
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_contract_says_what_each_operation_answered(tmp_path: Path) -> None:
    found = run("contract.py", tmp_path, "--short", "--only", "/v1/models")
    asked = {row["operation"]: row["statuses"] for row in found["rows"]}
    assert set(asked) == {
        f"{method} /v1/models{rest}" for method in ("GET", "HEAD") for rest in ("", "/{id}")
    }
    assert all("200" in statuses for statuses in asked.values())
    assert found["problems"] == []


@pytest.mark.mlx
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_watchers_are_there_while_their_cost_is_measured(tmp_path: Path) -> None:
    found = run("watchers.py", tmp_path, "--short")
    assert min(found["asked"].values()) > 0
    assert 0 < found["alone"] < 1
    assert 0 < found["watched"] < 1
    assert found["problems"] == []


@pytest.mark.mlx
@pytest.mark.timeout(240)
@pytest.mark.slow
def test_calls_really_fail_and_cost_nobody_an_answer(tmp_path: Path) -> None:
    found = run("syscalls.py", tmp_path, "--short")

    assert len(found["cases"]) == 3
    assert all(failed > 0 and came["exact"] > 0 for _, failed, came, *_ in found["cases"])
    assert found["problems"] == []


def test_calls_are_not_said_to_have_failed_where_none_may_be_traced(tmp_path: Path) -> None:
    strace = tmp_path / "strace"
    strace.write_text("#!/bin/sh\necho Operation not permitted >&2\nexit 1\n")
    strace.chmod(0o755)
    command = [sys.executable, str(ROOT / "benchmarks" / "syscalls.py"), "--only", "no such case"]
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    assert subprocess.run(command, env=environment, check=False).returncode == _LEFT_OUT
