"""The yardstick: mlx-lm's BatchGenerator alone, with the template and the tokeniser.

Runs as a process of its own: reads one JSON order per line, answers each with one JSON line, and
ends with its input. Times are seconds from the moment at which the prompts were there. No part of
the worker: `mlxd bench --raw` and the benchmarks compare with it.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

MOST_STREAMS = 32
"""Sequences that are decoded at one time."""
_ENDLESS = "--endless"


class Bare:
    """A model and the generator that steps it."""

    def __init__(self, folder: str, *, endless: bool) -> None:
        """`endless`: no token ends an answer."""
        from mlx_lm import load
        from mlx_lm.generate import BatchGenerator

        self._model, self._tokenizer = load(folder)
        self._generator = BatchGenerator(
            self._model,
            stop_tokens=[] if endless else [[token] for token in self._tokenizer.eos_token_ids],
            completion_batch_size=MOST_STREAMS,
        )

    def run(self, prompts: list[str] | list[list[int]], tokens: int) -> dict[str, Any]:
        """When each token of each prompt's answer came, and the CPU seconds of them all. `prompts`:
        what a user says, or tokens as they are.
        """
        start, used = time.perf_counter(), time.process_time()
        uids = self._generator.insert([self._encode(p) for p in prompts], [tokens] * len(prompts))
        times: dict[int, list[float]] = {uid: [] for uid in uids}
        left = len(uids)
        while left:
            responses = self._generator.next()[1]
            now = time.perf_counter() - start
            for response in responses:
                times[response.uid].append(now)
                left -= response.finish_reason is not None
        cpu = time.process_time() - used
        return {"times": [times[uid] for uid in uids], "cpu": cpu}

    def _encode(self, prompt: str | list[int]) -> list[int]:
        if isinstance(prompt, list):
            return prompt
        message = {"role": "user", "content": prompt}
        ids: list[int] = self._tokenizer.apply_chat_template([message], add_generation_prompt=True)
        return ids


def main() -> None:
    bare = Bare(sys.argv[1], endless=_ENDLESS in sys.argv[2:])
    answer({"ready": True})
    for line in sys.stdin:
        order = json.loads(line)
        answer(bare.run(order["prompts"], order["tokens"]))


def answer(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
