"""Vectors, from their bytes."""

from __future__ import annotations

import base64
import struct

import pytest

from mlxd.dialects.vectors import floats, in_base64, unit

VECTOR = struct.pack("<4f", 3.0, -4.0, 12.0, 84.0)


def test_bytes_are_float32_with_the_low_end_first() -> None:
    assert floats(VECTOR).tolist() == [3.0, -4.0, 12.0, 84.0]


@pytest.mark.parametrize("dimensions", [None, 1, 2, 4, 99])
def test_what_is_left_of_a_vector_is_one_long(dimensions: int | None) -> None:
    values = unit(VECTOR, dimensions)
    assert len(values) == min(dimensions or 4, 4)
    assert sum(value**2 for value in values) == pytest.approx(1.0, abs=1e-6)


def test_directions_stay() -> None:
    assert unit(VECTOR, 2).tolist() == pytest.approx([0.6, -0.8], abs=1e-7)


def test_large_and_small_numbers_have_a_length() -> None:
    assert unit(struct.pack("<2f", 3e38, 0.0)).tolist() == [1.0, 0.0]
    assert unit(struct.pack("<2f", 0.0, 1e-45)).tolist() == [0.0, 1.0]
    assert unit(struct.pack("<2f", 0.0, 0.0)).tolist() == [0.0, 0.0]


def test_base64_is_of_the_same_bytes() -> None:
    assert base64.b64decode(in_base64(floats(VECTOR))) == VECTOR
