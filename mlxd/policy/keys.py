"""Every key of the schema as one flat table: for messages, warnings and the reference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from mlxd.policy.schema import Policies, Policy, Takes
from mlxd.policy.strict_yaml import Path
from mlxd.policy.units import Written, written

ENTRY = "<name>"
ITEM = "[]"


@dataclass(frozen=True, slots=True)
class Key:
    """One field. In its path `<name>` stands for a mapping's entries, `[]` for a list's items."""

    path: tuple[str, ...]
    annotation: Any
    field: FieldInfo
    owner: type[Policy] | None = None
    """The section that has the field; None for entries and items, which are no fields."""

    @property
    def name(self) -> str:
        return ".".join(self.path).replace(f".{ITEM}", ITEM)

    @property
    def expected(self) -> str:
        """The values it takes, in words."""
        return expected(self.annotation, self.field.metadata)

    @property
    def default(self) -> str:
        """What holds without the key, as it would be written in YAML."""
        if self.owner is None:
            return ""
        return written(getattr(self.owner(), self.owner.attributes()[self.path[-1]]))

    @property
    def description(self) -> str:
        return self.field.description or ""

    @property
    def section(self) -> bool:
        """Whether it only groups others."""
        return _is_policy(self.annotation)

    @property
    def listed(self) -> bool:
        return get_origin(self.annotation) is tuple

    @property
    def grouping(self) -> bool:
        """Whether it holds other keys: a section, or a mapping with entries."""
        return self.section or get_origin(self.annotation) is Mapping

    @property
    def text(self) -> bool:
        """Whether its value is text whatever it looks like."""
        return self.annotation is str or get_args(self.annotation)[:1] == (str,)

    def extra(self, name: str) -> Any:
        extra = self.field.json_schema_extra
        return extra.get(name) if isinstance(extra, dict) else None

    @property
    def example(self) -> str:
        """A value in YAML, another than the default where there is one."""
        return self.extra("example") or ""

    @property
    def secret(self) -> bool:
        """Whether no message may quote its value, or one under it: it may be a misplaced secret."""
        inside = (key for path, key in table().items() if path[: len(self.path)] == self.path)
        return any(key.extra("secret") for key in inside)


@cache
def table() -> dict[tuple[str, ...], Key]:
    """All keys, sections included, in the schema's order."""
    return {key.path: key for key in _walk(Policies, ())}


def find(path: Path) -> Key | None:
    """The key that an actual path stands for."""
    keys = table()
    found: tuple[str, ...] = ()
    for part in path:
        named = (*found, ITEM if isinstance(part, int) else part)
        found = named if named in keys or isinstance(part, int) else (*found, ENTRY)
    return keys.get(found)


def known(path: Path) -> Path:
    """The longest beginning of a path that the schema has: what follows are validator's words."""
    for end in range(len(path), 0, -1):
        if find(path[:end]) is not None:
            return path[:end]
    return path[:1]


def children(path: Path) -> list[str]:
    """The names that may stand under a section, or in a mapping from certain names."""
    key = find(path) if path else None
    if key is not None and get_origin(key.annotation) is Mapping:
        return list(get_args(get_args(key.annotation)[0]))
    inner = Policies if key is None else inner_policy(key.annotation)
    return list(inner.attributes()) if inner is not None else []


def inner_policy(annotation: Any) -> type[Policy] | None:
    """The section, or the section that each entry of a mapping or list is."""
    if _is_policy(annotation):
        return annotation  # type: ignore[no-any-return]  # narrowed by _is_policy
    arguments = get_args(annotation)
    return next((inner for inner in map(inner_policy, arguments) if inner is not None), None)


def expected(annotation: Any, metadata: list[Any]) -> str:
    """What a type takes, in words: `an integer 1 to 65535`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner = [known for one in arguments[1:] for known in getattr(one, "metadata", [one])]
        return expected(arguments[0], [*metadata, *inner])
    if origin is Literal:
        return _either([str(value) for value in arguments])
    if origin is tuple:
        least = next((bound.min_length for bound in metadata if hasattr(bound, "min_length")), 0)
        some = f" of at least {least}" if least else ""
        return f"a list{some}, each {expected(arguments[0], [])}"
    if origin is Mapping:
        certain = get_origin(arguments[0]) is Literal
        names = expected(arguments[0], []) if certain else "names"
        return f"a mapping from {names} to {expected(arguments[1], [])}"
    if arguments:
        return _either([word for kind in arguments for word in _expected_one_of(kind, metadata)])
    return _expected_plain(annotation, metadata)


def _expected_one_of(annotation: Any, metadata: list[Any]) -> list[str]:
    """What one type of several takes; nothing need not be said."""
    if annotation is type(None):
        return []
    if annotation is bool:
        return ["true", "false"]
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    return [expected(annotation, metadata)]


def _either(kinds: list[str]) -> str:
    return f"{', '.join(kinds[:-1])} or {kinds[-1]}" if len(kinds) > 1 else kinds[0]


def _expected_plain(annotation: Any, metadata: list[Any]) -> str:
    if isinstance(annotation, type) and issubclass(annotation, Written):
        most = next((bound.le for bound in metadata if hasattr(bound, "le")), None)
        return annotation.expected + (f", at most {most:.0%}" if most is not None else "")
    if annotation is int:
        return _expected_integer(metadata)
    if annotation is bool:
        return "true or false"
    if annotation is float:
        return "a number"
    if _is_policy(annotation):
        return "a mapping"
    return next((known.words for known in metadata if isinstance(known, Takes)), "text")


def _expected_integer(metadata: list[Any]) -> str:
    least = next((bound.ge for bound in metadata if hasattr(bound, "ge")), None)
    most = next((bound.le for bound in metadata if hasattr(bound, "le")), None)
    if most is not None:
        return f"an integer {least} to {most}"
    return "an integer" if least is None else f"an integer >= {least}"


def _is_policy(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Policy)


def _walk(model: type[Policy], prefix: tuple[str, ...]) -> Iterator[Key]:
    for name, attribute in model.attributes().items():
        field = model.model_fields[attribute]
        here = (*prefix, name)
        yield Key(here, field.annotation, field, model)
        inner = inner_policy(field.annotation)
        if inner is not None:
            yield from _walk_inner(inner, field, here)
        elif get_origin(field.annotation) is Mapping:
            yield Key((*here, ENTRY), get_args(field.annotation)[1], FieldInfo())
        elif get_origin(field.annotation) is tuple:
            yield Key((*here, ITEM), get_args(field.annotation)[0], FieldInfo())


def _walk_inner(inner: type[Policy], field: FieldInfo, here: tuple[str, ...]) -> Iterator[Key]:
    if not _is_policy(field.annotation):
        here = (*here, ENTRY if get_origin(field.annotation) is Mapping else ITEM)
        yield Key(here, inner, FieldInfo())
    yield from _walk(inner, here)
