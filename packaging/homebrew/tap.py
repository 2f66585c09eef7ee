"""Make a tap that Homebrew installs this checkout from: `python packaging/homebrew/tap.py dist`.

A tap is a git repository with formulae. This one has the committed formula, which says where its
source is and what it sums up to: a source archive that is made here. The archive's folder is named
after the sum, because Homebrew keeps what it has downloaded by the address alone.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FORMULA = ROOT / "packaging" / "homebrew" / "mlxd.rb"
NAME = "mlxd/local"
_DIGITS = 12
_GIT = ("git", "-c", "user.name=mlxd", "-c", "user.email=mlxd@localhost",
        "-c", "commit.gpgsign=false", "-c", "core.hooksPath=/dev/null")  # fmt: skip


def main(dist: Path) -> None:
    archive, digest = source(dist)
    tap = dist / "tap"
    file = tap / "Formula" / FORMULA.name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(formula(archive.as_uri(), digest), encoding="utf-8")
    commit(tap, f"mlxd {digest[:_DIGITS]}")
    print(f"""\
{tap} installs {archive.name}, SHA-256 {digest}

  brew tap {NAME} "{tap}"
  brew trust {NAME}              # Homebrew 6 and later ask for it
  brew install {NAME}/mlxd
  brew services start mlxd

After another `make tap`:

  brew update && brew reinstall mlxd && brew services restart mlxd""")


def source(dist: Path) -> tuple[Path, str]:
    """The archive, and its SHA-256."""
    folder = dist / "source"
    shutil.rmtree(folder, ignore_errors=True)
    build = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(folder)]
    done = subprocess.run(build, cwd=ROOT, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    (made,) = folder.glob("*.tar.gz")
    digest = hashlib.sha256(made.read_bytes()).hexdigest()
    archive = folder / digest[:_DIGITS] / made.name
    archive.parent.mkdir()
    return made.rename(archive), digest


def formula(url: str, digest: str) -> str:
    """The committed one, with a source."""
    text = FORMULA.read_text(encoding="utf-8")
    for name, value in (("url", url), ("sha256", digest)):
        text, count = re.subn(rf'^  {name} "[^"]*"$', f'  {name} "{value}"', text, flags=re.M)
        if count != 1:
            sys.exit(f"{FORMULA}: {count} lines with {name}, expected one")
    return text


def commit(tap: Path, message: str) -> None:
    git(tap, "init", "--quiet")
    git(tap, "add", "--all")
    if git(tap, "status", "--porcelain"):
        git(tap, "commit", "--quiet", "--message", message)


def git(tap: Path, *words: str) -> str:
    done = subprocess.run([*_GIT, *words], cwd=tap, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
