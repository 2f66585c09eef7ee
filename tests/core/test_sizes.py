import pytest

from mlxd.core.sizes import spoken


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "0.977 KiB"),
        (512 * 2**20, "512 MiB"),
        (3 * 2**30 + 2**28, "3.25 GiB"),
        (1023 * 2**30, "0.999 TiB"),
        (5000 * 2**40, "5000 TiB"),
    ],
)
def test_a_size_is_said_in_three_digits(size: int, words: str) -> None:
    assert spoken(size) == words
