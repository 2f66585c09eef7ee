"""Requests of every kind whose answers are known, and clients that ask in every way."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import socket
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

Json = dict[str, Any]
Manner = Literal["plain", "leave", "slow", "pause", "resume", "retry"]
"""leave: hang up in the middle. slow: read a little at a time. pause: read nothing for a while.
resume: be cut, and come back with Last-Event-ID. retry: be cut, and send the same again.
"""
MANNERS: tuple[Manner, ...] = ("plain", "leave", "slow", "pause", "resume", "retry")
WITH_IDS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
_WORDS = ("server", "answers", "request", "stream", "token", "batch", "model", "prompt", "step")
_SILENT_SECONDS = 60.0
_PAUSE_SECONDS = 6.0
_SCHEMA = {
    "type": "object", "additionalProperties": False, "required": ["n", "ok"],
    "properties": {"n": {"enum": [1, 22, 333]}, "ok": {"type": "boolean"}},
}  # fmt: skip
_TOOL = {"name": "weather", "description": "of a place", "parameters": _SCHEMA}


@dataclass(frozen=True)
class Ask:
    """One request; the same number always asks the same."""

    number: int
    path: str
    model: str
    fields: str
    """JSON of the body, without model and stream."""

    @property
    def streams(self) -> bool:
        return not self.path.endswith(("embed", "embeddings", "tokens"))

    def body(self, *, stream: bool) -> str:
        body: Json = {"model": self.model, **json.loads(self.fields)}
        if self.streams:
            body["stream"] = stream
            if stream and self.path in WITH_IDS[:2]:
                body["stream_options"] = {"include_usage": True}
        return json.dumps(body)


@dataclass
class Call:
    """An ask, and what came of it. Times are monotonic."""

    ask: Ask
    manner: Manner
    stream: bool
    key: str
    began: float = field(default_factory=time.monotonic)
    ended: float = float("inf")
    id: str = ""
    """The X-Request-Id of its last exchange."""
    status: int = 0
    code: str = ""
    """mlxd's word for why it failed; or `cut`, `unreachable` or `silent`."""
    error: str = ""
    left: bool = False
    exchanges: int = 0
    answer: Json | None = None
    """As `Reading` has it, once it is whole."""
    partial: Json | None = None


def draw_asks(models: dict[str, bool], encoder: str, count: int, seed: int) -> list[Ask]:
    """Every endpoint in turn; greedy or seeded. The models with True are given tools, too."""
    chance = random.Random(seed)
    makers = list(_MAKERS.items())
    asks = []
    for number in range(count):
        path, maker = makers[number % len(makers)]
        model = encoder if "embed" in path else chance.choice(list(models))
        fields = maker(chance, models.get(model, False))
        asks.append(Ask(number, path, model, json.dumps(fields)))
    return asks


def _text(chance: random.Random) -> str:
    return " ".join(chance.choices(_WORDS, k=chance.choice((3, 8, 8, 20, 120))))


def _turns(chance: random.Random) -> list[Json]:
    return [{"role": "user", "content": _text(chance)}]


def _sampling(chance: random.Random, *, seeded: bool = True) -> Json:
    if seeded and chance.random() < 0.4:
        return {"temperature": 0.9, "top_p": 0.95, "seed": chance.randint(1, 1 << 30)}
    return {"temperature": 0}


def _tokens(chance: random.Random) -> int:
    return chance.choice((1, 4, 16, 16, 40, 40, 100))


def _ollama(chance: random.Random) -> Json:
    options = {"num_predict": _tokens(chance), **_sampling(chance)}
    if chance.random() < 0.2:
        options["stop"] = ["a", "to"]
    more: Json = {"options": options}
    match chance.randrange(6):
        case 0:
            more |= {"format": _SCHEMA}
        case 1:
            more |= {"logprobs": True, "top_logprobs": 2}
        case _:
            pass
    return more


def _ollama_generate(chance: random.Random, _tools: bool) -> Json:
    return {"prompt": _text(chance), **_ollama(chance)}


def _ollama_chat(chance: random.Random, tools: bool) -> Json:
    body = {"messages": _turns(chance), **_ollama(chance)}
    if tools and "format" not in body and chance.random() < 0.3:
        body["tools"] = [{"type": "function", "function": _TOOL}]
    return body


def _chat(chance: random.Random, tools: bool) -> Json:
    body: Json = {"messages": _turns(chance), "max_tokens": _tokens(chance), **_sampling(chance)}
    kind = chance.randrange(7)
    if kind == 0:
        body |= {"n": 2, "temperature": 0.8, "seed": chance.randint(1, 999)}
    elif kind == 1:
        body |= {"logprobs": True, "top_logprobs": 2}
    elif kind == 2:
        body |= {"stop": ["re", "q"]}
    elif kind == 3:
        schema = {"name": "s", "schema": _SCHEMA, "strict": True}
        body |= {"response_format": {"type": "json_schema", "json_schema": schema}}
        body["max_tokens"] = 100
    elif kind == 4 and tools:
        body |= {"tools": [{"type": "function", "function": _TOOL}], "max_tokens": 100}
        body["tool_choice"] = chance.choice(("required", "auto"))
    return body


def _completions(chance: random.Random, _tools: bool) -> Json:
    body: Json = {"prompt": _text(chance), "max_tokens": _tokens(chance), **_sampling(chance)}
    kind = chance.randrange(6)
    if kind == 0:
        body |= {"n": 2, "temperature": 0.8, "seed": chance.randint(1, 999)}
    elif kind == 1:
        body |= {"logprobs": 2}
    elif kind == 2:
        body |= {"prompt": [_text(chance), _text(chance)]}
    elif kind == 3:
        body |= {"guided_regex": "[a-c]{3,9}z"}
    return body


def _responses(chance: random.Random, tools: bool) -> Json:
    body: Json = {
        "input": _text(chance), "max_output_tokens": max(16, _tokens(chance)), "temperature": 0,
    }  # fmt: skip
    if tools and chance.random() < 0.3:
        body |= {"tools": [{"type": "function", **_TOOL}], "tool_choice": "required"}
        body["max_output_tokens"] = 100
    return body


def _messages(chance: random.Random, tools: bool) -> Json:
    body: Json = {
        "messages": _turns(chance), "max_tokens": _tokens(chance), "temperature": 0,
    }  # fmt: skip
    if chance.random() < 0.2:
        body["stop_sequences"] = ["re", "q"]
    if tools and chance.random() < 0.3:
        tool = {"name": "weather", "description": "of a place", "input_schema": _SCHEMA}
        body |= {"tools": [tool], "tool_choice": {"type": "any"}, "max_tokens": 100}
    return body


def _count(chance: random.Random, _tools: bool) -> Json:
    return {"messages": _turns(chance)}


def _input_tokens(chance: random.Random, _tools: bool) -> Json:
    return {"input": _text(chance)}


def _embed(chance: random.Random, _tools: bool) -> Json:
    return {"input": [chance.choice(("fox", "dog server", "token")) for _ in range(3)]}


_MAKERS = {
    "/api/generate": _ollama_generate,
    "/api/chat": _ollama_chat,
    "/v1/chat/completions": _chat,
    "/v1/completions": _completions,
    "/v1/responses": _responses,
    "/v1/messages": _messages,
    "/v1/messages/count_tokens": _count,
    "/v1/responses/input_tokens": _input_tokens,
    "/api/embed": _embed,
    "/v1/embeddings": _embed,
}


# -- asking


class Client:
    """Makes calls; each exchange has an id of its own that stories can be found by."""

    def __init__(self, port: int, name: str, chance: random.Random) -> None:
        self.port = port
        self._name = name
        self._chance = chance
        self._number = 0

    def make(self, call: Call) -> Call:
        try:
            self._make(call)
        except TimeoutError:
            call.code = "silent"
        except (OSError, http.client.HTTPException) as error:
            call.code = "cut" if call.status else "unreachable"
            call.error = repr(error)
        call.ended = time.monotonic()
        return call

    def _make(self, call: Call) -> None:
        events: list[tuple[str, str]] = []
        cuts = 0
        if call.manner in ("resume", "retry"):
            cuts = self._chance.choice((1, 1, 2))
        for turn in range(cuts + 1):
            most = self._chance.choice((1, 3, 10, 30)) if turn < cuts else None
            if call.manner == "leave":
                most = self._chance.choice((0, 1, 3, 10))
            last = events[-1][0] if events and call.manner == "resume" else ""
            if not last:  # a retry; or resuming is off, and events had no ids
                events = []
            if not self._exchange(call, events, most, last):
                return
            if _is_over(call, events):
                break
        if call.left and not _is_over(call, events):
            return
        call.left = False
        self._finish(call, events)

    def _finish(self, call: Call, events: list[tuple[str, str]]) -> None:
        if not call.stream:
            call.answer = whole(call.ask.path, json.loads(events[0][1]))
            return
        records = [json.loads(text) for _, text in events if text.startswith("{")]
        reading = streamed(call.ask.path, records)
        broken = next((record for record in records if _error_of(record)), None)
        if broken is not None:
            call.code = _error_of(broken)
            call.error = json.dumps(broken)
            call.partial = reading
        elif not _is_over(call, events):
            call.code, call.error = "cut", "the stream ended without its end"
            call.partial = reading
        else:
            call.answer = reading

    def _exchange(
        self, call: Call, events: list[tuple[str, str]], most: int | None, last: str
    ) -> bool:
        """Whether there is something to go on with; `most` events, and then the client is gone."""
        self._number += 1
        call.exchanges += 1
        call.id = f"walk-{self._name}-{self._number}"
        call.left = False
        call.status = 0
        headers = {"Content-Type": "application/json", "X-Request-Id": call.id}
        headers |= {"Authorization": f"Bearer {call.key}"} if call.key else {}
        headers |= {"Last-Event-ID": last} if last else {}
        headers |= {"X-Request-Priority": self._chance.choice(("low", "medium", "high"))}
        headers |= {"anthropic-version": "2023-06-01"} if "/messages" in call.ask.path else {}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_SILENT_SECONDS)
        try:
            body = call.ask.body(stream=call.stream)
            connection.request("POST", call.ask.path, body, headers)
            if most == 0 or (most is not None and not call.stream):
                time.sleep(self._chance.uniform(0.0, 0.3))
                call.left = True
                return call.manner in ("resume", "retry")
            answer = connection.getresponse()
            call.status = answer.status
            if answer.status != 200:
                call.code = answer.headers.get("X-Mlxd-Code", "none")
                call.error = answer.read().decode("utf-8", "replace")
                return False
            if not call.stream:
                events.append(("", answer.read().decode()))
                return True
            self._read(call, connection, answer, events, most)
        finally:
            connection.close()
        return True

    def _read(
        self,
        call: Call,
        connection: http.client.HTTPConnection,
        answer: http.client.HTTPResponse,
        events: list[tuple[str, str]],
        most: int | None,
    ) -> None:
        if call.manner in ("slow", "pause") and connection.sock is not None:
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        began = len(events)
        for event in _events(answer):
            events.append(event)
            if call.manner == "slow" and len(events) < 40:
                time.sleep(0.05)
            if call.manner == "pause" and len(events) == 3:
                time.sleep(_PAUSE_SECONDS)
            if most is not None and len(events) - began >= most:
                call.left = True
                return


def _events(answer: http.client.HTTPResponse) -> Iterator[tuple[str, str]]:
    """Ids and data of whole events; lines of NDJSON have no ids."""
    plain = "ndjson" in (answer.headers.get("Content-Type") or "")
    name = data = ""
    while line := answer.readline():
        text = line.decode().rstrip("\n")
        if plain:
            yield "", text
        elif text.startswith("id: "):
            name = text[4:]
        elif text.startswith("data: "):
            data = text[6:]
        elif not text and data:
            yield name, data
            data = ""


def _is_over(call: Call, events: list[tuple[str, str]]) -> bool:
    """Whether the last event ends an answer, in the way of its API."""
    if not events:
        return False
    if not call.stream:
        return True
    last = events[-1][1]
    if call.ask.path in WITH_IDS[:2]:
        return last == "[DONE]"
    record = json.loads(last)
    if call.ask.path.startswith("/api/"):
        return bool(record.get("done"))
    return record.get("type") in ("response.completed", "response.incomplete", "message_stop")


def _error_of(record: Json) -> str:
    if record.get("type") == "response.failed":
        return str(record["response"]["error"]["code"])
    error = record.get("error")
    if not error:
        return ""
    if isinstance(error, dict):
        return str(record.get("code") or error.get("code") or error.get("type"))
    return str(record.get("code") or "error")


# -- what an answer says, in one form for whole and streamed ones


def whole(path: str, body: Json) -> Json:
    if not path.endswith(("embed", "embeddings", "tokens")):
        return _WHOLE[path](body)
    kept = ("embeddings", "data", "input_tokens")
    return {name: body[name] for name in kept if name in body}


def streamed(path: str, records: list[Json]) -> Json:
    return _STREAMED[path](records)


def _form(choices: dict[int, Json], prompt: Any, completion: Any) -> Json:
    return {"choices": choices, "prompt": prompt, "completion": completion}


def _call(name: Any, arguments: Any) -> list[Any]:
    """Arguments are told as text or as an object."""
    if isinstance(arguments, str):
        with contextlib.suppress(ValueError):
            arguments = json.loads(arguments or "{}")
    return [name, arguments]


def _whole_ollama(body: Json) -> Json:
    return _streamed_ollama([body])


def _streamed_ollama(records: list[Json]) -> Json:
    text, calls, odds = "", [], []
    last: Json = {}
    for record in records:
        message = record.get("message") or {}
        text += record.get("response") or message.get("content") or ""
        calls += [
            _call(c["function"]["name"], c["function"]["arguments"])
            for c in message.get("tool_calls") or ()
        ]
        odds += [[o["token"], round(o["logprob"], 3)] for o in record.get("logprobs") or ()]
        last = record if record.get("done") else last
    choice = {"text": text, "calls": calls, "odds": odds, "finish": last.get("done_reason")}
    return _form({0: choice}, last.get("prompt_eval_count"), last.get("eval_count"))


def _odds(told: Json | None) -> list[Any]:
    if not told:
        return []
    if "tokens" in told:
        odds = told["token_logprobs"]
        return [[t, round(o, 3)] for t, o in zip(told["tokens"], odds, strict=True)]
    return [[one["token"], round(one["logprob"], 3)] for one in told.get("content") or ()]


def _whole_openai(body: Json) -> Json:
    choices = {}
    for choice in body["choices"]:
        message = choice.get("message") or {}
        calls = [c["function"] for c in message.get("tool_calls") or ()]
        choices[choice["index"]] = {
            "text": choice.get("text") or message.get("content") or "",
            "calls": [_call(c["name"], c["arguments"]) for c in calls],
            "odds": _odds(choice.get("logprobs")), "finish": choice["finish_reason"],
        }  # fmt: skip
    usage = body["usage"]
    return _form(choices, usage["prompt_tokens"], usage["completion_tokens"])


def _streamed_openai(records: list[Json]) -> Json:
    choices: dict[int, Json] = {}
    calls: dict[int, dict[int, list[str]]] = defaultdict(dict)
    usage: Json = {}
    for record in records:
        usage = record.get("usage") or usage
        for choice in record.get("choices") or ():
            delta = choice.get("delta") or {}
            one = choices.setdefault(
                choice["index"], {"text": "", "calls": [], "odds": [], "finish": None}
            )
            one["text"] += choice.get("text") or delta.get("content") or ""
            one["odds"] += _odds(choice.get("logprobs"))
            one["finish"] = choice.get("finish_reason") or one["finish"]
            for told in delta.get("tool_calls") or ():
                made = calls[choice["index"]].setdefault(told["index"], ["", ""])
                made[0] += told["function"].get("name") or ""
                made[1] += told["function"].get("arguments") or ""
    for index, parts in calls.items():
        choices[index]["calls"] = [_call(*parts[n]) for n in sorted(parts)]
    return _form(choices, usage.get("prompt_tokens"), usage.get("completion_tokens"))


def _whole_responses(body: Json) -> Json:
    text, calls = "", []
    for item in body["output"]:
        if item["type"] == "function_call":
            calls.append(_call(item["name"], item["arguments"]))
        for part in item.get("content") or ():
            text += part.get("text") or ""
    usage = body.get("usage") or {}
    choice = {"text": text, "calls": calls, "odds": [], "finish": body["status"]}
    return _form({0: choice}, usage.get("input_tokens"), usage.get("output_tokens"))


def _streamed_responses(records: list[Json]) -> Json:
    """By its deltas; what its last event repeats must say the same."""
    text = "".join(r["delta"] for r in records if r["type"] == "response.output_text.delta")
    last = records[-1].get("response") if records else None
    if records and records[-1]["type"] in ("response.completed", "response.incomplete"):
        found = _whole_responses(last or {})
        told = found["choices"][0]["text"]
        found["choices"][0]["text"] = text if told == text else f"{text!r} is not {told!r}"
        return found
    return _form({0: {"text": text, "calls": [], "odds": [], "finish": None}}, None, None)


def _whole_anthropic(body: Json) -> Json:
    text, calls = "", []
    for block in body["content"]:
        text += block.get("text") or ""
        if block["type"] == "tool_use":
            calls.append(_call(block["name"], block["input"]))
    choice = {"text": text, "calls": calls, "odds": [], "finish": body["stop_reason"]}
    usage = body["usage"]
    prompt = usage["input_tokens"] + (usage.get("cache_read_input_tokens") or 0)
    return _form({0: choice}, prompt, usage["output_tokens"])


def _streamed_anthropic(records: list[Json]) -> Json:
    text, finish = "", None
    calls: dict[int, list[str]] = {}
    usage: Json = {}
    for record in records:
        if record["type"] == "message_start":
            usage |= record["message"]["usage"]
        elif record["type"] == "content_block_start":
            if record["content_block"]["type"] == "tool_use":
                calls[record["index"]] = [record["content_block"]["name"], ""]
        elif record["type"] == "content_block_delta":
            text += record["delta"].get("text") or ""
            if "partial_json" in record["delta"]:
                calls[record["index"]][1] += record["delta"]["partial_json"]
        elif record["type"] == "message_delta":
            usage |= record["usage"]
            finish = record["delta"]["stop_reason"]
    made = [_call(*calls[n]) for n in sorted(calls)]
    choice = {"text": text, "calls": made, "odds": [], "finish": finish}
    prompt = usage.get("input_tokens", 0) + (usage.get("cache_read_input_tokens") or 0)
    return _form({0: choice}, prompt, usage.get("output_tokens"))


_WHOLE = {
    "/api/generate": _whole_ollama, "/api/chat": _whole_ollama,
    "/v1/chat/completions": _whole_openai, "/v1/completions": _whole_openai,
    "/v1/responses": _whole_responses, "/v1/messages": _whole_anthropic,
}  # fmt: skip
_STREAMED = {
    "/api/generate": _streamed_ollama, "/api/chat": _streamed_ollama,
    "/v1/chat/completions": _streamed_openai, "/v1/completions": _streamed_openai,
    "/v1/responses": _streamed_responses, "/v1/messages": _streamed_anthropic,
}  # fmt: skip


def begins(partial: Json, known: Json) -> bool:
    """Whether a text that was broken off is right so far."""
    return all(
        known["choices"][index]["text"].startswith(choice["text"])
        for index, choice in partial["choices"].items()
    )
