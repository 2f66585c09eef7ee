"""Text held to a schema, one request at a time, in any batch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models

from mlxd.core.request import GenerationRequest
from mlxd.worker.refusal import Refusal
from tests.support.model_maker import THINKING, TOOLS, Shape
from tests.worker.conftest import MakeModel

pytestmark = pytest.mark.mlx

SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": ["x", "y"]}},
    "required": ["a"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def tokenizer(model_of: MakeModel) -> Any:
    from mlx_lm.tokenizer_utils import load

    return load(model_of(Shape(markers=THINKING + TOOLS)))


@pytest.fixture(scope="module")
def grammars(tokenizer) -> Any:
    from mlxd.worker.grammar import Grammars

    return Grammars(tokenizer, 512)


def asked(format: Any, **more: Any) -> GenerationRequest:
    return GenerationRequest(model="m", text="x", format=format, **more)


def made(grammars: Any, request: GenerationRequest, **how: Any) -> Any:
    from mlxd.worker.sampling import Guard

    how = {"reasoning": False, "may_think": False} | how
    return grammars.compile(request, **how)(Guard(), [])


def drawn(tokenizer: Any, process: Any, forced: str = "", limit: int = 60) -> str:
    """Random text under a grammar; `forced` is what the model insists on saying first."""
    import mlx.core as mx

    tokens = [5, 6]
    start = tokenizer.encode(forced, add_special_tokens=False)
    for n in range(limit):
        logits = mx.random.normal((1, 512), key=mx.random.key(n))
        if n < len(start):
            logits[:, start[n]] = 100.0
        token: Any = mx.argmax(process(mx.array(tokens), logits)).item()
        if token in tokenizer.eos_token_ids:
            break
        tokens.append(token)
    return str(tokenizer.decode(tokens[2:]))


def test_tokens_that_the_model_has_no_logits_for_are_no_hindrance(model_of: MakeModel) -> None:
    from mlx_lm.tokenizer_utils import load

    from mlxd.worker.grammar import Grammars

    tokenizer = load(model_of(Shape()))
    tokenizer.add_tokens(["<pad>"])
    assert len(tokenizer) == 513
    process = made(Grammars(tokenizer, 512), asked(SCHEMA))
    assert json.loads(drawn(tokenizer, process))["a"] in ("x", "y")


def test_it_is_told_when_the_lock_is_held(tokenizer) -> None:
    from mlxd.worker.grammar import DEAF_SECONDS, Grammars

    told: list[float] = []
    grammars = Grammars(tokenizer, 512, deaf=told.append)
    made(grammars, asked(SCHEMA))
    made(grammars, asked("json"))
    assert told == [DEAF_SECONDS, 0.0]
    early = Grammars(tokenizer, 512, deaf=told.append)
    early.prepare()
    told.clear()
    made(early, asked(SCHEMA))
    assert told == []


def test_text_follows_the_schema(tokenizer, grammars):
    process = made(grammars, asked(SCHEMA))
    assert json.loads(drawn(tokenizer, process))["a"] in ("x", "y")


def test_json_is_an_object(tokenizer, grammars):
    assert drawn(tokenizer, made(grammars, asked("json"))).startswith("{")


def test_a_grammar_begins_after_the_thinking(tokenizer, grammars):
    process = made(grammars, asked(SCHEMA), reasoning=True, may_think=True)
    thought, _, answer = drawn(tokenizer, process, "well [then]</think>").partition("</think>")
    assert thought == "well [then]"
    assert json.loads(answer)["a"] in ("x", "y")


def test_a_model_may_open_its_thinking_itself(tokenizer, grammars):
    process = made(grammars, asked(SCHEMA), may_think=True)
    text = drawn(tokenizer, process, "<think>hm</think>")
    assert text.startswith("<think>hm</think>")
    assert json.loads(text.partition("</think>")[2])["a"] in ("x", "y")


@pytest.mark.parametrize(
    "schema", [{"type": 5}, {"type": "no such"}, {"$ref": "#/missing"}, {"pattern": "(?=x)"}]
)
def test_a_schema_that_is_none_is_refused_with_words(grammars, schema):
    with pytest.raises(Refusal, match=r"format: .{10,}") as caught:
        made(grammars, asked(schema))
    assert caught.value.param == "format"


def refusal_of(tokenizer: Any, width: int = 512) -> str:
    from mlxd.worker.grammar import Grammars

    with pytest.raises(Refusal) as caught:
        made(Grammars(tokenizer, width), asked(SCHEMA))
    return str(caught.value)


def test_a_tokenizer_that_cannot_be_followed_is_refused_for_its_own_reason(
    model_of: MakeModel, tmp_path: Path
) -> None:
    from mlx_lm.tokenizer_utils import load

    folder = Path(shutil.copytree(model_of(Shape()), tmp_path / "m"))
    endless = load(folder)
    endless.eos_token_ids = set()
    assert "no token ends them" in refusal_of(endless)
    assert "cannot be read: vocab size too small" in refusal_of(load(folder), 100)
    words = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    words.decoder = decoders.WordPiece()
    words.save(str(folder / "tokenizer.json"))
    assert "neither ByteLevel nor ByteFallback" in refusal_of(load(folder, eos_token_ids=0))
