"""What a grammar costs: CPU time of a stream that one holds, against one that none does.

python benchmarks/grammar.py [--short]

Both run in this process, in the engine that a worker runs, one after the other by turns; figures
are of all its threads. Every answer has as many tokens. The vocabulary has 32,000.
"""

from __future__ import annotations

import argparse
import random
import string
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import report
from tests.support.model_maker import CORPUS, Shape, make_model
from tests.worker.bench import Bench

Json = dict[str, Any]
VOCABULARY = 32_000
WANTED = 1.5
TOKENS = 256
_SCHEMAS: dict[str, Json] = {
    "long text": {
        "type": "object",
        "properties": {"a": {"type": "string", "minLength": 4000, "maxLength": 5000}},
        "required": ["a"],
    },
    "many small values": {
        "type": "array",
        "minItems": 1000,
        "items": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "maxLength": 8},
                "kind": {"enum": ["red", "green", "blue"]},
                "count": {"type": "integer", "minimum": 0, "maximum": 999},
                "code": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
            },
            "required": ["name", "kind", "count", "code"],
        },
    },
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    report.add_options(parser)
    parser.add_argument("--rounds", type=int)
    options = parser.parse_args()
    rounds = options.rounds or (1 if options.short else 7)
    found: Json = {**report.begun(), "rounds": rounds, "tokens": TOKENS, "rows": [], "problems": []}
    with tempfile.TemporaryDirectory() as scratch:
        found["rows"] = measure(Path(scratch), rounds, (1,) if options.short else (1, 4))
    for row in found["rows"]:
        if row["ratio"] > WANTED and not options.short:
            found["problems"].append(
                f"{row['schema']}, {row['streams']} streams: {row['ratio']:.2f}"
            )
    return report.publish(options, "grammar", found, _page(found))


def measure(scratch: Path, rounds: int, together: tuple[int, ...]) -> list[Json]:
    """`together`: how many streams run at a time."""
    bench = Bench(made(scratch / "model"))
    rows = []
    for name, schema in _SCHEMAS.items():
        for streams in together:
            run(bench, streams, schema)  # compiles, and shows the vocabulary to the validator
            run(bench, streams, None)
            held: list[float] = []
            free: list[float] = []
            for _ in range(rounds):
                free.append(run(bench, streams, None))
                held.append(run(bench, streams, schema))
            ratio = median(a / b for a, b in zip(held, free, strict=True))
            rows.append(
                {
                    "schema": name, "streams": streams, "ratio": ratio,
                    "free_ms": median(free) * 1e3, "held_ms": median(held) * 1e3,
                }
            )  # fmt: skip
    return rows


def run(bench: Bench, streams: int, format: Json | None) -> float:
    """Seconds of CPU for each token."""
    asked = [
        bench.message(text=f"number {n}", format=format, max_tokens=TOKENS, ignore_eos=not format)
        for n in range(streams)
    ]
    began = time.process_time()
    heard = bench.run(asked)
    used = time.process_time() - began
    tokens = sum(each.ended.completion_tokens for each in heard)
    if tokens != streams * TOKENS:
        raise RuntimeError(f"{tokens} tokens instead of {streams * TOKENS}")
    return used / tokens


def made(folder: Path) -> Path:
    """Greedy text of it does not repeat itself, and its tokenizer has as many tokens as it."""
    make_model(folder, Shape(vocab=VOCABULARY, spread=3.0))
    _write_tokenizer(folder)
    return folder


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    chance = random.Random(0)
    words = ["".join(chance.choices(string.ascii_lowercase, k=7)) for _ in range(20_000)]
    numbers = [str(n) for n in range(2_000)]
    marks = [
        '", "',
        '": "',
        '"}',
        "}, {",
        '{"',
        "[[",
        "]]",
        '":',
        "()",
        "->",
        "//",
        "\\n",
        "...",
        "--",
    ]
    text = [" ".join(chance.choices(words + numbers + marks * 200, k=40)) for _ in range(4_000)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|im_end|>", "<|im_start|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*CORPUS, *text], trainer)
    if tokenizer.get_vocab_size() != VOCABULARY:
        raise RuntimeError(f"the corpus gives {tokenizer.get_vocab_size()} tokens")
    tokenizer.save(str(folder / "tokenizer.json"))


def _page(found: Json) -> str:
    lines = [
        f"Vocabulary {VOCABULARY}, {found['tokens']} tokens a stream, medians of {found['rounds']}"
        " rounds. CPU of the process, all threads, ms for each token.",
        "",
        "| schema | streams | free | held | ratio |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['schema']} | {row['streams']} | {row['free_ms']:.2f} | {row['held_ms']:.2f}"
        f" | {row['ratio']:.2f} |"
        for row in found["rows"]
    ]
    return report.page("What a grammar costs", found, lines)


if __name__ == "__main__":
    sys.exit(main())
