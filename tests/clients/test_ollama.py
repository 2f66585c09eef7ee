"""The `ollama` package, as it comes, against a running daemon."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from typing import Any

import ollama
import pytest
import pytest_asyncio

from tests.support.daemon import Daemon

MODEL = "tiny-a"
PROMPT = "Tell me something about foxes."
MESSAGES = [{"role": "user", "content": PROMPT}]
GREEDY = {"temperature": 0, "num_predict": 24}
SAMPLED = {"temperature": 1.0, "seed": 7, "num_predict": 24}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather of a city",
        "parameters": {
            "type": "object",
            "required": ["city"],
            "properties": {"city": {"type": "string", "description": "its name"}},
        },
    },
}


@pytest.fixture(scope="module")
def client(shared_daemon: Daemon) -> Iterator[ollama.Client]:
    with ollama.Client(host=shared_daemon.url) as client:
        yield client


@pytest_asyncio.fixture
async def async_client(shared_daemon: Daemon) -> AsyncIterator[ollama.AsyncClient]:
    async with ollama.AsyncClient(host=shared_daemon.url) as client:
        yield client


def collect(answer: Any) -> list[Any]:
    """Every record of an answer, streamed or not."""
    return list(answer) if isinstance(answer, Iterator) else [answer]


def chat_text(parts: list[ollama.ChatResponse]) -> str:
    return "".join(part.message.content or "" for part in parts)


def generate_text(parts: list[ollama.GenerateResponse]) -> str:
    return "".join(part.response or "" for part in parts)


def assert_measured(last: ollama.ChatResponse | ollama.GenerateResponse) -> None:
    """A last record has counts and durations, and none of them is 0."""
    assert last.done is True
    for value in (
        last.total_duration,
        last.load_duration,
        last.prompt_eval_count,
        last.prompt_eval_duration,
        last.eval_count,
        last.eval_duration,
    ):
        assert value is not None
        assert value > 0


class TestModels:
    def test_list_has_every_model_and_the_guide_last(self, client: ollama.Client) -> None:
        models = client.list().models
        names = [model.model for model in models]
        assert {"tiny-a:latest", "tiny-b:latest"} <= set(names)
        assert names[-1] == "mlxd-guide:latest"
        for model in models[:-1]:
            assert model.size is not None
            assert model.size > 0
            assert model.digest is not None
            assert len(model.digest) == 64
            assert model.modified_at is not None
            assert model.modified_at.tzinfo is not None
            assert model.details is not None
            assert model.details.format == "safetensors"
            assert model.details.family == "llama"
            assert model.details.parameter_size
            assert model.details.quantization_level

    def test_show(self, client: ollama.Client) -> None:
        shown = client.show(MODEL)
        assert shown.details is not None
        assert shown.details.family == "llama"
        assert shown.modelinfo is not None
        assert shown.modelinfo["general.architecture"] == "llama"
        assert shown.modelinfo["llama.context_length"] == 4096
        assert shown.capabilities == ["completion", "embedding"]
        assert shown.template is not None
        assert "<|im_start|>" in shown.template

    def test_show_of_an_unknown_model_is_404(self, client: ollama.Client) -> None:
        with pytest.raises(ollama.ResponseError, match="model 'nobody' not found") as caught:
            client.show("nobody")
        assert caught.value.status_code == 404

    def test_ps_shows_what_is_loaded_and_until_when(self, client: ollama.Client) -> None:
        client.generate(MODEL, keep_alive="10m")
        loaded = {model.model: model for model in client.ps().models}
        entry = loaded["tiny-a:latest"]
        assert entry.name == "tiny-a:latest"
        assert entry.size == entry.size_vram
        assert entry.context_length == 4096
        assert entry.expires_at is not None
        seconds = (entry.expires_at - datetime.now(UTC)).total_seconds()
        assert 500 < seconds <= 600

    def test_a_negative_keep_alive_is_for_ever(self, client: ollama.Client) -> None:
        client.generate(MODEL, keep_alive=-1)
        entry = next(m for m in client.ps().models if m.model == "tiny-a:latest")
        assert entry.expires_at is not None
        assert entry.expires_at.year > datetime.now(UTC).year + 50
        client.generate(MODEL, keep_alive="5m")

    async def test_the_same_asynchronously(self, async_client: ollama.AsyncClient) -> None:
        await async_client.generate(MODEL)
        names = [model.model for model in (await async_client.list()).models]
        assert "tiny-a:latest" in names
        assert "tiny-a:latest" in [model.model for model in (await async_client.ps()).models]
        assert (await async_client.show(MODEL)).capabilities == ["completion", "embedding"]
        with pytest.raises(ollama.ResponseError) as caught:
            await async_client.show("nobody")
        assert caught.value.status_code == 404


class TestLoading:
    def test_an_empty_prompt_loads(self, client: ollama.Client) -> None:
        answer = client.generate("tiny-b")
        assert (answer.done, answer.done_reason, answer.response) == (True, "load", "")
        assert "tiny-b:latest" in [model.model for model in client.ps().models]

    def test_no_messages_load(self, client: ollama.Client) -> None:
        answer = client.chat("tiny-b", [])
        assert (answer.done, answer.done_reason) == (True, "load")
        assert (answer.message.role, answer.message.content) == ("assistant", "")

    @pytest.mark.parametrize("endpoint", ["generate", "chat"])
    def test_keep_alive_zero_unloads(self, client: ollama.Client, endpoint: str) -> None:
        client.generate("tiny-b")
        answer: ollama.ChatResponse | ollama.GenerateResponse
        if endpoint == "generate":
            answer = client.generate("tiny-b", keep_alive=0)
        else:
            answer = client.chat("tiny-b", [], keep_alive=0)
        assert (answer.done, answer.done_reason) == (True, "unload")
        assert "tiny-b:latest" not in [model.model for model in client.ps().models]

    def test_loading_an_unknown_model_is_404(self, client: ollama.Client) -> None:
        with pytest.raises(ollama.ResponseError) as caught:
            client.generate("nobody")
        assert caught.value.status_code == 404

    def test_a_keep_alive_without_unit_is_400(self, client: ollama.Client) -> None:
        with pytest.raises(ollama.ResponseError, match="missing unit in duration") as caught:
            client.generate(MODEL, keep_alive="5")
        assert caught.value.status_code == 400


class TestChat:
    def test_streamed_equals_whole(self, client: ollama.Client) -> None:
        whole = client.chat(MODEL, MESSAGES, options=GREEDY)
        parts = list(client.chat(MODEL, MESSAGES, options=GREEDY, stream=True))
        assert whole.message.content
        assert chat_text(parts) == whole.message.content
        assert len(parts) > 8
        assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
        assert all(part.message.role == "assistant" for part in parts)
        assert all(part.model == MODEL for part in [whole, *parts])
        for last in (whole, parts[-1]):
            assert_measured(last)
            assert last.done_reason == "length"
            assert last.eval_count == 24
        assert whole.prompt_eval_count == parts[-1].prompt_eval_count

    def test_a_seed_reproduces(self, client: ollama.Client) -> None:
        first = client.chat(MODEL, MESSAGES, options=SAMPLED)
        again = client.chat(MODEL, MESSAGES, options=SAMPLED)
        streamed = list(client.chat(MODEL, MESSAGES, options=SAMPLED, stream=True))
        other = client.chat(MODEL, MESSAGES, options={**SAMPLED, "seed": 8})
        assert first.message.content == again.message.content == chat_text(streamed)
        assert other.message.content != first.message.content

    def test_options_as_the_packages_own_class(self, client: ollama.Client) -> None:
        """It sends every option there is, most of them null."""
        options = ollama.Options(temperature=0.0, num_predict=5, num_ctx=2048, mirostat=0)
        assert client.chat(MODEL, MESSAGES, options=options).eval_count == 5

    def test_a_stop_string_stops_and_is_not_shown(self, client: ollama.Client) -> None:
        text = client.chat(MODEL, MESSAGES, options=GREEDY).message.content or ""
        middle = text[len(text) // 2 : len(text) // 2 + 3]
        options = {**GREEDY, "stop": [middle]}
        whole = client.chat(MODEL, MESSAGES, options=options)
        parts = list(client.chat(MODEL, MESSAGES, options=options, stream=True))
        assert whole.message.content == chat_text(parts) == text[: text.index(middle)]
        assert whole.done_reason == parts[-1].done_reason == "stop"

    def test_a_conversation_with_a_system_text(self, client: ollama.Client) -> None:
        messages = [
            ollama.Message(role="system", content="Be short."),
            ollama.Message(role="user", content="Hello"),
            ollama.Message(role="assistant", content="Hi."),
            ollama.Message(role="user", content="Привет, 世界 😀"),
        ]
        answer = client.chat(MODEL, messages, options=GREEDY)
        alone = client.chat(MODEL, messages[-1:], options=GREEDY)
        assert (answer.prompt_eval_count or 0) > (alone.prompt_eval_count or 0)

    def test_logprobs(self, client: ollama.Client) -> None:
        options = {**GREEDY, "num_predict": 10}
        whole = client.chat(MODEL, MESSAGES, options=options, logprobs=True, top_logprobs=3)
        parts = client.chat(
            MODEL, MESSAGES, options=options, logprobs=True, top_logprobs=3, stream=True
        )
        streamed = [entry for part in parts for entry in part.logprobs or ()]
        assert whole.logprobs is not None
        assert len(whole.logprobs) == len(streamed) == 10
        for entry, same in zip(whole.logprobs, streamed, strict=True):
            assert entry.token == same.token
            assert entry.logprob <= 0
            assert entry.top_logprobs is not None
            values = [alternative.logprob for alternative in entry.top_logprobs]
            assert len(values) == 3
            assert values == sorted(values, reverse=True)
            assert entry.token == entry.top_logprobs[0].token

    def test_json_is_json(self, client: ollama.Client) -> None:
        """A random model held to a schema: it has no other way out."""
        schema = {
            "type": "object",
            "properties": {"fox": {"type": "boolean"}},
            "required": ["fox"],
            "additionalProperties": False,
        }
        answer = client.chat(
            MODEL, MESSAGES, format=schema, options={"temperature": 0, "num_predict": 200}
        )
        assert answer.message.content is not None
        assert '"fox"' in answer.message.content

    async def test_the_same_asynchronously(
        self, client: ollama.Client, async_client: ollama.AsyncClient
    ) -> None:
        expected = client.chat(MODEL, MESSAGES, options=GREEDY).message.content
        whole = await async_client.chat(MODEL, MESSAGES, options=GREEDY)
        parts = [
            part
            async for part in await async_client.chat(MODEL, MESSAGES, options=GREEDY, stream=True)
        ]
        assert whole.message.content == chat_text(parts) == expected
        assert_measured(parts[-1])

    async def test_a_stream_may_be_left(self, async_client: ollama.AsyncClient) -> None:
        """The slot is free again at once: the next request of the same client is answered."""
        stream: Any = await async_client.chat(
            MODEL, MESSAGES, options={"temperature": 0, "num_predict": 4000}, stream=True
        )
        assert not (await anext(stream)).done
        await stream.aclose()
        answer = await async_client.chat(MODEL, MESSAGES, options=GREEDY)
        assert answer.eval_count == 24


class TestGenerate:
    def test_streamed_equals_whole(self, client: ollama.Client) -> None:
        whole = client.generate(MODEL, PROMPT, options=GREEDY)
        parts = list(client.generate(MODEL, PROMPT, options=GREEDY, stream=True))
        assert whole.response
        assert generate_text(parts) == whole.response
        assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
        for last in (whole, parts[-1]):
            assert_measured(last)
            assert last.done_reason == "length"

    def test_it_is_rendered_as_a_chat_unless_raw(self, client: ollama.Client) -> None:
        rendered = client.generate(MODEL, "Foxes", options=GREEDY)
        raw = client.generate(MODEL, "Foxes", raw=True, options=GREEDY)
        asked = client.chat(MODEL, [{"role": "user", "content": "Foxes"}], options=GREEDY)
        assert rendered.response == asked.message.content
        assert rendered.response != raw.response
        assert (raw.prompt_eval_count or 0) < (rendered.prompt_eval_count or 0)
        assert raw.context is None

    def test_an_exchange_goes_on_from_its_context(self, client: ollama.Client) -> None:
        first = client.generate(MODEL, "Foxes", options=GREEDY)
        assert first.context is not None
        assert len(first.context) == (first.prompt_eval_count or 0) + (first.eval_count or 0)
        assert first.done_reason == "stop", "its end is the last token of it"
        second = client.generate(MODEL, "And dogs?", context=first.context, options=GREEDY)
        alone = client.generate(MODEL, "And dogs?", options=GREEDY)
        assert second.prompt_eval_count == len(first.context) + (alone.prompt_eval_count or 0)
        assert second.response != alone.response
        parts = list(client.generate(MODEL, "Foxes", options=GREEDY, stream=True))
        assert parts[-1].context == first.context

    def test_a_template_of_the_clients_own(self, client: ollama.Client) -> None:
        bare = client.generate(MODEL, "Foxes", template="{{ messages[0].content }}", options=GREEDY)
        raw = client.generate(MODEL, "Foxes", raw=True, options=GREEDY)
        assert bare.response == raw.response
        assert bare.prompt_eval_count == raw.prompt_eval_count

    def test_a_small_num_ctx_costs_nothing(self, client: ollama.Client) -> None:
        """Front ends send one of their own with every request."""
        usual = client.generate(MODEL, "Foxes " * 40, options=GREEDY)
        small = client.generate(MODEL, "Foxes " * 40, options={**GREEDY, "num_ctx": 32})
        assert (small.response, small.eval_count) == (usual.response, usual.eval_count)

    def test_a_system_text_is_part_of_the_prompt(self, client: ollama.Client) -> None:
        plain = client.generate(MODEL, "Foxes", options=GREEDY)
        with_system = client.generate(MODEL, "Foxes", system="Be short.", options=GREEDY)
        assert (with_system.prompt_eval_count or 0) > (plain.prompt_eval_count or 0)

    def test_a_raw_prompt_takes_no_system_text(self, client: ollama.Client) -> None:
        with pytest.raises(ollama.ResponseError, match="raw mode does not support") as caught:
            client.generate(MODEL, "Foxes", raw=True, system="Be short.")
        assert caught.value.status_code == 400

    def test_logprobs(self, client: ollama.Client) -> None:
        answer = client.generate(
            MODEL, "Foxes", options={**GREEDY, "num_predict": 10}, logprobs=True
        )
        assert answer.logprobs is not None
        assert len(answer.logprobs) == 10
        assert all(entry.top_logprobs is None for entry in answer.logprobs)

    async def test_the_same_asynchronously(
        self, client: ollama.Client, async_client: ollama.AsyncClient
    ) -> None:
        expected = client.generate(MODEL, "Foxes", options=SAMPLED).response
        whole = await async_client.generate(MODEL, "Foxes", options=SAMPLED)
        stream = await async_client.generate(MODEL, "Foxes", options=SAMPLED, stream=True)
        assert whole.response == generate_text([part async for part in stream]) == expected


class TestEmbeddings:
    TEXTS = ("Foxes run.", "模型在内存中", "A server answers requests. " * 40)

    def test_one_text(self, client: ollama.Client) -> None:
        answer = client.embed(MODEL, self.TEXTS[0])
        (vector,) = answer.embeddings
        assert len(vector) == 64
        assert sum(value**2 for value in vector) == pytest.approx(1.0, abs=1e-6)
        assert answer.model == MODEL
        assert answer.prompt_eval_count
        assert answer.total_duration
        assert answer.load_duration

    def test_many_texts_in_their_order(self, client: ollama.Client) -> None:
        alone = [client.embed(MODEL, text) for text in self.TEXTS]
        together = client.embed(MODEL, self.TEXTS * 2)
        vectors = [answer.embeddings[0] for answer in alone]
        assert list(together.embeddings) == vectors * 2
        counts = [answer.prompt_eval_count or 0 for answer in alone]
        assert together.prompt_eval_count == 2 * sum(counts)

    def test_fewer_dimensions(self, client: ollama.Client) -> None:
        (whole,) = client.embed(MODEL, self.TEXTS[0]).embeddings
        (cut,) = client.embed(MODEL, self.TEXTS[0], dimensions=8).embeddings
        length = sum(value**2 for value in whole[:8]) ** 0.5
        assert list(cut) == pytest.approx([value / length for value in whole[:8]], abs=1e-6)

    def test_the_old_call_gives_the_vector_as_it_is(self, client: ollama.Client) -> None:
        (unit,) = client.embed(MODEL, self.TEXTS[0]).embeddings
        raw = client.embeddings(MODEL, self.TEXTS[0]).embedding
        length = sum(value**2 for value in raw) ** 0.5
        assert length != pytest.approx(1.0, abs=1e-3)
        assert [value / length for value in raw] == pytest.approx(list(unit), abs=1e-6)
        assert list(client.embeddings(MODEL, "").embedding) == []

    def test_nothing_to_embed_loads(self, client: ollama.Client) -> None:
        assert list(client.embed(MODEL, []).embeddings) == []

    @pytest.mark.slow
    def test_what_is_too_long_is_cut_unless_that_is_refused(self, client: ollama.Client) -> None:
        long = "fox " * 5000
        assert client.embed(MODEL, long).prompt_eval_count == 4096
        with pytest.raises(ollama.ResponseError, match="the input length exceeds the context"):
            client.embed(MODEL, [self.TEXTS[0], long], truncate=False)

    async def test_the_same_asynchronously(self, async_client: ollama.AsyncClient) -> None:
        answer = await async_client.embed(MODEL, list(self.TEXTS))
        assert len(answer.embeddings) == 3


class TestRefusals:
    """Status and words as Ollama's own, streaming or not."""

    CASES: tuple[tuple[str, dict[str, Any], int, str], ...] = (
        ("unknown model", {"model": "nobody"}, 404, "model 'nobody' not found"),
        ("think", {"think": True}, 400, "does not support thinking"),
        ("think in words", {"think": "high"}, 400, "does not support thinking"),
        ("tools", {"tools": [TOOL]}, 400, "does not support tools"),
        ("option of a wrong type", {"options": {"temperature": "hot"}}, 400, "float32"),
        ("a bare stop string", {"options": {"stop": "x"}}, 400, "array of strings"),
        ("top_logprobs", {"logprobs": True, "top_logprobs": 21}, 400, "between 0 and 20"),
    )

    @pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
    @pytest.mark.parametrize(
        ("case", "change", "status", "words"), CASES, ids=[c[0] for c in CASES]
    )
    def test_a_chat(
        self,
        client: ollama.Client,
        case: str,
        change: dict[str, Any],
        status: int,
        words: str,
        stream: bool,
    ) -> None:
        request: Any = {"model": MODEL, "messages": MESSAGES, "options": GREEDY, "stream": stream}
        request |= change
        with pytest.raises(ollama.ResponseError, match=words) as caught:
            collect(client.chat(**request))
        assert caught.value.status_code == status

    def test_think_false_is_no_wish(self, client: ollama.Client) -> None:
        assert client.chat(MODEL, MESSAGES, think=False, options=GREEDY).message.thinking is None

    def test_images(self, client: ollama.Client) -> None:
        """1x1 pixels; in a chat and in a prompt."""
        image = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(40)).decode()
        message = {"role": "user", "content": "What is this?", "images": [image]}
        with pytest.raises(ollama.ResponseError) as caught:
            client.chat(MODEL, [message])
        assert caught.value.status_code == 400
        with pytest.raises(ollama.ResponseError) as caught:
            client.generate(MODEL, "What is this?", images=[image])
        assert caught.value.status_code == 400

    @pytest.mark.parametrize(
        ("name", "value", "words"),
        [
            ("suffix", "x", "tiny-a does not support insert"),
            ("template", "{{ .Prompt }}", "Go's template language"),
            ("template", "{% if %}", "Expected an expression"),
            ("context", [1, 9999], "token id 9999 is not in the model's vocabulary"),
        ],
    )
    def test_what_this_model_does_not_take(
        self, client: ollama.Client, name: str, value: Any, words: str
    ) -> None:
        with pytest.raises(ollama.ResponseError, match=words) as caught:
            client.generate(MODEL, "Foxes", **{name: value})
        assert caught.value.status_code == 400

    async def test_the_same_asynchronously(self, async_client: ollama.AsyncClient) -> None:
        with pytest.raises(ollama.ResponseError) as caught:
            await async_client.chat("nobody", MESSAGES)
        assert caught.value.status_code == 404
        with pytest.raises(ollama.ResponseError) as caught:
            async for _ in await async_client.chat("nobody", MESSAGES, stream=True):
                pass
        assert caught.value.status_code == 404


def test_nobody_listens() -> None:
    """What users see when the daemon is down is the package's own sentence."""
    with ollama.Client(host="http://127.0.0.1:1") as client, pytest.raises(ConnectionError):
        client.list()
