"""A real encoder of two layers, whose vectors are known."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

DATA = Path(__file__).parents[1] / "data" / "encoders"
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "fox", "dog", "server", "token", "##s")


def make_encoder(folder: Path) -> Path:
    """The tiny BERT with a tokenizer, packed for sentence-transformers."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    shutil.copytree(DATA / "bert", folder)
    vocabulary = {word: n for n, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    return folder
