"""What it takes to find the beginning of a prompt among those that are kept.

python benchmarks/prefix_lookup.py [--tokens N] [--entries N] [--json]

Four sets of entries, each looked up with prompts that are as hard as it has any: the least time and
the median of many looks. There are no caches in it, and no model.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))

from mlxd.ipc.messages import TOKEN_BYTES
from mlxd.worker.prefix.index import Index

LIMIT_MS = 1.0
LOOKS = 20


def drawn(draw: random.Random, tokens: int) -> bytes:
    return draw.randbytes(TOKEN_BYTES * tokens)


def agents(draw: random.Random, tokens: int, entries: int) -> Iterator[bytes]:
    """Ten system prompts of half a prompt, each with many conversations behind it."""
    systems = [drawn(draw, tokens // 2) for _ in range(10)]
    return (systems[n % 10] + drawn(draw, 500) for n in range(entries))


def strangers(draw: random.Random, tokens: int, entries: int) -> Iterator[bytes]:
    """Nothing in common."""
    return (drawn(draw, 1000) for _ in range(entries))


def branches(draw: random.Random, tokens: int, entries: int) -> Iterator[bytes]:
    """One long conversation that was gone back in, again and again."""
    trunk = drawn(draw, tokens)
    return (trunk[: TOKEN_BYTES * draw.randrange(tokens)] + drawn(draw, 20) for _ in range(entries))


def turns(draw: random.Random, tokens: int, entries: int) -> Iterator[bytes]:
    """Ten long conversations, kept turn by turn."""
    each = entries // 10
    for _ in range(10):
        whole = drawn(draw, tokens)
        yield from (whole[: TOKEN_BYTES * tokens * (n + 1) // each // 4 * 4] for n in range(each))


SETS = {one.__name__: one for one in (agents, strangers, branches, turns)}


def filled(sequences: Iterator[bytes]) -> tuple[Index[int], bytes]:
    """With the longest of them."""
    tree: Index[int] = Index()
    longest = b""
    for n, ids in enumerate(sequences):
        tree.put(ids, n)
        longest = max(longest, ids, key=len)
    return tree, longest


def timed(look: Callable[[], object]) -> tuple[float, float]:
    """Least and median, in milliseconds."""
    seconds = []
    for _ in range(LOOKS):
        began = time.perf_counter()
        look()
        seconds.append(time.perf_counter() - began)
    return 1e3 * min(seconds), 1e3 * median(seconds)


def measured(name: str, tokens: int, entries: int) -> dict[str, float | str]:
    draw = random.Random(1)
    tree, longest = filled(SETS[name](draw, tokens, entries))
    rest = tokens - len(longest) // TOKEN_BYTES
    prompt = longest[:-TOKEN_BYTES] + drawn(draw, max(1, rest + 1))
    gc.collect()
    least, usual = timed(lambda: tree.match(prompt))
    least_whole, usual_whole = timed(lambda: tree.longest(prompt))
    return {
        "entries": name,
        "match_ms": usual,
        "match_least_ms": least,
        "longest_ms": usual_whole,
        "longest_least_ms": least_whole,
        "index_mb": tree.nbytes / 1e6,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--entries", type=int, default=10_000)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = [measured(name, arguments.tokens, arguments.entries) for name in SETS]
    if arguments.json:
        print(json.dumps(rows, indent=1))
    else:
        print(f"{arguments.tokens} tokens, {arguments.entries} entries; median (least), in ms")
        for row in rows:
            print(
                f"{row['entries']:10} any beginning {row['match_ms']:.3f}"
                f" ({row['match_least_ms']:.3f}), a whole entry {row['longest_ms']:.3f}"
                f" ({row['longest_least_ms']:.3f}); index {row['index_mb']:.1f} MB"
            )
    return int(any(float(str(row["match_least_ms"])) >= LIMIT_MS for row in rows))


if __name__ == "__main__":
    sys.exit(main())
