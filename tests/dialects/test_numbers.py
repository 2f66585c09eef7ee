"""Integers that nothing behind the parser can carry."""

from __future__ import annotations

import msgspec

from mlxd.dialects.numbers import shorten_integers


def test_long_integers_become_floats_wherever_they_stand() -> None:
    value = {"a": 2**64, "b": [-(2**63) - 1, {"c": 10**30}], "d": [2**64 - 1, -(2**63), True, "x"]}
    shorten_integers(value)
    assert value == {
        "a": 2.0**64,
        "b": [-(2.0**63), {"c": 1e30}],
        "d": [2**64 - 1, -(2**63), True, "x"],
    }
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(value)) == value
