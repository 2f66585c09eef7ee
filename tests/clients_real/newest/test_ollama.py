"""The `ollama` package, blocking and not: every method and every error it knows."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import httpx
import ollama
import pytest
from pydantic import BaseModel, Field

from tests.clients_real.asking import BOTH, Asker
from tests.clients_real.questions import (
    ENDLESS,
    FOXES,
    GUIDE,
    NOBODY,
    PIXEL,
    PORT,
    THINKER,
    TINY,
    TOOL,
    WEATHER,
)
from tests.clients_real.servers import Server

GREEDY = {"temperature": 0, "num_predict": 24}
LONG = {"temperature": 0, "num_predict": 8000}
QUESTIONS = {"q": {"type": "score", "instructions": "x", "criteria": ["low", "high"]}}
CLIENTS: dict[str, Any] = {"sync": ollama.Client, "async": ollama.AsyncClient}


class Fox(BaseModel):
    colour: Literal["red", "white"]
    tame: bool
    age: int = Field(ge=0, le=99)


def get_weather(city: str) -> str:
    """Get the current weather of a city

    Args:
      city: its name
    """
    return f"It rains in {city}."


def said(text: str, **more: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text, **more}]


@pytest.fixture(params=BOTH)
def kind(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def ask(kind: str, main: Server) -> Iterator[Asker]:
    with Asker(CLIENTS[kind](host=main.url)) as asker:
        yield asker


def at(server: Server | str, kind: str, **options: Any) -> Asker:
    url = server if isinstance(server, str) else server.url
    return Asker(CLIENTS[kind](host=url, **options))


def text_of(parts: list[Any]) -> str:
    return "".join(part.message.content or "" for part in parts)


class TestModels:
    def test_list_show_and_ps(self, ask: Asker) -> None:
        names = [model.model for model in ask("list").models]
        assert {"tiny-a:latest", "mlxd-guide:latest"} <= set(names)
        shown = ask("show", GUIDE)
        assert {"completion", "tools"} <= set(shown.capabilities)
        assert shown.modelinfo["general.architecture"]
        assert shown.template
        assert shown.modified_at
        ask("generate", TINY, keep_alive="10m")
        (entry,) = [model for model in ask("ps").models if model.model == "tiny-a:latest"]
        assert entry.size == entry.size_vram
        assert entry.expires_at
        assert entry.context_length == 4096

    def test_load_and_unload(self, ask: Asker) -> None:
        assert ask("generate", "tiny-b").done_reason == "load"
        assert ask("chat", "tiny-b", []).done_reason == "load"
        assert ask("generate", "tiny-b", keep_alive=0).done_reason == "unload"
        assert "tiny-b:latest" not in [model.model for model in ask("ps").models]

    def test_copy_and_delete(self, ask: Asker) -> None:
        assert ask("copy", TINY, "copied-by-ollama").status == "success"
        assert ask("chat", "copied-by-ollama", said(FOXES), options=GREEDY).eval_count == 24
        assert ask("delete", "copied-by-ollama").status == "success"
        with pytest.raises(ollama.ResponseError) as caught:
            ask("show", "copied-by-ollama")
        assert caught.value.status_code == 404

    def test_create_from_another(self, ask: Asker) -> None:
        made = ask(
            *("create", "created-by-ollama"),
            from_=TINY,
            system="You are a fox.",
            parameters={"temperature": 0, "num_predict": 5},
        )
        assert made.status == "success"
        shown = ask("show", "created-by-ollama")
        assert "num_predict" in (shown.parameters or "")
        assert ask("chat", "created-by-ollama", said(FOXES)).eval_count == 5
        ask("delete", "created-by-ollama")

    def test_create_streams(self, ask: Asker) -> None:
        records = ask("create", "streamed-by-ollama", from_=TINY, stream=True)
        assert records[-1].status == "success"
        ask("delete", "streamed-by-ollama")

    def test_a_model_made_of_files(self, ask: Asker, tmp_path: Path, main: Server) -> None:
        """Too small to be a model: the blob is taken, and the refusal is in words."""
        blob = tmp_path / "config.json"
        blob.write_text(json.dumps({"model_type": "llama"}))
        digest = ask("create_blob", blob)
        assert digest.startswith("sha256:")
        with pytest.raises(ollama.ResponseError) as caught:
            ask("create", "of-files", files={"config.json": digest})
        assert caught.value.status_code in (400, 200)

    def test_a_pull_of_what_is_not_there(self, ask: Asker) -> None:
        with pytest.raises(ollama.ResponseError):
            ask("pull", "nobody-at-all/nothing")
        with pytest.raises(ollama.ResponseError):
            ask("pull", "nobody-at-all/nothing", stream=True)

    def test_a_push_is_refused(self, ask: Asker) -> None:
        with pytest.raises(ollama.ResponseError):
            ask("push", TINY)
        with pytest.raises(ollama.ResponseError):
            ask("push", TINY, stream=True)


class TestChat:
    def test_streamed_equals_whole(self, ask: Asker) -> None:
        whole = ask("chat", GUIDE, said(PORT))
        parts = ask("chat", GUIDE, said(PORT), stream=True)
        assert "11435" in whole.message.content
        assert text_of(parts) == whole.message.content
        assert len(parts) > 2
        for last in (whole, parts[-1]):
            assert last.done_reason == "stop"
            assert min(last.total_duration, last.load_duration, last.prompt_eval_duration) > 0
            assert min(last.eval_duration, last.eval_count, last.prompt_eval_count) > 0

    def test_a_function_is_a_tool(self, ask: Asker) -> None:
        """The whole loop: the call, its result, the next answer."""
        messages = said(WEATHER)
        asked = ask("chat", GUIDE, messages, tools=[get_weather])
        (call,) = asked.message.tool_calls
        assert (call.function.name, call.function.arguments) == ("get_weather", {"city": "Paris"})
        result = {"role": "tool", "tool_name": "get_weather", "content": get_weather("Paris")}
        answer = ask("chat", GUIDE, [*messages, asked.message, result], tools=[get_weather])
        assert answer.done_reason == "stop"
        assert answer.message.content

    def test_a_streamed_tool_call(self, ask: Asker) -> None:
        parts = ask("chat", GUIDE, said(WEATHER), tools=[TOOL], stream=True)
        calls = [call for part in parts for call in part.message.tool_calls or ()]
        assert [call.function.name for call in calls] == ["get_weather"]
        assert "<tool_call>" not in text_of(parts)

    def test_a_schema_is_kept_to(self, ask: Asker) -> None:
        schema = Fox.model_json_schema()
        options = {"temperature": 0, "num_predict": 200}
        answer = ask("chat", TINY, said(FOXES), format=schema, options=options)
        Fox.model_validate_json(answer.message.content)
        parts = ask("chat", TINY, said(FOXES), format=schema, options=options, stream=True)
        Fox.model_validate_json(text_of(parts))

    def test_json_is_json(self, ask: Asker) -> None:
        answer = ask("chat", GUIDE, said(PORT), format="json", options={"num_predict": 200})
        assert isinstance(json.loads(answer.message.content), dict)

    def test_thinking(self, ask: Asker) -> None:
        answer = ask("chat", THINKER, said(FOXES), think=True, options=GREEDY)
        assert answer.message.thinking
        answer = ask("chat", THINKER, said(FOXES), think=False, options=GREEDY)
        assert answer.message.thinking is None

    def test_logprobs(self, ask: Asker) -> None:
        answer = ask("chat", TINY, said(FOXES), options=GREEDY, logprobs=True, top_logprobs=2)
        assert len(answer.logprobs) == 24
        assert all(len(entry.top_logprobs) == 2 for entry in answer.logprobs)

    def test_the_packages_own_options(self, ask: Asker) -> None:
        options = ollama.Options(temperature=0, num_predict=5, num_ctx=2048)
        assert ask("chat", TINY, said(FOXES), options=options).eval_count == 5

    def test_an_image_is_refused(self, ask: Asker) -> None:
        with pytest.raises(ollama.ResponseError) as caught:
            ask("chat", TINY, said(FOXES, images=[PIXEL]))
        assert caught.value.status_code == 400
        with pytest.raises(ollama.ResponseError) as caught:
            ask("generate", TINY, FOXES, images=[PIXEL], stream=True)
        assert caught.value.status_code == 400


class TestGenerate:
    def test_streamed_equals_whole(self, ask: Asker) -> None:
        whole = ask("generate", GUIDE, PORT)
        parts = ask("generate", GUIDE, PORT, stream=True)
        assert "11435" in whole.response
        assert "".join(part.response for part in parts) == whole.response

    def test_the_context_goes_on(self, ask: Asker) -> None:
        first = ask("generate", TINY, FOXES, options=GREEDY)
        assert first.context
        second = ask("generate", TINY, "And cats?", context=first.context, options=GREEDY)
        assert second.prompt_eval_count > first.prompt_eval_count + first.eval_count

    def test_a_template_of_the_clients_own(self, ask: Asker) -> None:
        template = "{{ messages[-1].content }}!"
        own = ask("generate", TINY, FOXES, template=template, options=GREEDY)
        usual = ask("generate", TINY, FOXES, options=GREEDY)
        assert own.prompt_eval_count < usual.prompt_eval_count

    def test_a_go_template_is_refused_in_words(self, ask: Asker) -> None:
        with pytest.raises(ollama.ResponseError) as caught:
            ask("generate", TINY, FOXES, template="{{ .System }} {{ .Prompt }}")
        assert caught.value.status_code == 400

    def test_a_suffix_needs_a_model_that_inserts(self, ask: Asker) -> None:
        with pytest.raises(ollama.ResponseError, match="does not support insert") as caught:
            ask("generate", TINY, "def f(", suffix="return 1")
        assert caught.value.status_code == 400

    def test_a_raw_prompt(self, ask: Asker) -> None:
        raw = ask("generate", TINY, FOXES, raw=True, options=GREEDY)
        usual = ask("generate", TINY, FOXES, options=GREEDY)
        assert raw.prompt_eval_count < usual.prompt_eval_count

    def test_a_system_text(self, ask: Asker) -> None:
        own = ask("generate", TINY, FOXES, system="Be short.", options=GREEDY)
        assert (
            own.prompt_eval_count > ask("generate", TINY, FOXES, options=GREEDY).prompt_eval_count
        )


class TestEmbeddings:
    def test_one_and_several(self, ask: Asker) -> None:
        one = ask("embed", TINY, "A fox")
        both = ask("embed", TINY, ["A fox", "A dog"])
        assert len(one.embeddings) == 1
        assert both.embeddings[0] == one.embeddings[0] != both.embeddings[1]
        assert math.isclose(math.hypot(*one.embeddings[0]), 1, rel_tol=1e-4)
        assert both.prompt_eval_count > one.prompt_eval_count

    def test_fewer_dimensions(self, ask: Asker) -> None:
        (vector,) = ask("embed", TINY, "A fox", dimensions=8).embeddings
        assert len(vector) == 8
        assert math.isclose(math.hypot(*vector), 1, rel_tol=1e-4)

    def test_the_older_method(self, ask: Asker) -> None:
        old = ask("embeddings", TINY, "A fox").embedding
        (new,) = ask("embed", TINY, "A fox").embeddings
        length = math.hypot(*old)
        assert [value / length for value in old] == pytest.approx(new, abs=1e-4)

    def test_too_long_is_cut_or_refused(self, ask: Asker) -> None:
        long = "fox " * 6000
        assert len(ask("embed", TINY, long).embeddings) == 1
        with pytest.raises(ollama.ResponseError, match="exceeds the context length") as caught:
            ask("embed", TINY, long, truncate=False)
        assert caught.value.status_code == 400


class TestRefusals:
    CASES: tuple[tuple[dict[str, Any], int, str], ...] = (
        ({"model": NOBODY}, 404, "model 'nobody' not found"),
        ({"options": {"temperature": "hot"}}, 400, "float32"),
        ({"options": {"stop": "x"}}, 400, "array of strings"),
        ({"think": True}, 400, "does not support thinking"),
        ({"tools": [TOOL]}, 400, "does not support tools"),
        ({"keep_alive": "5"}, 400, "missing unit"),
    )

    @pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
    @pytest.mark.parametrize(("change", "status", "words"), CASES, ids=[c[2] for c in CASES])
    def test_a_bad_request(
        self, ask: Asker, change: dict[str, Any], status: int, words: str, stream: bool
    ) -> None:
        request = {"model": TINY, "messages": said(FOXES), "stream": stream, **change}
        with pytest.raises(ollama.ResponseError, match=words) as caught:
            ask("chat", **request)
        assert caught.value.status_code == status

    def test_questions_for_a_system_one_model(self, ask: Asker) -> None:
        with pytest.raises(ollama.ResponseError) as caught:
            ask("systemone", TINY, "x", QUESTIONS)
        assert caught.value.status_code == 404

    @pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
    def test_too_often(self, spent: Server, kind: str, stream: bool) -> None:
        with at(spent, kind) as ask, pytest.raises(ollama.ResponseError) as caught:
            ask("chat", TINY, said(FOXES), options=GREEDY, stream=stream)
        assert caught.value.status_code == 429
        assert "Rate limit exceeded" in caught.value.error

    @pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
    def test_too_many(self, single: Server, kind: str, stream: bool) -> None:
        with at(single, kind) as ask, single.held():
            with pytest.raises(ollama.ResponseError, match="busy") as caught:
                ask("chat", TINY, said(FOXES), options=GREEDY, stream=stream)
            assert TINY in str(ask("list"))
        assert caught.value.status_code == 503

    def test_too_large(self, single: Server, kind: str) -> None:
        with at(single, kind) as ask, pytest.raises(ollama.ResponseError) as caught:
            ask("chat", TINY, said("x" * 100_000))
        assert caught.value.status_code == 413

    def test_too_late(self, hasty: Server, kind: str) -> None:
        hasty.post("/api/generate", {"model": ENDLESS})
        with at(hasty, kind) as ask, pytest.raises(ollama.ResponseError) as caught:
            ask("chat", ENDLESS, said(FOXES), options=LONG)
        assert caught.value.status_code == 504

    def test_too_late_in_the_middle(self, hasty: Server, kind: str) -> None:
        """The status line is out: the failure is the stream's last record."""
        hasty.post("/api/generate", {"model": ENDLESS})
        with at(hasty, kind) as ask, pytest.raises(ollama.ResponseError) as caught:
            ask("chat", ENDLESS, said(FOXES), options=LONG, stream=True)
        assert caught.value.error

    def test_a_foreign_host_header(self, main: Server, kind: str) -> None:
        with (
            at(main, kind, headers={"Host": "evil.example"}) as ask,
            pytest.raises(ollama.ResponseError) as caught,
        ):
            ask("list")
        assert caught.value.status_code == 403

    def test_any_key_will_do(self, main: Server, kind: str) -> None:
        with at(main, kind, headers={"Authorization": "Bearer anything"}) as ask:
            assert ask("list").models

    def test_nobody_listens(self, dead: str, kind: str) -> None:
        with at(dead, kind) as ask, pytest.raises((ConnectionError, httpx.ConnectError)):
            ask("list")

    def test_a_client_that_waits_no_longer(self, main: Server, kind: str) -> None:
        """It gives up by itself, and its slot is free."""
        with at(main, kind, timeout=0.3) as ask, pytest.raises(httpx.ReadTimeout):
            ask("chat", ENDLESS, said(FOXES), options=LONG)
        main.wait_until_idle()


def test_a_stream_that_is_left(main: Server) -> None:
    client = ollama.Client(host=main.url)
    stream = client.chat(ENDLESS, said(FOXES), options=LONG, stream=True)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    main.wait_until_idle()
    assert client.chat(TINY, said(FOXES), options=GREEDY).eval_count == 24


def test_a_worker_that_dies_in_the_middle(single: Server) -> None:
    client = ollama.Client(host=single.url)
    stream = client.chat(ENDLESS, said(FOXES), options=LONG, stream=True)
    next(stream)
    single.kill_worker(ENDLESS)
    with pytest.raises(ollama.ResponseError):
        list(stream)
    assert client.chat(TINY, said(FOXES), options=GREEDY).eval_count == 24
