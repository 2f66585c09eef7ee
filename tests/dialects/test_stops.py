"""Stop strings are searched at every token: their length is bounded in every dialect."""

from __future__ import annotations

import pytest

from mlxd.core.errors import InvalidRequest


def asked(name: str, stops: object) -> dict[str, object]:
    if name.startswith("anthropic"):
        return {"stop_sequences": stops}
    return {"stop": stops} if name.startswith("openai") else {"options": {"stop": stops}}


def test_a_stop_string_has_at_most_a_thousand_characters(spoken) -> None:
    assert spoken.call(**asked(spoken.name, ["x" * 1000])).request.stop == ("x" * 1000,)
    with pytest.raises(InvalidRequest, match="at most 1000 characters") as caught:
        spoken.call(**asked(spoken.name, ["a", "x" * 1001]))
    assert caught.value.param == "stop"


def test_one_alone_has_too(spoken) -> None:
    if spoken.name.startswith("openai"):
        with pytest.raises(InvalidRequest, match="at most 1000 characters"):
            spoken.call(stop="x" * 1001)
