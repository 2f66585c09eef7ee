"""Text of any script arrives whole: a character cut across tokens is never shown in halves."""

from __future__ import annotations

import pytest

from tests.integration.reciter import RECITED
from tests.integration.talking import (
    ENDLESS,
    PATHS,
    body_for,
    piece_of,
    records,
    whole_text,
)
from tests.support.daemon import Daemon
from tests.support.long import in_turn

pytestmark = pytest.mark.mlx

CHATS = ("/api/generate", "/api/chat", "/v1/chat/completions")


@pytest.mark.parametrize("path", CHATS)
def test_cyrillic_cjk_and_emoji_are_said_as_the_model_means_them(served: Daemon, path: str) -> None:
    body = body_for(path, "tiny-reciter", "recite", tokens=200)
    assert whole_text(path, served.http.post(path, json=body).json()) == RECITED


@pytest.mark.parametrize("path", CHATS)
def test_cyrillic_cjk_and_emoji_stream_whole(served: Daemon, path: str) -> None:
    body = body_for(path, "tiny-reciter", "recite", tokens=200) | {"stream": True}
    response = served.http.post(path, json=body)
    assert "\ufffd" not in response.text
    assert "\\ufffd" not in response.text.lower()
    pieces = [piece_of(path, record) for record in records(path, response)]
    assert "".join(pieces) == RECITED
    assert sum(map(bool, pieces)) > 20


def test_a_raw_prompt_is_recited_from_as_well(served: Daemon) -> None:
    body = body_for("/v1/completions", "tiny-reciter", "x\n", tokens=200)
    assert whole_text("/v1/completions", served.http.post("/v1/completions", json=body).json()) == (
        RECITED
    )


@pytest.mark.parametrize("tokens", range(1, 30, 3))
def test_an_answer_cut_inside_a_character_ends_before_it(served: Daemon, tokens: int) -> None:
    body = body_for("/api/chat", "tiny-reciter", "recite", tokens=tokens)
    text = served.http.post("/api/chat", json=body).json()["message"]["content"]
    assert "\ufffd" not in text
    assert RECITED.startswith(text)


@pytest.mark.parametrize(
    ("prompt", "path"),
    in_turn(["Привет, мир", "你好世界", "🚀👨‍👩‍👧‍👦👍🏽", "العربية"], PATHS),
)
def test_a_prompt_of_any_script_is_answered_without_u_fffd(
    served: Daemon, path: str, prompt: str
) -> None:
    body = body_for(path, ENDLESS, prompt, tokens=30)
    whole = served.http.post(path, json=body)
    streamed = served.http.post(path, json=body | {"stream": True})
    assert "\ufffd" not in whole.text + streamed.text
    pieces = [piece_of(path, record) for record in records(path, streamed)]
    assert "".join(pieces) == whole_text(path, whole.json())


def test_a_stop_string_of_another_script_stops(served: Daemon) -> None:
    body = body_for("/api/chat", "tiny-reciter", "recite", tokens=200, stop=["宇宙"])
    answer = served.http.post("/api/chat", json=body).json()
    assert answer["message"]["content"] == RECITED[: RECITED.index("宇宙")]
    body = body_for("/api/chat", "tiny-reciter", "recite", tokens=200, stop=["😀"])
    answer = served.http.post("/api/chat", json=body).json()
    assert answer["message"]["content"] == RECITED[: RECITED.index("😀")]
