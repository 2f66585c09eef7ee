"""Files and overrides in, a PolicySet or every reason against it out; touches nothing else."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from mlxd.policy import keys, strict_yaml
from mlxd.policy.checks import problems_between
from mlxd.policy.policy_set import FILES, PolicySet, Source
from mlxd.policy.schema import KINDS, Policies
from mlxd.policy.strict_yaml import Document, Path, Place, dotted, parts
from mlxd.policy.units import got

__all__ = ["Override", "PolicyError", "PolicyErrors", "PolicySet", "load"]

SCHEMA = "mlxd/v1"


@dataclass(frozen=True, slots=True)
class Override:
    """One value from outside the files. For a list, folders to add, separated as in PATH."""

    key: str
    text: str
    source: str
    """Such as `environment MLX_API_PORT`."""


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


def load(folder: FilePath | None = None, overrides: Sequence[Override] = ()) -> PolicySet:
    """The policies of a folder under the overrides; the last override of a key wins.

    Raises PolicyErrors. Without a folder, or for a missing file, the built-in defaults hold.
    """
    files = _Files()
    if folder is not None:
        files.read(folder)
    _validated(files.data, files.sources, files.errors)
    for override in overrides:
        _override(files.data, files.sources, override)
    policies = _validated(files.data, files.sources, files.errors)
    if policies is not None and not files.errors:
        for problem in problems_between(policies, files.sources):
            files.errors.append(_error(problem.path, problem.message, files.sources))
    if policies is None or files.errors:
        raise PolicyErrors(sorted(dict.fromkeys(files.errors), key=_order))
    return PolicySet(
        policies, MappingProxyType(files.sources), folder.resolve() if folder is not None else None
    )


@dataclass(slots=True)
class _Files:
    """What the files of a folder say, before it is judged."""

    data: dict[str, Any] = field(default_factory=dict)
    sources: dict[Path, Source] = field(default_factory=dict)
    errors: list[PolicyError] = field(default_factory=list)

    def read(self, folder: FilePath) -> None:
        try:
            names = sorted(file.name for file in folder.iterdir())
        except OSError as error:
            self.errors.append(PolicyError(f"{folder}", f"cannot be read: {error.strerror}"))
            return
        self._refuse_strangers(names)
        for kind, name in zip(KINDS, FILES, strict=True):
            if name in names:
                self._read_file(folder / name, kind)

    def _refuse_strangers(self, names: list[str]) -> None:
        for name in names:
            if name in FILES or name.startswith(".") or not name.endswith((".yaml", ".yml")):
                continue
            near = _near(name.replace(".yml", ".yaml"), FILES)
            hint = f"did you mean {near}?" if near else f"known are {', '.join(FILES)}"
            self.errors.append(PolicyError(name, f"unknown policy file; {hint}"))

    def _read_file(self, file: FilePath, kind: str) -> None:
        try:
            raw = _bytes_of(file)
        except OSError as error:
            self.errors.append(PolicyError(file.name, f"cannot be read: {error.strerror}"))
            return
        document = strict_yaml.parse(raw)
        for problem in document.problems:
            self.errors.append(PolicyError(file.name, problem.message, place=problem.place))
        if document.data is not None:
            self._check_schema(document, file.name)
            self.data[kind] = document.data
            for path in _paths(document.data):
                self.sources[(kind, *path)] = Source(file.name, document.place(path))

    def _check_schema(self, document: Document, name: str) -> None:
        assert document.data is not None
        if "schema" not in document.data:
            message = f"missing: begin the file with `schema: {SCHEMA}`"
        elif (written := document.data.pop("schema")) != SCHEMA:
            message = f"expected {SCHEMA}, got {got(written)}"
        else:
            return
        self.errors.append(PolicyError(name, message, "schema", document.place(("schema",))))


def _bytes_of(file: FilePath) -> bytes:
    """The file's bytes, up to one more than allowed; a FIFO is refused, not waited for."""
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        return stream.read(strict_yaml.MAX_BYTES + 1)


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


def _override(data: dict[str, Any], sources: dict[Path, Source], override: Override) -> None:
    path = parts(override.key)
    key = keys.find(path)
    around: Any = data
    for part in path[:-1]:
        around = around.setdefault(part, {}) if isinstance(around, dict) else None
    if not isinstance(around, dict):
        return  # the file has no group there: already an error
    last = path[-1]
    source = override.source
    if key is not None and key.listed:
        present = around.get(last, list(key.field.default))
        around[last] = [*present, *filter(None, override.text.split(os.pathsep))]
        if path in sources:
            source = f"{sources[path]}, {source}"
    else:
        text = key is not None and key.text
        around[last] = override.text if text else strict_yaml.scalar(override.text)
    sources[path] = Source(source)


def _validated(
    data: dict[str, Any], sources: Mapping[Path, Source], errors: list[PolicyError]
) -> Policies | None:
    try:
        return Policies.model_validate(data)
    except ValidationError as refused:
        seen: set[Path] = set()
        for problem in refused.errors(include_url=False):
            unknown = problem["type"] == "extra_forbidden"
            path: Path = problem["loc"] if unknown else keys.known(problem["loc"])
            if path not in seen:
                seen.add(path)
                message = _unknown(path) if unknown else _wrong(path, problem)
                errors.append(_error(path, message, sources))
    return None


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


def _wrong(path: Path, problem: Mapping[str, Any]) -> str:
    value = problem["input"]
    if problem["type"] == "value_error":
        words = str(problem["ctx"]["error"])
        return words if ", got " in words else f"{words}, got {got(value)}"
    key = keys.find(path)
    if key is None:
        return f"unexpected {got(value)}"
    hint = ": remove the key to keep its default" if value is None else ""
    return f"expected {key.expected}, got {got(value)}{hint}"


def _unknown(path: Path) -> str:
    name = str(path[-1])
    siblings = keys.children(path[:-1])
    if len(path) == 2 and name == path[0]:
        return f"unknown key; the file is {name} already: move what is under it one level up"
    if near := _near(name, siblings):
        return f"unknown key; did you mean {near}?"
    homes = [key.name for key in keys.table().values() if key.path[-1] == name]
    if homes:
        return f"unknown key; did you mean {' or '.join(homes)}?"
    return f"unknown key; known here are {', '.join(siblings)}"


def _near(word: str, known: Sequence[str]) -> str | None:
    import difflib  # only once something is wrong

    return next(iter(difflib.get_close_matches(word, known, 1, 0.6)), None)
