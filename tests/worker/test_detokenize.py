"""Text comes out whole, at once, and as the tokenizer itself would have it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from tests.support.model_maker import CORPUS, THINKING, TOOLS, Shape, make_model
from tests.worker.conftest import MakeModel

pytestmark = pytest.mark.mlx

TEXTS = [
    "The quick brown fox",
    " leading and  double  spaces ",
    "Съешь ещё этих мягких французских булок",
    "天地玄黃 宇宙洪荒 일이삼 日本語",
    "👨‍👩‍👧‍👦 👍🏽 🏳️‍🌈 é́ e\u0301",
    "tabs\tand\nnewlines\r\n\n",
    "",
]


def spm(folder: Path, *, strip: bool) -> Path:
    """A SentencePiece-like tokenizer: metaspace, byte fallback."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers

    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        if strip
        else [normalizers.Replace(" ", "▁")]
    )
    chain = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if strip:
        chain.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(chain)
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<unk>", "</s>", *byte_tokens],
        initial_alphabet=[],
        limit_alphabet=60,
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS[:1] * 4, trainer)
    return _saved(tokenizer, folder)


def word_piece(folder: Path) -> Path:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=400, special_tokens=["<unk>", "</s>"], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    return _saved(tokenizer, folder)


def _saved(tokenizer: Any, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "unk_token": "<unk>",'
        ' "clean_up_tokenization_spaces": false}'
    )
    return folder


@pytest.fixture(scope="module", params=["byte-level", "spm", "spm-unstripped"])
def tokenizer(request, model_of: MakeModel, tmp_path_factory) -> Any:
    from mlx_lm.tokenizer_utils import load

    if request.param == "byte-level":
        return load(model_of(Shape(markers=THINKING + TOOLS)))
    return load(spm(tmp_path_factory.mktemp("spm"), strip=request.param == "spm"))


def pieces_of(tokenizer: Any, tokens: list[int]) -> list[str]:
    from mlxd.worker.detokenize import Detokenizers

    detokenizer = Detokenizers(tokenizer).make()
    return [*(detokenizer.add(token) for token in tokens), detokenizer.finish()]


def upstream(tokenizer: Any, tokens: list[int]) -> str:
    detokenizer = tokenizer.detokenizer
    for token in tokens:
        detokenizer.add_token(token)
    detokenizer.finalize()
    return str(detokenizer.text)


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_what_the_tokenizer_decodes(tokenizer, text):
    tokens = tokenizer.encode(text, add_special_tokens=False)
    mine = "".join(pieces_of(tokenizer, tokens))
    decoded = tokenizer.decode(tokens)
    assert mine in (decoded, decoded.removeprefix(" "))
    assert mine.lstrip() == upstream(tokenizer, tokens).lstrip()


@pytest.mark.parametrize("word", [" fox", " ", "fox"])
def test_a_leading_space_is_dropped_where_upstream_drops_it(model_of: MakeModel, word):
    from mlx_lm.tokenizer_utils import load

    tokenizer = load(model_of(Shape()))
    tokens = tokenizer.encode(word, add_special_tokens=False)
    assert "".join(pieces_of(tokenizer, tokens)) == upstream(tokenizer, tokens) == word.strip()


def test_random_tokens_never_give_a_replacement_character(tokenizer):
    draw = random.Random(0)
    for _ in range(50):
        tokens = draw.choices(range(len(tokenizer)), k=40)
        pieces = pieces_of(tokenizer, tokens)
        assert "\ufffd" not in "".join(pieces)
        for piece in pieces:
            piece.encode()


def test_complete_characters_do_not_wait(tokenizer):
    tokens = tokenizer.encode("plain words only", add_special_tokens=False)
    pieces = pieces_of(tokenizer, tokens)
    assert pieces[-1] == ""
    assert sum(not piece for piece in pieces[:-1]) <= 1


def test_half_a_character_waits_and_is_dropped_at_the_end(model_of: MakeModel):
    from mlx_lm.tokenizer_utils import load

    tokenizer = load(model_of(Shape()))
    tokens = tokenizer.encode("a😎", add_special_tokens=False)
    assert len(tokens) > 3
    assert "".join(pieces_of(tokenizer, tokens)) == "a😎"
    assert "".join(pieces_of(tokenizer, tokens[:-1])) == "a"
    assert "".join(pieces_of(tokenizer, [*tokens[:-1], *tokens[:1]])) == "aa"


def test_added_tokens_have_their_own_text(model_of: MakeModel):
    from mlx_lm.tokenizer_utils import load

    from mlxd.worker.detokenize import Detokenizers

    tokenizer = load(model_of(Shape(markers=(*TOOLS, "<｜é ｜>"))))
    text = "a<tool_call>b</tool_call><｜é ｜>"
    tokens = tokenizer.encode(text, add_special_tokens=False)
    assert "".join(pieces_of(tokenizer, tokens)) == text
    last = len(tokenizer) - 1
    assert Detokenizers(tokenizer).bytes_of(last) == "<｜é ｜>".encode()


def test_ids_beyond_the_tokenizer_are_silent(tokenizer):
    tokens = tokenizer.encode("ab", add_special_tokens=False)
    assert "".join(pieces_of(tokenizer, [*tokens, 100_000])) == "ab"


def test_ids_that_leave_gaps_have_their_text_to_the_last(tmp_path: Path):
    from mlx_lm.tokenizer_utils import load

    from mlxd.worker.detokenize import Detokenizers

    folder = make_model(tmp_path / "m", Shape())
    said = json.loads((folder / "tokenizer.json").read_text())
    said["model"]["vocab"]["last"] = 600
    (folder / "tokenizer.json").write_text(json.dumps(said))
    tokenizer = load(folder)
    assert len(tokenizer) == 513
    detokenizers = Detokenizers(tokenizer)
    assert detokenizers.make().add(600) == "last"
    assert [detokenizers.bytes_of(id) for id in (599, 600, 601)] == [b"", b"last", b""]


@pytest.mark.parametrize("bytewise", [True, False])
def test_no_list_of_all_tokens_is_made_amid_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, bytewise: bool
):
    """Where there are many, all answers would wait for it."""
    from mlx_lm.tokenizer_utils import TokenizerWrapper, load

    from mlxd.worker.detokenize import Detokenizers

    tokenizer = load(make_model(tmp_path / "m", Shape()))
    if not bytewise:
        tokenizer = TokenizerWrapper(tokenizer._tokenizer)
    detokenizers = Detokenizers(tokenizer)
    monkeypatch.setattr(type(tokenizer._tokenizer), "get_vocab", None)
    detokenizer = detokenizers.make()
    text = [detokenizer.add(id) for id in (*tokenizer.encode("a"), 100_000)]
    assert "".join([*text, detokenizer.finish()]) == "a"
    assert detokenizers.bytes_of(100_000) == b""


def test_a_tokenizer_in_python_is_not_asked_for_ids_beyond_its_own():
    from mlx_lm.tokenizer_utils import TokenizerWrapper
    from transformers import PreTrainedTokenizer

    from mlxd.worker.detokenize import Detokenizers

    class Letters(PreTrainedTokenizer):  # type: ignore[misc]
        vocab_size = 128

        def get_vocab(self) -> dict[str, int]:
            return {chr(id): id for id in range(128)}

        def _tokenize(self, text: str, **_: Any) -> list[str]:
            return list(text)

        def _convert_token_to_id(self, token: str) -> int:
            return ord(token)

        def _convert_id_to_token(self, id: int) -> str:
            return bytes([id]).decode("ascii")

    detokenizers = Detokenizers(TokenizerWrapper(Letters()))
    detokenizer = detokenizers.make()
    text = [detokenizer.add(id) for id in (97, 128, 300, 98)]
    assert "".join([*text, detokenizer.finish()]) == "a b"
    assert [detokenizers.bytes_of(id) for id in (97, 300)] == [b"a", b""]


def test_other_tokenizers_stream_too(tmp_path: Path):
    from mlx_lm.tokenizer_utils import load

    tokenizer = load(word_piece(tmp_path))
    tokens = tokenizer.encode("the quick brown fox", add_special_tokens=False)
    assert "".join(pieces_of(tokenizer, tokens)) == tokenizer.decode(tokens)


def test_a_replacement_character_that_the_model_wrote_is_dropped_too(tokenizer):
    tokens = tokenizer.encode("a\ufffdb", add_special_tokens=False)
    assert "".join(pieces_of(tokenizer, tokens)) == "ab"
