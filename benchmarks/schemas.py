"""Whether every answer that ends is what its schema asks for, and how many end.

python benchmarks/schemas.py [--short]

A model with random weights says anything that it is allowed to. Each schema is asked for with
several seeds, many at a time; what ends by itself must be valid by the jsonschema package.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import httpx
from jsonschema import Draft202012Validator, FormatChecker

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import report
from benchmarks.schema_maker import draw
from benchmarks.startup import served
from tests.support.model_maker import Shape, make_model

Json = dict[str, Any]
MOST_TOKENS = 512
WANTED = 0.95
"""Of the answers: how many end by themselves."""
_AT_ONCE = 16
SHAPES = {"peaked": Shape(spread=3.0), "even": Shape(spread=1.0)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    report.add_options(parser)
    parser.add_argument("--schemas", type=int)
    parser.add_argument("--seeds", type=int)
    options = parser.parse_args()
    schemas = options.schemas or (8 if options.short else 100)
    seeds = options.seeds or (2 if options.short else 5)
    found: Json = {**report.begun(), "schemas": schemas, "seeds": seeds, "rows": [], "problems": []}
    shapes = ["peaked"] if options.short else list(SHAPES)
    with tempfile.TemporaryDirectory() as scratch:
        for name in shapes:
            folder = make_model(Path(scratch) / "models" / name, SHAPES[name])
            with served(folder, Path(scratch) / f"served-{name}") as daemon:
                asked = ask_all(f"http://127.0.0.1:{daemon.port}", name, schemas, seeds)
                found["rows"].append(judged(name, list(asked), found["problems"]))
    return report.publish(options, "schemas", found, _page(found))


def ask_all(url: str, model: str, schemas: int, seeds: int) -> Iterator[Json]:
    """What came of each schema and seed."""
    asked = [(number, seed) for number in range(schemas) for seed in range(seeds)]
    with httpx.Client(base_url=url, timeout=300.0) as client, ThreadPoolExecutor(_AT_ONCE) as pool:
        yield from pool.map(lambda each: ask(client, model, *each), asked)


def ask(client: httpx.Client, model: str, number: int, seed: int) -> Json:
    schema = draw(number)
    format = {"type": "json_schema", "json_schema": {"name": "drawn", "schema": schema}}
    body = {
        "model": model, "seed": seed, "temperature": 1.0, "max_tokens": MOST_TOKENS,
        "messages": [{"role": "user", "content": f"number {number}"}], "response_format": format,
    }  # fmt: skip
    answer = client.post("/v1/chat/completions", json=body)
    came: Json = {"number": number, "seed": seed, "status": answer.status_code, "tokens": 0}
    if answer.status_code != 200:
        return came | {"wrong": answer.text[:300]}
    told = answer.json()
    choice = told["choices"][0]
    came |= {"tokens": told["usage"]["completion_tokens"], "finish": choice["finish_reason"]}
    if choice["finish_reason"] == "stop":
        came["wrong"] = _wrong(schema, choice["message"]["content"])
    return came


def _wrong(schema: Json, text: str) -> str:
    """Why the text is not what the schema asks for; empty: it is."""
    try:
        value = json.loads(text)
    except ValueError as error:
        return f"{error}: {text[:200]}"
    checker = FormatChecker(["uuid", "ipv4"])
    errors = Draft202012Validator(schema, format_checker=checker).iter_errors(value)
    return "; ".join(error.message[:200] for error in errors)


def judged(name: str, came: list[Json], problems: list[str]) -> Json:
    refused = [each for each in came if each["status"] != 200]
    ended = [each for each in came if each.get("finish") == "stop"]
    wrong = [each for each in ended if each["wrong"]]
    share = len(ended) / len(came)
    problems += [
        f"{name}, schema {each['number']}, seed {each['seed']}: {each['wrong']}"
        for each in refused + wrong
    ]
    if share < WANTED:
        cut = sorted({each["number"] for each in came if each.get("finish") == "length"})
        problems.append(f"{name}: {share:.1%} ended by themselves; not all of schemas {cut}")
    return {
        "model": name, "answers": len(came), "refused": len(refused), "ended": len(ended),
        "share": share, "invalid": len(wrong), "tokens": median(each["tokens"] for each in came),
    }  # fmt: skip


def _page(found: Json) -> str:
    lines = [
        f"{found['schemas']} schemas, {found['seeds']} seeds each, {MOST_TOKENS} tokens at most.",
        "",
        "| model | answers | refused | ended by themselves | of these invalid | median tokens |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['model']} | {row['answers']} | {row['refused']} | {row['ended']}"
        f" ({row['share']:.1%}) | {row['invalid']} | {row['tokens']:g} |"
        for row in found["rows"]
    ]
    return report.page("Answers held to schemas", found, lines)


if __name__ == "__main__":
    sys.exit(main())
