"""Test files run on a virtual clock: what fails is found, and where."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from mlxd.control.admission import Admission
from mlxd.control.applicant import Applicant
from mlxd.core.caller import Caller
from mlxd.core.clock import ManualClock
from mlxd.core.errors import MlxdError
from mlxd.policy import files, strict_yaml
from mlxd.policy.load import PolicyErrors, load
from mlxd.policy.strict_yaml import parts
from mlxd.server.errors import error_response, in_ollama
from mlxd.simulate.cases import read
from mlxd.simulate.harness import run, run_case
from mlxd.simulate.layers import Layers
from mlxd.simulate.report import Report, Result

SHIPPED = Path(__file__).parent.parent.parent / "policies"
TESTS = SHIPPED / "tests"


def told(tmp_path: Path, steps: str, before: str = "") -> Result:
    """The result of one test with these steps, in line 5 and on, against the built-in defaults."""
    file = tmp_path / "t.yaml"
    file.write_text(
        f"schema: mlxd-test/v1\ntests:\n- name: x\n  {before}\n  steps:\n{steps}", encoding="utf-8"
    )
    report = run(None, paths=[file])
    assert report.errors == ()
    return report.results[0]


def failed(tmp_path: Path, steps: str, before: str = "") -> str:
    """As `LINE: expected ..., got ...`."""
    failure = told(tmp_path, steps, before).failure
    assert failure is not None
    return f"{failure.place.line}: expected {failure.expected}, got {failure.got}"


def changed(folder: Path, changes: dict[str, Any]) -> Path:
    """The shipped policies with changes put over them, tests beside them."""
    shutil.copytree(SHIPPED, folder)
    layers = Layers(files.read(folder)).over(changes)
    layers.judged()
    for name, raw in layers.files.contents.items():
        (folder / name).write_bytes(raw)
    return folder


def test_the_shipped_policies_pass_the_shipped_tests() -> None:
    report = run(SHIPPED)
    assert [str(result) for result in report.failed] == []
    assert report.exit_status == 0
    assert len(report.results) >= 20
    assert report.uncovered == []


def test_the_built_in_defaults_pass_them_too() -> None:
    assert run(None, paths=[TESTS]).exit_status == 0


@pytest.mark.parametrize(
    ("limits", "line", "got"),
    [
        ({"concurrency": {"max_in_flight": 6}}, "status: 503", "200"),
        ({"concurrency": {"max_in_flight": 4}}, "expect: {running: 5}", "503 (overloaded"),
        ({"concurrency": {"mode": "off"}}, "status: 503", "200"),
        ({"rate_limit": [{"requests": 31}]}, "status: 429", "200"),
        ({"rate_limit": [{"requests": 29}]}, "call: {n: 30, every: 1s, ip: 10.0.0.1}", "429 ("),
        ({"rate_limit": [{"window": "61s"}]}, "message: Rate limit exceeded", "Rate limit"),
        ({"rate_limit": []}, "status: 429", "200"),
        ({"rate_limit": [{"mode": "dry_run"}]}, "status: 429", "200"),
    ],
)
def test_a_policy_that_differs_is_found(
    tmp_path: Path, limits: dict[str, Any], line: str, got: str
) -> None:
    report = run(changed(tmp_path / "p", {"limits": limits}))
    lines = (TESTS / "admission.yaml").read_text().splitlines()
    failure = report.failed[0].failure
    assert report.exit_status == 1
    assert failure is not None
    assert lines[failure.place.line - 1].strip(" -").startswith(line)
    assert failure.got.startswith(got)


def checked() -> dict[str, Any]:
    """Every policy of defaults.yaml."""
    data = strict_yaml.parse((TESTS / "defaults.yaml").read_bytes()).data
    assert data is not None
    steps = [step for test in data["tests"] for step in test["steps"]]
    return {key: value for step in steps for key, value in step["check"].items()}


OTHERS = (7, "7s", "2h", "96%", "84%", "99%", "dry_run", "localhost", ["x"], "lfu")


def nested(path: tuple[str | int, ...], value: Any) -> Any:
    for part in reversed(path):
        value = [value] if isinstance(part, int) else {part: value}
    return value


@pytest.mark.parametrize("key", checked())
def test_every_default_is_watched(key: str) -> None:
    case_file = TESTS / "defaults.yaml"
    for other in OTHERS:
        layers = Layers(files.read(SHIPPED)).over(nested(parts(key), other))
        try:
            policies = layers.judged()
        except PolicyErrors:
            continue
        results = [run_case(case, layers, policies) for case in read(case_file)]
        failures = [result.failure for result in results if result.failure is not None]
        assert len(failures) == 1
        line = case_file.read_text().splitlines()[failures[0].place.line - 1]
        assert line.strip().startswith(f"{key}: ")
        return
    assert key == "memory.eviction.strategy"  # there is no other one


def test_what_was_expected_and_what_came_stand_in_one_line(tmp_path: Path) -> None:
    assert failed(tmp_path, "  - start: {n: 6}\n") == (
        "6: expected status 200, got 503 (overloaded: Server overloaded. Max 5 concurrent requests"
        " (server busy, please try again)), request 6 of 6"
    )
    assert failed(
        tmp_path,
        "  - start: {n: 5}\n"
        "  - start: {}\n"
        "    expect:\n"
        "      status: 503\n"
        "      policy: limits.rate_limit[0].requests\n",
    ).startswith(
        '10: expected policy "limits.rate_limit[0].requests",'
        " got limits.concurrency.max_in_flight (overloaded:"
    )
    steps = "  - start: {n: 2}\n  - {at: 5s, end: {}, expect: {running: 2}}\n"
    assert failed(tmp_path, steps) == "7: expected running 2, got 1"


@pytest.mark.parametrize(
    ("steps", "wrong"),
    [
        ("  - {end: {n: 1}}\n", "6: expected 1 running to be ended, got 0"),
        (
            "  - {start: {ip: 10.0.0.1}}\n  - {end: {n: 1, ip: 10.0.0.2}}\n",
            "7: expected 1 running to be ended, got 0",
        ),
        ("  - check: {timeouts.generation: 6m}\n", "6: expected 6m, got 300s"),
        (
            '  - check: {"limits.concurrency.per_model[small]": 1}\n',
            "6: expected 1, got null",
        ),
        (
            "  - edit: {limits: {concurrency: {max_in_fligt: 1}}}\n",
            "6: expected refused false, got true (limits.concurrency.max_in_fligt: unknown key;"
            " did you mean max_in_flight?)",
        ),
        (
            "  - edit: {limits: {concurrency: {max_in_flight: 1}}}\n    expect: {refused: true}\n",
            "7: expected refused true, got false",
        ),
        (
            "  - memory: {used: 96%, loaded: {a: idle, b: idle}}\n    expect: {evicted: [b]}\n",
            "7: expected evicted [b], got [a]",
        ),
        (
            "  - memory: {used: 96%, frees: 50%, loaded: {a: idle, b: idle}}\n"
            "    expect: {evicted: [a], loads: blocked}\n",
            "7: expected loads blocked, got allowed",
        ),
        ("  - memory: 85%\n    expect: {health: healthy}\n", "7: expected health healthy, got wa"),
        ("  - memory: 99%\n    expect: {admission: open}\n", "7: expected admission open, got st"),
        (
            "  - start: {n: 2}\n  - memory: 99%\n    expect: {running: 2}\n",
            "8: expected running 2, got 1",
        ),
        (
            "  - call: {n: 30}\n  - call: {}\n    expect: {status: 429, would_deny: [x]}\n",
            "8: expected would_deny [x], got []",
        ),
        ("  - {start: {}, expect: {waiting: true}}\n", "6: expected waiting true, got false"),
        ("  - {start: {}, expect: {position: 1}}\n", "6: expected position 1, got 0"),
        ("  - {start: {}, expect: {queued: 1}}\n", "6: expected queued 1, got 0"),
        ("  - {wait: 1s, expect: {queue_timeout: 1}}\n", "6: expected queue_timeout 1, got 0"),
        ("  - {wait: 1s, expect: {started: [a]}}\n", "6: expected started [a], got []"),
    ],
)
def test_a_step_that_goes_otherwise_fails(tmp_path: Path, steps: str, wrong: str) -> None:
    assert failed(tmp_path, steps).startswith(wrong)


QUEUE = "policies: {limits: {concurrency: {max_in_flight: 1, max_waiting: 9}}}"
FILLED = (
    "  - start: {}\n"
    "  - {start: {n: 2, name: a, priority: low}, expect: {waiting: true}}\n"
    "  - {start: {n: 2, priority: high}, expect: {waiting: true}}\n"
)


@pytest.mark.parametrize(
    ("steps", "wrong"),
    [
        ("  - start: {}\n", "9: expected status 200, got waiting (place 3 in the queue)"),
        ("  - {start: {}, expect: {waiting: false}}\n", "9: expected status 200, got waiting"),
        ("  - {start: {}, expect: {position: 2}}\n", "9: expected position 2, got 3 (place 3"),
        ("  - {wait: 29s, expect: {queued: 0}}\n", "9: expected queued 0, got 4"),
        ("  - {wait: 31s, expect: {queue_timeout: 3}}\n", "9: expected queue_timeout 3, got 4"),
        (
            "  - {at: 31s, end: {}, expect: {queue_timeout: 3}}\n",
            "9: expected queue_timeout 3, got",
        ),
        ("  - {end: {}, expect: {started: [low]}}\n", "9: expected started [low], got [high]"),
        (
            "  - {end: {n: 3}, expect: {started: [high, a, high]}}\n",
            "9: expected started [high, a, high], got [high, high, a]",
        ),
        ("  - {end: {n: 3}, expect: {started: [high, high, low]}}\n", ""),
        ("  - {end: {n: 3}, expect: {started: {high: 2, a: 1}}}\n", ""),
        (
            "  - {end: {n: 3}, expect: {started: {high: 3}}}\n",
            "9: expected started {high: 3}, got {high: 2, a: 1}",
        ),
        ("  - {end: {n: 2, name: a}, expect: {queued: 2, started: [], running: 1}}\n", ""),
        ("  - end: {n: 3, name: a}\n", "9: expected 3 running to be ended, got 2"),
        ("  - {end: {n: all}, expect: {started: [high], running: 1}}\n", ""),
        ("  - {end: {n: all, priority: low}, expect: {running: 1, queued: 4}}\n", ""),
        (
            "  - {edit: {limits: {concurrency: {max_in_flight: 3}}}, expect: {started: [high]}}\n",
            "9: expected started [high], got [high, high]",
        ),
        ("  - {memory: 99%, expect: {running: 0, queued: 0, started: []}}\n", ""),
    ],
)
def test_those_who_wait_are_seen(tmp_path: Path, steps: str, wrong: str) -> None:
    failure = told(tmp_path, FILLED + steps, QUEUE).failure
    if not wrong:
        assert failure is None
        return
    assert failure is not None
    line = f"{failure.place.line}: expected {failure.expected}, got {failure.got}"
    assert line.startswith(wrong)


def test_a_call_that_waits_is_over_as_soon_as_it_has_its_turn(tmp_path: Path) -> None:
    steps = (
        "  - start: {}\n"
        "  - {call: {n: 3}, expect: {waiting: true}}\n"
        "  - {start: {name: last}, expect: {waiting: true}}\n"
        "  - {end: {}, expect: {started: [medium, medium, medium, last], running: 1, queued: 0}}\n"
    )
    assert told(tmp_path, steps, QUEUE).failure is None


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ("60", True),
        ('"=60"', True),
        ('">=60"', True),
        ('">60"', False),
        ('"<60.5"', True),
        ('"<= 59"', False),
        ("sixty", False),
    ],
)
def test_a_header_is_compared(tmp_path: Path, condition: str, holds: bool) -> None:
    steps = (
        "  - call: {n: 30}\n"
        f"  - {{call: {{}}, expect: {{status: 429, header: {{Retry-After: {condition}}}}}}}\n"
    )
    result = told(tmp_path, steps)
    assert (result.failure is None) is holds


def test_full_memory_in_a_test_is_logged_nowhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert told(tmp_path, "  - memory: 99%\n").failure is None
    assert caplog.records == []


def test_policies_of_a_test_are_put_over_those_of_the_folder(tmp_path: Path) -> None:
    folder = changed(tmp_path / "p", {"limits": {"concurrency": {"max_in_flight": 9}}})
    file = tmp_path / "t.yaml"
    file.write_text(
        "schema: mlxd-test/v1\n"
        "tests:\n"
        "- name: over\n"
        "  policies: {limits: {concurrency: {per_model: {small: 1}}}}\n"
        "  steps:\n"
        "  - {start: {n: 2, model: small}, expect: [{}, {status: 503}]}\n"
        "  - {start: {n: 9}, expect: [{count: 8}, {status: 503}]}\n"
        "- name: wrong\n"
        "  policies: {limits: {concurrency: {max_in_flight: none}}}\n"
        "  steps: [{start: {}}]\n"
        "- name: apart\n"
        "  steps: [{start: {n: 9, model: small}}]\n"
    )
    report = run(folder, paths=[file])
    assert [result.failure is None for result in report.results] == [True, False, True]
    failure = report.results[1].failure
    assert failure is not None
    assert (failure.place.line, failure.step) == (9, "policies")
    assert failure.got == ('limits.concurrency.max_in_flight: expected an integer >= 1, got "none"')


MODELS = (
    "models: {chains: {fast: [little, big]},"
    ' models: {big: {aliases: [coder, "claude-*"]}, "small:1b": {aliases: [little]}}}'
)


@pytest.mark.parametrize(
    ("limited", "asked"),
    [
        ("big", "coder"),
        ("big", "claude-opus"),
        ("big", "BIG:latest"),
        ("small:1b", "little"),
        ("small:1b", "fast"),
    ],
)
def test_a_name_means_the_model_that_models_yaml_has_it_lead_to(
    tmp_path: Path, limited: str, asked: str
) -> None:
    per_model = f'limits: {{concurrency: {{per_model: {{"{limited}": 1}}}}}}'
    step = f'  - {{start: {{n: 2, model: "{asked}"}}, expect: [{{}}, {{status: 503}}]}}\n'
    assert told(tmp_path, step, f"policies: {{{per_model}, {MODELS}}}").failure is None


@pytest.mark.parametrize("other", ["BIG", "Big:latest", "coder", "also"])
def test_names_of_one_model_are_counted_together(tmp_path: Path, other: str) -> None:
    models = MODELS.replace("{fast:", "{also: [BIG], fast:")
    per_model = 'limits: {concurrency: {per_model: {"big": 1}}}'
    steps = (
        "  - {start: {model: big}}\n"
        f'  - {{start: {{model: "{other}"}}, expect: {{status: 503}}}}\n'
    )
    assert told(tmp_path, steps, f"policies: {{{per_model}, {models}}}").failure is None


@pytest.mark.parametrize("allowed", ["coder", "qwen2.5-coder:7b", "*/qwen2.5-coder-7b-instruct"])
def test_a_tenant_may_use_a_model_by_any_of_the_names_that_follow_from_its_own(
    tmp_path: Path, allowed: str
) -> None:
    model = "org/Qwen2.5-Coder-7B-Instruct"
    policies = (
        f'policies: {{clients: {{tenants: {{a: {{models: ["{allowed}"]}}}}}},'
        f' models: {{models: {{"{model}": {{aliases: [coder]}}}}}}}}'
    )
    steps = (
        f'  - {{call: {{tenant: a, model: "{model}"}}}}\n'
        "  - {call: {tenant: a, model: coder}}\n"
        "  - {call: {tenant: a, model: other}, expect: {status: 403}}\n"
    )
    assert told(tmp_path, steps, policies).failure is None


def test_rules_that_no_test_has_seen_refuse_are_named(tmp_path: Path) -> None:
    limits = {
        "concurrency": {"per_model": {"small": 1, "big": 5}},
        "rate_limit": [
            {"name": "a", "requests": 1, "mode": "dry_run"},
            {"name": "b", "mode": "off"},
        ],
    }
    folder = changed(tmp_path / "p", {"limits": limits})
    file = tmp_path / "t.yaml"
    file.write_text(
        "schema: mlxd-test/v1\n"
        "tests:\n"
        "- name: x\n"
        "  steps: [{start: {n: 2, model: small}, expect: [{}, {status: 503}]}]\n"
    )
    report = run(folder, paths=[file])
    concurrency = ("concurrency", "concurrency:small", "concurrency:big")
    assert report.rules == ("rate_limit:a", "shed:low", *concurrency)
    assert report.covered == ["rate_limit:a", "concurrency:small"]
    assert report.uncovered == ["shed:low", "concurrency", "concurrency:big"]


def test_wrong_policies_and_wrong_tests_are_told_and_nothing_is_run(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    (folder / "tests").mkdir(parents=True)
    assert words(run(folder)) == [f"{folder / 'tests'}: holds no test file (*.yaml)"]
    for name in ("a.yaml", "b.yaml"):
        (folder / "tests" / name).write_text("schema: mlxd-test/v1\n")
    assert words(run(folder)) == [
        f"{folder / 'tests' / name}:1:1: tests: missing: expected a list of tests"
        for name in ("a.yaml", "b.yaml")
    ]
    assert words(run(folder, paths=[tmp_path / "none"])) == [
        f"{tmp_path / 'none'}: cannot be read: No such file or directory"
    ]
    assert words(run(None)) == ["policies: there is no policy folder: name a test file"]
    (folder / "limits.yaml").write_text("schema: mlxd/v1\nconcurrency: 5\n")
    assert words(run(folder)) == ["limits.yaml:2:1: limits.concurrency: expected a mapping, got 5"]


def words(report: Report) -> list[str]:
    assert report.exit_status == 2
    assert report.results == ()
    assert str(report).splitlines() == report.as_json()["errors"]
    return [str(error) for error in report.errors]


def test_it_answers_as_admission_and_the_server_do(tmp_path: Path) -> None:
    """The same story told to a real Admission and to a test file."""
    clock, policies = ManualClock(), load()
    admission = Admission(clock)
    expects = []
    for number in range(80):
        try:
            ticket = admission.enter(Applicant(Caller("10.0.0.1"), policies, "m"))
        except MlxdError as error:
            response = error_response(error, in_ollama)
            header = f"{{Retry-After: {response.headers['Retry-After']}}}"
            expects.append(
                f"{{status: {response.status}, code: {error.code}, header: {header},"
                f" message: {strict_text(error.message)}}}"
            )
        else:
            expects.append("{status: 200}")
            if number % 2:
                admission.leave(ticket)
        clock.advance(1)
    steps = "".join(
        f"  - {{at: {number}s, {'call' if number % 2 else 'start'}: {{ip: 10.0.0.1}},"
        f" expect: {expect}}}\n"
        for number, expect in enumerate(expects)
    )
    assert len({expect.partition(",")[0] for expect in expects}) == 3
    assert told(tmp_path, steps).failure is None


def strict_text(text: str) -> str:
    return f'"{text}"'


@pytest.mark.timeout(10, func_only=True)  # what others leave to be ended takes its own time
def test_ten_thousand_requests_take_no_time(tmp_path: Path) -> None:
    steps = "  - {call: {n: 10000, every: 1s}, expect: {}}\n"
    assert "request 31 of 10000" in failed(tmp_path, steps.replace("1s", "1ms"))
    assert told(tmp_path, steps.replace("1s", "2s")).failure is None
