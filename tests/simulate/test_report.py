from mlxd.policy.strict_yaml import Place
from mlxd.simulate.report import Failure, Report, Result

GOOD = Result("good", "t.yaml", Place(3, 3), acted=frozenset({"concurrency", "elsewhere"}))
BAD = Result("bad", "t.yaml", Place(5, 3), Failure(Place(8, 9), "status 503", "200", "start at 1s"))


def test_a_report_names_what_failed_and_where():
    report = Report((GOOD, BAD), ("rate_limit:per-client", "concurrency"))
    assert str(report).splitlines() == [
        "t.yaml",
        "  passed  good",
        "  FAILED  bad",
        "          t.yaml:8:9: start at 1s: expected status 503, got 200",
        "1 passed, 1 failed",
        "rules that a test has seen refuse: concurrency",
        "rules that no test has seen refuse: rate_limit:per-client",
    ]
    assert report.exit_status == 1


def test_a_report_is_json_for_programs():
    report = Report((GOOD, BAD), ("rate_limit:per-client", "concurrency"))
    assert report.as_json() == {
        "passed": False,
        "tests": [
            {"name": "good", "file": "t.yaml", "line": 3, "passed": True},
            {
                "name": "bad",
                "file": "t.yaml",
                "line": 5,
                "passed": False,
                "failure": {
                    "line": 8,
                    "column": 9,
                    "step": "start at 1s",
                    "expected": "status 503",
                    "got": "200",
                },
            },
        ],
        "rules": {"covered": ["concurrency"], "not_covered": ["rate_limit:per-client"]},
        "errors": [],
    }


def test_all_passed_is_zero():
    assert Report((GOOD,)).exit_status == 0
