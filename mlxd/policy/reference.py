"""The schema, written out: docs/reference/policies.md, policies/*.yaml and policies/schema/*.json.

`python -m mlxd.policy.reference` in the repository's root writes them anew.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path as FilePath
from typing import Any

from mlxd.policy import json_schema, keys, strict_yaml
from mlxd.policy.keys import ENTRY, ITEM, Key
from mlxd.policy.load import SCHEMA, load
from mlxd.policy.schema import KINDS, Policies, Policy
from mlxd.policy.units import written

WIDTH = 100

_INTRODUCTION = f"""\
# Policies

<!-- Written by `python -m mlxd.policy.reference` from mlxd/policy/schema: edit that instead. -->

All behaviour is declared in the files of the policy folder, one per kind. Every file begins with
`schema: {SCHEMA}`; a missing file or key means the default below. The daemon looks for the folder
at `--policies`, `MLXD_POLICIES`, `~/.config/mlxd/policies`, Homebrew's `etc/mlxd/policies` and
`/etc/mlxd/policies`, and runs on the defaults without one. Flags win over the environment, the
environment over `mlxd.env` (in the folder or next to it), that over the files. The folder is
followed; flags, environment and `mlxd.env` are read at the start alone: an edit of that file is in
force after the next one.

| value | written as |
|---|---|
| duration | number and unit, `ms s m h d`: `250ms`, `300s`, `1h30m`; a bare number is refused |
| size | number and unit: `16KiB`, `8MiB` (powers of 1024), `1GB` (powers of 1000) |
| ratio | `85%`, or a fraction from 0 to 1 |

The files are YAML 1.2, read strictly: `on`, `yes`, `11:43` and `017` are text; unknown and
duplicate keys, anchors, tags, merge keys and tabs as indentation are errors, and so are control
characters and the line breaks U+0085, U+2028 and U+2029, but for escapes in quotes. All errors are
reported at once, with file, line and column; `mlxd policy check` shows them without a start.

| reload class | a change takes effect |
|---|---|
| live | with the next decision |
| live-drain | at once; what is above a lowered limit runs to its end |
| rebind | on a new listener, before the old one closes |
| rolling | as the workers concerned are replaced, one by one |
| restart | at the next start |

The daemon watches the folder. A valid edit is in force within a fraction of a second after the
file is closed, all files together or none of them; requests under way keep the policies that they
began under. An invalid edit changes nothing: `/health`, `mlxd status` and the log show what is
wrong with it, until it is mended. The last valid policies are kept in the state folder, and a start
with broken files uses those.

Each file begins with a line that names its JSON Schema (`policies/schema/`), so that an editor with
a YAML language server completes keys, explains them and marks what is wrong as you type.

No policy holds a secret. Where one is needed, the policy says where it is: `credential:NAME`, a
credential that the service manager hands over, or the absolute path of a file.
"""


def reference() -> str:
    """The whole of docs/reference/policies.md."""
    return "\n".join([_INTRODUCTION, *(_chapter(kind) for kind in KINDS)]).rstrip() + "\n"


def shipped(kind: str) -> str:
    """The whole of one file of policies/, every default commented."""
    model = Policies.model_fields[kind].annotation
    assert isinstance(model, type)
    assert issubclass(model, Policy)
    editor = f"# yaml-language-server: $schema=schema/{kind}.schema.json"
    head = [editor, *(f"# {line}" for line in _wrapped(_head(kind), 0))]
    value = getattr(load().policies, kind)
    return "\n".join([*head, f"schema: {SCHEMA}", *_section(model, value, (kind,), 0)]) + "\n"


def _head(kind: str) -> str:
    meaning = Policies.model_fields[kind].description or ""
    return (
        f"{meaning} These are the defaults: a key that is left out keeps its own. Behind each "
        "value stand its unit and its reload class (docs/reference/policies.md)."
    )


def _chapter(kind: str) -> str:
    rows = [key for key in keys.table().values() if key.path[0] == kind]
    lines = [
        f"## {kind}.yaml",
        "",
        rows[0].description,
        "",
        "| key | takes | default | unit | reload | example | meaning |",
        "|---|---|---|---|---|---|---|",
        *(_row(key) for key in rows[1:] if key.description and not key.section),
        "",
    ]
    return "\n".join(lines)


def _row(key: Key) -> str:
    meaning = key.description
    takes = key.expected.partition(" such as")[0]
    default = f"`{key.default}`" if key.field.default is not None else "–"
    unit, reload = key.extra("unit") or "–", key.extra("reload")
    return (
        f"| `{key.name}` | {takes} | {default} | {unit} | {reload} | `{key.example}` | {meaning} |"
    )


def _section(
    model: type[Policy], value: Policy, path: tuple[str, ...], depth: int
) -> Iterator[str]:
    for name, attribute in model.attributes().items():
        key = keys.table()[(*path, name)]
        if depth == 0:
            yield ""
        yield from (f"{'  ' * depth}# {line}" for line in _wrapped(key.description, depth))
        yield from _entry(key, getattr(value, attribute), depth)


def _entry(key: Key, value: Any, depth: int) -> Iterator[str]:
    indent, name = "  " * depth, key.path[-1]
    if key.section:
        yield f"{indent}{name}:"
        yield from _section(key.annotation, value, key.path, depth + 1)
    elif isinstance(value, Mapping) and value:
        yield f"{indent}{name}:{_note(key)}"
        yield from (f"{indent}  {written(part)}: {written(item)}" for part, item in value.items())
    elif isinstance(value, tuple) and value:
        yield f"{indent}{name}:{_note(key)}"
        for item in value:
            yield from _item(item, (*key.path, ITEM), depth + 1)
    elif value is not None:
        yield _with_note(f"{indent}{name}: {written(value)}", key)
    yield from _commented_out(key, value, depth)


def _commented_out(key: Key, value: Any, depth: int) -> Iterator[str]:
    """An example, where the value itself does not show how another would be written."""
    if isinstance(value, Mapping) and keys.inner_policy(key.annotation):
        yield from _example_entry(key, depth)
    elif value is None:
        yield _with_note(f"{'  ' * depth}# {key.path[-1]}: {key.example}", key)
    elif value == () or isinstance(value, Mapping):
        yield f"{'  ' * depth}# {key.path[-1]}: {key.example}"


def _item(item: Any, path: tuple[str, ...], depth: int) -> Iterator[str]:
    """A list's item; of one with fields, the first carries the dash."""
    indent = "  " * depth
    if not isinstance(item, Policy):
        yield f"{indent}- {written(item)}"
        return
    begun = False
    for line in _section(type(item), item, path, depth + 1):
        if begun:
            yield line
        else:
            begun = not line.lstrip().startswith("#")
            yield f"{indent}{'- ' if begun else ''}{line.lstrip()}"


def _example_entry(key: Key, depth: int) -> Iterator[str]:
    """An entry of an empty mapping, with every field it may have, commented out."""
    indent = "  " * depth
    document = strict_yaml.parse(f"entries: {key.example}\n".encode())
    assert document.data is not None
    yield f"{indent}# {key.path[-1]}:"
    yield f"{indent}#   {written(next(iter(document.data['entries'])))}:"
    yield from _example_fields((*key.path, ENTRY), indent, "    ")


def _example_fields(group: tuple[str, ...], indent: str, inside: str) -> Iterator[str]:
    """`inside`: how far within the comment; what a section groups is further in."""
    for field in keys.table().values():
        if field.path[:-1] != group:
            continue
        depth = (len(indent) + len(inside)) // 2 + 2
        words = _wrapped(field.description, depth)
        yield from (f"{indent}# {inside}# {line}" for line in words)
        if field.section:
            yield f"{indent}# {inside}{field.path[-1]}:"
            yield from _example_fields(field.path, indent, inside + "  ")
        else:
            line = f"{field.path[-1]}: {field.example}"
            yield f"{indent}# {inside}{_with_note(line, field)}"


def _note(key: Key) -> str:
    words = [key.extra("unit"), key.extra("reload")]
    return f"  # {', '.join(word for word in words if word)}"


def _with_note(line: str, key: Key) -> str:
    return f"{line:<34}{_note(key)}"


def _wrapped(text: str, depth: int) -> list[str]:
    width = WIDTH - 2 * depth - 2
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)


def main() -> None:
    """Write the reference, the shipped files and the schemas for editors."""
    FilePath("docs/reference/policies.md").write_text(reference(), encoding="utf-8")
    for kind in KINDS:
        FilePath(f"policies/{kind}.yaml").write_text(shipped(kind), encoding="utf-8")
        schema = FilePath(f"policies/schema/{kind}.schema.json")
        schema.write_text(json_schema.text(kind), encoding="utf-8")


if __name__ == "__main__":
    main()
