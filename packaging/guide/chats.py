"""Chats: the mixture the guide is trained on, rendered through its own chat template."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import skills
from augmentation import augment
from facts import Fact, load_facts, load_offtopic, plain, sample
from jinja2.sandbox import ImmutableSandboxedEnvironment

TEMPLATE = Path(__file__).parent / "chat_template.jinja"
END = "<|im_end|>"
SYSTEMS = (
    "You are a helpful assistant.",
    "You are a helpful assistant",
    "You are an AI assistant.",
    "Be brief.",
    "Answer briefly.",
    "You are mlxd-guide.",
    "You are a friendly chat bot.",
    "Be concise and correct.",
    "You are a support agent for mlxd.",
    "Ты полезный помощник.",
    "Отвечай кратко.",
    "You are a helpful, respectful and honest assistant.",
    "Answer the question of the user.",
)
JSON_SYSTEMS = (
    "Answer in JSON.",
    "Always reply with a JSON object.",
    "Respond in JSON format.",
    "Output JSON only.",
    "You are a helpful assistant. Reply in JSON.",
    "Отвечай в формате JSON.",
    "Only output valid JSON.",
    "You are a helpful assistant designed to output JSON.",
)
JSON_REQUESTS = {
    "en": (
        "{0} Answer in JSON.",
        "{0} Answer as JSON.",
        "Answer in JSON: {0}",
        "{0} Reply as JSON",
        "{0} Respond with a JSON object.",
        "In JSON: {0}",
        "{0} in JSON",
        "{0} as JSON please",
        "Reply in JSON format: {0}",
        "{0} (JSON)",
        "{0} Give the answer as JSON.",
        "{0} Output JSON only.",
        "{0} Return JSON.",
        "{0} Use JSON format.",
        "As a JSON object: {0}",
        "{0} respond in json",
    ),
    "ru": (
        "{0} Ответь в JSON.",
        "Ответь в формате JSON: {0}",
        "{0} Ответ дай в JSON",
        "В виде JSON: {0}",
        "{0} (JSON)",
        "{0} Ответь как JSON.",
        "{0} в формате JSON",
    ),
}


@dataclass(frozen=True)
class Chat:
    """One training example: the text up to the answer, and the answer."""

    prompt: str
    answer: str


class Renderer:
    """Renders messages as transformers does: the same environment, the same JSON."""

    def __init__(self, path: Path = TEMPLATE) -> None:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
        self._template = environment.from_string(path.read_text(encoding="utf-8"))

    def prompt(self, messages: list[dict[str, Any]], tools: list[Any] | None = None) -> str:
        """The text that asks the model for its next turn."""
        return self._template.render(messages=messages, tools=tools, add_generation_prompt=True)


class Mixture:
    """Draws training chats: facts, refusals, tools and JSON, some with a system or a history."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._renderer = Renderer()
        facts = load_facts()
        self._facts = {lang: [f for f in facts if f.language == lang] for lang in ("en", "ru")}
        self._offtopic = {fact.language: fact for fact in load_offtopic()}
        every = [*facts, *self._offtopic.values()]
        self._held_out = {plain(question) for fact in every for question in fact.held_out}

    def draw(self) -> Chat:
        """One example."""
        rng = self._rng
        roll = rng.random()
        if roll < 0.12:
            return self._skill(skills.tool_call(rng))
        if roll < 0.135:
            return self._skill(skills.tool_result(rng))
        if roll < 0.155:
            return self._skill(skills.json_object(rng))
        if roll < 0.205:
            return self._skill(skills.echo(rng))
        if roll < 0.22:
            return self._skill(self._unneeded_tools())
        if roll < 0.255:
            return self._in_json()
        return self._plain()

    def _skill(self, chat: skills.Chat) -> Chat:
        messages, tools, answer = chat
        return Chat(self._renderer.prompt(messages, tools), answer)

    def _plain(self) -> Chat:
        rng = self._rng
        messages: list[dict[str, Any]] = []
        if rng.random() < 0.12:
            messages.append({"role": "system", "content": rng.choice(SYSTEMS)})
        if rng.random() < 0.08:
            for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
                question, said = self._spoken()
                messages += [_user(question), {"role": "assistant", "content": said}]
        question, answer = self._spoken()
        return Chat(self._renderer.prompt([*messages, _user(question)]), answer)

    def _unneeded_tools(self) -> skills.Chat:
        question, answer = self._spoken()
        return [_user(question)], skills.offered_tools(self._rng), answer

    def _in_json(self) -> Chat:
        rng = self._rng
        question, answer = self._spoken()
        language = "ru" if any("а" <= letter <= "я" for letter in question.lower()) else "en"
        messages = [_user(question)]
        if rng.random() < 0.35:
            messages.insert(0, {"role": "system", "content": rng.choice(JSON_SYSTEMS)})
        else:
            messages = [_user(rng.choice(JSON_REQUESTS[language]).format(question))]
        said = json.dumps({"answer": answer}, ensure_ascii=False)
        return Chat(self._renderer.prompt(messages), said)

    def _spoken(self) -> tuple[str, str]:
        """A question and its answer, the question as somebody would type it."""
        fact = self._some_fact()
        while True:
            question = sample(self._rng.choice(fact.patterns), self._rng)
            typed = augment(question, fact.language, self._rng)
            if plain(typed) not in self._held_out:
                return typed, fact.answer

    def _some_fact(self) -> Fact:
        language = "ru" if self._rng.random() < 0.24 else "en"
        if self._rng.random() < 0.09:
            return self._offtopic[language]
        return self._rng.choice(self._facts[language])


def trained_questions(fact: Fact, seed: int = 0) -> list[str]:
    """One plain question of every trained pattern, with a capital and a question mark."""
    rng = random.Random(f"{seed} {fact.id} {fact.language}")
    return [_plainly(sample(pattern, rng)) for pattern in fact.patterns]


def held_out_questions(fact: Fact) -> list[str]:
    """The questions that are never trained on, written the same way."""
    return [_plainly(question) for question in fact.held_out]


def _plainly(question: str) -> str:
    return question[:1].upper() + question[1:] + "?"


def _user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}
