"""What was put into tokens before is not put into tokens again, and no token differs."""

from __future__ import annotations

import random
from typing import Any

import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from mlxd.worker import encoding
from mlxd.worker.encoding import MOST_TEXTS, Encoding

SPOKEN = "the of and to a is that été 日本 🦊 <|x|> [INST] 12 345 don't <s>"
WORDS = [*SPOKEN.split(), "", "in\n", "\t"]
MARKS = ("<|im_start|>", "<|im_end|>", "<s>")


def trained(kind: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=kind == "metaspace"))
    if kind == "metaspace":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    elif kind == "prepend":
        prepend = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        tokenizer.normalizer = normalizers.Sequence(prepend)
    else:
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet() if kind == "bytes" else []
    trainer = BpeTrainer(vocab_size=400, special_tokens=["<unk>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator([" ".join(WORDS) * 20], trainer)
    return tokenizer


def wrapped(kind: str, *, ends: bool = False, begins: bool = False, **flags: bool) -> Any:
    tokenizer = trained(kind)
    marks = [AddedToken(mark, special=True, normalized=False, **flags) for mark in MARKS]
    tokenizer.add_special_tokens(marks)
    tokenizer.add_tokens([AddedToken("<|x|>", special=False)])
    if begins or ends:
        single = f"{'<s> ' if begins else ''}$A{' <|im_end|>' if ends else ''}"
        ids = [(mark, tokenizer.token_to_id(mark)) for mark in MARKS]
        tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=ids)
    return TokenizerWrapper(PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>"))


class Spied:
    """Counts the characters that it is given."""

    def __init__(self, tokenizer: Any) -> None:
        self._inner = tokenizer
        self.characters = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def encode(self, text: str, **options: Any) -> Any:
        self.characters += len(text)
        return self._inner.encode(text, **options)


def said(draw: random.Random, words: int) -> str:
    return " ".join(draw.choices(WORDS, k=words))


def turns(draw: random.Random, count: int, words: int) -> list[str]:
    roles = ("user\n", "assistant", "system ")
    return [
        f"<|im_start|>{draw.choice(roles)}{said(draw, words)}<|im_end|>\n" for _ in range(count)
    ]


KINDS: dict[str, dict[str, bool]] = {
    "alone": {}, "begins": {"begins": True}, "ends": {"begins": True, "ends": True},
}  # fmt: skip


@pytest.mark.parametrize("kind", ["bytes", "metaspace", "prepend"])
@pytest.mark.parametrize("adds", KINDS)
def test_no_token_differs(kind: str, adds: str) -> None:
    tokenizer = wrapped(kind, **KINDS[adds])
    made, draw = Encoding(tokenizer), random.Random(1)
    assert (made._marks is None) is (adds == "ends")
    talk = turns(draw, 4, 300)
    for _ in range(60):
        match draw.randrange(4):
            case 0:
                talk = talk[: draw.randrange(1, len(talk) + 1)]
            case 1:
                n = draw.randrange(len(talk))
                talk[n] = talk[n].replace("the", "The", 1)
            case _:
                talk += turns(draw, 1, draw.randrange(1, 60))
        text, special = "".join(talk) + said(draw, 2), draw.random() < 0.5
        wanted = tokenizer.encode(text, add_special_tokens=special)
        assert made.encode(text, special=special) == wanted


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("begun", [False, True])
def test_what_a_tokenizer_does_not_know_is_no_mark(begun: bool, special: bool) -> None:
    """Its token for that is a special one, of which nothing is written in the text."""
    tokenizer = wrapped("metaspace")
    made = Encoding(tokenizer)
    first, second, third, fourth = (
        f"<|im_start|>{words * 200}<|im_end|>" for words in ("the of ", "that is ", "a to ", "and ")
    )
    fourth = fourth.replace("and", "\u2603", 1)
    alone = tokenizer.encode("\u2603", add_special_tokens=False)
    assert alone[-1] == tokenizer.convert_tokens_to_ids("<unk>")
    if begun:
        made.encode(first + second, special=special)
    for text in (first + second + fourth, first + third, first + second + third):
        wanted = tokenizer.encode(text, add_special_tokens=special)
        assert made.encode(text, special=special) == wanted


@pytest.mark.parametrize("special", [False, True])
def test_only_what_is_new_is_put_into_tokens(special: bool) -> None:
    spied = Spied(wrapped("bytes", begins=True))
    made, draw = Encoding(spied), random.Random(2)
    talk = "".join(turns(draw, 6, 400))
    made.encode(talk + "<|im_start|>assistant\n", special=special)
    for answer in ("Yes.", "No."):
        before = spied.characters
        more = f"<|im_start|>assistant\n{answer}<|im_end|>\n<|im_start|>user\nAnd?<|im_end|>\n"
        made.encode(talk + more, special=special)
        assert spied.characters - before <= len("<|im_end|>\n" + more)
        talk += more


def test_a_first_mark_alone_is_no_beginning() -> None:
    """What is put before a text would be put there twice."""
    tokenizer = wrapped("bytes", begins=True)
    made = Encoding(tokenizer)
    for words in ("the of ", "that is "):
        text = f"<|im_start|>{words * 400}"
        assert made.encode(text, special=True) == tokenizer.encode(text, add_special_tokens=True)


def test_what_has_grown_turn_by_turn_is_known_at_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "MOST_TEXTS", 1)
    spied = Spied(wrapped("bytes"))
    made, draw = Encoding(spied), random.Random(5)
    talk = turns(draw, 4, 300)
    for count in (2, 3, 4):
        made.encode("".join(talk[:count]), special=False)
    before, other = spied.characters, "<|im_end|>\nthe"
    made.encode(talk[0] + talk[1] + other, special=False)
    assert spied.characters - before <= len("<|im_end|>\n" + other)


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word"])
def test_where_a_mark_takes_of_what_is_around_it_nothing_is_divided(flag: str) -> None:
    spied = Spied(wrapped("bytes", **{flag: True}))
    made, draw = Encoding(spied), random.Random(3)
    text = "".join(turns(draw, 4, 300))
    made.encode(text, special=False)
    before = spied.characters
    made.encode(text, special=False)
    assert spied.characters - before == len(text)


class Swallowing(Spied):
    """A tokenizer of a model's own, by which a mark takes the line's end before it."""

    def encode(self, text: str, **options: Any) -> Any:
        return super().encode(text.replace("\n<", "<"), **options)


def test_where_both_sides_of_a_mark_are_not_treated_by_themselves_nothing_is_divided() -> None:
    assert Encoding(Swallowing(wrapped("bytes")))._marks is None


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "MOST_CHARACTERS", 60_000)
    made, draw = Encoding(wrapped("bytes")), random.Random(4)
    for _ in range(3 * MOST_TEXTS):
        made.encode("".join(turns(draw, 2, 400)), special=False)
        assert len(made._known) <= MOST_TEXTS
        assert made._characters == sum(len(text) for text, _ in made._known) <= 60_000
    made.encode("<|im_start|>" + "a " * 60_000, special=False)
    assert made._characters == 0
