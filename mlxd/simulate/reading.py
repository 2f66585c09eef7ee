"""One test file while it is read: all that is wrong with it is collected, each at its place.

The words are those of `mlxd policy check`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError

from mlxd.policy import keys
from mlxd.policy.load import PolicyError
from mlxd.policy.schema import Policy
from mlxd.policy.strict_yaml import Document, Path, dotted
from mlxd.policy.units import got

P = TypeVar("P", bound=Policy)
_MOST_SHOWN = 30
"""Of the names that are known, in the words about one that is not."""


class Reading:
    """A parsed file and the errors found in it so far."""

    def __init__(self, file: str, document: Document) -> None:
        self.file = file
        self.document = document
        self.errors = [
            PolicyError(file, problem.message, place=problem.place) for problem in document.problems
        ]

    def refuse(self, path: Path, message: str) -> None:
        place = self.document.place(path)
        self.errors.append(PolicyError(self.file, message, dotted(path), place))

    def mapping(self, value: Any, path: Path, what: str = "a mapping") -> dict[str, Any]:
        """The value if it is a mapping; else it is refused, and an empty one."""
        if isinstance(value, dict):
            return value
        self.refuse(path, f"expected {what}, got {got(value)}")
        return {}

    def items(self, value: Any, path: Path, what: str) -> list[Any]:
        """The value if it is a list that holds something; else it is refused, and an empty one."""
        if isinstance(value, list) and value:
            return value
        self.refuse(path, f"expected {what}, got {got(value) if value != [] else 'an empty one'}")
        return []

    def unknown(self, name: str, known: Sequence[str], path: Path, word: str = "key") -> None:
        self.refuse(path, f"unknown {word}; {suggestion(name, known)}")

    def known(
        self, mapping: Mapping[str, Any], known: Sequence[str], path: Path, word: str = "key"
    ) -> None:
        """Refuse the keys of a mapping that have no meaning there."""
        for name in mapping:
            if name not in known:
                self.unknown(name, known, (*path, name), word)

    def model(self, model: type[P], value: Any, path: Path) -> P | None:
        """The value as a model; None, and an error for each thing in it that is wrong."""
        given = self.mapping(value, path)
        if given is not value:
            return None
        try:
            return model.model_validate(given)
        except ValidationError as refused:
            seen: set[Path] = set()
            for problem in refused.errors(include_url=False):
                inside = _existing(given, problem["loc"])
                if inside not in seen:
                    seen.add(inside)
                    self._refuse_part(model, (*path, *inside), problem)
        return None

    def _refuse_part(self, model: type[Policy], path: Path, problem: Mapping[str, Any]) -> None:
        if problem["type"] == "extra_forbidden":
            self.unknown(str(path[-1]), list(model.attributes()), path)
            return
        if problem["type"] == "missing":
            self.refuse(path, f"missing: {problem['loc'][-1]}")
            return
        value = problem["input"]
        if problem["type"] == "value_error":
            words = str(problem["ctx"]["error"])
        else:
            field = model.model_fields[model.attributes()[str(problem["loc"][0])]]
            words = f"expected {keys.expected(field.annotation, field.metadata)}"
        self.refuse(path, words if ", got " in words else f"{words}, got {got(value)}")


def suggestion(name: str, known: Iterable[str]) -> str:
    """`did you mean x?`, or what there is."""
    known = list(known)
    near = difflib.get_close_matches(name, known, 1, 0.6)
    if near:
        return f"did you mean {near[0]}?"
    more = f" and {len(known) - _MOST_SHOWN} more" if len(known) > _MOST_SHOWN else ""
    return f"known here are {', '.join(known[:_MOST_SHOWN])}{more}"


def _existing(data: Any, path: Path) -> Path:
    """The beginning of a path that the data has: what follows are the validator's words."""
    for end, part in enumerate(path):
        known: Any = data if isinstance(data, dict) else dict(enumerate(_list(data)))
        if part not in known:
            return path[:end]
        data = known[part]
    return path


def _list(data: Any) -> list[Any]:
    return data if isinstance(data, list) else []
