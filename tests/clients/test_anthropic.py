"""The `anthropic` package, as it comes, against a running daemon."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import httpx2
import pytest
import pytest_asyncio
from pydantic import TypeAdapter

from mlxd.core.errors import WorkerCrashed
from mlxd.core.events import Finished, Started, TextDelta
from mlxd.dialects.anthropic import MessagesCodec
from tests.integration.reciter import AGENT_CALLS, make_agent
from tests.integration.talking import eventually, exchange, unload
from tests.support.daemon import Daemon
from tests.support.later import Later

if TYPE_CHECKING:
    import anthropic
else:
    anthropic = Later("anthropic")

MODEL = "tiny-agent"
MESSAGES: Any = [{"role": "user", "content": "Tell me something about foxes."}]
GREEDY: Any = {"max_tokens": 24, "extra_body": {"temperature": 0}}
KEY = "any"
CODEC = MessagesCodec()
READ: Any = {
    "name": "read",
    "description": "Read a file",
    "input_schema": {
        "type": "object",
        "properties": {"path": {"type": "string"}, "lines": {"type": "array"}},
        "required": ["path"],
    },
}


@pytest.fixture(scope="module")
def agent(
    shared_daemon: Daemon, models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """The shared daemon has a model that calls tools; it is gone afterwards."""
    make_agent(tmp_path_factory.mktemp("agent") / MODEL).rename(models / MODEL)
    http = shared_daemon.http
    eventually(lambda: http.get(f"/v1/models/{MODEL}").status_code == 200, "it is found")
    yield
    unload(shared_daemon, MODEL)
    shutil.rmtree(models / MODEL)


@pytest.fixture(scope="module")
def client(shared_daemon: Daemon, agent: None) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=shared_daemon.url, api_key=KEY, max_retries=0) as client:
        yield client


@pytest_asyncio.fixture
async def async_client(
    shared_daemon: Daemon, agent: None
) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(
        base_url=shared_daemon.url, auth_token=KEY, max_retries=0
    ) as client:
        yield client


def ask(client: anthropic.Anthropic, **options: Any) -> Any:
    """A message of the test's own, whatever the types say."""
    return client.messages.create(**{"model": MODEL, "messages": MESSAGES, **GREEDY, **options})


def text_of(message: Any) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


class TestMessages:
    def test_whole(self, client: anthropic.Anthropic) -> None:
        message = ask(client)
        assert (message.type, message.role, message.model) == ("message", "assistant", MODEL)
        assert message.id.startswith("msg_")
        assert [block.type for block in message.content] == ["text"]
        assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
        assert message.usage.output_tokens == 4
        assert message.usage.input_tokens > 0
        assert ask(client, max_tokens=2).stop_reason == "max_tokens"

    def test_streamed_equals_whole(self, client: anthropic.Anthropic) -> None:
        whole = ask(client)
        events = list(ask(client, stream=True))
        kinds = [event.type for event in events if event.type != "content_block_delta"]
        assert kinds == [
            "message_start",
            "content_block_start",
            "content_block_stop",
            "message_delta",
            "message_stop",
        ]
        assert events[0].message.usage.input_tokens == whole.usage.input_tokens
        deltas = [event.delta.text for event in events if event.type == "content_block_delta"]
        assert "".join(deltas) == text_of(whole)
        assert len(deltas) > 1

    def test_the_stream_helper(self, client: anthropic.Anthropic) -> None:
        whole = ask(client)
        with client.messages.stream(model=MODEL, messages=MESSAGES, **GREEDY) as stream:
            streamed = "".join(stream.text_stream)
            final = stream.get_final_message()
        assert streamed == text_of(final) == text_of(whole)
        assert final.usage.output_tokens == whole.usage.output_tokens
        assert final.usage.input_tokens == whole.usage.input_tokens
        assert final.stop_reason == whole.stop_reason

    def test_a_stop_sequence_is_named(self, client: anthropic.Anthropic) -> None:
        text = text_of(ask(client))
        middle = text[len(text) // 2 : len(text) // 2 + 3]
        stops = ["never to be said", middle]
        whole = ask(client, stop_sequences=stops)
        assert text_of(whole) == text[: text.index(middle)]
        assert (whole.stop_reason, whole.stop_sequence) == ("stop_sequence", middle)
        *_, delta, _ = ask(client, stop_sequences=stops, stream=True)
        assert (delta.delta.stop_reason, delta.delta.stop_sequence) == ("stop_sequence", middle)

    async def test_the_same_asynchronously(
        self, client: anthropic.Anthropic, async_client: anthropic.AsyncAnthropic
    ) -> None:
        create = async_client.messages.create
        whole = await create(model=MODEL, messages=MESSAGES, **GREEDY)
        stream = await create(model=MODEL, messages=MESSAGES, stream=True, **GREEDY)
        streamed = "".join(
            [event.delta.text async for event in stream if event.type == "content_block_delta"]
        )
        assert streamed == text_of(whole) == text_of(ask(client))

    def test_every_object_is_as_the_packages_types_have_it(self, shared_daemon: Daemon) -> None:
        """The package itself checks nothing of an answer."""
        thinking = {"type": "enabled", "budget_tokens": 1024}
        body: Any = {"model": MODEL, "messages": MESSAGES, "max_tokens": 24, "tools": [READ]}
        body["thinking"] = thinking
        whole = shared_daemon.http.post("/v1/messages", json=body)
        message = anthropic.types.Message.model_validate(whole.json())
        expected = ["thinking", "text", "tool_use", "tool_use"]
        assert [block.type for block in message.content] == expected
        stream = shared_daemon.http.post("/v1/messages", json=body | {"stream": True})
        event: TypeAdapter[Any] = TypeAdapter(anthropic.types.RawMessageStreamEvent)
        found = [event.validate_json(line[6:]) for line in stream.text.splitlines()[1::4]]
        assert [e.type for e in found].count("content_block_start") == 4

    @pytest.mark.parametrize("version", [None, "2026-10-21", "whatever"])
    def test_any_version_and_any_key(self, shared_daemon: Daemon, version: str | None) -> None:
        headers = {"anthropic-version": version} if version else {}
        body = {"model": MODEL, "messages": MESSAGES, "max_tokens": 1}
        answer = shared_daemon.http.post("/v1/messages?beta=true", json=body, headers=headers)
        assert answer.json()["type"] == "message"


class TestSilenceAndFailure:
    """Streams of the codec's own, read by the package."""

    def read(self, *records: bytes) -> list[Any]:
        def answer(request: Any) -> httpx2.Response:
            head = {"content-type": "text/event-stream", "request-id": "req-1"}
            return httpx2.Response(200, headers=head, content=b"".join(records))

        http = anthropic.DefaultHttpxClient(transport=httpx2.MockTransport(answer))
        with anthropic.Anthropic(base_url="http://x", api_key=KEY, http_client=http) as client:
            return list(ask(client, stream=True))

    def encoder(self) -> Any:
        body = {"model": "m", "max_tokens": 9, "messages": MESSAGES}
        return CODEC.encoder(CODEC.parse(body, id="abc", now=0.0))

    def test_a_sign_of_life_is_passed_over_even_before_the_start(self) -> None:
        encoder, beat = self.encoder(), CODEC.heartbeat
        said = encoder.feed([Started(1), TextDelta("x")], 0.0)
        end = encoder.feed([Finished("stop", 1, 1)], 0.0)
        assert len(self.read(beat, beat, said, beat, end)) == 6

    @pytest.mark.parametrize("begun", [False, True])
    def test_a_failure_in_the_stream_raises(self, begun: bool) -> None:
        encoder = self.encoder()
        said = encoder.feed([Started(1), TextDelta("x")], 0.0) if begun else CODEC.heartbeat
        with pytest.raises(anthropic.APIStatusError) as caught:
            self.read(said, encoder.fail(WorkerCrashed("the worker died")))
        body: Any = caught.value.body
        assert body["error"] == {"type": "api_error", "message": "the worker died"}
        assert caught.value.request_id == "req-1"


class TestCountTokens:
    def test_a_count_is_what_an_answer_says(self, client: anthropic.Anthropic) -> None:
        counted = client.messages.count_tokens(model=MODEL, messages=MESSAGES, system="Be short.")
        assert counted.input_tokens == read_by(ask(client, system="Be short."))

    def test_tools_and_thinking_count(self, client: anthropic.Anthropic) -> None:
        thinking: Any = {"type": "enabled", "budget_tokens": 1024}
        plain = client.messages.count_tokens(model=MODEL, messages=MESSAGES)
        whole = client.messages.count_tokens(
            model=MODEL, messages=MESSAGES, tools=[READ], thinking=thinking
        )
        answer = ask(client, tools=[READ], thinking=thinking)
        assert plain.input_tokens < whole.input_tokens == read_by(answer)

    def test_no_tokens_mean_no_answer(self, client: anthropic.Anthropic) -> None:
        message = ask(client, max_tokens=0)
        assert (message.content, message.stop_reason) == ([], "max_tokens")
        assert message.usage.output_tokens == 0
        assert read_by(message) == read_by(ask(client))


class TestModels:
    def test_list_in_pages(self, client: anthropic.Anthropic) -> None:
        models = list(client.models.list(limit=1))
        assert {"tiny-a", "tiny-b"} <= {model.id for model in models}
        assert all(model.display_name and model.lifecycle == "active" for model in models)
        assert models[0].created_at.year > 2000

    def test_retrieve(self, client: anthropic.Anthropic) -> None:
        assert client.models.retrieve("tiny-a").id == "tiny-a"
        with pytest.raises(anthropic.NotFoundError) as caught:
            client.models.retrieve("nobody/at-all:7b")
        assert caught.value.body["error"]["type"] == "not_found_error"

    def test_who_names_no_version_gets_openais_list(self, shared_daemon: Daemon) -> None:
        assert shared_daemon.http.get("/v1/models").json()["object"] == "list"


class TestAgent:
    """A session as coding agents have it: calls in parallel, their results, the end."""

    @pytest.mark.parametrize(
        ("stream", "think"),
        [
            (False, False),
            (True, True),
            pytest.param(False, True, marks=pytest.mark.slow),
            pytest.param(True, False, marks=pytest.mark.slow),
        ],
    )
    def test_a_session(self, client: Any, stream: bool, think: bool) -> None:
        thinking = {"type": "adaptive" if think else "disabled"}
        system = [
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=2;"},
            {"type": "text", "text": "You read.", "cache_control": {"type": "ephemeral"}},
        ]
        options: Any = {"system": system, "thinking": thinking, "tools": [READ]}
        options |= {"model": MODEL, "max_tokens": 200}

        def turn(messages: Any) -> Any:
            if not stream:
                return client.messages.create(messages=messages, **options)
            with client.messages.stream(messages=messages, **options) as events:
                return events.get_final_message()

        long = "def f(): pass\n" * 60
        messages: Any = [{"role": "user", "content": [{"type": "text", "text": long}]}]
        first = turn(messages)
        expected = ["thinking"] * think + ["text", "tool_use", "tool_use"]
        assert [block.type for block in first.content] == expected
        assert first.stop_reason == "tool_use"
        calls = [block for block in first.content if block.type == "tool_use"]
        assert [call.input for call in calls] == list(AGENT_CALLS)
        assert len({call.id for call in calls}) == 2
        results = [
            {"type": "tool_result", "tool_use_id": call.id, "content": "fine"} for call in calls
        ]
        messages += [
            {"role": "assistant", "content": first.content},
            {"role": "user", "content": results},
        ]
        last = turn(messages)
        assert text_of(last) == "Both are fine."
        assert last.stop_reason == "end_turn"
        assert read_by(last) > read_by(first)

    def test_an_answer_that_is_begun_goes_on(self, client: anthropic.Anthropic) -> None:
        """Behind its own first words it says the rest, and not the words again."""
        begun = [*MESSAGES, {"role": "assistant", "content": "I will look."}]
        message = ask(client, messages=begun, tools=[READ])
        assert [block.type for block in message.content] == ["tool_use", "tool_use"]

    def test_no_choice_no_call(self, client: anthropic.Anthropic) -> None:
        """What no template shows and no parser looks for is text."""
        message = ask(client, tools=[READ], tool_choice={"type": "none"})
        assert message.stop_reason == "end_turn"
        assert "<tool_call>" in text_of(message)


class TestRefusals:
    """The package's own exceptions, streaming or not."""

    CASES: tuple[tuple[dict[str, Any], str], ...] = (
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"extra_body": {"temperature": 3}}, "temperature"),
        ({"tools": [{"type": "computer_20250124", "name": "c"}]}, "tools[0].type"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"stop_sequences": ["x" * 1001]}, "stop_sequences"),
    )

    @pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
    @pytest.mark.parametrize(("change", "named"), CASES, ids=[f"{case[0]}" for case in CASES])
    def test_a_bad_request_names_its_field(
        self, client: anthropic.Anthropic, change: dict[str, Any], named: str, stream: bool
    ) -> None:
        with pytest.raises(anthropic.BadRequestError) as caught:
            ask(client, **change, stream=stream)
        assert self.error_of(caught.value)["type"] == "invalid_request_error"
        assert named in self.error_of(caught.value)["message"]

    @staticmethod
    def error_of(error: anthropic.APIStatusError) -> dict[str, Any]:
        body: Any = error.body
        assert body["type"] == "error"
        assert body["request_id"] == error.request_id == error.response.headers["request-id"]
        return dict(body["error"])

    def test_an_image(self, client: anthropic.Anthropic) -> None:
        source = {"type": "base64", "media_type": "image/png", "data": "aGVsbG8="}
        content = [{"type": "image", "source": source}]
        with pytest.raises(anthropic.BadRequestError, match="reads text only"):
            ask(client, messages=[{"role": "user", "content": content}])

    def test_an_unknown_model(self, client: anthropic.Anthropic) -> None:
        with pytest.raises(anthropic.NotFoundError) as caught:
            ask(client, model="nobody", stream=True)
        assert self.error_of(caught.value)["type"] == "not_found_error"
        with pytest.raises(anthropic.NotFoundError):
            client.messages.count_tokens(model="nobody", messages=MESSAGES)

    def test_a_prompt_that_is_too_long(self, client: anthropic.Anthropic) -> None:
        long = [{"role": "user", "content": "word " * 9000}]
        with pytest.raises(anthropic.BadRequestError, match="prompt is too long"):
            ask(client, messages=long)

    @pytest.mark.parametrize(
        ("method", "path", "headers", "status", "kind"),
        [
            ("GET", "/v1/messages", {}, 405, "invalid_request_error"),
            ("GET", "/v1/messages/count_tokens", {}, 405, "invalid_request_error"),
            ("GET", "/v1/messages/batches", {}, 404, "not_found_error"),
            ("POST", "/v1/complete", {"anthropic-version": "x"}, 404, "not_found_error"),
            ("POST", "/v1/messages", {"Host": "evil.example"}, 403, "permission_error"),
            ("POST", "/v1/messages", {"Content-Encoding": "x"}, 415, "invalid_request_error"),
        ],
    )
    def test_every_refusal_has_the_apis_shape(
        self,
        shared_daemon: Daemon,
        method: str,
        path: str,
        headers: dict[str, str],
        status: int,
        kind: str,
    ) -> None:
        given = {"X-Request-Id": "mine-1", **headers}
        answer: httpx.Response = shared_daemon.http.request(method, path, headers=given)
        assert answer.status_code == status
        assert answer.headers["content-type"].startswith("application/json")
        body = answer.json()
        assert (body["type"], body["error"]["type"]) == ("error", kind)
        assert body["request_id"] == "mine-1"
        assert body["error"]["message"]

    def test_a_body_that_is_too_large(self, shared_daemon: Daemon) -> None:
        head = (
            b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n"
        )
        status, _, rest = exchange(shared_daemon, head).partition(b"\r\n")
        assert status.startswith(b"HTTP/1.1 413")
        body = json.loads(rest.partition(b"\r\n\r\n")[2])
        assert (body["type"], body["error"]["type"]) == ("error", "request_too_large")


def read_by(message: anthropic.types.Message) -> int:
    """Tokens of its prompt, computed or not."""
    return message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0)
