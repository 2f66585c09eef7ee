"""Augmentation: how people really type a question - case, marks, fillers, typing errors."""

from __future__ import annotations

import random

PREFIXES = {
    "en": (
        "please",
        "hey,",
        "hi,",
        "hello,",
        "so",
        "ok,",
        "can you tell me",
        "do you know",
        "I want to know",
        "quick question:",
        "tell me,",
        "question:",
        "could you say",
        "I would like to know",
        "well,",
        "and",
    ),
    "ru": (
        "пожалуйста,",
        "привет,",
        "скажи,",
        "подскажите,",
        "а",
        "подскажи",
        "вопрос:",
        "слушай,",
        "скажите пожалуйста,",
        "хочу знать,",
        "здравствуйте,",
        "интересно,",
    ),
}
SUFFIXES = {
    "en": (
        "please",
        "thanks",
        "in mlxd",
        "with mlxd",
        "for mlxd",
        "here",
        "exactly",
        "by default",
        "then",
        "again",
    ),
    "ru": ("пожалуйста", "спасибо", "в mlxd", "у mlxd", "здесь", "подскажите", "тогда"),
}
SWAPS = {
    "what is": ("what's", "whats"),
    "how do I": ("how can I", "how to", "how do you", "how could I", "how should I"),
    "why do I get": ("why am I getting", "why do I see", "why did I get", "I keep getting"),
    "which": ("what",),
    "mlxd": ("the daemon", "the server", "MLXD", "Mlxd", "this server"),
    "the server": ("mlxd", "the daemon"),
    "can I": ("could I", "may I", "am I able to", "is it possible to"),
    "show": ("display", "print"),
    "change": ("modify", "alter", "set"),
    "requests": ("calls", "queries"),
    "maximum": ("max", "largest"),
    "does": ("will", "would"),
    "mean": ("stand for", "say", "tell me"),
}
DROPPABLE = frozenset(("the", "a", "an", "do", "does", "is", "are", "I", "it", "of", "to", "can"))
LETTERS = {"en": "abcdefghijklmnopqrstuvwxyz", "ru": "абвгдежзиклмнопрстуфхцчшщыэюя"}


def augment(question: str, language: str, rng: random.Random) -> str:
    """The question as somebody else might type it."""
    words = len(question.split())
    if words > 2 and rng.random() < 0.25:
        question = _swap(question, rng)
    if words > 3 and rng.random() < 0.12:
        question = _drop_word(question, rng)
    if rng.random() < 0.18:
        question = f"{rng.choice(PREFIXES[language])} {question}"
    if words > 2 and rng.random() < 0.1:
        question = f"{question} {rng.choice(SUFFIXES[language])}"
    if rng.random() < 0.2:
        question = misspell(question, language, rng)
    return _dress(question, rng)


def misspell(question: str, language: str, rng: random.Random) -> str:
    """One letter of one longer word deleted, doubled, swapped or replaced; never a digit."""
    words = question.split(" ")
    long_words = [i for i, word in enumerate(words) if len(word) > 3 and word.isalpha()]
    if not long_words:
        return question
    at = rng.choice(long_words)
    word = words[at]
    i = rng.randrange(1, len(word) - 1)
    words[at] = rng.choice(
        (
            word[:i] + word[i + 1 :],
            word[:i] + word[i] + word[i:],
            word[:i] + word[i + 1] + word[i] + word[i + 2 :],
            word[:i] + rng.choice(LETTERS[language]) + word[i + 1 :],
        )
    )
    return " ".join(words)


def _swap(question: str, rng: random.Random) -> str:
    known = [phrase for phrase in SWAPS if f" {phrase} " in f" {question} "]
    if not known:
        return question
    phrase = rng.choice(known)
    padded = f" {question} ".replace(f" {phrase} ", f" {rng.choice(SWAPS[phrase])} ", 1)
    return padded.strip()


def _drop_word(question: str, rng: random.Random) -> str:
    words = question.split(" ")
    small = [i for i, word in enumerate(words) if word in DROPPABLE]
    if small:
        del words[rng.choice(small)]
    return " ".join(words)


def _dress(question: str, rng: random.Random) -> str:
    roll = rng.random()
    if roll < 0.45:
        question = question[:1].upper() + question[1:]
    elif roll < 0.65:
        question = question.lower()
    elif roll < 0.67:
        question = question.upper()
    question += rng.choices(("?", "", ".", " ?", "??", "!"), (50, 38, 5, 3, 2, 2))[0]
    roll = rng.random()
    if roll < 0.02:
        question = f'"{question}"'
    elif roll < 0.06:
        question += rng.choice((" ", "\n", "  "))
    elif roll < 0.07:
        question = " " + question
    return question
