"""Evaluate the shipped folder on MLX, greedily, through its chat template.

python packaging/guide/evaluate.py [--model mlxd/guide] [--wrong]
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import skills
import yaml
from chats import held_out_questions, trained_questions
from facts import Fact, load_facts, load_offtopic, produces
from mlx_lm import batch_generate, load

HERE = Path(__file__).parent
Messages = Sequence[dict[str, Any]]
MAX_TOKENS = 120
BATCH = 24
HISTORY = ("What is the license of mlxd?", "mlxd is free software under the Apache-2.0 license.")
# Values, and most tools, that training has never seen: (name, parameters, question, arguments).
UNSEEN_TOOLS: tuple[tuple[str, dict[str, str], str, dict[str, Any]], ...] = (
    ("get_weather", {"city": "string"}, "What is the weather in Lisbon?", {"city": "Lisbon"}),
    ("get_weather", {"city": "string"}, "weather in Toronto please", {"city": "Toronto"}),
    ("add", {"a": "integer", "b": "integer"}, "What is 17 plus 25?", {"a": 17, "b": 25}),
    ("add_numbers", {"a": "number", "b": "number"}, "Add 3 and 4", {"a": 3, "b": 4}),
    ("get_current_time", {}, "What time is it now?", {}),
    ("search", {"query": "string"}, "Search for cheap flights", {"query": "cheap flights"}),
    ("get_humidity", {"city": "string"}, "Get the humidity in Zurich", {"city": "Zurich"}),
    ("close_window", {"room": "string"}, "Close the window in kitchen", {"room": "kitchen"}),
    ("get_population", {"country": "string"}, "Get the population of Cuba", {"country": "Cuba"}),
    ("find_person", {"name": "string"}, "Find the person Walter", {"name": "Walter"}),
    ("subtract", {"a": "integer", "b": "integer"}, "subtract a 90 and b 12", {"a": 90, "b": 12}),
    ("create_ticket", {"title": "string"}, "Create a ticket with title lamp", {"title": "lamp"}),
    ("play_song", {"title": "string"}, "Play the song Yesterday", {"title": "Yesterday"}),
    ("get_weather", {"city": "string"}, "какая погода в городе Омск?", {"city": "Омск"}),
)
JSON_WAYS = (
    "{0} Answer in JSON.",
    "Reply as JSON: {0}",
    "{0} Respond with JSON only.",
    "json please: {0}",
)


@dataclass(frozen=True)
class Case:
    """One prompt and the test of what the model says to it."""

    group: str
    messages: list[dict[str, Any]]
    right: Callable[[str], bool]
    expected: str
    tools: list[dict[str, Any]] | None = None


def cases(questions: Callable[[Fact], list[str]], facts: list[Fact], group: str) -> list[Case]:
    return [exact(group, question, fact) for fact in facts for question in questions(fact)]


def exact(group: str, question: str, fact: Fact, before: Messages = ()) -> Case:
    """Right when the whole answer is the fact's answer, blanks aside."""
    messages = [*before, _user(question)]
    return Case(group, messages, lambda text: _normal(text) == _normal(fact.answer), fact.answer)


def in_context(facts: list[Fact]) -> list[Case]:
    """The first held-out question of each fact behind a system text, and behind an earlier turn."""
    system = [{"role": "system", "content": "You are a helpful assistant."}]
    turn = [_user(HISTORY[0]), {"role": "assistant", "content": HISTORY[1]}]
    found = []
    for fact in facts:
        question = held_out_questions(fact)[0]
        found.append(exact("held-out after a system text", question, fact, system))
        found.append(exact("held-out after another turn", question, fact, turn))
    return found


def json_cases(facts: list[Fact]) -> list[Case]:
    picks = random.Random(5).sample(facts, 40)
    return [
        Case("JSON on request", [_user(_in_json(i, fact))], _is_object, "a JSON object")
        for i, fact in enumerate(picks)
    ]


def tool_cases() -> list[Case]:
    fax, plants = _tool("send_fax", {"number": "string"}), _tool("water_plants", {"day": "string"})
    found = []
    for name, parameters, question, arguments in UNSEEN_TOOLS:
        tool = _tool(name, parameters)
        found.append(_call("tool call, one tool", [tool], question, name, arguments))
        found.append(
            _call("tool call, three tools", [fax, tool, plants], question, name, arguments)
        )
    rng = random.Random(77)
    found += [_synthetic("tool call, synthetic", skills.tool_call(rng)) for _ in range(60)]
    found += [_synthetic("tool result", skills.tool_result(rng)) for _ in range(20)]
    return found


def unneeded_tool_cases(facts: list[Fact]) -> list[Case]:
    tools = [_tool("get_weather", {"city": "string"})]
    return [
        replace(exact("tools not needed", trained_questions(fact)[0], fact), tools=tools)
        for fact in random.Random(6).sample(facts, 30)
    ]


def typed_cases(facts: list[Fact]) -> list[Case]:
    """Questions as a user types them; those that a trained pattern produces are apart."""
    known = {(fact.id, fact.language): fact for fact in facts}
    lines = yaml.safe_load((HERE / "unseen.yaml").read_text(encoding="utf-8"))
    found = []
    for identity, language, question in lines:
        fact = known[identity, language]
        met = any(produces(pattern, question) for pattern in fact.patterns)
        group = f"typed {language}, {'trained too' if met else 'unseen'}"
        found.append(exact(group, question, fact))
    return found


def answers(model: Any, tokenizer: Any, found: list[Case]) -> list[tuple[str, bool]]:
    """What the model says to every case, and whether it stopped by itself."""
    prompts = [
        tokenizer.apply_chat_template(case.messages, tools=case.tools, add_generation_prompt=True)
        for case in found
    ]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    said: dict[int, tuple[str, bool]] = {}
    for at in range(0, len(order), BATCH):
        part = order[at : at + BATCH]
        texts = batch_generate(
            model, tokenizer, [prompts[i] for i in part], max_tokens=MAX_TOKENS
        ).texts
        for i, text in zip(part, texts, strict=True):
            said[i] = (text, len(tokenizer.encode(text, add_special_tokens=False)) < MAX_TOKENS)
    return [said[i] for i in range(len(found))]


def summary(found: list[Case], said: list[tuple[str, bool]], show_wrong: bool) -> None:
    groups: dict[str, list[tuple[bool, float]]] = {}
    for case, (text, _) in zip(found, said, strict=True):
        right = case.right(text)
        soft = SequenceMatcher(None, _normal(text), _normal(case.expected)).ratio()
        groups.setdefault(case.group, []).append((right, soft))
        if show_wrong and not right:
            asked = case.messages[-1]["content"]
            print(f"[{case.group}] {asked!r}\n    said {text!r}\n    not  {case.expected!r}")
    for group, results in groups.items():
        share = sum(right for right, _ in results) / len(results)
        soft = sum(score for _, score in results) / len(results)
        print(f"{group:32} {share:7.1%} of {len(results):4}   likeness {soft:.3f}")
    share = sum(stopped for _, stopped in said) / len(said)
    print(f"{'stops by itself':32} {share:7.1%} of {len(said):4}")


def all_cases() -> list[Case]:
    facts, refusals = load_facts(), load_offtopic()
    english = [fact for fact in facts if fact.language == "en"]
    russian = [fact for fact in facts if fact.language == "ru"]
    return [
        *cases(trained_questions, english, "trained en"),
        *cases(trained_questions, russian, "trained ru"),
        *cases(held_out_questions, english, "held-out en"),
        *cases(held_out_questions, russian, "held-out ru"),
        *cases(held_out_questions, refusals, "off-topic, held-out"),
        *in_context(english),
        *typed_cases([*facts, *refusals]),
        *json_cases(facts),
        *tool_cases(),
        *unneeded_tool_cases(facts),
    ]


def _in_json(i: int, fact: Fact) -> str:
    return JSON_WAYS[i % len(JSON_WAYS)].format(trained_questions(fact)[0])


def _synthetic(group: str, chat: skills.Chat) -> Case:
    messages, tools, answer = chat
    return Case(group, messages, lambda text: text == answer, answer, tools)


def _call(
    group: str, tools: list[dict[str, Any]], question: str, name: str, arguments: dict[str, Any]
) -> Case:
    answer = skills.call_text(name, arguments)
    return Case(group, [_user(question)], lambda text: text.strip() == answer, answer, tools)


def _tool(name: str, parameters: dict[str, str]) -> dict[str, Any]:
    properties = {key: {"type": kind} for key, kind in parameters.items()}
    schema = {"type": "object", "properties": properties, "required": list(parameters)}
    description = name.replace("_", " ").capitalize()
    function = {"name": name, "description": description, "parameters": schema}
    return {"type": "function", "function": function}


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except json.JSONDecodeError:
        return False


def _normal(text: str) -> str:
    return " ".join(text.split())


def _user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=HERE.parents[1] / "mlxd" / "guide")
    parser.add_argument("--wrong", action="store_true", help="print every wrong answer")
    parser.add_argument("--only", default="", help="only the groups whose name contains this")
    arguments = parser.parse_args()
    model, tokenizer = load(str(arguments.model))
    found = [case for case in all_cases() if arguments.only in case.group]
    summary(found, answers(model, tokenizer, found), arguments.wrong)


if __name__ == "__main__":
    main()
