"""YAML for configuration: YAML 1.2 meaning, nothing ambiguous, and the place of everything.

The scanner and parser are PyYAML's (in C where it is there). What scalars mean is decided here:
`on`, `yes`, `11:43`, `017` and `2026-01-26` are text. Anchors, tags, merge keys, duplicate keys and
everything oversized are refused. Nothing is raised: what is wrong is listed in `problems`, so that
one reading shows all of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

MAX_BYTES = 256 * 1024
MAX_DEPTH = 16
MAX_DIGITS = 18
_NO_YAML = "not valid YAML"
_TOO_DEEP = f"nested deeper than {MAX_DEPTH} levels"

Path = tuple[str | int, ...]
Scalar = str | int | float | bool | None

_CONSTANTS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_OCTAL_OR_HEX = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_INDENTING_TAB = re.compile(r"^[ ]*\t", re.MULTILINE)
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_HIDDEN_BREAK = re.compile("[\x85\u2028\u2029]")
"""A line ends there for libyaml, which reads YAML 1.1, but neither in 1.2 nor in most editors."""
_PART = re.compile(r'\[("(?:[^"\\]|\\.)*")\]|\[(\d{1,9})\]|([^.\[\]]+)')
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """A position in a file, both counted from 1."""

    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with the text itself."""

    place: Place
    message: str


@dataclass(slots=True)
class Document:
    """One file's plain data and the place of every key and value, by path."""

    data: dict[str, Any] | None = None
    """None when the text has no readable mapping."""
    keys: dict[Path, Place] = field(default_factory=dict)
    values: dict[Path, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    quotes: bool = True
    """Whether these may say what the text says."""

    def place(self, path: Path) -> Place:
        """Where `path` stands: its key, or its list item, or the nearest thing around it."""
        for end in range(len(path), 0, -1):
            here = path[:end]
            found = self.keys.get(here) or self.values.get(here)
            if found is not None:
                return found
        return Place(1, 1)


class _Stop(Exception):
    """The rest of the text cannot be read."""


class _Skip:
    """Stands for a value that was refused."""


def parse(raw: bytes, *, quotes: bool = True) -> Document:
    """Read one file's bytes; everything wrong with them is in `problems`, without a word of the
    file where `quotes` is false.
    """
    document = Document(quotes=quotes)
    try:
        text = _decoded(raw, document)
        _Reader(document, yaml.parse(text, Loader=_LOADER)).read()
    except _Stop:
        pass
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Place(mark.line + 1, mark.column + 1) if mark is not None else Place(1, 1)
        words = _syntax(error) if document.quotes else _NO_YAML
        document.problems.append(Problem(place, words))
        document.data = None
    except yaml.YAMLError as error:
        more = f": {str(error).partition(chr(10))[0]}" if document.quotes else ""
        document.problems.append(Problem(Place(1, 1), _NO_YAML + more))
        document.data = None
    return document


def _syntax(error: yaml.MarkedYAMLError) -> str:
    """What is wrong: in the parser's words, with the line in which that begins which it was
    reading. libyaml from 0.2.6 on gives up on deep nesting by itself.
    """
    if error.problem == "exceeded maximum nesting depth":
        return _TOO_DEEP
    if not error.context:
        return f"{_NO_YAML}: {error.problem}"
    begun = error.context_mark
    line = f" that begins in line {begun.line + 1}" if begun is not None else ""
    return f"{_NO_YAML}: {error.context}{line}, {error.problem}"


def scalar(text: str) -> Scalar:
    """What an unquoted scalar means in YAML 1.2; 017 is text, because some read it as octal."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INT.fullmatch(text):
        return int(text) if len(text.lstrip("+-")) <= MAX_DIGITS else text
    if _OCTAL_OR_HEX.fullmatch(text) and len(text) <= MAX_DIGITS:
        return int(text, 0)
    if _FLOAT.fullmatch(text):
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


def dotted(path: Path) -> str:
    """`("models", "qwen2.5:7b", "aliases", 0)` as `models["qwen2.5:7b"].aliases[0]`."""
    words = ""
    for part in path:
        if isinstance(part, int):
            words += f"[{part}]"
        elif re.fullmatch(r"[A-Za-z_][\w-]*", part):
            words += f".{part}" if words else part
        else:
            words += f"[{json.dumps(part, ensure_ascii=False)}]"
    return words


def parts(key: str) -> Path:
    """The path that `dotted` wrote."""
    found: list[str | int] = []
    for match in _PART.finditer(key):
        quoted, number, name = match.groups()
        if quoted is not None:
            found.append(_unquoted(quoted))
        else:
            found.append(int(number) if number is not None else name)
    return tuple(found)


def _unquoted(quoted: str) -> str:
    try:
        return str(json.loads(quoted, strict=False))
    except ValueError:
        return quoted[1:-1]  # `dotted` did not write it


def _decoded(raw: bytes, document: Document) -> str:
    if len(raw) > MAX_BYTES:
        raise _stopped(document, Place(1, 1), f"the file is larger than {MAX_BYTES // 1024} KiB")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start].decode("utf-8-sig", "replace")
        message = f"not UTF-8: byte 0x{raw[error.start]:02x}"
        raise _stopped(document, _place_after(before), message) from None
    if match := _INDENTING_TAB.search(text):
        place = _place_after(text[: match.end() - 1])
        raise _stopped(document, place, "a tab indents this line: use spaces")
    if match := _UNPRINTABLE.search(text):
        place = _place_after(text[: match.start()])
        raise _stopped(document, place, f"the control character U+{ord(match.group()):04X}")
    if match := _HIDDEN_BREAK.search(text):
        place = _place_after(text[: match.start()])
        name = f"U+{ord(match.group()):04X}"
        raise _stopped(document, place, f"the line break {name}: write it as an escape, in quotes")
    return text


def _place_after(text: str) -> Place:
    return Place(text.count("\n") + 1, len(text) - (text.rfind("\n") + 1) + 1)


def _stopped(document: Document, place: Place, message: str) -> _Stop:
    document.problems.append(Problem(place, message))
    document.data = None
    return _Stop()


def _place(event: yaml.Event) -> Place:
    mark = event.start_mark
    return Place(mark.line + 1, mark.column + 1) if mark is not None else Place(1, 1)


class _Reader:
    """Composes plain data from the parser's events; its depth is bounded, so it may recurse."""

    def __init__(self, document: Document, events: Iterator[yaml.Event]) -> None:
        self._document = document
        self._events = events

    def read(self) -> None:
        root: Any = _Skip
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent) and root is not _Skip:
                raise self._stopped(event, "a second document: one file is one document")
            if isinstance(event, yaml.NodeEvent):
                if not isinstance(event, yaml.MappingStartEvent):
                    raise self._stopped(event, "expected a mapping of keys and values at the top")
                root = self._node(event, ())
        if root is _Skip:
            raise self._stopped(None, "the file is empty: it needs at least its `schema` line")
        self._document.data = root

    def _node(self, event: yaml.Event, path: Path) -> Any:
        if isinstance(event, yaml.AliasEvent):
            self._problem(event, "an alias: write the value out")
            return _Skip
        if anchor := getattr(event, "anchor", None):
            self._problem(
                event, "an anchor{}: write the value out where it is used", f" (&{anchor})"
            )
        if tag := getattr(event, "tag", None):
            self._problem(event, "a tag{}: not used in policies", f" ({tag})")
        self._document.values[path] = _place(event)
        if isinstance(event, yaml.ScalarEvent):
            return event.value if event.style else self._scalar(event)
        if len(path) >= MAX_DEPTH:
            raise self._stopped(event, _TOO_DEEP)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(path)
        return self._mapping(path)

    def _scalar(self, event: yaml.ScalarEvent) -> Scalar:
        value = scalar(event.value)
        if isinstance(value, str) and re.fullmatch(rf"[-+]?[0-9]{{{MAX_DIGITS + 1},}}", value):
            self._problem(event, f"a number of more than {MAX_DIGITS} digits")
        return value

    def _sequence(self, path: Path) -> list[Any]:
        items: list[Any] = []
        for event in self._events:
            if isinstance(event, yaml.SequenceEndEvent):
                break
            item = self._node(event, (*path, len(items)))
            if item is not _Skip:
                items.append(item)
        return items

    def _mapping(self, path: Path) -> dict[str, Any]:
        entries: dict[str, Any] = {}
        for event in self._events:
            if isinstance(event, yaml.MappingEndEvent):
                break
            key = self._key(event)
            here = (*path, key)
            known = key in entries
            if known:
                first = self._document.keys[here].line
                self._problem(event, f"duplicate key{{}}: first set in line {first}", f' "{key}"')
                here = (*path, f"{key} ")  # the first one's place stays while this is read past
            else:
                self._document.keys[here] = _place(event)
            value = self._node(next(self._events), here)
            if not known and value is not _Skip:
                entries[key] = value
        return entries

    def _key(self, event: yaml.Event) -> str:
        if not isinstance(event, yaml.ScalarEvent):
            raise self._stopped(event, "a key must be plain text")
        if event.anchor is not None or event.tag is not None:
            self._problem(event, "an anchor or tag on a key: not used in policies")
        if event.value == "<<" and not event.style:
            self._problem(event, "a merge key (<<): write the keys out")
        elif not event.value:
            self._problem(event, "an empty key")
        return str(event.value)

    def _problem(self, event: yaml.Event, message: str, quoted: str | None = None) -> None:
        """`quoted` is of the text, and stands at the `{}` of the message."""
        if quoted is not None:
            message = message.format(quoted if self._document.quotes else "")
        self._document.problems.append(Problem(_place(event), message))

    def _stopped(self, event: yaml.Event | None, message: str) -> _Stop:
        place = _place(event) if event is not None else Place(1, 1)
        return _stopped(self._document, place, message)
