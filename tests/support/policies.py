"""Policy files made of single keys."""

from __future__ import annotations

from mlxd.policy.keys import ENTRY, ITEM

Path = tuple[str | int, ...]


def entry(path: tuple[str, ...]) -> Path:
    """An actual path for a key's: the entry `example` of a mapping, the first item of a list."""
    actual: dict[str, str | int] = {ENTRY: "example", ITEM: 0}
    return tuple(actual.get(part, part) for part in path)


def flow(path: Path, text: str) -> str:
    """One line of YAML with nothing but `text` at a path."""
    for part in reversed(path):
        text = f"[{text}]" if part == 0 else f"{{{part}: {text}}}"
    return text if not text.startswith("{") else text[1:-1]
