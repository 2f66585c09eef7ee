"""Models that never stop by themselves and end their process when they are told to.

Their folders hold code of their own (`models.<name>.trust_remote_code: true` lets it run in the
worker): the usual architecture, whose special tokens are never chosen, and SIGUSR1 ends the process
with status 70, as a worker ends whose engine is broken. A step that makes tokens takes `pace`
seconds more, in which no core is used, as if a device made it: on a CPU, where a token of a prompt
costs as much as one of an answer, prompts would take seconds of models with such steps.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.model import SPECIAL, stepping, write_tokenizer
from tests.support.model_maker import Shape, make_model

EXIT_STATUS = 70
_SPREAD = 3.0
"""With less the deeper ones repeat themselves."""
_CODE = """
import os
import signal
import threading
import time

import mlx.core as mx
from mlx_lm.models.MODULE import Model as Usual, ModelArgs


def _end(pipe):
    while os.read(pipe, 1)[0] != signal.SIGUSR1:
        pass
    os._exit(STATUS)


reading, writing = os.pipe()  # a handler alone would wait for the end of a step
os.set_blocking(writing, False)
signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
signal.signal(signal.SIGUSR1, lambda *_: None)
threading.Thread(target=_end, args=(reading,), daemon=True).start()


class Model(Usual):
    def __call__(self, tokens, *inputs, **more):
        if tokens.shape[-1] == 1:
            time.sleep(PACE)
        logits = super().__call__(tokens, *inputs, **more)
        return mx.where(mx.arange(logits.shape[-1]) < SPECIAL, -1e9, logits)
"""


def full(layers: int) -> Shape:
    return stepping(layers)


def sliding(layers: int) -> Shape:
    """Every other layer sees 32 tokens: answers are longer than that."""
    kinds = ["sliding_attention", "full_attention"] * layers
    extra = {"sliding_window": 32, "layer_types": kinds[:layers]}
    return replace(stepping(layers), extra=extra)


def hybrid(layers: int) -> Shape:
    """Linear attention and full attention in turn."""
    extra: dict[str, Any] = {
        "full_attention_interval": 2,
        "linear_num_value_heads": 6, "linear_num_key_heads": 3,
        "linear_key_head_dim": 32, "linear_value_head_dim": 32,
    }  # fmt: skip
    return replace(stepping(layers), model_type="qwen3_5", extra=extra)


FAMILIES = {"full": full, "sliding": sliding, "hybrid": hybrid}


def make(folder: Path, family: str, layers: int, pace: float, seed: int) -> Path:
    shape = replace(FAMILIES[family](layers), spread=_SPREAD)
    make_model(folder, shape, seed=seed)
    write_tokenizer(folder, shape.vocab)
    code = _CODE.replace("MODULE", shape.model_type).replace("STATUS", str(EXIT_STATUS))
    code = code.replace("SPECIAL", str(len(SPECIAL))).replace("PACE", str(pace))
    (folder / "code.py").write_text(code)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_file": "code.py"}))
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write model folders.")
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--family", choices=FAMILIES, nargs="+", default=["full"])
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--pace", type=float, default=0.0, help="seconds")
    arguments = parser.parse_args()
    for number, folder in enumerate(arguments.folders):
        family = arguments.family[number % len(arguments.family)]
        make(folder, family, arguments.layers, arguments.pace, seed=number)
