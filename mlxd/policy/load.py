"""Files and overrides in, a PolicySet or every reason against it out; touches nothing else.

The daemon at its start, a reload, `mlxd policy check` and `plan` all judge by `judge`: they cannot
disagree.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from mlxd.policy import keys, strict_yaml
from mlxd.policy.checks import problems_between
from mlxd.policy.files import PolicyFiles, read
from mlxd.policy.policy_set import FILES, PolicySet, Shadowed, Source
from mlxd.policy.schema import KINDS, Policies
from mlxd.policy.strict_yaml import Document, Path, Place, dotted, parts
from mlxd.policy.units import Refused, got, written

__all__ = ["Override", "PolicyError", "PolicyErrors", "load"]

SCHEMA = "mlxd/v1"
_GUESSES = 3
"""Places that a misplaced key may be meant for; more would not help."""


@dataclass(frozen=True, slots=True)
class Override:
    """One value from outside the files. For a list, folders to add, separated as in PATH."""

    key: str
    text: str
    source: str
    """Such as `environment MLX_API_PORT`."""
    yaml: bool = False
    """The text is YAML, as behind the key in a file; a list takes the place of the files'."""


@dataclass(frozen=True, slots=True)
class PolicyError:
    """One reason against a set of policies, as `limits.yaml:5:3: key: message`."""

    source: str
    """The file's name, or an override's source."""
    message: str
    key: str = ""
    place: Place | None = None

    def __str__(self) -> str:
        where = self.source
        if self.place is not None:
            where = f"{where}:{self.place.line}:{self.place.column}"
        return ": ".join(part for part in (where, self.key, self.message) if part)


class PolicyErrors(Exception):
    """All that is wrong with a set of policies at once, a line each."""

    def __init__(self, errors: Iterable[PolicyError]) -> None:
        self.errors = tuple(errors)
        super().__init__("\n".join(map(str, self.errors)))


def error_at(policies: PolicySet, key: str, message: str) -> PolicyError:
    """A reason that was found later, at the line that asked for it."""
    source = policies.sources.get(parts(key))
    if source is None:
        return PolicyError(f"{parts(key)[0]}.yaml", message, key)
    return PolicyError(source.name, message, key, source.place)


def load(folder: FilePath | None = None, overrides: Sequence[Override] = ()) -> PolicySet:
    """The policies of a folder under the overrides; the last override of a key wins.

    Raises PolicyErrors. Without a folder, or for a missing file, the built-in defaults hold.
    """
    return judge(read(folder), overrides)


def judge(files: PolicyFiles, overrides: Sequence[Override] = ()) -> PolicySet:
    """As `load`, of files that have been read already. Raises PolicyErrors."""
    said = _Said()
    said.read(files)
    policies = _validated(said)
    for override in overrides:
        said.override(override)
    if overrides:
        policies = _validated(said)
    if policies is not None and not said.errors:
        for problem in problems_between(policies, said.sources):
            said.errors.append(_error(problem.path, problem.message, said.sources))
    if policies is None or said.errors:
        raise PolicyErrors(sorted(dict.fromkeys(said.errors), key=_order))
    return PolicySet(
        policies,
        MappingProxyType(said.sources),
        files.folder.resolve() if files.folder is not None else None,
        shadowed=MappingProxyType({path: tuple(was) for path, was in said.shadowed.items()}),
    )


@dataclass(slots=True)
class _Said:
    """What files and overrides say, before it is judged."""

    data: dict[str, Any] = field(default_factory=dict)
    sources: dict[Path, Source] = field(default_factory=dict)
    shadowed: dict[Path, list[Shadowed]] = field(default_factory=dict)
    errors: list[PolicyError] = field(default_factory=list)

    def read(self, files: PolicyFiles) -> None:
        for name, reason in files.failures.items():
            self.errors.append(PolicyError(_shown(name), f"cannot be read: {reason}"))
        for name in map(_shown, files.strangers):
            near = _near(name.replace(".yml", ".yaml"), FILES)
            hint = f"did you mean {near}?" if near else f"known are {', '.join(FILES)}"
            self.errors.append(PolicyError(name, f"unknown policy file; {hint}"))
        for kind, name in zip(KINDS, FILES, strict=True):
            if name in files.contents:
                self._read_file(name, kind, files.contents[name])

    def _read_file(self, name: str, kind: str, raw: bytes) -> None:
        document = strict_yaml.parse(raw)
        for problem in document.problems:
            self.errors.append(PolicyError(name, problem.message, place=problem.place))
        if document.data is not None:
            self._check_schema(document, name)
            self.data[kind] = document.data
            for path in _paths(document.data):
                self.sources[(kind, *path)] = Source(name, document.place(path))

    def _check_schema(self, document: Document, name: str) -> None:
        assert document.data is not None
        if "schema" not in document.data:
            message = f"missing: begin the file with `schema: {SCHEMA}`"
        elif (written := document.data.pop("schema")) != SCHEMA:
            message = f"expected {SCHEMA}, got {got(written)}"
        else:
            return
        self.errors.append(PolicyError(name, message, "schema", document.place(("schema",))))

    def override(self, override: Override) -> None:
        """Put one value over what the files and earlier overrides say, and remember what was."""
        path = parts(override.key)
        key = keys.find(path)
        if not path or any(isinstance(part, int) for part in path):
            words = "an item of a list cannot be set alone: write the list in its file"
            self._refuse(override, words if path else "names no policy")
            return
        around = self._group(path[:-1], override)
        if around is None:
            return
        last = path[-1]
        source = override.source
        if override.yaml:
            around[last] = self._parsed(override)
            self._place_below(path, around[last], source)
        elif key is not None and key.listed:
            present = around.get(last, list(key.field.default))
            if isinstance(present, list):
                around[last] = [*present, *filter(None, override.text.split(os.pathsep))]
            if path in self.sources:
                source = f"{self.sources[path]}, {source}"
        else:
            if path in self.sources:
                secret = key is not None and key.secret
                said = "(not shown)" if secret else written(around.get(last))
                was = Shadowed(said, self.sources[path])
                self.shadowed.setdefault(path, []).insert(0, was)
            text = key is not None and key.text
            around[last] = override.text if text else strict_yaml.scalar(override.text)
        self.sources[path] = Source(source)

    def _place_below(self, path: Path, value: Any, source: str) -> None:
        """What `value` holds was said there, and nothing that it has replaced counts."""
        for old in [old for old in self.sources if old[: len(path)] == path]:
            del self.sources[old]
        self.sources.update(((*path, *inner), Source(source)) for inner in _paths(value))

    def _group(self, path: Path, override: Override) -> dict[str | int, Any] | None:
        """The group in which a value is to be set, made if it is not there; None: there is an error
        about it, of the file or of this override.
        """
        around: Any = self.data
        for end, part in enumerate(path, start=1):
            key = keys.find(path[:end])
            known = key is not None and key.grouping
            if part not in around:
                around[part] = {}
                if not known:
                    self.sources[path[:end]] = Source(override.source)
            around = around[part]
            if not isinstance(around, dict):
                if not known:
                    self._refuse(override, f"{dotted(path[:end])} holds no other keys")
                return None
        found: dict[str | int, Any] = around
        return found

    def _refuse(self, override: Override, words: str) -> None:
        self.errors.append(PolicyError(override.source, words, override.key))

    def _parsed(self, override: Override) -> Any:
        document = strict_yaml.parse(f"value: {override.text}".encode("utf-8", "replace"))
        for problem in document.problems:
            self._refuse(override, problem.message)
        data = document.data or {}
        if set(data) - {"value"}:
            self._refuse(override, "expected one value in YAML, on one line")
        return data.get("value")


def _shown(name: str) -> str:
    """A file's name as text, whatever its bytes are."""
    return name.encode("utf-8", "backslashreplace").decode()


def _paths(data: Any, here: Path = ()) -> Iterator[Path]:
    """The path of everything in plain data, groups included."""
    if here:
        yield here
    entries = (
        data.items()
        if isinstance(data, dict)
        else enumerate(data)
        if isinstance(data, list)
        else ()
    )
    for part, inner in entries:
        yield from _paths(inner, (*here, part))


def _validated(said: _Said) -> Policies | None:
    """None, and an error for each thing that is wrong, if anything is."""
    try:
        return Policies.model_validate(said.data)
    except ValidationError as refused:
        found: dict[Path, list[Mapping[str, Any]]] = {}
        for problem in refused.errors(include_url=False):
            if not _follows(problem):
                found.setdefault(_place(problem), []).append(problem)
        for path, problems in found.items():
            unknown = _is_unknown(problems[0])
            message = _unknown(path) if unknown else _wrong(path, problems)
            said.errors.append(_error(path, message, said.sources))
    return None


def _follows(problem: Mapping[str, Any]) -> bool:
    """Whether it is only said because something inside is wrong: those items do not count."""
    enough = problem["type"] == "too_short" and problem["ctx"]["min_length"]
    return bool(enough and len(problem["input"]) >= enough)


def _is_unknown(problem: Mapping[str, Any]) -> bool:
    """Whether a key is wrong, and no value: of a section, or of a mapping from certain names."""
    kind: str = problem["type"]
    return kind == "extra_forbidden" or (kind == "literal_error" and problem["loc"][-1] == "[key]")


def _place(problem: Mapping[str, Any]) -> Path:
    place: Path = problem["loc"]
    return place if problem["type"] == "extra_forbidden" else keys.known(place)


def _error(path: Path, message: str, sources: Mapping[Path, Source]) -> PolicyError:
    """The error, at the nearest thing that was set."""
    for end in range(len(path), 0, -1):
        source = sources.get(path[:end])
        if source is not None:
            return PolicyError(source.name, message, dotted(path), source.place)
    return PolicyError(f"{path[0]}.yaml", message, dotted(path))


def _order(error: PolicyError) -> tuple[bool, str, Place]:
    """Files by name and line, then what came from elsewhere."""
    return not error.source.endswith(".yaml"), error.source, error.place or Place(0, 0)


def _wrong(path: Path, problems: Sequence[Mapping[str, Any]]) -> str:
    """What was expected and what was got; what may be a secret is not repeated. There are several
    problems where there are several kinds of values: each of them is none of these.
    """
    problem = problems[0]
    value = problem["input"]
    key = keys.find(path)
    found = "something else (not shown)" if key is not None and key.secret else got(value)
    if problem["type"] == "value_error":
        words = str(problem["ctx"]["error"])
        return words if ", got " in words else f"{words}, got {found}"
    if key is None:
        return f"unexpected {found}"
    if value is None:
        return f"expected {key.expected}, got {found}: remove the key to keep its default"
    reasons = (one["ctx"]["error"] for one in problems if one["type"] == "value_error")
    hint = next((one.hint for one in reasons if isinstance(one, Refused) and one.hint), "")
    return f"expected {key.expected}, got {found}{hint}"


def _unknown(path: Path) -> str:
    name = str(path[-1])
    siblings = keys.children(path[:-1])
    if len(path) == 2 and name == path[0]:
        return f"unknown key; the file is {name} already: move what is under it one level up"
    if near := _near(name, siblings):
        return f"unknown key; did you mean {near}?"
    homes = [key for key in keys.table().values() if key.path[-1] == name]
    here = [key for key in homes if key.path[0] == path[0]] or homes
    if here:
        return f"unknown key; did you mean {' or '.join(key.name for key in here[:_GUESSES])}?"
    return f"unknown key; known here are {', '.join(siblings)}"


def _near(word: str, known: Sequence[str]) -> str | None:
    import difflib  # only once something is wrong

    return next(iter(difflib.get_close_matches(word, known, 1, 0.6)), None)
