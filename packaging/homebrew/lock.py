"""Write the lock files that Homebrew's formula installs by: `python packaging/homebrew/lock.py`.

`requirements.txt` is what mlxd runs on, `build.txt` what builds a wheel of it and of the packages
that have none. Both pin each package and list the hashes of all its wheels for the places where
the formula goes; of a package without wheels, that of its source. No index is named: pip asks its
own, and takes only what has one of these hashes.

Needs uv. Resolved for one Python, the formula's: it must be here too.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import parse_wheel_filename

from mlxd.service.homebrew import PYTHON

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
HEAD = "# Written by packaging/homebrew/lock.py for Python {python}.\n"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a formula is installed: what markers see, and the wheels that go there."""

    system: str
    machine: str
    platform: re.Pattern[str]

    def markers(self) -> dict[str, str]:
        darwin = self.system == "darwin"
        return {
            "sys_platform": self.system,
            "platform_system": "Darwin" if darwin else "Linux",
            "platform_machine": self.machine,
            "os_name": "posix",
            "platform_python_implementation": "CPython",
            "implementation_name": "cpython",
            "python_version": PYTHON,
            "python_full_version": f"{PYTHON}.0",
        }


PLACES = (
    Place("darwin", "arm64", re.compile(r"any|macosx_\d+_\d+_(arm64|universal2)")),
    Place("linux", "x86_64", re.compile(r"any|manylinux\w*_x86_64")),
    Place("linux", "aarch64", re.compile(r"any|manylinux\w*_aarch64")),
)


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    build = [*project["build-system"]["requires"], "setuptools"]
    needs = [
        *project["project"]["dependencies"],
        *project["project"]["optional-dependencies"]["cpu"],
    ]
    for name, wanted in (("requirements.txt", needs), ("build.txt", build)):
        lines = [HEAD.format(python=PYTHON), *locked(wanted)]
        (HERE / name).write_text("".join(lines), encoding="utf-8")


def locked(wanted: list[str]) -> Iterator[str]:
    """Lines of a file for `pip install --require-hashes`, of all that these packages need."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "pyproject.toml").write_text(
            f'[project]\nname = "locked"\nversion = "0"\nrequires-python = "=={PYTHON}.*"\n'
            f"dependencies = {wanted!r}\n",
            encoding="utf-8",
        )
        uv(folder, "lock")
        with Path(folder, "uv.lock").open("rb") as file:
            packages = {one["name"]: one for one in tomllib.load(file)["package"]}
        exported = uv(folder, "export", "--no-hashes", "--no-annotate", "--no-header",
                      "--no-emit-project")  # fmt: skip
    for line in exported.splitlines():
        requirement = Requirement(line)
        places = [place for place in PLACES if goes_to(place, requirement.marker)]
        if places:
            yield entry(requirement, packages[requirement.name], places)


def uv(folder: str, *words: str) -> str:
    program = shutil.which("uv")
    if program is None:
        sys.exit("lock.py needs uv")
    command = [program, *words, "--no-config", "--python", PYTHON]
    return subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout


def goes_to(place: Place, marker: Marker | None) -> bool:
    return marker is None or marker.evaluate(dict(place.markers()))


def entry(requirement: Requirement, package: Mapping[str, Any], places: list[Place]) -> str:
    everywhere = len(places) == len(PLACES)
    marker = "" if everywhere else f" ; {requirement.marker}"
    hashes = sorted(set(hashes_of(package, places)))
    return " \\\n    ".join(
        [f"{requirement.name}{requirement.specifier}{marker}", *(f"--hash={one}" for one in hashes)]
    ) + "\n"  # fmt: skip


def hashes_of(package: Mapping[str, Any], places: list[Place]) -> Iterator[str]:
    wheels = package.get("wheels", [])
    if not wheels:
        yield package["sdist"]["hash"]
        return
    for place in places:
        fitting = [wheel["hash"] for wheel in wheels if fits(wheel["url"], place)]
        if not fitting:
            sys.exit(f"{package['name']} has no wheel for {place.system} on {place.machine}")
        yield from fitting


def fits(url: str, place: Place) -> bool:
    name = PurePosixPath(unquote(urlsplit(url).path)).name
    return any(
        runs(tag.interpreter, tag.abi) and place.platform.fullmatch(tag.platform)
        for tag in parse_wheel_filename(name)[3]
    )


def runs(interpreter: str, abi: str) -> bool:
    """For the formula's Python: made for it, for the stable ABI, or without machine code."""
    own = f"cp{PYTHON.replace('.', '')}"
    minor = re.fullmatch(r"cp3(\d+)", interpreter)
    return (
        (interpreter, abi) == (own, own)
        or (abi == "abi3" and minor is not None and int(minor[1]) <= int(PYTHON.split(".")[1]))
        or (interpreter in ("py3", own) and abi == "none")
    )


if __name__ == "__main__":
    main()
