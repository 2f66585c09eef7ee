"""The `openai` package, blocking and not: every endpoint that mlxd has, every error it raises."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel, Field

from tests.clients_real.asking import BOTH, Asker
from tests.clients_real.questions import (
    BOUNDED,
    ENDLESS,
    FOXES,
    FUNCTION,
    GUIDE,
    NOBODY,
    PIXEL,
    PORT,
    THINKER,
    TINY,
    TOOL,
    TOOLBOX,
    WEATHER,
)
from tests.clients_real.servers import Server

GREEDY: Any = {"temperature": 0, "max_tokens": 24}
LONG: Any = {"temperature": 0, "max_tokens": 8000}
ENOUGH = 200
CLIENTS: dict[str, Any] = {"sync": openai.OpenAI, "async": openai.AsyncOpenAI}
CHAT = "chat.completions.create"
BOTH_TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": BOUNDED}}
    for name in ("get_weather", "get_time")
]


class Fox(BaseModel):
    colour: Literal["red", "white"]
    tame: bool
    age: int = Field(ge=0, le=99)


def said(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


@pytest.fixture(params=BOTH)
def kind(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


def at(server: Server | str, kind: str, **options: Any) -> Asker:
    url = server if isinstance(server, str) else server.v1
    return Asker(CLIENTS[kind](**{"base_url": url, "api_key": "any", "max_retries": 0, **options}))


@pytest.fixture
def ask(kind: str, main: Server) -> Iterator[Asker]:
    with at(main, kind) as asker:
        yield asker


@pytest.fixture
def client(main: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=main.v1, api_key="any", max_retries=0) as client:
        yield client


def text_of(chunks: Iterable[Any], index: int = 0) -> str:
    return "".join(
        choice.delta.content or ""
        for chunk in chunks
        for choice in chunk.choices
        if choice.index == index
    )


class TestModels:
    def test_list_and_retrieve(self, ask: Asker) -> None:
        models = list(ask("models.list"))
        assert {TINY, GUIDE} <= {model.id for model in models}
        assert all(model.object == "model" and model.created > 0 for model in models)
        assert ask("models.retrieve", TINY).id == TINY
        with pytest.raises(openai.NotFoundError) as caught:
            ask("models.retrieve", NOBODY)
        assert caught.value.code == "model_not_found"


class TestChat:
    def test_streamed_equals_whole(self, ask: Asker) -> None:
        request: Any = {"model": GUIDE, "messages": said(PORT)}
        whole = ask(CHAT, **request)
        chunks = ask(CHAT, **request, stream=True, stream_options={"include_usage": True})
        (choice,) = whole.choices
        assert "11435" in choice.message.content
        assert choice.finish_reason == "stop"
        assert text_of(chunks) == choice.message.content
        assert chunks[-1].usage == whole.usage
        assert whole.usage.total_tokens == (
            whole.usage.prompt_tokens + whole.usage.completion_tokens
        )
        assert whole.system_fingerprint

    def test_several_choices(self, ask: Asker) -> None:
        request: Any = {"model": TINY, "messages": said(FOXES), "n": 3, "seed": 5}
        request |= {"max_tokens": 12, "temperature": 1}
        whole = ask(CHAT, **request)
        assert [choice.index for choice in whole.choices] == [0, 1, 2]
        texts = [choice.message.content for choice in whole.choices]
        assert len(set(texts)) == 3
        assert whole.usage.completion_tokens == 36
        chunks = ask(CHAT, **request, stream=True)
        assert [text_of(chunks, index) for index in range(3)] == texts

    def test_logprobs_and_bias(self, ask: Asker) -> None:
        request: Any = {"model": TINY, "messages": said(FOXES), **GREEDY}
        answer = ask(CHAT, **request, logprobs=True, top_logprobs=2, logit_bias={"70": 100})
        entries = answer.choices[0].logprobs.content
        assert len(entries) == 24
        assert len({entry.token for entry in entries}) == 1
        assert all(len(entry.top_logprobs) == 2 for entry in entries)

    def test_every_role_and_parts(self, ask: Asker) -> None:
        messages = [
            {"role": "developer", "content": "Be short."},
            {"role": "user", "content": [{"type": "text", "text": "Привет, 世界 😀"}]},
            {"role": "assistant", "content": "Hi."},
            {"role": "user", "content": "And now?"},
        ]
        answer = ask(CHAT, model=TINY, messages=messages, **GREEDY)
        assert answer.usage.completion_tokens == 24

    def test_ignored_and_echoed_fields(self, ask: Asker) -> None:
        answer = ask(
            CHAT,
            model=TINY,
            messages=said(FOXES),
            user="me",
            metadata={"a": "b"},
            store=False,
            service_tier="default",
            prompt_cache_key="k",
            safety_identifier="s",
            verbosity="low",
            reasoning_effort="low",
            **GREEDY,
        )
        assert answer.service_tier == "default"

    def test_reasoning(self, ask: Asker) -> None:
        answer = ask(CHAT, model=THINKER, messages=said(FOXES), reasoning_effort="high", **GREEDY)
        assert answer.choices[0].message.reasoning
        assert answer.usage.completion_tokens_details.reasoning_tokens == 24
        answer = ask(CHAT, model=THINKER, messages=said(FOXES), reasoning_effort="none", **GREEDY)
        assert not getattr(answer.choices[0].message, "reasoning", None)

    def test_a_client_asks_for_what_vllm_has(self, ask: Asker) -> None:
        request: Any = {"model": TINY, "messages": said(FOXES), "max_tokens": 12}
        greedy = ask(CHAT, **request, temperature=0).choices[0].message.content
        top = ask(CHAT, **request, temperature=2, extra_body={"top_k": 1})
        assert top.choices[0].message.content == greedy
        chosen = ask(CHAT, **request, extra_body={"guided_choice": ["fox", "dog"]})
        assert chosen.choices[0].message.content in ("fox", "dog")
        matched = ask(CHAT, **request, extra_body={"guided_regex": "[0-9]{4}"})
        assert len(matched.choices[0].message.content) == 4
        assert matched.choices[0].message.content.isdigit()
        extra = {"min_tokens": 12, "ignore_eos": True}
        assert ask(CHAT, **request, extra_body=extra).usage.completion_tokens == 12


class TestStructured:
    def test_parse(self, ask: Asker) -> None:
        answer = ask(
            *("chat.completions.parse",),
            model=TINY,
            messages=said(FOXES),
            response_format=Fox,
            max_tokens=ENOUGH,
        )
        assert isinstance(answer.choices[0].message.parsed, Fox)

    def test_json_object(self, ask: Asker) -> None:
        answer = ask(
            CHAT,
            model=GUIDE,
            messages=said("Which port does mlxd listen on? Answer in JSON."),
            response_format={"type": "json_object"},
            max_tokens=ENOUGH,
        )
        assert isinstance(json.loads(answer.choices[0].message.content), dict)

    def test_parse_of_a_cut_answer(self, ask: Asker) -> None:
        with pytest.raises(openai.LengthFinishReasonError):
            ask(
                *("chat.completions.parse",),
                model=TINY,
                messages=said(FOXES),
                response_format=Fox,
                max_tokens=2,
            )

    def test_a_streamed_parse(self, client: openai.OpenAI) -> None:
        with client.chat.completions.stream(
            model=TINY, messages=said(FOXES), response_format=Fox, max_tokens=ENOUGH
        ) as stream:
            final = stream.get_final_completion()
        assert isinstance(final.choices[0].message.parsed, Fox)

    def test_a_schema_that_is_none(self, ask: Asker) -> None:
        schema = {"type": "object", "properties": {"a": {"type": "nonsense"}}}
        wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        with pytest.raises(openai.BadRequestError):
            ask(CHAT, model=TINY, messages=said(FOXES), response_format=wanted, **GREEDY)


class TestTools:
    def test_the_whole_loop(self, ask: Asker) -> None:
        messages = said(WEATHER)
        first = ask(CHAT, model=GUIDE, messages=messages, tools=[TOOL], max_tokens=ENOUGH)
        (choice,) = first.choices
        assert choice.finish_reason == "tool_calls"
        (call,) = choice.message.tool_calls
        assert call.function.name == "get_weather"
        assert json.loads(call.function.arguments) == {"city": "Paris"}
        result = {"role": "tool", "tool_call_id": call.id, "content": "It rains."}
        messages = [*messages, choice.message, result]
        last = ask(CHAT, model=GUIDE, messages=messages, tools=[TOOL], max_tokens=ENOUGH)
        assert last.choices[0].finish_reason == "stop"

    def test_a_streamed_call(self, client: openai.OpenAI) -> None:
        tools: Any = [TOOL]
        with client.chat.completions.stream(
            model=GUIDE, messages=said(WEATHER), tools=tools, max_tokens=ENOUGH
        ) as stream:
            done = [e for e in stream if e.type == "tool_calls.function.arguments.done"]
            final = stream.get_final_completion()
        calls: Any = final.choices[0].message.tool_calls
        (call,) = calls
        assert [event.name for event in done] == [call.function.name] == ["get_weather"]
        assert json.loads(call.function.arguments) == {"city": "Paris"}

    @pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
    @pytest.mark.parametrize("choice", ["required", "get_time"])
    def test_a_call_is_demanded(self, ask: Asker, choice: str, stream: bool) -> None:
        """Of a random model, which would never make one by itself."""
        named = {"type": "function", "function": {"name": choice}}
        answer = ask(
            CHAT,
            model=TOOLBOX,
            messages=said(WEATHER),
            tools=BOTH_TOOLS,
            tool_choice="required" if choice == "required" else named,
            parallel_tool_calls=False,
            max_tokens=400,
            stream=stream,
        )
        if stream:
            calls = [c for part in answer for c in part.choices[0].delta.tool_calls or ()]
            assert len({call.index for call in calls}) == 1
            names = [call.function.name for call in calls if call.function.name]
            arguments = "".join(call.function.arguments or "" for call in calls)
        else:
            (only,) = answer.choices[0].message.tool_calls
            names, arguments = [only.function.name], only.function.arguments
        wanted = {"get_weather", "get_time"} if choice == "required" else {choice}
        assert len(names) == 1
        assert names[0] in wanted
        assert isinstance(json.loads(arguments)["city"], str)

    def test_none_is_wanted(self, ask: Asker) -> None:
        request: Any = {"model": GUIDE, "messages": said(WEATHER), "tools": [TOOL]}
        answer = ask(CHAT, **request, tool_choice="none", max_tokens=ENOUGH)
        assert not answer.choices[0].message.tool_calls

    def test_functions_as_they_once_were(self, ask: Asker) -> None:
        answer = ask(
            CHAT, model=GUIDE, messages=said(WEATHER), functions=[FUNCTION], max_tokens=ENOUGH
        )
        (choice,) = answer.choices
        assert choice.finish_reason == "function_call"
        assert choice.message.function_call.name == "get_weather"
        assert json.loads(choice.message.function_call.arguments) == {"city": "Paris"}


class TestCompletions:
    def test_streamed_equals_whole(self, ask: Asker) -> None:
        request: Any = {"model": TINY, "prompt": "Foxes", **GREEDY}
        whole = ask("completions.create", **request)
        chunks = ask("completions.create", **request, stream=True)
        assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text

    def test_several_prompts_and_choices(self, ask: Asker) -> None:
        create = "completions.create"
        request: Any = {"model": TINY, "prompt": ["Foxes", [70, 71, 72]][:1], **GREEDY}
        alone = ask(create, **request).choices[0].text
        answer = ask(create, model=TINY, prompt=["Foxes", "Dogs"], n=2, **GREEDY)
        assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
        assert answer.choices[0].text == answer.choices[1].text == alone
        assert answer.choices[2].text == answer.choices[3].text
        lists = ask(create, model=TINY, prompt=[[70, 71], [72, 73, 74]], **GREEDY)
        assert lists.usage.prompt_tokens == 5

    def test_echo_and_logprobs(self, ask: Asker) -> None:
        answer = ask(
            "completions.create", model=TINY, prompt="Foxes", echo=True, logprobs=2, **GREEDY
        )
        (choice,) = answer.choices
        assert choice.text.startswith("Foxes")
        assert choice.logprobs.token_logprobs[0] is None
        assert all(value <= 0 for value in choice.logprobs.token_logprobs[1:])
        assert "".join(choice.logprobs.tokens).startswith("Foxes")
        scored = ask(
            *("completions.create",),
            model=TINY,
            prompt="Foxes",
            echo=True,
            logprobs=1,
            max_tokens=0,
        )
        assert scored.choices[0].text == "Foxes"

    def test_a_suffix_needs_a_model_that_inserts(self, ask: Asker) -> None:
        with pytest.raises(openai.BadRequestError):
            ask("completions.create", model=TINY, prompt="def f(", suffix="return 1")


class TestEmbeddings:
    def test_numbers_and_base64(self, ask: Asker) -> None:
        usual = ask("embeddings.create", model=TINY, input="A fox")
        plain = ask("embeddings.create", model=TINY, input="A fox", encoding_format="float")
        (one,), (same,) = usual.data, plain.data
        assert one.embedding == pytest.approx(same.embedding, abs=1e-6)
        assert math.isclose(math.hypot(*one.embedding), 1, rel_tol=1e-4)
        assert usual.usage.prompt_tokens == usual.usage.total_tokens > 0

    def test_several_and_tokens(self, ask: Asker) -> None:
        answer = ask("embeddings.create", model=TINY, input=["A fox", "A dog"])
        assert [entry.index for entry in answer.data] == [0, 1]
        tokens = ask("embeddings.create", model=TINY, input=[[70, 71], [72]])
        assert len(tokens.data) == 2
        assert tokens.usage.prompt_tokens == 3
        assert len(ask("embeddings.create", model=TINY, input=[70, 71]).data) == 1

    def test_fewer_dimensions(self, ask: Asker) -> None:
        (entry,) = ask("embeddings.create", model=TINY, input="A fox", dimensions=8).data
        assert len(entry.embedding) == 8

    @pytest.mark.parametrize("change", [{"input": []}, {"input": ["fox " * 6000]}, {"input": ""}])
    def test_what_is_refused(self, ask: Asker, change: dict[str, Any]) -> None:
        with pytest.raises(openai.BadRequestError):
            ask("embeddings.create", model=TINY, **change)


class TestResponses:
    def test_whole(self, ask: Asker) -> None:
        answer = ask("responses.create", model=GUIDE, input=PORT)
        assert answer.status == "completed"
        assert "11435" in answer.output_text
        assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens

    def test_streamed_equals_whole(self, ask: Asker) -> None:
        whole = ask("responses.create", model=GUIDE, input=said(PORT), instructions="Be short.")
        events = ask(
            *("responses.create",),
            model=GUIDE,
            input=said(PORT),
            instructions="Be short.",
            stream=True,
        )
        assert [event.sequence_number for event in events] == list(range(len(events)))
        assert events[0].type == "response.created"
        assert events[-1].type == "response.completed"
        deltas = [e.delta for e in events if e.type == "response.output_text.delta"]
        assert "".join(deltas) == whole.output_text == events[-1].response.output_text

    def test_the_stream_helper(self, client: openai.OpenAI) -> None:
        with client.responses.stream(model=GUIDE, input=PORT) as stream:
            final = stream.get_final_response()
        assert "11435" in final.output_text

    def test_parse(self, ask: Asker) -> None:
        answer = ask(
            *("responses.parse",),
            model=TINY,
            input=FOXES,
            text_format=Fox,
            max_output_tokens=ENOUGH,
        )
        assert isinstance(answer.output_parsed, Fox)

    def test_too_few_tokens(self, ask: Asker) -> None:
        answer = ask("responses.create", model=TINY, input=FOXES, max_output_tokens=16)
        assert answer.status == "incomplete"
        assert answer.incomplete_details.reason == "max_output_tokens"

    def test_a_tool_and_its_result(self, ask: Asker) -> None:
        tool: Any = {"type": "function", **FUNCTION, "strict": False}
        first = ask("responses.create", model=GUIDE, input=WEATHER, tools=[tool])
        (call,) = [item for item in first.output if item.type == "function_call"]
        assert call.name == "get_weather"
        assert json.loads(call.arguments) == {"city": "Paris"}
        result = {"type": "function_call_output", "call_id": call.call_id, "output": "It rains."}
        last = ask(
            *("responses.create",),
            model=GUIDE,
            input=[result],
            previous_response_id=first.id,
            tools=[tool],
        )
        assert last.status == "completed"
        assert last.previous_response_id == first.id

    def test_a_streamed_tool_call(self, client: openai.OpenAI) -> None:
        tool: Any = {"type": "function", **FUNCTION, "strict": False}
        with client.responses.stream(model=GUIDE, input=WEATHER, tools=[tool]) as stream:
            final = stream.get_final_response()
        (call,) = [item for item in final.output if item.type == "function_call"]
        assert json.loads(call.arguments) == {"city": "Paris"}

    def test_what_is_stored(self, ask: Asker) -> None:
        made = ask("responses.create", model=TINY, input=FOXES, max_output_tokens=16)
        assert ask("responses.retrieve", made.id).output_text == made.output_text
        (item,) = list(ask("responses.input_items.list", made.id))
        assert item.role == "user"
        with pytest.raises(openai.BadRequestError):
            ask("responses.cancel", made.id)
        ask("responses.delete", made.id)
        with pytest.raises(openai.NotFoundError):
            ask("responses.retrieve", made.id)

    def test_counted_tokens_are_the_used_ones(self, ask: Asker) -> None:
        counted = ask("responses.input_tokens.count", model=GUIDE, input=PORT)
        used = ask("responses.create", model=GUIDE, input=PORT).usage
        assert counted.input_tokens == used.input_tokens

    def test_what_is_not_stored(self, ask: Asker) -> None:
        made = ask("responses.create", model=TINY, input=FOXES, max_output_tokens=16, store=False)
        with pytest.raises(openai.NotFoundError):
            ask("responses.retrieve", made.id)

    @pytest.mark.parametrize(
        "change",
        [{"background": True}, {"tools": [{"type": "web_search"}]}, {"conversation": "conv_1"}],
        ids=str,
    )
    def test_what_is_refused(self, ask: Asker, change: dict[str, Any]) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            ask("responses.create", model=TINY, input=FOXES, **change)
        assert caught.value.type == "invalid_request_error"

    def test_an_unknown_predecessor(self, ask: Asker) -> None:
        with pytest.raises((openai.BadRequestError, openai.NotFoundError)):
            ask("responses.create", model=TINY, input=FOXES, previous_response_id="resp_none")


class TestRefusals:
    CASES: tuple[tuple[dict[str, Any], str], ...] = (
        ({"temperature": 3}, "temperature"),
        ({"messages": []}, "messages"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": list("abcde")}, "stop"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"n": 1000}, "n"),
    )

    @pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
    @pytest.mark.parametrize(("change", "param"), CASES, ids=[c[1] for c in CASES])
    def test_a_bad_request(
        self, ask: Asker, change: dict[str, Any], param: str, stream: bool
    ) -> None:
        request = {"model": TINY, "messages": said(FOXES), "stream": stream, **change}
        with pytest.raises(openai.BadRequestError) as caught:
            ask(CHAT, **request)
        assert (caught.value.param, caught.value.type) == (param, "invalid_request_error")
        assert caught.value.request_id

    def test_an_image(self, ask: Asker) -> None:
        part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}
        with pytest.raises(openai.BadRequestError):
            ask(CHAT, model=TINY, messages=[{"role": "user", "content": [part]}])

    @pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
    def test_an_unknown_model(self, ask: Asker, stream: bool) -> None:
        with pytest.raises(openai.NotFoundError) as caught:
            ask(CHAT, model=NOBODY, messages=said(FOXES), stream=stream)
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")

    @pytest.mark.parametrize(
        ("method", "options"),
        [
            ("images.generate", {"prompt": "a fox"}),
            ("moderations.create", {"input": "a fox"}),
            ("audio.speech.create", {"input": "a fox", "voice": "alloy", "model": TINY}),
            ("files.list", {}),
        ],
    )
    def test_what_is_not_here(self, ask: Asker, method: str, options: dict[str, Any]) -> None:
        with pytest.raises(openai.NotFoundError) as caught:
            ask(method, **options)
        assert caught.value.code == "unknown_url"

    @pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
    def test_too_often(self, spent: Server, kind: str, stream: bool) -> None:
        with at(spent, kind) as ask, pytest.raises(openai.RateLimitError) as caught:
            ask(CHAT, model=TINY, messages=said(FOXES), stream=stream, **GREEDY)
        assert caught.value.code == "rate_limit_exceeded"
        assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60
        assert caught.value.response.headers["x-ratelimit-remaining-requests"] == "0"

    def test_too_often_is_waited_out(self, brief: Server, kind: str) -> None:
        """By the package itself, as Retry-After says."""
        with at(brief, kind, max_retries=2) as ask:
            for _ in range(2):
                answer = ask(CHAT, model=TINY, messages=said(FOXES), **GREEDY)
                assert answer.usage.completion_tokens == 24

    @pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
    def test_too_many(self, single: Server, kind: str, stream: bool) -> None:
        with at(single, kind) as ask, single.held():
            with pytest.raises(openai.InternalServerError) as caught:
                ask(CHAT, model=TINY, messages=said(FOXES), stream=stream, **GREEDY)
            assert list(ask("models.list"))
        assert (caught.value.status_code, caught.value.type) == (503, "overloaded")

    def test_too_large(self, single: Server, kind: str) -> None:
        with at(single, kind) as ask, pytest.raises(openai.APIStatusError) as caught:
            ask(CHAT, model=TINY, messages=said("x" * 100_000))
        assert caught.value.status_code == 413

    def test_too_late(self, hasty: Server, kind: str) -> None:
        hasty.post("/api/generate", {"model": ENDLESS})
        with at(hasty, kind) as ask, pytest.raises(openai.InternalServerError) as caught:
            ask(CHAT, model=ENDLESS, messages=said(FOXES), **LONG)
        assert caught.value.status_code == 504

    def test_too_late_in_the_middle(self, hasty: Server, kind: str) -> None:
        hasty.post("/api/generate", {"model": ENDLESS})
        with at(hasty, kind) as ask, pytest.raises(openai.APIError) as caught:
            ask(CHAT, model=ENDLESS, messages=said(FOXES), stream=True, **LONG)
        assert caught.value.code == "deadline_exceeded"

    def test_a_foreign_host_header(self, main: Server, kind: str) -> None:
        with (
            at(main, kind, default_headers={"Host": "evil.example"}) as ask,
            pytest.raises(openai.PermissionDeniedError),
        ):
            list(ask("models.list"))

    def test_nobody_listens(self, dead: str, kind: str) -> None:
        with at(f"{dead}/v1", kind) as ask, pytest.raises(openai.APIConnectionError):
            list(ask("models.list"))

    def test_a_client_that_waits_no_longer(self, main: Server, kind: str) -> None:
        with at(main, kind, timeout=0.3) as ask, pytest.raises(openai.APITimeoutError):
            ask(CHAT, model=ENDLESS, messages=said(FOXES), **LONG)
        main.wait_until_idle()


def test_raw_answers(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=TINY, messages=said(FOXES), **GREEDY
    )
    assert raw.headers["x-request-id"]
    assert raw.parse().choices
    with client.chat.completions.with_streaming_response.create(
        model=TINY, messages=said(FOXES), **GREEDY
    ) as response:
        assert json.loads(response.read())["object"] == "chat.completion"


def test_a_stream_that_is_left(client: openai.OpenAI, main: Server) -> None:
    stream = client.chat.completions.create(
        model=ENDLESS, messages=said(FOXES), stream=True, **LONG
    )
    next(iter(stream))
    stream.close()
    main.wait_until_idle()


def test_a_worker_that_dies_in_the_middle(single: Server) -> None:
    with openai.OpenAI(base_url=single.v1, api_key="any", max_retries=0) as client:
        stream = client.chat.completions.create(
            model=ENDLESS, messages=said(FOXES), stream=True, **LONG
        )
        parts = iter(stream)
        next(parts)
        single.kill_worker(ENDLESS)
        with pytest.raises(openai.APIError) as caught:
            list(parts)
        assert caught.value.code == "worker_crashed"
