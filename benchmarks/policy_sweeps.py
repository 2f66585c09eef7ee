"""The full forms of what the tests of policies do in small: kill sweeps, mutated sets, reloads.

python benchmarks/policy_sweeps.py [--short]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import table
from mlxd.policy.history import KEPT
from tests.support import policy_reloads
from tests.support.policy_agreement import Agreement, agreement
from tests.support.policy_crash import Sweep, sweep
from tests.support.policy_reloads import Residue, read_residue

HERE = Path(__file__).parent
DEEDS = {"reload": "a reload", "refused": "a reload that is refused", "rollback": "a rollback",
         "rollback-undone": "a rollback that fails and is undone",
         "finish": "a boot that finishes a rollback",
         "rollback-without-note": "a rollback that notes nothing first (must leave mixes)",
         }  # fmt: skip
_SWEEP_COLUMNS = [
    "killed", "lines of policy code", "of those that write", "kills", "boots old", "boots new",
    "mixes", "other faults",
]  # fmt: skip
_STEP_SECONDS = 5.0


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def progress(name: str, total: int) -> Callable[[int], None]:
    """Says how far it is, every few seconds."""
    last = time.monotonic()

    def done(count: int) -> None:
        nonlocal last
        if count == total or time.monotonic() - last > _STEP_SECONDS:
            last = time.monotonic()
            say(f"{name}: {count} of {total}")

    return done


def kill_sweeps(options: argparse.Namespace, scratch: Path) -> dict[str, Sweep]:
    found = {}
    for deed, words in DEEDS.items():
        place = scratch / deed
        place.mkdir()
        told = progress(f"killed: {words}", 2 * options.points)
        found[deed] = sweep(deed, options.points, options.points, place, told)
    return found


def mutated_sets(options: argparse.Namespace, scratch: Path) -> Agreement:
    numbers = range(options.seed, options.seed + options.sets)
    place = scratch / "sets"
    place.mkdir()
    return asyncio.run(agreement(numbers, place, progress("sets", options.sets)))


def many_reloads(options: argparse.Namespace, scratch: Path) -> Residue:
    """In a process of its own, which is weighed."""
    place = scratch / "reloads"
    place.mkdir()
    command = [sys.executable, policy_reloads.__file__, str(options.reloads), str(place)]
    say(f"reloads: {options.reloads}")
    return read_residue(
        subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    )


def sweep_rows(sweeps: dict[str, Sweep]) -> list[list[str]]:
    rows = []
    for deed, words in DEEDS.items():
        found = sweeps[deed]
        booted = found.booted()
        rows.append([
            words, str(found.lines), str(found.writing_lines),
            str(sum(bool(point.where) for point in found.points)),
            str(booted["old"]), str(booted["new"]), str(mixes(found)), str(len(found.problems())),
        ])  # fmt: skip
    return rows


def mixes(found: Sweep) -> int:
    """Kills after which the folder, or the history alone, gives neither the old nor the new."""
    return sum(
        not {point.booted, point.without_the_folder} <= {"old", "new"} for point in found.points
    )


def agreement_rows(found: Agreement) -> list[list[str]]:
    return [
        [
            "mutated sets: valid, refused",
            f"{found.valid}, {found.refused}",
            "a third or more valid",
        ],
        ["their errors, of these with line and column", f"{found.errors}, {found.placed}", ""],
        ["check and reload disagree, or anything else is wrong", str(len(found.complaints)), "0"],
    ]


def reload_rows(found: Residue) -> list[list[str]]:
    grown = f"{found.objects_growth}, {found.descriptors_growth}, {found.threads_growth}"
    return [
        [f"growth of RSS over {found.reloads} reloads, MB",
         f"{found.rss_growth / 1e6:.2f}", "below 1"],
        ["growth of objects, descriptors, threads", grown, "few, 0, 0"],
        ["generations alive after it", str(found.generations_alive), "1"],
        ["files of the history", str(found.history_files), str(KEPT)],
        ["one reload, ms", f"{found.seconds / found.reloads * 1e3:.1f}", ""],
    ]  # fmt: skip


def report(
    on: dict[str, Any],
    sweeps: dict[str, Sweep],
    sets: Agreement,
    reloads: Residue,
    options: argparse.Namespace,
) -> str:
    lines = [
        "# Policies: kill sweeps, mutated sets, many reloads",
        "",
        f"{table.today()}, {table.words(on)}.",
        f"{options.points} points spread over all lines of each deed, and as many over those that",
        f"write files; sets {options.seed} to {options.seed + options.sets - 1}.",
        "",
    ]
    lines += table.grid(_SWEEP_COLUMNS, sweep_rows(sweeps))
    lines += ["", "Wanted: no mix and no other fault but in the last row.", ""]
    lines += table.grid(["what", "seen", "wanted"], agreement_rows(sets) + reload_rows(reloads))
    faults = [text for found in sweeps.values() for text in found.problems()] + sets.complaints
    if faults:
        lines += ["", "What is wrong:", "", *(f"- `{text[:300]}`" for text in faults[:20])]
    return "\n".join(lines) + "\n"


def whole(
    on: dict[str, Any], sweeps: dict[str, Sweep], sets: Agreement, reloads: Residue
) -> dict[str, Any]:
    """Every figure, for programs."""
    return {
        "date": table.today(),
        "machine": on,
        "sweeps": {
            deed: {
                "lines": found.lines, "writing_lines": found.writing_lines,
                "points": len(found.points), "booted": found.booted(), "mixes": mixes(found),
                "problems": found.problems(),
            }
            for deed, found in sweeps.items()
        },
        "sets": {**asdict(sets), "messages": sorted(sets.messages)},
        "reloads": asdict(reloads),
    }  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    on = table.machine()  # with the commit that runs: another may follow before the end
    with tempfile.TemporaryDirectory(prefix="mlxd-bench-") as scratch:
        reloads = many_reloads(options, Path(scratch))
        sweeps = kill_sweeps(options, Path(scratch))
        sets = mutated_sets(options, Path(scratch))
    page = report(on, sweeps, sets, reloads, options)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "policy-sweeps.md").write_text(page)
    figures = json.dumps(whole(on, sweeps, sets, reloads), indent=1)
    (options.out / "policy-sweeps.json").write_text(figures + "\n")
    print(page)
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--points", type=int, default=200, help="kills of each deed, twice")
    parser.add_argument("--sets", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0, help="the number of the first set")
    parser.add_argument("--reloads", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--short", action="store_true", help="a little of each")
    options = parser.parse_args(argv)
    if options.short:
        options.points, options.sets, options.reloads = 5, 50, 50
    return options


if __name__ == "__main__":
    raise SystemExit(main())
