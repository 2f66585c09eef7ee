"""The README's commands are there, and the links of every page lead somewhere."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlxd import cli
from mlxd.cli import exits
from tests.support.each import each

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
VERBS = set(
    re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
)
PAGES = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").rglob("*.md"),
    *(ROOT / "benchmarks").glob("*.md"),
    *(ROOT / "packaging").rglob("*.md"),
]


def blocks(text: str, language: str = "sh") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """(`policy check`, its parser) for every command."""
    for action in parser._actions:
        if not isinstance(action, argparse._SubParsersAction):
            continue
        for name, inner in action.choices.items():
            below = list(commands(inner))
            if below:
                yield from ((f"{name} {rest}", one) for rest, one in below)
            else:
                yield name, inner


def options(parser: argparse.ArgumentParser) -> set[str]:
    return {
        option
        for action in parser._actions
        for option in action.option_strings
        if option.startswith("--") and option != "--help"
    }


COMMANDS = dict(commands(cli._parser()))
LISTED = {
    name.strip(): rest
    for name, rest in re.findall(r"^\| `mlxd ((?:[a-z]+ ?)+)([^`]*)` \|", README, re.MULTILINE)
}


def test_the_two_commands_come_first() -> None:
    first = [shlex.split(line, comments=True) for line in blocks(README)[0].splitlines()]
    assert first == [["make", "serve"], ["make", "test"]]


def test_every_command_is_listed_and_nothing_else() -> None:
    assert set(LISTED) == set(COMMANDS)


@each(COMMANDS)
def test_the_options_that_are_listed_exist(name: str) -> None:
    """`--policies` and `--state` go with every command and stand with `serve` alone."""
    listed = set(re.findall(r"--[\w-]+", LISTED[name]))
    assert listed <= options(COMMANDS[name])
    assert options(COMMANDS[name]) - listed <= {"--policies", "--state"}
    if name == "serve":
        assert listed == options(COMMANDS[name])


def test_the_exit_statuses_are_the_real_ones() -> None:
    said = re.search(r"^Exit status: (.*?)\.$", README, re.MULTILINE | re.DOTALL)
    assert said is not None
    numbers = {int(number) for number in re.findall(r"\b\d+\b", said[1])}
    assert numbers == {exits.DONE, exits.FAILED, exits.USAGE, exits.BROKEN, exits.TAKEN}
    helped = re.search(r"Exit status: (.*)\.", cli._parser().epilog or "")
    assert helped is not None
    assert {int(number) for number in re.findall(r"\b\d+\b", helped[1])} == numbers


@pytest.mark.parametrize(
    ("arguments", "status"), [(["nonsense"], 2), ([], 2), (["--version"], 0), (["--help"], 0)]
)
def test_wrong_usage_is_what_it_says(
    arguments: list[str], status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == status
    capsys.readouterr()


def test_the_variables_it_names_are_read() -> None:
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "mlxd").rglob("*.py")]
    for name in set(re.findall(r"\bMLXD?_[A-Z_]+\b", README)):
        assert any(name in source for source in sources), name


@each(PAGES, lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@each(PAGES, lambda path: str(path.relative_to(ROOT)))
def test_every_verb_that_is_named_is_in_the_makefile(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named: list[Any] = re.findall(r"`make ([\w-]+)`", text)
    named += [
        line.split()[1]
        for block in blocks(text)
        for line in block.splitlines()
        if line.startswith("make ")
    ]
    assert {verb for verb in named if "=" not in verb} <= VERBS


@each(PAGES, lambda path: str(path.relative_to(ROOT)))
def test_every_path_of_the_package_that_is_named_exists(page: Path) -> None:
    named = re.findall(
        r"`((?:mlxd|tests|policies|docs|packaging|benchmarks)/[\w./-]+)`", page.read_text()
    )
    for name in set(named) - {"mlxd/x/y.py", "tests/x/test_y.py"}:
        assert (ROOT / name).exists(), name
