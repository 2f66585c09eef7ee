"""The `anthropic` package, blocking and not: messages, counting, models, and every error."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import anthropic
import pytest
from pydantic import BaseModel

from tests.clients_real.asking import BOTH, Asker
from tests.clients_real.questions import (
    BOUNDED,
    ENDLESS,
    FOXES,
    GUIDE,
    NOBODY,
    PARAMETERS,
    PERSON,
    PIXEL,
    PORT,
    THINKER,
    TINY,
    TOOLBOX,
    WEATHER,
)
from tests.clients_real.servers import Server

CREATE = "messages.create"
ENOUGH = 200
LONG: Any = {"max_tokens": 8000, "extra_body": {"temperature": 0}}
TOOL: Any = {"name": "get_weather", "description": "The weather", "input_schema": PARAMETERS}
BOTH_TOOLS: Any = [
    {**TOOL, "name": name, "input_schema": BOUNDED} for name in ("get_weather", "get_time")
]
CLIENTS: dict[str, Any] = {"sync": anthropic.Anthropic, "async": anthropic.AsyncAnthropic}


class Fox(BaseModel):
    """Without bounds: the package takes them out of a schema."""

    colour: Literal["red", "white"]
    tame: bool


def said(content: Any) -> list[Any]:
    return [{"role": "user", "content": content}]


@pytest.fixture(params=BOTH)
def kind(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


def at(server: Server | str, kind: str, **options: Any) -> Asker:
    url = server if isinstance(server, str) else server.url
    return Asker(CLIENTS[kind](**{"base_url": url, "api_key": "any", "max_retries": 0, **options}))


@pytest.fixture
def ask(kind: str, main: Server) -> Iterator[Asker]:
    with at(main, kind) as asker:
        yield asker


@pytest.fixture
def client(main: Server) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=main.url, api_key="any", max_retries=0) as client:
        yield client


def text_of(events: Iterable[Any]) -> str:
    return "".join(
        event.delta.text
        for event in events
        if event.type == "content_block_delta" and event.delta.type == "text_delta"
    )


class TestMessages:
    def test_streamed_equals_whole(self, ask: Asker) -> None:
        request: Any = {"model": GUIDE, "messages": said(PORT), "max_tokens": ENOUGH}
        whole = ask(CREATE, **request)
        events = ask(CREATE, **request, stream=True)
        (block,) = whole.content
        assert "11435" in block.text
        assert (whole.type, whole.role, whole.stop_reason) == ("message", "assistant", "end_turn")
        assert text_of(events) == block.text
        assert [events[0].type, events[-1].type] == ["message_start", "message_stop"]
        assert events[0].message.usage.input_tokens == whole.usage.input_tokens > 0
        (delta,) = [event for event in events if event.type == "message_delta"]
        assert delta.delta.stop_reason == "end_turn"
        assert delta.usage.output_tokens == whole.usage.output_tokens

    def test_the_stream_helper(self, client: anthropic.Anthropic) -> None:
        with client.messages.stream(
            model=GUIDE, messages=said(PORT), max_tokens=ENOUGH, system="You are mlxd's guide."
        ) as stream:
            text = "".join(stream.text_stream)
            final = stream.get_final_message()
        assert final.content[0].text == text
        assert final.usage.input_tokens > 0

    async def test_the_stream_helper_without_blocking(self, main: Server) -> None:
        async with (
            anthropic.AsyncAnthropic(base_url=main.url, api_key="any") as client,
            client.messages.stream(model=GUIDE, messages=said(PORT), max_tokens=ENOUGH) as stream,
        ):
            text = "".join([piece async for piece in stream.text_stream])
        assert "11435" in text

    def test_the_beta_path(self, ask: Asker) -> None:
        answer = ask(
            *("beta.messages.create",),
            model=GUIDE,
            messages=said(PORT),
            max_tokens=ENOUGH,
            betas=["interleaved-thinking-2025-05-14"],
        )
        assert "11435" in answer.content[0].text

    def test_max_tokens_and_stop_sequences(self, ask: Asker) -> None:
        cut = ask(CREATE, model=TINY, messages=said(FOXES), max_tokens=5)
        assert (cut.stop_reason, cut.usage.output_tokens) == ("max_tokens", 5)
        whole = ask(CREATE, model=GUIDE, messages=said(PORT), max_tokens=ENOUGH)
        stopped = ask(
            CREATE,
            model=GUIDE,
            messages=said(PORT),
            max_tokens=ENOUGH,
            stop_sequences=["1435"],
        )
        assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "1435")
        assert stopped.content[0].text == whole.content[0].text.partition("1435")[0]

    def test_a_prefilled_answer_goes_on(self, ask: Asker) -> None:
        whole = ask(CREATE, model=GUIDE, messages=said(PORT), max_tokens=ENOUGH).content[0].text
        begun, rest = whole[: len(whole) // 2].rstrip(), whole[len(whole) // 2 :]
        assert rest
        messages = [*said(PORT), {"role": "assistant", "content": begun}]
        answer = ask(CREATE, model=GUIDE, messages=messages, max_tokens=ENOUGH)
        assert not answer.content[0].text.startswith(begun)

    def test_blocks_and_a_system_text_in_blocks(self, ask: Asker) -> None:
        cached = {"cache_control": {"type": "ephemeral"}}
        answer = ask(
            CREATE,
            model=GUIDE,
            system=[{"type": "text", "text": "You are mlxd's guide.", **cached}],
            messages=said([{"type": "text", "text": PORT, **cached}]),
            max_tokens=ENOUGH,
            metadata={"user_id": "me"},
        )
        assert answer.content[0].type == "text"

    def test_sampling_that_the_package_no_longer_names(self, ask: Asker) -> None:
        greedy = {"temperature": 0}
        request: Any = {"model": TINY, "messages": said(FOXES), "max_tokens": 12}
        one = ask(CREATE, **request, extra_body=greedy).content
        assert ask(CREATE, **request, extra_body=greedy).content == one
        top = {"temperature": 1, "top_k": 1, "top_p": 0.9}
        assert ask(CREATE, **request, extra_body=top).content == one

    def test_thinking(self, ask: Asker) -> None:
        enabled = {"type": "enabled", "budget_tokens": 1024}
        request: Any = {"model": THINKER, "messages": said(FOXES), "max_tokens": 24}
        answer = ask(CREATE, **request, thinking=enabled)
        assert answer.content[0].type == "thinking"
        assert isinstance(answer.content[0].signature, str)
        events = ask(CREATE, **request, thinking=enabled, stream=True)
        assert "thinking_delta" in {e.delta.type for e in events if e.type == "content_block_delta"}
        plain = ask(CREATE, **request, thinking={"type": "disabled"})
        assert [block.type for block in plain.content] == ["text"]
        ask(CREATE, **{**request, "model": TINY}, thinking=enabled)


class TestStructured:
    def test_a_schema_is_kept_to(self, ask: Asker) -> None:
        answer = ask(
            CREATE,
            model=TINY,
            messages=said(FOXES),
            max_tokens=ENOUGH,
            output_config={"format": {"type": "json_schema", "schema": PERSON}},
        )
        assert json.loads(answer.content[0].text).keys() == {"name", "age", "grown"}

    def test_parse(self, ask: Asker) -> None:
        answer = ask(
            *("messages.parse",),
            model=TINY,
            messages=said(FOXES),
            max_tokens=ENOUGH,
            output_format=Fox,
        )
        assert isinstance(answer.parsed_output, Fox)


class TestTools:
    def test_the_whole_loop(self, ask: Asker) -> None:
        request: Any = {"model": GUIDE, "max_tokens": ENOUGH, "tools": [TOOL]}
        first = ask(CREATE, messages=said(WEATHER), **request)
        assert first.stop_reason == "tool_use"
        (call,) = [block for block in first.content if block.type == "tool_use"]
        assert (call.name, call.input) == ("get_weather", {"city": "Paris"})
        result = {"type": "tool_result", "tool_use_id": call.id, "content": "It rains."}
        assistant = {"role": "assistant", "content": first.content}
        last = ask(CREATE, messages=[*said(WEATHER), assistant, *said([result])], **request)
        assert last.stop_reason == "end_turn"

    def test_a_streamed_call(self, client: anthropic.Anthropic) -> None:
        with client.messages.stream(
            model=GUIDE, messages=said(WEATHER), max_tokens=ENOUGH, tools=[TOOL]
        ) as stream:
            pieces = [event.partial_json for event in stream if event.type == "input_json"]
            final = stream.get_final_message()
        (call,) = [block for block in final.content if block.type == "tool_use"]
        assert call.input == json.loads("".join(pieces)) == {"city": "Paris"}

    @pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
    @pytest.mark.parametrize("choice", ["any", "tool"])
    def test_a_call_is_demanded(self, ask: Asker, choice: str, stream: bool) -> None:
        """Of a random model, which would never make one by itself."""
        named = {"name": "get_time"} if choice == "tool" else {}
        answer = ask(
            CREATE,
            model=TOOLBOX,
            messages=said(WEATHER),
            max_tokens=400,
            tools=BOTH_TOOLS,
            tool_choice={"type": choice, "disable_parallel_tool_use": True, **named},
            stream=stream,
        )
        if stream:
            blocks = [e.content_block for e in answer if e.type == "content_block_start"]
        else:
            blocks = answer.content
        (call,) = [block for block in blocks if block.type == "tool_use"]
        assert call.name in ({"get_time"} if named else {"get_time", "get_weather"})

    def test_none_is_wanted(self, ask: Asker) -> None:
        answer = ask(
            CREATE,
            model=GUIDE,
            messages=said(WEATHER),
            max_tokens=ENOUGH,
            tools=[TOOL],
            tool_choice={"type": "none"},
        )
        assert answer.stop_reason == "end_turn"

    def test_the_packages_own_runner(self, client: anthropic.Anthropic) -> None:
        """It runs the tool and goes on by itself, until no call comes."""
        asked: list[str] = []

        @anthropic.beta_tool  # type: ignore[untyped-decorator]
        def get_weather(city: str) -> str:
            """Get the current weather of a city

            Args:
                city: its name
            """
            asked.append(city)
            return "It rains."

        runner = client.beta.messages.tool_runner(
            model=GUIDE,
            messages=said(WEATHER),
            max_tokens=ENOUGH,
            tools=[get_weather],
            max_iterations=3,
        )
        last = runner.until_done()
        assert asked[0] == "Paris"
        assert last.usage.output_tokens > 0


class TestCounting:
    @pytest.mark.parametrize("more", [{}, {"system": "Be short."}, {"tools": [TOOL]}], ids=str)
    def test_it_equals_usage(self, ask: Asker, more: dict[str, Any]) -> None:
        request: Any = {"model": GUIDE, "messages": said(WEATHER), **more}
        counted = ask("messages.count_tokens", **request).input_tokens
        answer = ask(CREATE, **request, max_tokens=ENOUGH)
        assert counted == answer.usage.input_tokens > 0

    def test_it_is_not_rated(self, spent: Server, kind: str) -> None:
        with at(spent, kind) as ask:
            counted = ask("messages.count_tokens", model=TINY, messages=said(FOXES))
        assert counted.input_tokens > 0


class TestModels:
    def test_list_and_retrieve(self, ask: Asker) -> None:
        found = {model.id: model for model in ask("models.list", limit=1000)}
        assert {TINY, GUIDE} <= set(found)
        assert found[TINY].type == "model"
        assert found[TINY].display_name
        assert found[TINY].created_at
        assert ask("models.retrieve", TINY).id == TINY
        with pytest.raises(anthropic.NotFoundError):
            ask("models.retrieve", NOBODY)


class TestRefusals:
    CASES: tuple[dict[str, Any], ...] = (
        {"max_tokens": -1},
        {"messages": []},
        {"messages": [{"role": "robot", "content": "x"}]},
        {"tool_choice": {"type": "any"}},
        {"extra_body": {"temperature": "hot"}},
    )

    @pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
    @pytest.mark.parametrize("change", CASES, ids=str)
    def test_a_bad_request(self, ask: Asker, change: dict[str, Any], stream: bool) -> None:
        request = {"model": TINY, "messages": said(FOXES), "max_tokens": 5, "stream": stream}
        with pytest.raises(anthropic.BadRequestError) as caught:
            ask(CREATE, **{**request, **change})
        body: Any = caught.value.body
        assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error")
        assert caught.value.request_id == body["request_id"]

    def test_an_image(self, ask: Asker) -> None:
        source = {"type": "base64", "media_type": "image/png", "data": PIXEL}
        with pytest.raises(anthropic.BadRequestError):
            ask(
                CREATE,
                model=TINY,
                messages=said([{"type": "image", "source": source}]),
                max_tokens=5,
            )

    @pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
    def test_an_unknown_model(self, ask: Asker, stream: bool) -> None:
        with pytest.raises(anthropic.NotFoundError) as caught:
            ask(CREATE, model=NOBODY, messages=said(FOXES), max_tokens=5, stream=stream)
        assert caught.value.body["error"]["type"] == "not_found_error"

    def test_what_is_not_here(self, ask: Asker) -> None:
        with pytest.raises(anthropic.NotFoundError) as caught:
            list(ask("messages.batches.list"))
        assert caught.value.body["type"] == "error"

    @pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
    def test_too_often(self, spent: Server, kind: str, stream: bool) -> None:
        with at(spent, kind) as ask, pytest.raises(anthropic.RateLimitError) as caught:
            ask(CREATE, model=TINY, messages=said(FOXES), max_tokens=5, stream=stream)
        headers = caught.value.response.headers
        assert 1 <= int(headers["retry-after"]) <= 60
        assert headers["anthropic-ratelimit-requests-remaining"] == "0"

    def test_too_often_is_waited_out(self, brief: Server, kind: str) -> None:
        with at(brief, kind, max_retries=2) as ask:
            for _ in range(2):
                ask(CREATE, model=TINY, messages=said(FOXES), max_tokens=5)

    @pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
    def test_too_many(self, single: Server, kind: str, stream: bool) -> None:
        refused = pytest.raises(anthropic.InternalServerError)
        with at(single, kind) as ask, single.held(), refused as caught:
            ask(CREATE, model=TINY, messages=said(FOXES), max_tokens=5, stream=stream)
        assert caught.value.status_code in (503, 529)
        assert caught.value.body["error"]["type"] == "overloaded_error"

    def test_too_large(self, single: Server, kind: str) -> None:
        with at(single, kind) as ask, pytest.raises(anthropic.APIStatusError) as caught:
            ask(CREATE, model=TINY, messages=said("x" * 100_000), max_tokens=5)
        assert caught.value.status_code == 413
        assert caught.value.body["error"]["type"] == "request_too_large"

    def test_too_late(self, hasty: Server, kind: str) -> None:
        hasty.post("/api/generate", {"model": ENDLESS})
        with at(hasty, kind) as ask, pytest.raises(anthropic.InternalServerError) as caught:
            ask(CREATE, model=ENDLESS, messages=said(FOXES), **LONG)
        assert caught.value.status_code == 504

    def test_too_late_in_the_middle(self, hasty: Server, kind: str) -> None:
        hasty.post("/api/generate", {"model": ENDLESS})
        with at(hasty, kind) as ask, pytest.raises(anthropic.APIStatusError) as caught:
            ask(CREATE, model=ENDLESS, messages=said(FOXES), stream=True, **LONG)
        assert caught.value.body["error"]["type"]

    def test_a_foreign_host_header(self, main: Server, kind: str) -> None:
        with (
            at(main, kind, default_headers={"Host": "evil.example"}) as ask,
            pytest.raises(anthropic.PermissionDeniedError),
        ):
            list(ask("models.list"))

    @pytest.mark.parametrize("way", [{"api_key": "a"}, {"api_key": None, "auth_token": "b"}])
    def test_any_key_will_do(self, main: Server, kind: str, way: dict[str, Any]) -> None:
        with at(main, kind, **way) as ask:
            assert ask("messages.count_tokens", model=TINY, messages=said(FOXES)).input_tokens

    def test_nobody_listens(self, dead: str, kind: str) -> None:
        with at(dead, kind) as ask, pytest.raises(anthropic.APIConnectionError):
            ask(CREATE, model=TINY, messages=said(FOXES), max_tokens=5)

    def test_a_client_that_waits_no_longer(self, main: Server, kind: str) -> None:
        with at(main, kind, timeout=0.3) as ask, pytest.raises(anthropic.APITimeoutError):
            ask(CREATE, model=ENDLESS, messages=said(FOXES), **LONG)
        main.wait_until_idle()


def test_a_worker_that_dies_in_the_middle(single: Server) -> None:
    with anthropic.Anthropic(base_url=single.url, api_key="any", max_retries=0) as client:
        stream = client.messages.create(model=ENDLESS, messages=said(FOXES), stream=True, **LONG)
        events = iter(stream)
        while next(events).type != "content_block_delta":
            pass
        single.kill_worker(ENDLESS)
        with pytest.raises(anthropic.APIStatusError):
            list(events)
