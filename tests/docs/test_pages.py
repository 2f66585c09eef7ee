"""What pages name is there: commands, policies, metrics, types of events, variables, addresses and
headings; and docs/README.md lists every page.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from mlxd.core.places import VARIABLES
from mlxd.policy import keys
from mlxd.policy.schema import KINDS
from mlxd.policy.strict_yaml import parts
from mlxd.telemetry.events import TYPES
from tests.docs.test_http import served
from tests.docs.test_metrics import ROWS as METRICS
from tests.docs.test_readme import COMMANDS, PAGES, ROOT, blocks, options
from tests.support.each import each

DOCS = ROOT / "docs"
EACH = each(PAGES, lambda path: str(path.relative_to(ROOT)))
GROUPS = {name.split()[0] for name in COMMANDS}
KEY = re.compile(rf"`((?:{'|'.join(KINDS)})\.[\w.<>\[\]]+)(?::[^`]*)?`")
OTHERS = {"memory.high", "memory.level"}
"""A file of Linux's cgroups; a key of /health."""
FOR_TESTS = {"MLXD_HYPOTHESIS"}
SOURCES = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "mlxd").rglob("*.py"))


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def commands_in(text: str) -> Iterator[str]:
    """Each command of mlxd, in a line of a block or in the text; several stand behind `;`."""
    lines = [line.strip() for block in blocks(text) for line in block.splitlines()]
    for written in [*re.findall(r"`([^`\n]+)`", text), *lines]:
        for one in re.split(r";|&&|\|(?! )| \| ", re.sub(r"(?<!\S)#.*", "", written)):
            command = re.match(r"(?:sudo )?(?:\S*/bin/)?mlxd ([a-z].*)", one.strip())
            if command is not None:
                yield command[1]


@EACH
def test_every_command_that_is_named_is_one(page: Path) -> None:
    for command in commands_in(text_of(page)):
        words = command.split()
        name = next((one for one in (" ".join(words[:2]), words[0]) if one in COMMANDS), None)
        if name is None:  # of a group of commands, its name alone
            assert words[0] in GROUPS, command
            assert len(words) == 1, command
            continue
        flags = set(re.findall(r"(?<![^\s\[])--[a-z][\w-]*", command))
        assert flags <= options(COMMANDS[name]), command


@EACH
def test_every_policy_that_is_named_is_one(page: Path) -> None:
    known = {key.name for key in keys.table().values()}
    for key in set(KEY.findall(text_of(page))) - OTHERS:
        one = key.replace("<class>", "low").replace("<mark>", "warning")
        is_file = one.endswith(".yaml")
        assert is_file or one in known or keys.find(parts(one)) is not None, key


@EACH
def test_every_metric_that_is_named_is_one(page: Path) -> None:
    for name in re.findall(r"\bmlxd_[a-z_]*[a-z](?=[`{ ])", text_of(page)):
        series = re.sub(r"_(?:bucket|sum|count)$", "", name)
        assert name in METRICS or series in METRICS, name


@EACH
def test_every_type_of_event_that_is_asked_for_is_one(page: Path) -> None:
    for types in re.findall(r"[?-]types[ =]([a-z_,]+)", text_of(page)):
        assert set(types.split(",")) <= TYPES.keys()


@EACH
def test_every_variable_that_is_named_is_read(page: Path) -> None:
    named = set(re.findall(r"\bMLXD?_[A-Z][A-Z_]*\b", text_of(page)))
    assert {name for name in named - FOR_TESTS if name not in SOURCES} == set()


def test_every_variable_that_is_read_is_named() -> None:
    readme = text_of(ROOT / "README.md")
    assert [name for name in VARIABLES if f"`{name}`" not in readme] == []


def test_every_header_of_mlxds_own_is_documented_and_no_other() -> None:
    pages = text_of(DOCS / "reference/http.md") + text_of(DOCS / "reference/events.md")
    assert headers_in(pages) == headers_in(SOURCES)


def headers_in(text: str) -> set[str]:
    return {name.lower() for name in re.findall(r"\bX-Mlxd-[A-Za-z-]*[A-Za-z]", text, re.I)}


@EACH
def test_every_address_that_is_named_is_served(page: Path) -> None:
    """`/v1` is what clients of OpenAI's are given as a base."""
    paths = {path for _, path in served()} | {"/v1"}
    for path in re.findall(r"(?:localhost|127\.0\.0\.1):11435(/[\w/.-]*)", text_of(page)):
        assert path in paths, path


@EACH
def test_a_link_to_a_heading_finds_it(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#]*)#([^)]+)\)", text_of(page)):
        if "://" not in target:
            there = page.parent / target if target else page
            assert anchor in headings(text_of(there)), f"{target}#{anchor}"


def headings(text: str) -> set[str]:
    """As hosts of Markdown name them."""
    found = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in found}


def test_the_index_lists_every_page_once() -> None:
    index = text_of(DOCS / "README.md")
    listed = re.findall(r"^\| \[[^\]]+\]\(([^)]+)\) \| ", index, re.MULTILINE)
    pages = [str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")]
    assert sorted(listed) == sorted(set(pages) - {"README.md"})
