"""docs/reference/errors.md has a section for every code: status, cause, example, what to do."""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxd.core import errors
from mlxd.core.errors import MlxdError, ModelNotFound, PolicyLine
from mlxd.dialects.anthropic.errors import NAMES as ANTHROPIC
from mlxd.dialects.openai.errors import NAMES as OPENAI
from mlxd.policy import keys
from mlxd.policy.load import Override, load
from mlxd.policy.schema import KINDS
from mlxd.policy.strict_yaml import parts
from mlxd.server.errors import STATUS, in_openai
from tests.support.each import each
from tests.support.sources import sources

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/reference/errors.md").read_text(encoding="utf-8")
PARTS = re.compile(
    r"(?P<code>\w+)\n\n"
    r"\| status [^\n]*\n\|[-|]+\n"
    r"\| (?P<status>\d+) \| (?P<again>yes|no)"
    r" \| `(?P<type>\w+)`, `(?P<name>\w+)` \| `(?P<other>\w+)` \|\n\n"
    r"\*\*Cause\.\*\* (?P<cause>.{20,}?)\n\n"
    r"```json\n(?P<example>.*?)\n```\n\n"
    r"\*\*What to do\.\*\* (?P<cure>.{10,}?)\n*",
    re.DOTALL,
)
KEY = re.compile(rf"`((?:{'|'.join(KINDS)})\.[\w.<>\[\]]+)(?::[^`]*)?`")
OURS = {429, 503, 504}
"""Statuses of what mlxd decided, and would have served at another time."""


@dataclass
class Section:
    code: str
    status: int
    again: bool
    names: tuple[str, str, str]
    keys: set[str]
    example: dict[str, Any]


def sections() -> Iterator[Section]:
    for text in TEXT.split("\n## ")[1:]:
        found = PARTS.fullmatch(text)
        assert found is not None, f"one of its parts is missing: {text}"
        yield Section(
            code=found["code"],
            status=int(found["status"]),
            again=found["again"] == "yes",
            names=(found["type"], found["name"], found["other"]),
            keys=set(KEY.findall(found["cause"] + found["cure"])),
            example=json.loads(found["example"]),
        )


SECTIONS = {section.code: section for section in sections()}
EACH = each(SECTIONS.values(), lambda section: section.code)
NAMES = {key.name for key in keys.table().values()}


def kinds(kind: type[MlxdError] = MlxdError) -> Iterator[type[MlxdError]]:
    for inner in kind.__subclasses__():
        if inner.__module__ == errors.__name__:
            yield inner
            yield from kinds(inner)


def test_there_is_a_section_for_every_code_and_no_other() -> None:
    assert list(SECTIONS) == list(STATUS)


@EACH
def test_it_has_the_statuses_and_names_of_the_tables(section: Section) -> None:
    assert section.status == STATUS[section.code]
    assert section.names == (*OPENAI[section.code], ANTHROPIC[section.code])


@EACH
def test_every_policy_that_it_names_is_one(section: Section) -> None:
    assert section.keys <= NAMES
    if section.status in OURS:
        assert section.keys, "nobody is told what to change"


@EACH
def test_its_example_is_what_such_an_error_looks_like(section: Section) -> None:
    """Made anew of its parts, it is the same."""
    told = section.example["error"]
    words = re.split(r"\. (?:Numbers|Policy|Would pass): ", told["message"])[0]
    words = re.sub(r"^This model's maximum context length is \d+ tokens for a prompt: ", "", words)
    (kind,) = [kind for kind in kinds() if kind.code == section.code]
    line = PolicyLine(**told["policy"]) if "policy" in told else None
    if kind is ModelNotFound:
        error: MlxdError = ModelNotFound(words.split("'")[1], policy=line)
    else:
        error = kind(
            words, policy=line, retry_after=told.get("retry_after"),
            numbers=told.get("numbers"), would_pass=told.get("would_pass", ""),
        )  # fmt: skip
    error.param = told["param"]
    assert in_openai(error) == section.example
    assert section.again is (error.retry_after is not None)


@EACH
def test_the_line_in_its_example_can_be_written(section: Section) -> None:
    policy = section.example["error"].get("policy")
    if policy is None:
        return
    path = parts(policy["key"])
    assert keys.find(path) is not None, policy["key"]
    if "[" not in policy["key"]:  # of a list, lines are not set one by one
        key, value = policy["key"], policy["value"]
        assert load(None, [Override(key, value, "a test", yaml=True)]).line(key).value == value
    if policy["place"].startswith("built-in default"):
        assert load().line(policy["key"]) == PolicyLine(**policy)


# -- every refusal in the code

NO_POLICY = {
    "mlxd/control/admission.py": 2,
    "mlxd/control/blobs.py": 1,
    "mlxd/control/catalog.py": 2,
    "mlxd/control/grammars.py": 2,
    "mlxd/control/prompts.py": 1,
    "mlxd/control/pull.py": 2,
    "mlxd/control/replay.py": 1,
    "mlxd/control/resting.py": 1,
    "mlxd/control/supervisor.py": 2,
    "mlxd/control/worker.py": 6,
    "mlxd/server/edge.py": 4,
    "mlxd/server/farewells.py": 1,
}
"""Refusals that no policy decides: the bounds are in the code, or it is a fault. How many there are
of each file: whoever adds one says here that nothing can be changed about it.
"""


def refusals() -> Iterator[tuple[str, set[str]]]:
    """Each place that makes an error of which mlxd says that it would pass at another time: the
    file, and what the error is given.
    """
    ours = {kind.__name__ for kind in kinds() if STATUS[kind.code] in OURS}
    for source in sources():
        if source.says(*(f"{name}(" for name in ours)):
            for node in source.nodes(ast.Call):
                if getattr(node.func, "id", "") in ours:
                    yield f"mlxd/{source.name}", {keyword.arg or "" for keyword in node.keywords}


def test_every_refusal_names_the_policy_that_decided_or_there_is_none() -> None:
    without = Counter(file for file, given in refusals() if "policy" not in given)
    assert without - Counter(NO_POLICY) == Counter()


def test_every_refusal_says_what_would_pass() -> None:
    silent = Counter(file for file, given in refusals() if "would_pass" not in given)
    in_policy_tests_alone = Counter({"mlxd/control/admission.py": 1})
    assert silent - in_policy_tests_alone == Counter()
