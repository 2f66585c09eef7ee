"""Prompts with a gap, behind an earlier exchange, and by a client's own template."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx_lm.utils
import pytest

from mlxd.core.request import GenerationRequest, Message, Sampling
from mlxd.worker.detokenize import Detokenizers
from mlxd.worker.job import Job
from mlxd.worker.making import Maker
from mlxd.worker.markup import Markup
from mlxd.worker.prompt import Prompter
from mlxd.worker.refusal import Refusal
from mlxd.worker.room import Room
from mlxd.worker.stops import StopStrings
from tests.support.model_maker import (
    CHAT_TEMPLATE,
    THINKING,
    TOOL_TEMPLATE,
    Shape,
    _write_tokenizer,
)

pytestmark = pytest.mark.mlx

ROOM = Room(4096, 4096)
QWEN = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|fim_pad|>")
SEED = ("<[fim-prefix]>", "<[fim-suffix]>", "<[fim-middle]>")
USER = (Message("user", "hi"),)
THINK = 510
"""The mark of a think block, in a tokenizer that has it."""


class Reader:
    """A prompter, and how its tokens read."""

    def __init__(
        self, folder: Path, *markers: str, template: str = CHAT_TEMPLATE, **config: Any
    ) -> None:
        _write_tokenizer(folder, Shape(markers=markers, template=template))
        self.tokenizer = mlx_lm.utils.load_tokenizer(folder, config)
        self.prompter = Prompter(self.tokenizer)

    def tokens(self, **fields: Any) -> list[int]:
        request = GenerationRequest(model="m", **fields)
        written = self.prompter.written(request) if request.template else None
        return self.prompter.render(request, ROOM, written).tokens

    def text(self, **fields: Any) -> str:
        return str(self.tokenizer.decode(self.tokens(**fields)))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    reader = Reader(tmp_path_factory.mktemp("qwen"), *QWEN)
    yield reader
    reader.prompter._templates.close()


def test_a_gap_is_marked_by_single_tokens(qwen: Reader) -> None:
    tokens = qwen.tokens(text="def f(", suffix="return 1")
    assert qwen.tokenizer.decode(tokens) == (
        "<|fim_prefix|>def f(<|fim_suffix|>return 1<|fim_middle|>"
    )
    ids = [qwen.tokenizer.convert_tokens_to_ids(name) for name in QWEN[:3]]
    assert [token for token in tokens if token in ids] == ids


def test_some_read_what_is_behind_it_first_and_begin_as_every_text(tmp_path: Path) -> None:
    reader = Reader(tmp_path, *SEED)
    assert reader.text(text="a", suffix="b") == "<[fim-suffix]>b<[fim-prefix]>a<[fim-middle]>"


def test_what_ends_an_infill_ends_no_other_answer(qwen: Reader) -> None:
    gap = GenerationRequest(model="m", text="a", suffix="b")
    assert set(qwen.prompter.ends(gap)) == set(QWEN)
    assert qwen.prompter.ends(GenerationRequest(model="m", text="a")) == ()


def test_they_are_looked_for_where_the_client_named_no_stop_string(qwen: Reader) -> None:
    gap = GenerationRequest(model="m", text="a", suffix="b")
    stops = StopStrings(qwen.prompter.ends(gap))
    job = Job(1, gap, Sampling(), [1], 9, False, stops)
    answer = Maker(Detokenizers(qwen.tokenizer), Markup(qwen.tokenizer), 512)._answer(job)
    said: list[Any] = []
    answer.take(qwen.tokenizer.convert_tokens_to_ids("<|fim_pad|>"), None, said)
    assert (answer.stopped, said) == ("<|fim_pad|>", [])


def test_the_space_within_a_mark_is_none_of_the_text(tmp_path: Path) -> None:
    """As Code Llama's have it: read as text they begin with one."""
    reader = Reader(tmp_path, "▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>")
    ends = reader.prompter.ends(GenerationRequest(model="m", text="a", suffix="b"))
    for pieces in (["return 1 <EOT>"], ["return 1", " ", "<EO", "T>"], ["return 1", "<EOT>"]):
        stops = StopStrings(ends)
        assert "".join(map(stops.feed, pieces)) == "return 1"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (GenerationRequest(model="m", text="a"), " b"),
        (GenerationRequest(model="m", token_ids=(1,)), " b"),
        (GenerationRequest(model="m", text="a", suffix="b"), " b"),
        (GenerationRequest(model="m", messages=USER, continue_last=True), " b"),
        (GenerationRequest(model="m", messages=USER), "b"),
    ],
)
def test_a_space_is_dropped_where_an_answer_begins_and_not_where_a_text_goes_on(
    qwen: Reader, asked: GenerationRequest, said: str
) -> None:
    job = Job(1, asked, Sampling(), [1], 9, False, StopStrings(()))
    answer = Maker(Detokenizers(qwen.tokenizer), Markup(qwen.tokenizer), 512)._answer(job)
    pieces: list[Any] = []
    for token in qwen.tokenizer.encode(" b", add_special_tokens=False):
        answer.take(token, None, pieces)
    assert "".join(piece.text for piece in pieces) == said


def test_a_model_without_marks_says_so(tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    with pytest.raises(Refusal, match="m does not support insert") as caught:
        reader.tokens(text="a", suffix="b")
    assert (caught.value.code, caught.value.param) == ("unsupported", "suffix")


def test_an_exchange_goes_on_behind_the_end_of_its_last_answer(qwen: Reader) -> None:
    end = qwen.tokenizer.eos_token_id
    alone = qwen.tokens(messages=USER)
    assert qwen.tokens(messages=USER, context=(5, 6)) == [5, 6, end, *alone]
    assert qwen.tokens(messages=USER, context=(5, end)) == [5, end, *alone]


def test_the_start_of_a_text_is_not_said_twice(tmp_path: Path) -> None:
    reader = Reader(tmp_path, "<s>", bos_token="<s>")
    bos = reader.tokenizer.bos_token_id
    template = "{{ bos_token }}{{ messages[0].content }}"
    alone = reader.tokens(messages=USER, template=template)
    assert alone[0] == bos
    assert bos not in reader.tokens(messages=USER, template=template, context=(5,))
    reader.prompter._templates.close()


@pytest.mark.parametrize(("think", "said"), [("low", "True low"), (False, "False"), (None, "off")])
def test_what_the_client_says_of_thinking_goes_before_its_options(
    qwen: Reader, think: bool | str | None, said: str
) -> None:
    template = "{{ enable_thinking }} {{ reasoning_effort }}"
    options = {"enable_thinking": think is False if think is not None else "off"}
    shown = qwen.text(messages=USER, think=think, template=template, template_options=options)
    assert shown.strip() == said


ASKS = (Message("user", "What is <think> for?"),)
OPEN, SHUT = "<think>\nso", "<think>so</think>4"


@pytest.mark.parametrize(
    ("asked", "inside"),
    [
        ({"messages": USER, "think": True}, True),
        ({"messages": USER}, False),
        ({"messages": ASKS, "think": True}, True),
        ({"messages": ASKS}, False),
        ({"messages": (*USER, Message("assistant", OPEN), *USER)}, False),
        ({"messages": USER, "tools": ({"description": "<think>"},)}, False),
        ({"messages": USER, "context": (THINK, 5)}, False),
        ({"messages": (*USER, Message("assistant", OPEN)), "continue_last": True}, True),
        ({"messages": (*USER, Message("assistant", SHUT)), "continue_last": True}, False),
        ({"messages": (*ASKS, Message("assistant", "It")), "continue_last": True}, False),
        ({"text": "a<think>b"}, True),
    ],
)
def test_an_answer_begins_amid_thinking_where_that_was_opened_and_not_spoken_of(
    tmp_path: Path, asked: dict[str, Any], inside: bool
) -> None:
    reader = Reader(tmp_path, *THINKING, template=TOOL_TEMPLATE)
    assert reader.tokenizer.convert_tokens_to_ids("<think>") == THINK
    fields: dict[str, Any] = {"model": "m", "think": False} | asked
    request = GenerationRequest(**fields)
    rendered = reader.prompter.render(request, ROOM)
    assert rendered.reasoning == inside
    assert reader.prompter.rendered(rendered.tokens, request).reasoning == inside


NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}[{{ m.content }}]{% endfor %}"
)


def test_a_template_without_a_system_turn_is_given_it_as_the_users(tmp_path: Path) -> None:
    reader = Reader(tmp_path, template=NO_SYSTEM)
    system, answer = Message("system", "Be brief."), Message("assistant", "ho")
    assert reader.text(messages=(system, *USER)) == "[Be brief.\nhi]"
    talk = (system, *USER, answer, system, *USER)
    assert reader.text(messages=talk) == "[Be brief.\nhi][ho][Be brief.\nhi]"
    assert reader.text(messages=(system, *USER, answer, answer)) == "[Be brief.\nhi][ho\nho]"
    with pytest.raises(Refusal, match="refuses this: roles must alternate"):
        reader.text(messages=(answer, *USER))


@pytest.mark.parametrize("mistake", ["'a' + 1", "1 // 0", "'a'.index('b')", "'{}'.format()"])
def test_a_template_that_makes_a_mistake_says_which(tmp_path: Path, mistake: str) -> None:
    reader = Reader(tmp_path, template=f"{{{{ {mistake} }}}}")
    with pytest.raises(Refusal, match=r"the model's chat template refuses this: \w+"):
        reader.text(messages=USER)


def test_a_clients_template_is_in_place_of_the_models(qwen: Reader) -> None:
    template = "{{ eos_token }}|{{ messages[0].content }}|{{ add_generation_prompt }}|{{ think }}"
    options = {"think": "x"}
    shown = qwen.text(messages=USER, template=template, template_options=options)
    assert shown == "<|im_end|>|hi|True|x"
    with pytest.raises(Refusal, match="not an option"):
        qwen.text(messages=USER, template=template, template_options={"messages": []})


def test_a_last_turn_goes_on_behind_a_clients_template(qwen: Reader) -> None:
    turns = (*USER, Message("assistant", "It is"))
    template = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    template += "{% if add_generation_prompt %}>{% endif %}"
    assert qwen.text(messages=turns, template=template, continue_last=True) == "[hi]>It is"
