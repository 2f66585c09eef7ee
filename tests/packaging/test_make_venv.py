"""`packaging/make-venv` on machines that are not this one: every program it calls is a fake."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "packaging" / "make-venv"
BASH = shutil.which("bash") or "/bin/bash"
HOMEBREW = Path("/opt/homebrew/bin/python3")

pytestmark = pytest.mark.skipif(
    HOMEBREW.exists(), reason="Homebrew's Python is found whatever the PATH is"
)


class Machine:
    """A PATH with what a test puts there."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.venv = folder / "venv"
        self.calls = folder / "calls"
        self.calls.touch()
        (self.bin / "rm").symlink_to(shutil.which("rm") or "/bin/rm")
        (self.bin / "mkdir").symlink_to(shutil.which("mkdir") or "/bin/mkdir")
        (self.bin / "chmod").symlink_to(shutil.which("chmod") or "/bin/chmod")
        self.program("uname", 'if [ "$1" = -m ]; then echo x86_64; else echo Linux; fi')
        self.program("id", "echo 1000")

    def program(self, name: str, script: str) -> Path:
        path = self.bin / name
        path.write_text(f'#!{BASH}\necho "{name} $*" >> {self.calls}\n{script}\n')
        path.chmod(0o755)
        return path

    def python(self, name: str, version: str, *, ensurepip: bool = True) -> Path:
        """Runs what it is asked under the real interpreter, which then believes its version."""
        numbers = tuple(int(part) for part in version.split("."))
        pretend = f"import sys; sys.version_info = {(*numbers, 'final', 0)}; exec(sys.argv.pop(1))"
        marker = self.bin.parent / f"{name}.has-ensurepip"
        if ensurepip:
            marker.touch()
        return self.program(
            name,
            f"""case "$*" in
--version) echo "Python {version}" ;;
"-c import ensurepip, venv") [ -e {marker} ] ;;
-c*) exec {sys.executable} -c "{pretend}" "$2" ;;
"-m venv "*) mkdir -p "$3/bin" && : > "$3/pyvenv.cfg"
    printf '#!{BASH}\\necho "venv-python $*" >> {self.calls}\\n' > "$3/bin/python"
    chmod +x "$3/bin/python" ;;
esac""",
        )

    def make(self, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [BASH, str(SCRIPT), str(self.venv)],
            env={"PATH": str(self.bin), **variables},
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )

    def called(self, words: str) -> bool:
        return words in self.calls.read_text()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_the_newest_that_fits_is_taken(machine: Machine) -> None:
    machine.python("python3", "3.11.2")
    machine.python("python3.12", "3.12.9")
    done = machine.make()
    assert done.returncode == 0, done.stderr
    assert f"Python 3.12.9 at {machine.bin}/python3.12" in done.stdout
    assert machine.called(f"python3.12 -m venv {machine.venv}")
    assert machine.called("-m pip install")


def test_one_that_is_too_old_is_passed_over(machine: Machine) -> None:
    machine.python("python3", "3.9.6")
    machine.python("python", "3.11.0")
    done = machine.make()
    assert done.returncode == 0, done.stderr
    assert machine.called(f"python -m venv {machine.venv}")


@pytest.mark.parametrize("versions", [{}, {"python3": "3.10.12", "python": "2.7.18"}])
def test_without_any_it_says_so_clearly(machine: Machine, versions: dict[str, str]) -> None:
    for name, version in versions.items():
        machine.python(name, version)
    done = machine.make()
    assert done.returncode == 1
    assert "needs Python 3.11 or newer" in done.stderr
    assert "none was found" in done.stderr
    assert "make PYTHON=" in done.stderr
    assert not machine.venv.exists()


def test_the_one_that_is_named_is_taken(machine: Machine) -> None:
    machine.python("python3.13", "3.13.1")
    mine = machine.python("mine", "3.11.4")
    assert machine.make(PYTHON=str(mine)).returncode == 0
    assert machine.called(f"mine -m venv {machine.venv}")


def test_a_named_one_that_does_not_fit_is_refused(machine: Machine) -> None:
    """And not replaced silently by another."""
    machine.python("python3.13", "3.13.1")
    machine.python("old", "3.10.1")
    for name, words in (("old", "does not fit"), ("/nowhere/python3", "is no program")):
        done = machine.make(PYTHON=name)
        assert done.returncode == 1
        assert f"PYTHON={name}" in done.stderr
        assert words in done.stderr
    assert not machine.venv.exists()


def test_an_older_one_with_ensurepip_goes_before_a_newer_one_without(machine: Machine) -> None:
    """Debian splits it off; another Python may have come with it."""
    machine.python("python3.13", "3.13.1", ensurepip=False)
    machine.python("python3.11", "3.11.4")
    assert machine.make().returncode == 0
    assert machine.called(f"python3.11 -m venv {machine.venv}")


def test_the_package_that_is_missing_is_named(machine: Machine) -> None:
    machine.python("python3", "3.11.2", ensurepip=False)
    done = machine.make()
    assert done.returncode == 1
    assert "sudo apt install python3.11-venv" in done.stderr
    assert not machine.venv.exists()


@pytest.mark.parametrize("lists", ["fresh", "unreachable"])
def test_root_gets_the_missing_package_installed(machine: Machine, lists: str) -> None:
    machine.python("python3", "3.11.2", ensurepip=False)
    machine.program("id", "echo 0")
    marker = machine.bin.parent / "python3.has-ensurepip"
    machine.program(
        "apt-get",
        f'case "$1" in update) exit {0 if lists == "fresh" else 100} ;; *) : > {marker} ;; esac',
    )
    done = machine.make()
    assert done.returncode == 0, done.stderr
    assert machine.called("apt-get install -y -qq python3.11-venv")
    assert machine.called(f"python3 -m venv {machine.venv}")


def test_a_failure_leaves_nothing_half_made(machine: Machine) -> None:
    python = machine.python("python3", "3.11.2")
    python.write_text(
        python.read_text().replace('"-m venv "*) ', '"-m venv "*) mkdir "$3"; exit 9;')
    )
    assert machine.make().returncode != 0
    assert not machine.venv.exists()


def test_a_broken_environment_is_made_anew(machine: Machine) -> None:
    machine.python("python3", "3.11.2")
    machine.venv.mkdir()
    (machine.venv / "pyvenv.cfg").touch()
    (machine.venv / "left").touch()
    assert machine.make().returncode == 0
    assert not (machine.venv / "left").exists()


def test_another_folder_is_left_alone(machine: Machine) -> None:
    machine.python("python3", "3.11.2")
    machine.venv.mkdir()
    (machine.venv / "mine").touch()
    done = machine.make()
    assert done.returncode == 1
    assert "no virtual environment" in done.stderr
    assert (machine.venv / "mine").exists()


def test_an_intel_mac_is_told(machine: Machine) -> None:
    machine.python("python3.13", "3.13.1")
    machine.program("uname", "echo Darwin")
    machine.program("sysctl", "exit 1")
    done = machine.make()
    assert done.returncode == 1
    assert "Apple silicon" in done.stderr


def test_apple_silicon_is_taken(machine: Machine) -> None:
    machine.python("python3.13", "3.13.1")
    machine.program("uname", "echo Darwin")
    machine.program("sysctl", "echo 1")
    assert machine.make().returncode == 0


SCRIPTS = [SCRIPT, ROOT / ".ci" / "run"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_valid_and_knows_no_newer_bash(script: Path) -> None:
    """macOS has bash 3.2."""
    subprocess.run([BASH, "-n", str(script)], check=True, timeout=10)
    assert script.stat().st_mode & 0o111
    newer = r"declare -A|mapfile|readarray|\|&|&>>|\$\{\w+(,,|\^\^|@)|local -n|coproc"
    assert re.findall(newer, script.read_text(encoding="utf-8")) == []
