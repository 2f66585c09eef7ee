"""The `openai` package, as it comes, against a running daemon."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any, ClassVar

import openai
import pytest
import pytest_asyncio
from openai.types import Completion
from openai.types.chat import ChatCompletionChunk

from tests.support.daemon import Daemon

MODEL = "tiny-a"
MESSAGES: Any = [{"role": "user", "content": "Tell me something about foxes."}]
GREEDY: Any = {"temperature": 0, "max_tokens": 24}
SAMPLED: Any = {"temperature": 1.0, "seed": 7, "max_tokens": 24}
KEY = "any"


@pytest.fixture(scope="module")
def client(shared_daemon: Daemon) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{shared_daemon.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


@pytest_asyncio.fixture
async def async_client(shared_daemon: Daemon) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{shared_daemon.url}/v1", api_key=KEY, max_retries=0
    ) as client:
        yield client


def chat_text(chunks: Iterable[ChatCompletionChunk]) -> str:
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


def completion_text(chunks: Iterable[Completion]) -> str:
    return "".join(choice.text for chunk in chunks for choice in chunk.choices)


def ask(client: openai.OpenAI, **options: Any) -> Any:
    """A chat of the test's own, whatever the types say."""
    return client.chat.completions.create(**{"model": MODEL, "messages": MESSAGES, **options})


def complete(client: openai.OpenAI, **options: Any) -> Any:
    return client.completions.create(**{"model": MODEL, "prompt": "Foxes", **options})


class TestModels:
    def test_list(self, client: openai.OpenAI) -> None:
        models = list(client.models.list())
        assert {"tiny-a", "tiny-b"} <= {model.id for model in models}
        for model in models:
            assert model.object == "model"
            assert model.created > 0
            assert model.owned_by

    def test_retrieve(self, client: openai.OpenAI) -> None:
        assert client.models.retrieve("tiny-a").id == "tiny-a"
        assert client.models.retrieve("TINY-A:latest").id == "tiny-a"

    def test_an_unknown_model_is_not_found(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.NotFoundError) as caught:
            client.models.retrieve("nobody/at-all:7b")
        assert caught.value.code == "model_not_found"

    async def test_the_same_asynchronously(self, async_client: openai.AsyncOpenAI) -> None:
        assert "tiny-b" in [model.id async for model in async_client.models.list()]
        assert (await async_client.models.retrieve("tiny-b")).id == "tiny-b"


class TestChat:
    def test_whole(self, client: openai.OpenAI) -> None:
        answer = ask(client, **GREEDY)
        assert answer.object == "chat.completion"
        assert answer.id.startswith("chatcmpl-")
        assert answer.model == MODEL
        (choice,) = answer.choices
        assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "length", None)
        assert choice.message.role == "assistant"
        assert choice.message.content
        assert choice.message.refusal is None
        assert choice.message.tool_calls is None
        assert answer.usage.completion_tokens == 24
        assert answer.usage.prompt_tokens > 0
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + 24

    def test_streamed_equals_whole(self, client: openai.OpenAI) -> None:
        whole = ask(client, **GREEDY)
        chunks = list(ask(client, **GREEDY, stream=True))
        assert chat_text(chunks) == whole.choices[0].message.content
        assert len({(chunk.id, chunk.created) for chunk in chunks}) == 1
        assert chunks[0].choices[0].delta.role == "assistant"
        reasons = [chunk.choices[0].finish_reason for chunk in chunks]
        assert reasons == [None] * (len(chunks) - 1) + ["length"]
        assert all(chunk.usage is None for chunk in chunks)
        assert len(chunks) > 8

    def test_usage_comes_last_where_it_is_asked_for(self, client: openai.OpenAI) -> None:
        whole = ask(client, **GREEDY)
        chunks = list(ask(client, **GREEDY, stream=True, stream_options={"include_usage": True}))
        assert chunks[-1].choices == []
        assert chunks[-1].usage == whole.usage
        assert all(chunk.usage is None for chunk in chunks[:-1])
        assert chat_text(chunks) == whole.choices[0].message.content

    def test_a_seed_reproduces(self, client: openai.OpenAI) -> None:
        first, again = ask(client, **SAMPLED), ask(client, **SAMPLED)
        other = ask(client, **{**SAMPLED, "seed": 8})
        text = first.choices[0].message.content
        assert again.choices[0].message.content == text
        assert chat_text(ask(client, **SAMPLED, stream=True)) == text
        assert other.choices[0].message.content != text

    @pytest.mark.parametrize("form", ["string", "list"])
    def test_a_stop_string_stops_and_is_not_shown(self, client: openai.OpenAI, form: str) -> None:
        text = ask(client, **GREEDY).choices[0].message.content
        middle = text[len(text) // 2 : len(text) // 2 + 3]
        stop = middle if form == "string" else ["never to be said", middle]
        whole = ask(client, **GREEDY, stop=stop)
        chunks = list(ask(client, **GREEDY, stop=stop, stream=True))
        assert whole.choices[0].message.content == chat_text(chunks) == text[: text.index(middle)]
        assert whole.choices[0].finish_reason == "stop"
        assert chunks[-1].choices[0].finish_reason == "stop"

    def test_max_completion_tokens_goes_before_max_tokens(self, client: openai.OpenAI) -> None:
        answer = ask(client, temperature=0, max_tokens=20, max_completion_tokens=5)
        assert answer.usage.completion_tokens == 5

    def test_a_biased_token_is_said_and_a_banned_one_is_not(self, client: openai.OpenAI) -> None:
        said = ask(client, temperature=0, max_tokens=4, logit_bias={"70": 100}, logprobs=True)
        tokens = [entry.token for entry in said.choices[0].logprobs.content]
        assert len(set(tokens)) == 1
        free = ask(client, temperature=0, max_tokens=1).choices[0].message.content
        assert free != said.choices[0].message.content[: len(free)]

    def test_logprobs(self, client: openai.OpenAI) -> None:
        options = {"temperature": 0, "max_tokens": 10, "logprobs": True, "top_logprobs": 2}
        whole = ask(client, **options)
        entries = whole.choices[0].logprobs.content
        assert len(entries) == 10
        assert whole.choices[0].logprobs.refusal is None
        for entry in entries:
            assert entry.logprob <= 0
            assert len(entry.top_logprobs) == 2
            assert entry.top_logprobs[0].bytes == entry.bytes
        raw = b"".join(bytes(entry.bytes) for entry in entries)
        assert raw.decode(errors="ignore") == whole.choices[0].message.content
        chunks = ask(client, **options, stream=True)
        streamed = [
            entry.token
            for chunk in chunks
            if chunk.choices[0].logprobs
            for entry in chunk.choices[0].logprobs.content
        ]
        assert streamed == [entry.token for entry in entries]

    def test_every_role_and_content_in_parts(self, client: openai.OpenAI) -> None:
        messages = [
            {"role": "developer", "content": "Be short."},
            {"role": "user", "content": [{"type": "text", "text": "Привет, 世界 😀"}]},
            {"role": "assistant", "content": "Hi."},
            {"role": "user", "content": "And now?"},
        ]
        answer = ask(client, messages=messages, **GREEDY)
        assert answer.usage.prompt_tokens > ask(client, **GREEDY).usage.prompt_tokens

    def test_extra_body(self, client: openai.OpenAI) -> None:
        """vLLM's additions: the likeliest token alone is left, whatever the temperature."""
        greedy = ask(client, **GREEDY).choices[0].message.content
        options = {"temperature": 2.0, "max_tokens": 24, "extra_body": {"top_k": 1}}
        assert ask(client, **options).choices[0].message.content == greedy

    def test_a_schema_is_kept_to(self, client: openai.OpenAI) -> None:
        schema = {
            "type": "object",
            "properties": {"fox": {"type": "boolean"}},
            "required": ["fox"],
            "additionalProperties": False,
        }
        wanted = {"type": "json_schema", "json_schema": {"name": "fox", "schema": schema}}
        answer = ask(client, temperature=0, max_tokens=200, response_format=wanted)
        assert '"fox"' in answer.choices[0].message.content

    def test_the_stream_helper(self, client: openai.OpenAI) -> None:
        """It raises at `length`, so the answer is made to end by itself."""
        text = ask(client, **GREEDY).choices[0].message.content
        middle = text[len(text) // 2 : len(text) // 2 + 3]
        with client.chat.completions.stream(
            model=MODEL, messages=MESSAGES, stop=middle, **GREEDY
        ) as stream:
            deltas = [event.delta for event in stream if event.type == "content.delta"]
            final = stream.get_final_completion()
        assert "".join(deltas) == text[: text.index(middle)]
        assert final.choices[0].message.content == "".join(deltas)
        assert final.choices[0].finish_reason == "stop"

    def test_the_stream_helper_tells_of_a_cut_answer(self, client: openai.OpenAI) -> None:
        with (
            pytest.raises(openai.LengthFinishReasonError),
            client.chat.completions.stream(model=MODEL, messages=MESSAGES, **GREEDY) as stream,
        ):
            stream.get_final_completion()

    async def test_the_same_asynchronously(
        self, client: openai.OpenAI, async_client: openai.AsyncOpenAI
    ) -> None:
        expected = ask(client, **SAMPLED).choices[0].message.content
        create = async_client.chat.completions.create
        whole = await create(model=MODEL, messages=MESSAGES, **SAMPLED)
        stream = await create(model=MODEL, messages=MESSAGES, stream=True, **SAMPLED)
        chunks = [chunk async for chunk in stream]
        assert whole.choices[0].message.content == chat_text(chunks) == expected

    async def test_many_at_once_do_not_mix(
        self, client: openai.OpenAI, async_client: openai.AsyncOpenAI
    ) -> None:
        options = [{**SAMPLED, "seed": seed} for seed in range(6)]
        alone = [ask(client, **one).choices[0].message.content for one in options]
        create = async_client.chat.completions.create
        together = await asyncio.gather(
            *(create(model=MODEL, messages=MESSAGES, **one) for one in options)
        )
        assert [answer.choices[0].message.content for answer in together] == alone
        assert len(set(alone)) == 6

    async def test_a_stream_may_be_left(self, async_client: openai.AsyncOpenAI) -> None:
        create = async_client.chat.completions.create
        stream: Any = await create(
            model=MODEL, messages=MESSAGES, temperature=0, max_tokens=20_000, stream=True
        )
        async with stream:
            assert (await anext(aiter(stream))).choices
        answer = await create(model=MODEL, messages=MESSAGES, **GREEDY)
        assert answer.choices[0].finish_reason == "length"


class TestCompletions:
    def test_whole(self, client: openai.OpenAI) -> None:
        answer = complete(client, temperature=0)
        assert answer.object == "text_completion"
        assert answer.id.startswith("cmpl-")
        (choice,) = answer.choices
        assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "length", None)
        assert answer.usage.completion_tokens == 16

    def test_streamed_equals_whole(self, client: openai.OpenAI) -> None:
        whole = complete(client, **GREEDY)
        chunks = list(complete(client, **GREEDY, stream=True))
        assert completion_text(chunks) == whole.choices[0].text
        assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason

    def test_token_ids_are_a_prompt(self, client: openai.OpenAI) -> None:
        first = complete(client, prompt=[70, 71, 72], **GREEDY)
        again = complete(client, prompt=[[70, 71, 72]], **GREEDY)
        other = complete(client, prompt=[72, 71, 70], **GREEDY)
        assert first.usage.prompt_tokens == other.usage.prompt_tokens == 3
        assert first.choices[0].text == again.choices[0].text != other.choices[0].text

    def test_logprobs_in_the_old_form(self, client: openai.OpenAI) -> None:
        answer = complete(client, temperature=0, max_tokens=6, logprobs=2)
        lists = answer.choices[0].logprobs
        assert len(lists.tokens) == len(lists.token_logprobs) == len(lists.text_offset) == 6
        assert lists.text_offset[0] == 0
        assert all(
            token in top for token, top in zip(lists.tokens, lists.top_logprobs, strict=True)
        )

    @pytest.mark.parametrize(
        ("change", "param"),
        [
            ({"prompt": ""}, "prompt"),
            ({"prompt": ["a", ""]}, "prompt[1]"),
            ({"prompt": [10**6]}, "prompt"),
            ({"prompt": ["one", [5, 10**6]]}, "prompt"),
            ({"prompt": ["one"] * 17}, "prompt"),
            ({"best_of": 2, "n": 3}, "best_of"),
            ({"logprobs": 6}, "logprobs"),
        ],
        ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
    )
    def test_what_is_refused(
        self, client: openai.OpenAI, change: dict[str, Any], param: str
    ) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            complete(client, **change)
        assert caught.value.param == param

    async def test_the_same_asynchronously(
        self, client: openai.OpenAI, async_client: openai.AsyncOpenAI
    ) -> None:
        create = async_client.completions.create
        whole = await create(model=MODEL, prompt="Foxes", **GREEDY)
        stream = await create(model=MODEL, prompt="Foxes", stream=True, **GREEDY)
        streamed = completion_text([chunk async for chunk in stream])
        assert whole.choices[0].text == streamed == complete(client, **GREEDY).choices[0].text

    @pytest.mark.parametrize("ends", [0, 100], ids=["it goes on", "it ends at once"])
    def test_an_evaluation_leaves_out_one_score_behind_the_prompt(
        self, client: openai.OpenAI, ends: int
    ) -> None:
        """As lm-eval does: `token_logprobs[:-1]` are those of the prompt."""
        answer = complete(
            client,
            prompt=[[9, 8, 7, 6], [5, 4, 3]],
            temperature=0,
            max_tokens=1,
            logprobs=1,
            seed=1234,
            echo=True,
            logit_bias={"0": ends},
        )
        scores = [choice.logprobs for choice in answer.choices]
        assert [len(one.token_logprobs) for one in scores] == [5, 4]
        assert [len(one.top_logprobs) for one in scores] == [5, 4]
        assert {choice.finish_reason for choice in answer.choices} == {"stop" if ends else "length"}


class TestEmbeddings:
    TEXTS = ("Foxes run.", "模型在内存中", "A server answers requests. " * 40)

    def test_one_text(self, client: openai.OpenAI) -> None:
        answer = client.embeddings.create(model=MODEL, input=self.TEXTS[0])
        (data,) = answer.data
        assert (data.index, data.object, answer.model) == (0, "embedding", MODEL)
        assert len(data.embedding) == 64
        assert sum(value**2 for value in data.embedding) == pytest.approx(1.0, abs=1e-6)
        assert answer.usage.prompt_tokens == answer.usage.total_tokens > 0

    def test_many_texts_in_their_order_and_in_both_encodings(self, client: openai.OpenAI) -> None:
        """As the package has it when nothing is said (base64), and as floats."""
        as_is = client.embeddings.create(model=MODEL, input=list(self.TEXTS))
        floats = client.embeddings.create(
            model=MODEL, input=list(self.TEXTS), encoding_format="float"
        )
        assert [data.index for data in as_is.data] == [0, 1, 2]
        for one, other in zip(as_is.data, floats.data, strict=True):
            assert one.embedding == other.embedding
        assert as_is.data[0].embedding != as_is.data[1].embedding

    def test_dimensions(self, client: openai.OpenAI) -> None:
        answer = client.embeddings.create(model=MODEL, input="fox", dimensions=8)
        assert len(answer.data[0].embedding) == 8
        with pytest.raises(openai.BadRequestError, match="at most 64") as refused:
            client.embeddings.create(model=MODEL, input="fox", dimensions=65)
        assert refused.value.param == "dimensions"

    def test_token_ids(self, client: openai.OpenAI) -> None:
        one = client.embeddings.create(model=MODEL, input=[300, 301])
        two = client.embeddings.create(model=MODEL, input=[[300, 301], [302]])
        assert one.data[0].embedding == two.data[0].embedding
        assert two.usage.prompt_tokens == 3
        with pytest.raises(openai.BadRequestError, match="token id 512 is not in") as refused:
            client.embeddings.create(model=MODEL, input=[[300], [512]])
        assert refused.value.param == "input"

    def test_what_is_too_long_is_refused(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.BadRequestError, match="exceeds the context length") as refused:
            client.embeddings.create(model=MODEL, input=["fox", "fox " * 5000])
        assert refused.value.code == "context_length_exceeded"

    async def test_the_same_asynchronously(self, async_client: openai.AsyncOpenAI) -> None:
        answer = await async_client.embeddings.create(model=MODEL, input=list(self.TEXTS))
        assert len(answer.data) == 3


@pytest.fixture(scope="module")
def alone(client: openai.OpenAI) -> list[str]:
    """What each of three seeds gives by itself."""
    return [
        ask(client, **{**SAMPLED, "seed": 7 + index}).choices[0].message.content
        for index in range(3)
    ]


class TestChoices:
    """Several answers to one request."""

    def test_whole(self, client: openai.OpenAI, alone: list[str]) -> None:
        answer = ask(client, **SAMPLED, n=3)
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        assert [choice.message.content for choice in answer.choices] == alone
        assert len(set(alone)) == 3
        one = ask(client, **SAMPLED).usage
        assert answer.usage.prompt_tokens == one.prompt_tokens
        assert answer.usage.completion_tokens == 3 * one.completion_tokens
        assert answer.system_fingerprint.startswith("fp_")

    def test_streamed(self, client: openai.OpenAI, alone: list[str]) -> None:
        *chunks, last = ask(
            client, **SAMPLED, n=3, stream=True, stream_options={"include_usage": True}
        )
        assert last.choices == []
        assert last.usage.completion_tokens == 3 * SAMPLED["max_tokens"]
        texts, ends = ["", "", ""], [0, 0, 0]
        for chunk in chunks:
            (choice,) = chunk.choices
            texts[choice.index] += choice.delta.content or ""
            ends[choice.index] += choice.finish_reason is not None
        assert (texts, ends) == (alone, [1, 1, 1])
        assert len({chunk.system_fingerprint for chunk in [*chunks, last]}) == 1

    def test_the_stream_helper(self, client: openai.OpenAI, alone: list[str]) -> None:
        """It takes the place in which a choice first appears for its index."""
        stops = [text[len(text) // 2 : len(text) // 2 + 4] for text in alone]
        with client.chat.completions.stream(
            model=MODEL, messages=MESSAGES, n=3, stop=stops, **SAMPLED
        ) as stream:
            final = stream.get_final_completion()
        for choice, text in zip(final.choices, alone, strict=True):
            assert choice.message.content
            assert text.startswith(choice.message.content)

    def test_without_a_seed_each_draws_its_own(self, client: openai.OpenAI) -> None:
        answer = ask(client, temperature=1.0, max_tokens=24, n=4)
        assert len({choice.message.content for choice in answer.choices}) == 4

    def test_several_prompts(self, client: openai.OpenAI) -> None:
        prompts = ["Foxes", "A much longer prompt about foxes and what they eat. " * 5, "x"]
        answers = [complete(client, prompt=prompt, **SAMPLED, n=2) for prompt in prompts]
        together = complete(client, prompt=prompts, **SAMPLED, n=2)
        texts = [choice.text for answer in answers for choice in answer.choices]
        assert [choice.text for choice in together.choices] == texts
        assert [choice.index for choice in together.choices] == list(range(6))
        assert together.usage.prompt_tokens == sum(one.usage.prompt_tokens for one in answers)
        streamed = [""] * 6
        for chunk in complete(client, prompt=prompts, **SAMPLED, n=2, stream=True):
            streamed[chunk.choices[0].index] += chunk.choices[0].text
        assert streamed == texts

    def test_the_best_of_some(self, client: openai.OpenAI) -> None:
        def likelihood(choice: Any) -> float:
            return float(sum(choice.logprobs.token_logprobs) / len(choice.logprobs.token_logprobs))

        every = complete(client, **SAMPLED, n=4, logprobs=0).choices
        best = complete(client, **SAMPLED, best_of=4)
        (choice,) = best.choices
        assert choice.text == max(every, key=likelihood).text
        assert choice.logprobs is None
        assert best.usage.completion_tokens == 4 * SAMPLED["max_tokens"]

    def test_more_than_policy_allows(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            ask(client, n=17)
        assert isinstance(caught.value.body, dict)
        assert caught.value.body["policy"]["key"] == "limits.choices"


class TestRefusals:
    """The package's own exceptions, streaming or not."""

    CASES: tuple[tuple[dict[str, Any], str], ...] = (
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": list("abcde")}, "stop"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"tool_choice": "required"}, "tool_choice"),
        (
            {"response_format": {"type": "json_object", "schema": {"type": "none at all"}}},
            "response_format",
        ),
    )

    @pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
    @pytest.mark.parametrize(("change", "param"), CASES, ids=[f"{case[0]}" for case in CASES])
    def test_a_bad_request_names_its_parameter(
        self, client: openai.OpenAI, change: dict[str, Any], param: str, stream: bool
    ) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            ask(client, **change, stream=stream)
        assert caught.value.param == param
        assert caught.value.type == "invalid_request_error"
        assert isinstance(caught.value.body, dict)
        assert {"message", "type", "param", "code"} <= caught.value.body.keys()

    @pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
    def test_an_unknown_model(self, client: openai.OpenAI, stream: bool) -> None:
        with pytest.raises(openai.NotFoundError) as caught:
            ask(client, model="nobody", stream=stream)
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
        assert caught.value.request_id

    def test_an_image(self, client: openai.OpenAI) -> None:
        part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGVsbG8="}}
        with pytest.raises(openai.BadRequestError):
            ask(client, messages=[{"role": "user", "content": [part]}])

    def test_an_unknown_path(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.NotFoundError) as caught:
            client.moderations.create(input="x")
        assert caught.value.code == "unknown_url"

    async def test_the_same_asynchronously(self, async_client: openai.AsyncOpenAI) -> None:
        create = async_client.chat.completions.create
        with pytest.raises(openai.BadRequestError) as caught:
            await create(model=MODEL, messages=MESSAGES, n=0)
        assert caught.value.param == "n"
        with pytest.raises(openai.NotFoundError):
            await create(model="nobody", messages=MESSAGES, stream=True)


class TestRequestId:
    def test_every_answer_has_one(self, client: openai.OpenAI) -> None:
        first, second = ask(client, **GREEDY), ask(client, **GREEDY)
        assert first._request_id
        assert first._request_id != second._request_id

    def test_the_callers_own_comes_back(self, client: openai.OpenAI) -> None:
        answer = ask(client, **GREEDY, extra_headers={"X-Request-Id": "mine-1"})
        assert answer._request_id == "mine-1"
        with pytest.raises(openai.BadRequestError) as caught:
            ask(client, n=0, extra_headers={"X-Request-Id": "mine-2"})
        assert caught.value.request_id == "mine-2"

    def test_a_stream_has_one_too(self, client: openai.OpenAI) -> None:
        raw = client.chat.completions.with_raw_response.create(
            model=MODEL, messages=MESSAGES, stream=True, **GREEDY
        )
        assert raw.headers["x-request-id"]
        assert chat_text(raw.parse())


class TestLimits:
    """A daemon with one slot and three requests a minute."""

    LIMITS = (
        "concurrency: {max_in_flight: 1}\n"
        "rate_limit:\n  - {name: tight, key: client_ip, requests: 3, window: 60s}\n"
    )
    ONE_SLOT = "concurrency: {max_in_flight: 1}\nrate_limit: []\n"
    ENDLESS: ClassVar[dict[str, Any]] = {
        "stream": True,
        "temperature": 0,
        "max_tokens": 4000,
        "extra_body": {"ignore_eos": True},
    }
    """It still runs when this process has had to wait for its turn."""

    @pytest.fixture
    def tight(self, start_daemon: Callable[..., Daemon]) -> Iterator[openai.OpenAI]:
        url = f"{start_daemon({'limits': self.LIMITS}).url}/v1"
        with openai.OpenAI(base_url=url, api_key=KEY, max_retries=0) as client:
            yield client

    def test_too_many_and_too_often(self, tight: openai.OpenAI) -> None:
        running = ask(tight, n=8, **self.ENDLESS)
        with running:
            next(iter(running))
            with pytest.raises(openai.InternalServerError) as busy:
                ask(tight, **GREEDY)
        assert busy.value.status_code == 503
        assert busy.value.type == "overloaded"
        self.assert_explained(busy.value, "limits.concurrency.max_in_flight")

        refused = self.until_refused(tight)
        assert refused.status_code == 429
        assert (refused.type, refused.code) == ("rate_limit_error", "rate_limit_exceeded")
        assert 1 <= int(refused.response.headers["retry-after"]) <= 60
        self.assert_explained(refused, "limits.rate_limit")

    def until_refused(self, client: openai.OpenAI) -> openai.RateLimitError:
        for _ in range(4):
            try:
                ask(client, temperature=0, max_tokens=1)
            except openai.RateLimitError as error:
                return error
            except openai.InternalServerError:
                continue  # the slot of the stream that was left is not free yet
        raise AssertionError("never refused")

    def assert_explained(self, error: openai.APIStatusError, key: str) -> None:
        """Which policy line to change, for a person and for a program."""
        assert "limits.yaml" in str(error)
        assert isinstance(error.body, dict)
        assert error.body["policy"]["key"].startswith(key)
        assert error.response.headers["x-mlxd-policy-key"].startswith(key)
        assert error.response.headers["retry-after"]

    @pytest.mark.slow
    def test_the_packages_own_retry_waits_for_the_slot(
        self, start_daemon: Callable[..., Daemon]
    ) -> None:
        """As users have it: two retries, after what Retry-After says."""
        url = f"{start_daemon({'limits': self.ONE_SLOT}).url}/v1"
        seen: list[str] = []

        def note(request: Any) -> None:
            seen.append(request.headers["x-stainless-retry-count"])

        def leave(response: Any) -> None:
            """The slot is free some time before the first retry."""
            running.close()

        hooks: dict[str, list[Callable[..., Any]]] = {"request": [note], "response": [leave]}
        with (
            openai.OpenAI(base_url=url, api_key=KEY, max_retries=0) as first,
            openai.DefaultHttpxClient(event_hooks=hooks) as http,
            openai.OpenAI(base_url=url, api_key=KEY, max_retries=2, http_client=http) as patient,
        ):
            while len(seen) < 2:  # or the first answer was over before the second was asked for
                seen.clear()
                running = ask(first, **self.ENDLESS)
                next(iter(running))
                assert ask(patient, **GREEDY).usage.completion_tokens == 24
        assert seen[:2] == ["0", "1"]
