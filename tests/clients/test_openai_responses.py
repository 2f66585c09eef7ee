"""OpenAI's responses by the `openai` package, as it comes, against a running daemon."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio
from openai.types.responses import Response
from pydantic import BaseModel

from tests.support.daemon import Daemon

MODEL = "tiny-a"
GREEDY: Any = {"temperature": 0, "max_output_tokens": 24}
FOXES = "Tell me something about foxes."
KEY = "any"


class Fox(BaseModel):
    fox: bool


@pytest.fixture(scope="module")
def client(shared_daemon: Daemon) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{shared_daemon.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


@pytest_asyncio.fixture
async def async_client(shared_daemon: Daemon) -> AsyncIterator[Any]:
    async with openai.AsyncOpenAI(
        base_url=f"{shared_daemon.url}/v1", api_key=KEY, max_retries=0
    ) as client:
        yield client


def ask(client: Any, input: Any = FOXES, **options: Any) -> Any:
    return client.responses.create(**{"model": MODEL, "input": input, **GREEDY, **options})


@pytest.fixture(scope="module")
def first(client: Any) -> Any:
    """An answer that is kept."""
    return ask(client)


@pytest.fixture(scope="module")
def ending(first: Any) -> str:
    """What, as a stop string, ends that answer by itself: in the middle."""
    text: str = first.output_text
    return text[len(text) // 2 : len(text) // 2 + 3]


class TestCreate:
    def test_whole(self, client: Any, first: Any) -> None:
        Response.model_validate(first.to_dict())
        assert first.id.startswith("resp_")
        assert first.output_text
        assert (first.status, first.incomplete_details.reason) == (
            "incomplete",
            "max_output_tokens",
        )
        assert first.usage.output_tokens == 24
        assert first.usage.total_tokens == first.usage.input_tokens + 24
        chat = client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": FOXES}],
            temperature=0,
            max_tokens=24,
        )
        assert chat.choices[0].message.content == first.output_text

    def test_streamed_equals_whole(self, client: Any, first: Any) -> None:
        events = list(ask(client, stream=True))
        assert [event.sequence_number for event in events] == list(range(len(events)))
        deltas = [e.delta for e in events if e.type == "response.output_text.delta"]
        assert "".join(deltas) == first.output_text
        assert len(deltas) > 8
        assert events[-1].type == "response.incomplete"
        assert events[-1].response.output_text == first.output_text

    def test_the_stream_helper(self, client: Any, first: Any, ending: str) -> None:
        extra: Any = {"stop": ending}
        with client.responses.stream(
            model=MODEL, input=FOXES, extra_body=extra, **GREEDY
        ) as stream:
            deltas = [e.delta for e in stream if e.type == "response.output_text.delta"]
            final = stream.get_final_response()
        assert "".join(deltas) == final.output_text
        assert first.output_text.startswith(final.output_text)
        assert final.status == "completed"

    @pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
    def test_a_schema_is_kept_to_and_parsed(self, client: Any, stream: bool) -> None:
        options: Any = {"model": MODEL, "input": FOXES, "temperature": 0, "text_format": Fox}
        if stream:
            with client.responses.stream(**options) as events:
                parsed = events.get_final_response().output_parsed
        else:
            parsed = client.responses.parse(**options).output_parsed
        assert isinstance(parsed, Fox)

    def test_instructions_and_roles(self, client: Any, first: Any) -> None:
        items = [
            {"role": "developer", "content": [{"type": "input_text", "text": "Be short."}]},
            {"role": "user", "content": "Привет, 世界 😀"},
        ]
        answer = ask(client, items, instructions="Say nothing.")
        assert answer.usage.input_tokens > first.usage.input_tokens
        assert answer.instructions == "Say nothing."

    def test_its_tokens_can_be_counted_before(self, client: Any, first: Any) -> None:
        counted = client.responses.input_tokens.count(model=MODEL, input=FOXES)
        assert counted.input_tokens == first.usage.input_tokens
        more = client.responses.input_tokens.count(
            model=MODEL, input="And bears?", previous_response_id=first.id
        )
        assert more.input_tokens > counted.input_tokens

    def test_a_schema_that_cannot_be_kept_to_is_refused_by_its_name(self, client: Any) -> None:
        form = {"type": "json_schema", "name": "x", "schema": {"type": "nothing"}}
        with pytest.raises(openai.BadRequestError) as caught:
            ask(client, text={"format": form})
        assert caught.value.param == "text.format"

    def test_logprobs(self, client: Any) -> None:
        options: Any = {"top_logprobs": 2, "include": ["message.output_text.logprobs"]}
        answer = ask(client, **options)
        entries = answer.output[0].content[0].logprobs
        assert len(entries) == 24
        assert all(len(entry.top_logprobs) == 2 for entry in entries)

    async def test_the_same_asynchronously(
        self, async_client: Any, first: Any, ending: str
    ) -> None:
        whole = await async_client.responses.create(model=MODEL, input=FOXES, **GREEDY)
        assert whole.output_text == first.output_text
        extra: Any = {"stop": ending}
        async with async_client.responses.stream(
            model=MODEL, input=FOXES, extra_body=extra, **GREEDY
        ) as stream:
            final = await stream.get_final_response()
        assert first.output_text.startswith(final.output_text)

    def test_a_body_may_come_compressed(self, shared_daemon: Daemon) -> None:
        """As coding agents send it."""
        own = sys.version_info >= (3, 14)
        zstd = pytest.importorskip("compression.zstd" if own else "backports.zstd")
        body = b'{"model": "tiny-a", "input": "hi", "max_output_tokens": 1}'
        headers = {"Content-Encoding": "zstd"}
        answer = shared_daemon.http.post(
            "/v1/responses", content=zstd.compress(body), headers=headers
        )
        assert answer.status_code == 200


class TestKept:
    def test_a_conversation_goes_on(self, client: Any, first: Any) -> None:
        """As if all of it had been sent."""
        more = {"role": "user", "content": "And bears?"}
        sent = ask(client, [{"role": "user", "content": FOXES}, *first.output, more])
        second = ask(client, [more], previous_response_id=first.id)
        assert second.output_text == sent.output_text
        assert second.usage.input_tokens == sent.usage.input_tokens
        assert second.previous_response_id == first.id
        streamed = list(ask(client, [more], previous_response_id=first.id, stream=True))
        assert streamed[-1].response.output_text == sent.output_text
        third = ask(client, "Why?", previous_response_id=streamed[-1].response.id)
        assert third.usage.input_tokens > second.usage.input_tokens

    def test_items_may_be_referred_to(self, client: Any, first: Any) -> None:
        user = {"role": "user", "content": FOXES}
        more = {"role": "user", "content": "And bears?"}
        reference = {"type": "item_reference", "id": first.output[0].id}
        sent = ask(client, [user, *first.output, more])
        assert ask(client, [user, reference, more]).output_text == sent.output_text

    def test_it_can_be_had_again(self, client: Any, first: Any) -> None:
        assert client.responses.retrieve(first.id).to_dict() == first.to_dict()
        *_, last = ask(client, stream=True)
        assert client.responses.retrieve(last.response.id).to_dict() == last.response.to_dict()

    def test_its_input_is_listed(self, client: Any, first: Any) -> None:
        second = ask(client, "And bears?", previous_response_id=first.id)
        items = list(client.responses.input_items.list(second.id, order="asc", limit=1))
        assert [item.type for item in items] == ["message"] * 3
        assert [item.role for item in items] == ["user", "assistant", "user"]
        assert items[0].content[0].text == FOXES
        newest = client.responses.input_items.list(second.id)
        assert [item.id for item in newest.data] == [item.id for item in reversed(items)]
        assert newest.has_more is False

    def test_it_can_be_deleted(self, client: Any) -> None:
        answer, kept = ask(client), ask(client)
        client.responses.delete(answer.id)
        with pytest.raises(openai.NotFoundError) as caught:
            client.responses.retrieve(answer.id)
        assert caught.value.code == "response_not_found"
        with pytest.raises(openai.NotFoundError):
            client.responses.delete(answer.id)
        assert client.responses.retrieve(kept.id).id == kept.id

    def test_what_is_not_to_be_kept_is_not(self, client: Any) -> None:
        answer = ask(client, store=False)
        assert answer.store is False
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(answer.id)
        with pytest.raises(openai.BadRequestError) as caught:
            ask(client, "more", previous_response_id=answer.id)
        assert caught.value.code == "previous_response_not_found"
        assert caught.value.param == "previous_response_id"

    def test_nobody_else_is_told(self, shared_daemon: Daemon, first: Any) -> None:
        elsewhere = httpx.HTTPTransport(local_address="127.0.0.2")
        with httpx.Client(base_url=shared_daemon.url, transport=elsewhere) as other:
            for path in (first.id, f"{first.id}/input_items"):
                assert other.get(f"/v1/responses/{path}").status_code == 404
            assert other.delete(f"/v1/responses/{first.id}").status_code == 404
            body = {"model": MODEL, "input": "x", "previous_response_id": first.id}
            assert other.post("/v1/responses", json=body).status_code == 400

    def test_a_finished_response_is_not_cancelled(self, client: Any, first: Any) -> None:
        with pytest.raises(openai.BadRequestError, match="Cannot cancel a synchronous response"):
            client.responses.cancel(first.id)
        with pytest.raises(openai.NotFoundError):
            client.responses.cancel("resp_nobody")

    @pytest.mark.parametrize(
        ("query", "param"),
        [("limit=0", "limit"), ("limit=x", "limit"), ("order=up", "order"), ("after=x", "after")],
    )
    def test_a_bad_page_is_refused(
        self, shared_daemon: Daemon, first: Any, query: str, param: str
    ) -> None:
        answer = shared_daemon.http.get(f"/v1/responses/{first.id}/input_items?{query}")
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)

    @pytest.mark.parametrize(
        ("method", "path", "status"),
        [
            ("POST", "", 405),
            ("DELETE", "/input_items", 405),
            ("GET", "/cancel", 405),
            ("GET", "/nothing", 404),
            ("GET", "?stream=true", 400),
        ],
    )
    def test_what_is_not_there(
        self, shared_daemon: Daemon, first: Any, method: str, path: str, status: int
    ) -> None:
        answer = shared_daemon.http.request(method, f"/v1/responses/{first.id}{path}")
        assert answer.status_code == status


class TestRefusals:
    @pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
    @pytest.mark.parametrize(
        ("change", "param"),
        [
            ({"input": []}, "input"),
            ({"background": True}, "background"),
            ({"conversation": "conv_1"}, "conversation"),
            ({"tools": [{"type": "file_search", "vector_store_ids": []}]}, "tools[0].type"),
            ({"previous_response_id": "resp_nobody"}, "previous_response_id"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_a_bad_request_names_its_parameter(
        self, client: Any, change: dict[str, Any], param: str, stream: bool
    ) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            ask(client, stream=stream, **change)
        assert caught.value.param == param
        assert caught.value.type == "invalid_request_error"

    @pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
    def test_an_unknown_model(self, client: Any, stream: bool) -> None:
        with pytest.raises(openai.NotFoundError) as caught:
            ask(client, model="nobody", stream=stream)
        assert caught.value.code == "model_not_found"

    def test_compaction(self, client: Any) -> None:
        with pytest.raises(openai.BadRequestError, match="compaction is not offered"):
            client.responses.compact(model=MODEL, input="x")
