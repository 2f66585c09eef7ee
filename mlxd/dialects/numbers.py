"""Integers of more than 64 bits, which JSON allows and nothing behind this can carry."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mlxd.dialects.fields import Json

_LOW, _HIGH = -(2**63), 2**64


def levels_of(value: Json) -> Iterator[list[Json | list[Any]]]:
    """Every object and array in a JSON value, level by level."""
    level: list[Any] = [value]
    while level:
        yield level
        level = [
            item
            for holder in level
            for item in (holder.values() if type(holder) is dict else holder)
            if type(item) is dict or type(item) is list
        ]


def shorten_integers(value: Json) -> None:
    """Make them floats, in place: so do most readers of JSON."""
    for level in levels_of(value):
        for holder in level:
            if isinstance(holder, dict):
                holder.update(
                    {
                        name: float(item)
                        for name, item in holder.items()
                        if type(item) is int and not _LOW <= item < _HIGH
                    }
                )
            else:
                holder[:] = [
                    float(item) if type(item) is int and not _LOW <= item < _HIGH else item
                    for item in holder
                ]
