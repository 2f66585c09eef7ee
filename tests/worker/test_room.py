"""How long a prompt may be, and what is known about it before it is tokenised."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from mlxd.worker.refusal import Refusal
from tests.support.model_maker import CORPUS, Shape
from tests.worker.conftest import MakeModel

pytestmark = pytest.mark.mlx


def room(context: int = 100, max_prompt: int = 1000) -> Any:
    from mlxd.worker.room import Room

    return Room(context, max_prompt)


def wrapped(tokenizer: Any) -> Any:
    from mlx_lm.tokenizer_utils import TokenizerWrapper
    from transformers import PreTrainedTokenizerFast

    return TokenizerWrapper(PreTrainedTokenizerFast(tokenizer_object=tokenizer))


@pytest.fixture
def raw(model_of: MakeModel) -> Any:
    from tokenizers import Tokenizer

    folder: Path = model_of(Shape(spread=3.0))
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def test_one_token_of_the_context_is_the_answers():
    room().check(99)
    with pytest.raises(Refusal, match=r"length \(100 tokens\) exceeds the model's maximum context"):
        room().check(100)


def test_the_policys_limit_is_named():
    with pytest.raises(Refusal, match=r"limits\.tokens\.max_prompt \(50 tokens\)"):
        room(max_prompt=50).check(51)


@pytest.mark.parametrize("kind", ["Room", "InputRoom"])
def test_so_is_one_that_allows_less_context_than_the_model(kind: str):
    from mlxd.worker import room

    bounded = getattr(room, kind)(50, 1000, "clients.tenants.a.max_context")
    with pytest.raises(Refusal, match=r"clients\.tenants\.a\.max_context \(50 tokens\)") as caught:
        bounded.check(51)
    assert caught.value.policy_key == "clients.tenants.a.max_context"


@pytest.mark.parametrize(
    ("kind", "words"), [("Room", "model's maximum context length"), ("InputRoom", "context length")]
)
def test_a_context_that_policy_has_set_is_named_beside_the_words_that_clients_look_for(
    kind: str, words: str
):
    from mlxd.worker import room

    with pytest.raises(Refusal, match=rf"exceeds the {words} \(50 tokens\)") as caught:
        getattr(room, kind)(50, 1000, "models.defaults.context").check(51)
    assert caught.value.policy_key == "models.defaults.context"


def test_what_was_asked_and_what_is_allowed_goes_along():
    with pytest.raises(Refusal) as counted:
        room(max_prompt=50).check(51)
    assert counted.value.numbers == {"prompt_tokens": 51, "allowed_tokens": 50}
    with pytest.raises(Refusal) as estimated:
        room().check_bytes(1000, 10)
    assert estimated.value.numbers == {"prompt_tokens_at_least": 100, "allowed_tokens": 99}


def test_bytes_that_cannot_fit_are_refused_without_a_count():
    room().check_bytes(99 * 8, 8)
    with pytest.raises(Refusal) as caught:
        room().check_bytes(99 * 8 + 1, 8)
    assert caught.value.code == "context_exceeded"
    assert str(caught.value).startswith("input length exceeds the model's maximum context length")


@pytest.mark.parametrize("composed", [False, True])
def test_no_token_stands_for_more_than_the_longest(raw, composed):
    from tokenizers import normalizers

    from mlxd.worker.room import longest_token

    if composed:
        raw.normalizer = normalizers.NFC()
        raw.add_tokens(["\u0390" * 10])
    tokenizer = wrapped(raw)
    longest = longest_token(tokenizer)
    assert longest is not None
    draw = random.Random(3)
    texts = [" " * 300, "<|im_start|>" * 9, "\u1fbe\u0308\u0301" * 50, "\u212a" * 50]
    texts += ["".join(draw.choices(" ".join(CORPUS) + "\n\t▁e\u0301", k=200)) for _ in range(200)]
    texts += [text[:width] for text in CORPUS for width in range(1, len(text))]
    for text in texts:
        tokens = tokenizer.encode(text, add_special_tokens=False)
        assert len(tokens) * longest >= len(text.encode())


def test_nothing_is_certain_of_a_tokenizer_that_drops_text(raw):
    from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers

    from mlxd.worker.room import longest_token

    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert longest_token(wrapped(raw)) is not None
    raw.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(" ", "removed"), level])
    assert longest_token(wrapped(raw)) is None
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    assert longest_token(wrapped(raw)) is None
    raw.pre_tokenizer = level
    for normalizer in (normalizers.Strip(), normalizers.Replace(Regex("a+"), "a")):
        raw.normalizer = normalizers.Sequence([normalizers.NFC(), normalizer])
        assert longest_token(wrapped(raw)) is None
    raw.normalizer = normalizers.NFC()
    assert longest_token(wrapped(raw)) is not None
    raw.add_tokens([AddedToken("<mask>", lstrip=True)])
    assert longest_token(wrapped(raw)) is None


def test_nothing_is_certain_where_bytes_are_missing():
    from tokenizers import Tokenizer, models, pre_tokenizers

    from mlxd.worker.room import longest_token

    raw = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel()
    assert longest_token(wrapped(raw)) is None
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    assert longest_token(wrapped(raw)) is None
    pieces = {f"<0x{byte:02X}>": byte for byte in range(256)}
    whole = Tokenizer(models.BPE(pieces, [], byte_fallback=True))
    whole.pre_tokenizer = pre_tokenizers.Metaspace()
    assert longest_token(wrapped(whole)) == 6


def test_what_is_only_counted_is_judged_by_what_tokens_usually_stand_for() -> None:
    from mlxd.worker.room import CountingRoom

    room = CountingRoom(101, 100)
    room.check_bytes(800, 128)
    room.check_bytes(300, 3)
    for size, longest in ((801, 128), (301, 3)):
        with pytest.raises(Refusal, match="input length exceeds"):
            room.check_bytes(size, longest)
