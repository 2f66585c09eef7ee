"""Looks for bytes that mlxd answers wrongly: with a crash, a wait, or words that nobody should see.

python benchmarks/fuzz.py [TARGET ...] [--minutes 10] [--seed 1] [--keep]

Exit status 1 when there is any. `--keep` writes them to tests/data/fuzz, which the suite replays.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.fuzz.hunt import Finding, Hunt
from tests.fuzz.register import CORPUS, NAMES, target_of

_TELL_SECONDS = 5.0


def main() -> int:
    """The exit status."""
    options = _options()
    each = 60 * options.minutes / len(options.targets)
    found = 0
    for name in options.targets:
        with tempfile.TemporaryDirectory() as folder, target_of(name, Path(folder)) as target:
            hunt = Hunt(target, options.seed)
            _run(name, hunt, each)
        found += len(hunt.findings)
        for finding in hunt.findings.values():
            _tell(name, finding, keep=options.keep)
    return int(found > 0)


def _run(name: str, hunt: Hunt, seconds: float) -> None:
    began = told = time.monotonic()
    for _ in hunt.run():
        now = time.monotonic()
        over = now - began > seconds
        if over or now - told > _TELL_SECONDS:
            told = now
            rate = hunt.cases / (now - began)
            print(
                f"{name}: {hunt.cases} cases ({rate:.0f}/s), {len(hunt.ways)} ways,"
                f" {len(hunt.pool)} kept, {len(hunt.findings)} wrong",
                flush=True,
            )
        if over:
            return


def _tell(name: str, finding: Finding, *, keep: bool) -> None:
    print(f"  {name} {finding.name}: {finding.flaw}\n    {finding.case[:300]!r}")
    if keep:
        (CORPUS / name).mkdir(parents=True, exist_ok=True)
        (CORPUS / name / finding.name).write_bytes(finding.case)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(NAMES))
    parser.add_argument("--minutes", type=float, default=10.0, help="of all targets together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", action="store_true", help="findings, for the suite")
    options = parser.parse_args()
    if unknown := {*options.targets} - {*NAMES}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(NAMES)}")
    options.targets = options.targets or [*NAMES]
    return options


if __name__ == "__main__":
    sys.exit(main())
