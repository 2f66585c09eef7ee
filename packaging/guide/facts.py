"""Facts: the questions the guide must answer, read from facts.yaml, and their phrasings."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

HERE = Path(__file__).parent
CHOICE = re.compile(r"\(([^()]*)\)")
WORD = re.compile(r"\{(\w+)\}")
MARKS = str.maketrans("", "", '"?!.,:;')
BLANKS = re.compile(r"\s+")


@dataclass(frozen=True)
class Fact:
    """One fact in one language: an exact answer and the ways to ask for it."""

    id: str
    language: str
    answer: str
    patterns: tuple[str, ...]
    held_out: tuple[str, ...]


def load_facts(path: Path = HERE / "facts.yaml") -> list[Fact]:
    """All facts, English and Russian, with the shared words put in."""
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    words = document["words"]
    facts = []
    for entry in document["facts"]:
        facts.append(_fact(entry["id"], "en", entry, words))
        if "ru" in entry:
            facts.append(_fact(entry["id"], "ru", entry["ru"], words))
    return facts


def load_offtopic(path: Path = HERE / "offtopic.yaml") -> list[Fact]:
    """The two refusals (English, Russian), as facts whose answer is a refusal."""
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    words = document["words"]
    english = {key: document[key] for key in ("answer", "ask", "held_out")}
    russian = {
        "answer": document["ru_answer"],
        "ask": document["ru"],
        "held_out": document["ru_held_out"],
    }
    return [_fact("offtopic", "en", english, words), _fact("offtopic", "ru", russian, words)]


def produces(pattern: str, question: str) -> bool:
    """Whether a choice of the pattern's alternatives is this question, capitals and marks aside."""
    escaped = re.sub(r"[^\w\s()|]", lambda match: re.escape(match.group()), plain(pattern))
    words = r"\s*".join(escaped.split())
    return re.fullmatch(words, plain(question)) is not None


def plain(question: str) -> str:
    """A question without capitals, marks and needless blanks."""
    return BLANKS.sub(" ", question.lower().translate(MARKS)).strip()


def sample(pattern: str, rng: random.Random) -> str:
    """One real question of a pattern, its choices made at random."""
    while match := CHOICE.search(pattern):
        choice = rng.choice(match.group(1).split("|"))
        pattern = pattern[: match.start()] + choice + pattern[match.end() :]
    return BLANKS.sub(" ", pattern).strip()


def _fact(identity: str, language: str, entry: dict, words: dict[str, str]) -> Fact:
    patterns = tuple(_spell_out(line, words) for line in entry["ask"])
    for question in entry["held_out"]:
        if any(produces(pattern, question) for pattern in patterns):
            raise ValueError(f"{identity}: a pattern produces the held-out {question!r}")
    return Fact(identity, language, entry["answer"], patterns, tuple(entry["held_out"]))


def _spell_out(pattern: str, words: dict[str, str]) -> str:
    while WORD.search(pattern):
        pattern = WORD.sub(lambda match: words[match.group(1)], pattern)
    return pattern
