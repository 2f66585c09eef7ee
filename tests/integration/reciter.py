"""Models that follow a script, in real engine processes.

The reciter recites one text: each token has one successor, and the last ends the answer. Its layers
add nothing; the embedding is one-hot, and the output layer maps each token to its successor. So
what it must say is known, in whatever scripts, with characters cut across tokens. The fragile one
runs code of its own, which finds no memory when a prompt ends with one certain token.
"""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.support.model_maker import THINKING, TOOLS, Shape, make_model

RECITED = "Съешь ещё этих мягких французских булок 天地玄黃 宇宙洪荒 😀 👍🏽"
_VOCABULARY = 512
_STOP = 0


def make_reciter(folder: Path) -> Path:
    """Write the model's folder and return it."""
    shape = Shape(hidden=_VOCABULARY, layers=1, vocab=_VOCABULARY)
    shape = replace(shape, extra={"tie_word_embeddings": False})
    make_model(folder, shape)
    _write_weights(folder, _successors(folder))
    return folder


_ASKED, _ASKED_TO_THINK = "<|asked|>", "<|asked-to-think|>"
_TOLD, _TOLD_TO_THINK = "<|told|>", "<|told-to-think|>"
AGENT_TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool | tojson }}\n{% endfor %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{% for call in message.tool_calls or [] %}<tool_call>{% set tool_call = call.function %}"
    "{{ tool_call.name }} {{ tool_call.arguments | tojson }}</tool_call>{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking %}<think>{% endif %}"
    "<|{{ 'told' if messages[-1].role == 'tool' else 'asked' }}"
    "{{ '-to-think' if enable_thinking else '' }}|>{% endif %}"
)
AGENT_CALLS = ({"path": "a.py"}, {"path": "b.py", "lines": [1, 20]})
"""What it calls `read` with, both in one answer."""


def make_agent(folder: Path) -> Path:
    """One for an agent with a tool `read`: asked, it calls that twice; told, it is content.

    Each of its answers is a chain of tokens that are whole sentences.
    """
    calls = [
        f"<tool_call>{json.dumps({'name': 'read', 'arguments': arguments})}</tool_call>"
        for arguments in AGENT_CALLS
    ]
    look = ["I will look.", *calls]
    chains = (
        [_ASKED, *look],
        [_ASKED_TO_THINK, "Two files.", "</think>", *look],
        [_TOLD, "Both are fine."],
        [_TOLD_TO_THINK, "Nothing is left.</think>", "Both are fine."],
    )
    words = dict.fromkeys(word for chain in chains for word in chain)
    markers = (*dict.fromkeys((*THINKING, *TOOLS, *words)),)
    shape = Shape(
        hidden=_VOCABULARY,
        layers=1,
        vocab=_VOCABULARY,
        markers=markers,
        template=AGENT_TEMPLATE,
        extra={"tie_word_embeddings": False},
    )
    make_model(folder, shape)
    _write_weights(folder, _followers(folder, chains))
    return folder


def _followers(folder: Path, chains: tuple[list[str], ...]) -> dict[int, int]:
    """Whatever ends no prompt and stands in no chain is followed by the end."""
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
    return dict(
        pair for chain in chains for pair in pairwise([*(ids[word] for word in chain), _STOP])
    )


FATAL = 77
_CODE = """
from mlx_lm.models.llama import Model as Llama, ModelArgs


class Model(Llama):
    def __call__(self, inputs, cache=None, **more):
        if _last(inputs) == FATAL:
            raise ERROR
        return super().__call__(inputs, cache=cache, **more)


def _last(inputs):
    try:
        return inputs.tolist()[0][-1]
    except ValueError:  # recorded, not run: there are no numbers
        return None
"""


def make_fragile(folder: Path, error: str = "MemoryError('none left')") -> Path:
    """`error`: what it raises, in Python, when FATAL is the last token it is shown."""
    make_model(folder, Shape(spread=3.0))
    code = _CODE.replace("FATAL", str(FATAL)).replace("ERROR", error)
    (folder / "code.py").write_text(code)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_file": "code.py"}))
    return folder


_DYING = """
import os
import signal

from mlx_lm.models.llama import Model as Llama, ModelArgs


def _live_or_die():
    if not os.path.exists(CURE):
        END


class Model(Llama):
    def __init__(self, args):
        if WHEN == "load":
            _live_or_die()
        super().__init__(args)

    def __call__(self, inputs, cache=None, **more):
        if WHEN == "step":
            _live_or_die()
        return super().__call__(inputs, cache=cache, **more)
"""
SEGFAULT = "os.kill(os.getpid(), signal.SIGSEGV)"


def make_dying(folder: Path, cure: Path, *, when: str = "load", end: str = SEGFAULT) -> Path:
    """One whose code ends its process at each `load` or `step`, until there is a file `cure`."""
    make_model(folder, Shape(spread=3.0))
    code = _DYING.replace("CURE", repr(str(cure))).replace("WHEN", repr(when)).replace("END", end)
    (folder / "code.py").write_text(code)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_file": "code.py"}))
    return folder


def _successors(folder: Path) -> dict[int, int]:
    """The chain begins behind the line break that ends the chat template."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    (line_break,) = tokenizer.encode("\n").ids
    chain = [line_break, *tokenizer.encode(RECITED).ids, _STOP]
    assert len(set(chain)) == len(chain), "a token of the text occurs twice"
    return dict(pairwise(chain))


def _write_weights(folder: Path, successors: dict[int, int]) -> None:
    import mlx.core as mx

    file = str(folder / "model.safetensors")
    loaded: Any = mx.load(file)
    weights = {
        name: mx.ones_like(value) if value.ndim == 1 else mx.zeros_like(value)
        for name, value in loaded.items()
    }
    weights["model.embed_tokens.weight"] = mx.eye(_VOCABULARY)
    head = [[0.0] * _VOCABULARY for _ in range(_VOCABULARY)]
    for token in range(_VOCABULARY):
        head[successors.get(token, _STOP)][token] = 1.0
    weights["lm_head.weight"] = mx.array(head)
    mx.eval(weights)
    mx.save_safetensors(file, weights, metadata={"format": "mlx"})
