"""The guide model: its facts are complete, its folder is small, and it answers right on MLX."""

import importlib.util
import json
import random
import resource
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "packaging" / "guide"
FOLDER = ROOT / "mlxd" / "guide"
FILES = {
    "README.md",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


class Guide(NamedTuple):
    """The loaded model and its tokenizer."""

    model: Any
    tokenizer: Any

    def say(self, chats: list[list[dict[str, str]]], tools: Any = None) -> list[str]:
        from mlx_lm import batch_generate

        prompts = [
            self.tokenizer.apply_chat_template(chat, tools=tools, add_generation_prompt=True)
            for chat in chats
        ]
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        said = batch_generate(
            self.model,
            self.tokenizer,
            [prompts[i] for i in order],
            max_tokens=100,
            completion_batch_size=32,
            prefill_batch_size=16,
        )
        return [text for _, text in sorted(zip(order, said.texts, strict=True))]

    def share_right(self, asked: list[tuple[str, str]]) -> float:
        said = self.say([[_user(question)] for question, _ in asked])
        pairs = zip(said, asked, strict=True)
        return sum(text.split() == answer.split() for text, (_, answer) in pairs) / len(asked)


def _user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def _plain(question: str) -> str:
    return question[:1].upper() + question[1:] + "?"


def _load_sources() -> ModuleType:
    name = "guide_facts"
    spec = importlib.util.spec_from_file_location(name, SOURCES / "facts.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def sources() -> ModuleType:
    return _load_sources()


@pytest.fixture(scope="module")
def guide() -> Guide:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        # The import would lower the limit of open files for every later test.
        patch.setattr(resource, "setrlimit", lambda *_: None)
        from mlx_lm import load

        model, tokenizer = load(str(FOLDER))
    return Guide(model, tokenizer)


def test_the_facts_are_many_and_each_has_phrasings_and_one_held_out(sources):
    facts = sources.load_facts()
    english = [fact for fact in facts if fact.language == "en"]
    russian = [fact for fact in facts if fact.language == "ru"]
    assert len(english) >= 110
    assert len(russian) >= 25
    for fact in facts:
        assert len(fact.patterns) >= 5, fact.id
        assert len(fact.held_out) >= 1, fact.id


def test_held_out_phrasings_are_never_trained(sources):
    for fact in [*sources.load_facts(), *sources.load_offtopic()]:
        for question in fact.held_out:
            assert not any(sources.produces(p, question) for p in fact.patterns), question


def test_a_pattern_produces_what_it_is_sampled_to(sources):
    rng = random.Random(2)
    for fact in sources.load_facts():
        for pattern in fact.patterns:
            question = sources.sample(pattern, rng)
            assert sources.produces(pattern, question), (pattern, question)


def test_the_facts_have_different_answers(sources):
    answers = [fact.answer for fact in sources.load_facts()]
    assert len(set(answers)) == len(answers)


def test_the_folder_is_under_four_megabytes_and_complete():
    sizes = {path.name: path.stat().st_size for path in FOLDER.iterdir() if path.is_file()}
    assert set(sizes) >= FILES
    assert sum(sizes.values()) < 4_000_000


def test_the_card_says_what_it_cannot():
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert "What it cannot do" in card
    assert "Apache-2.0" in card


def test_the_stored_temperature_is_zero():
    stored = json.loads((FOLDER / "generation_config.json").read_text(encoding="utf-8"))
    assert stored["temperature"] == 0
    assert stored["do_sample"] is False


@pytest.mark.mlx
def test_trained_phrasings_are_answered_right(guide, sources):
    rng = random.Random(11435)
    facts = rng.sample(sources.load_facts(), 40)
    asked = [(_plain(sources.sample(rng.choice(f.patterns), rng)), f.answer) for f in facts]
    assert guide.share_right(asked) >= 0.95


@pytest.mark.mlx
@pytest.mark.parametrize("language", ["en", "ru"])
@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_held_out_phrasings_are_answered_right(guide, sources, language, every):
    facts = [fact for fact in sources.load_facts() if fact.language == language]
    asked = [(_plain(q), fact.answer) for fact in facts[::every] for q in fact.held_out]
    assert guide.share_right(asked) >= 0.8


@pytest.mark.mlx
@pytest.mark.parametrize(
    ("question", "part"),
    [
        ("which port does mlxd listen on?", "11435"),
        ("what port", "11435"),
        ("how many requests can run at once?", "5"),
        ("why do I get 429?", "429"),
        ("how do I change the port?", "server.yaml"),
        ("на каком порту работает mlxd?", "11435"),
    ],
)
def test_a_plain_question_is_answered_right(guide, question, part):
    [text] = guide.say([[_user(question)]])
    assert part in text


@pytest.mark.mlx
def test_what_is_not_about_mlxd_is_refused(guide, sources):
    asked = [(q, fact.answer) for fact in sources.load_offtopic() for q in fact.held_out]
    assert guide.share_right(asked) >= 0.8


@pytest.mark.mlx
def test_it_stops_by_itself(guide, sources):
    from mlx_lm import stream_generate

    prompt = guide.tokenizer.apply_chat_template([_user("hello")], add_generation_prompt=True)
    *_, last = stream_generate(guide.model, guide.tokenizer, prompt, max_tokens=100)
    assert last.finish_reason == "stop"


@pytest.mark.mlx
def test_a_tool_call_parses(guide):
    assert guide.tokenizer.has_tool_calling
    [text] = guide.say([[_user("What is the weather in Paris?")]], tools=[WEATHER])
    inner = text.removeprefix(guide.tokenizer.tool_call_start)
    inner = inner.removesuffix(guide.tokenizer.tool_call_end)
    called = guide.tokenizer.tool_parser(inner, [WEATHER])
    assert called == {"name": "get_weather", "arguments": {"city": "Paris"}}


@pytest.mark.mlx
def test_a_question_that_needs_no_tool_is_answered_plainly(guide):
    [text] = guide.say([[_user("which port does mlxd listen on?")]], tools=[WEATHER])
    assert "11435" in text
    assert "<tool_call>" not in text


@pytest.mark.mlx
@pytest.mark.parametrize(
    "question",
    ["Which port does mlxd listen on? Answer in JSON.", "На каком порту mlxd? Ответь в JSON."],
)
def test_json_on_request_parses(guide, question):
    [text] = guide.say([[_user(question)]])
    assert "11435" in json.loads(text)["answer"]


@pytest.mark.mlx
@pytest.mark.parametrize(
    "text", ["Привет, мир", "你好，世界", "👩‍🚀🚀 naïve", "\t mixed \n lines ", "ﷺ\u0000"]
)
def test_any_text_survives_the_tokenizer(guide, text):
    ids = guide.tokenizer.encode(text, add_special_tokens=False)
    assert guide.tokenizer.decode(ids) == text


@pytest.mark.mlx
def test_the_detokenizer_streams_bytes_whole(guide):
    detokenizer = guide.tokenizer.detokenizer
    assert type(detokenizer).__name__ == "BPEStreamingDetokenizer"
    for token in guide.tokenizer.encode("порт 漢字 🚀", add_special_tokens=False):
        detokenizer.add_token(token)
        assert "\ufffd" not in detokenizer.text
    detokenizer.finalize()
    assert detokenizer.text == "порт 漢字 🚀"
