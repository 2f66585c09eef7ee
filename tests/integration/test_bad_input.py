"""Inputs that kill or corrupt an engine never reach it, while streams beside them stay exact."""

from __future__ import annotations

import gzip
import json
import socket
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.integration.talking import (
    ENDLESS,
    PATHS,
    Json,
    ask,
    body_for,
    generate,
    ndjson,
    one_answer,
    workers_of,
)
from tests.support.daemon import Daemon
from tests.support.long import in_turn

pytestmark = pytest.mark.mlx

REFUSED = {400, 404, 413, 415}
CHATS = ("/api/chat", "/v1/chat/completions")
OLLAMA, OPENAI = PATHS[:2], PATHS[2:]
BESIDE = 4
TESTS_PER_STREAM = 12
"""A stream outlasts some refusals; to have several all the while took most of the suite's time."""
MAX_BODY = 8 * 2**20


class Beside:
    """Streams that begin as the tests go on, each compared with what it says alone."""

    def __init__(self, daemon: Daemon) -> None:
        self.rounds = 0
        self.mistakes: list[str] = []
        self._daemon = daemon
        self._bodies = [
            generate(ENDLESS, f"beside {n}", tokens=60 + 5 * n, temperature=n % 2, seed=n + 1)
            for n in range(BESIDE)
        ]
        self._alone = [ask(daemon, body)["response"] for body in self._bodies]
        self._over = threading.Event()
        self._due = threading.Semaphore(BESIDE)
        self._tests = 0
        self._counting = threading.Lock()

    def run(self, index: int) -> None:
        while self._next():
            response = self._daemon.http.post("/api/generate", json=self._bodies[index])
            found = ndjson(response)
            text = "".join(record.get("response", "") for record in found)
            with self._counting:
                self.rounds += 1
                if text != self._alone[index] or not found[-1].get("done"):
                    self.mistakes.append(text)

    def test_begins(self) -> None:
        self._tests += 1
        if self._tests % TESTS_PER_STREAM == 0:
            self._due.release()

    def finish(self) -> None:
        self._over.set()
        self._due.release(BESIDE)

    def _next(self) -> bool:
        self._due.acquire()
        return not self._over.is_set()


@pytest.fixture(scope="module", autouse=True)
def beside(served: Daemon) -> Iterator[Beside]:
    """Streams that run while this file's tests do."""
    streams = Beside(served)
    with ThreadPoolExecutor(BESIDE) as pool:
        runs = [pool.submit(streams.run, index) for index in range(BESIDE)]
        try:
            yield streams
        finally:
            streams.finish()
        for run in runs:
            run.result()
    assert streams.rounds >= BESIDE
    assert streams.mistakes == []


@pytest.fixture(autouse=True)
def another(beside: Beside) -> None:
    beside.test_begins()


def _check_refusal(path: str, answer: httpx.Response) -> None:
    assert answer.status_code in REFUSED, answer.text
    assert answer.headers["content-type"].startswith("application/json")
    assert answer.headers["x-request-id"]
    error = answer.json()["error"]
    if path.startswith("/v1"):
        assert {"message", "type", "param", "code"} <= error.keys()
        assert error["type"] == "invalid_request_error"
        error = error["message"]
    else:
        assert answer.json().keys() == {"error"}
    assert isinstance(error, str)
    assert error
    for leak in ("Traceback", "/tmp/", "mlxd/", ".py"):
        assert leak not in error


def _base(path: str) -> Json:
    return body_for(path, ENDLESS, "hi", tokens=3)


def _with_sampling(path: str, **sampling: Any) -> Json:
    base = _base(path)
    if path in OLLAMA:
        return base | {"options": base["options"] | sampling}
    return base | sampling


ANYWHERE: dict[str, Json] = {
    "model is a number": {"model": 5},
    "model is a list": {"model": ["a"]},
    "model climbs": {"model": "../../etc/passwd"},
    "model is a path": {"model": "/etc"},
    "model climbs by dots": {"model": ".."},
    "model is encoded": {"model": "%2e%2e%2fetc"},
    "model has a nul": {"model": "tiny-a\0"},
    "model is a hub's": {"model": "mlx-community/Qwen3-4B-4bit"},
    "model is long": {"model": "x" * 5000},
    "stream is a word": {"stream": "yes"},
    "stream is a number": {"stream": 1},
}
SAMPLING: dict[str, Json] = {
    "temperature is a word": {"temperature": "hot"},
    "temperature is a list": {"temperature": [1]},
    "temperature is a truth": {"temperature": True},
    "top_p is a word": {"top_p": "x"},
    "top_k is a word": {"top_k": "x"},
    "min_p is an object": {"min_p": {}},
    "seed is a word": {"seed": "lucky"},
    "a stop is an integer": {"stop": [1]},
    "stop is an integer": {"stop": 5},
    "stop is an object": {"stop": {"a": 1}},
    "stops are too many": {"stop": [str(n) for n in range(1000)]},
    "presence_penalty is a word": {"presence_penalty": "x"},
    "frequency_penalty is a list": {"frequency_penalty": []},
}
OLLAMA_ONLY: dict[str, Json] = {
    "options are a list": {"options": []},
    "options are a word": {"options": "hot"},
    "num_predict is a word": {"options": {"num_predict": "many"}},
    "num_ctx is a word": {"options": {"num_ctx": "x"}},
    "stop is a string": {"options": {"stop": "x"}},
    "format is a word": {"format": "yaml"},
    "format is a number": {"format": 5},
    "think is a number": {"think": 5},
    "keep_alive is a list": {"keep_alive": []},
    "top_logprobs is too many": {"logprobs": True, "top_logprobs": 21},
    "logprobs is a word": {"logprobs": "x"},
}
OPENAI_ONLY: dict[str, Json] = {
    "max_tokens is zero": {"max_tokens": 0},
    "max_tokens is negative": {"max_tokens": -1},
    "max_tokens is a fraction": {"max_tokens": 1.5},
    "max_tokens is a word": {"max_tokens": "many"},
    "temperature is negative": {"temperature": -1},
    "temperature is too high": {"temperature": 2.5},
    "top_p is too high": {"top_p": 1.5},
    "top_p is negative": {"top_p": -0.1},
    "min_p is too high": {"min_p": 2},
    "presence_penalty is too high": {"presence_penalty": 3},
    "repetition_penalty is zero": {"repetition_penalty": 0},
    "a bias is out of the vocabulary": {"logit_bias": {"9999999": 5}},
    "a bias is just out of the vocabulary": {"logit_bias": {"512": 5}},
    "a bias is negative": {"logit_bias": {"-1": 5}},
    "a bias is past 32 bits": {"logit_bias": {"4294967296": 5}},
    "a bias is no number": {"logit_bias": {"a": 5}},
    "a bias is too large": {"logit_bias": {"5": 101}},
    "a bias is null": {"logit_bias": {"5": None}},
    "biases are a list": {"logit_bias": [5]},
    "n is zero": {"n": 0},
    "n is more than policy allows": {"n": 17},
    "n is past all bounds": {"n": 2**40},
    "stream_options is a word": {"stream_options": "x"},
    "five stops": {"stop": ["a", "b", "c", "d", "e"]},
}
CHAT_ONLY: dict[str, Json] = {
    "messages are a word": {"messages": "hi"},
    "a message is a word": {"messages": ["hi"]},
    "a message is null": {"messages": [None]},
    "a role is unknown": {"messages": [{"role": "god", "content": "x"}]},
    "a role is missing": {"messages": [{"content": "x"}]},
    "a content is a number": {"messages": [{"role": "user", "content": 5}]},
    "a content is an object": {"messages": [{"role": "user", "content": {"a": 1}}]},
    "tools are an object": {"tools": {"a": 1}},
    "a tool is a number": {"tools": [5]},
    "a tool has no function": {"tools": [{"type": "function"}]},
}
OPENAI_CHAT: dict[str, Json] = {
    "messages are empty": {"messages": []},
    "messages are null": {"messages": None},
    "top_logprobs is too many": {"logprobs": True, "top_logprobs": 21},
    "a format is unknown": {"response_format": {"type": "yaml"}},
    "an image is a url": {
        "messages": [
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/x"}}],
            }
        ]
    },
}
COMPLETION: dict[str, Json] = {
    "prompt is empty": {"prompt": ""},
    "prompt is missing": {"prompt": None},
    "prompt is an empty list": {"prompt": []},
    "prompt is a number": {"prompt": 5},
    "an id is out of the vocabulary": {"prompt": [1, 512]},
    "an id is far out": {"prompt": [2**31 - 1]},
    "an id is past 32 bits": {"prompt": [2**40]},
    "an id is negative": {"prompt": [-1]},
    "an id is a fraction": {"prompt": [1.5]},
    "an id is a truth": {"prompt": [True]},
    "ids and words": {"prompt": [1, "a"]},
    "a prompt of several is empty": {"prompt": ["a", ""]},
    "a prompt of several is out of the vocabulary": {"prompt": ["a", [5, 10**6]]},
    "nothing of an answer without an echo": {"max_tokens": 0},
    "logprobs is too many": {"logprobs": 6},
}
GENERATE: dict[str, Json] = {
    "prompt is a number": {"prompt": 5},
    "prompt is a list": {"prompt": ["a"]},
    "system is a number": {"system": 5},
    "raw with a system": {"raw": True, "system": "x"},
    "an image": {"images": ["AAAA"]},
    "an image is a number": {"images": [5]},
    "suffix": {"suffix": "x"},
    "max_tokens is a word": {"max_tokens": "x"},
    "temperature is a word": {"temperature": "x"},
    "temperature is negative": {"temperature": -1},
}


def _cases() -> Iterator[Any]:
    groups = (
        (OLLAMA, ANYWHERE),
        (OPENAI, ANYWHERE),
        (OLLAMA, OLLAMA_ONLY),
        (OPENAI, OPENAI_ONLY),
        (CHATS[:1], CHAT_ONLY),
        (CHATS[1:], CHAT_ONLY),
        (CHATS[1:], OPENAI_CHAT),
        (PATHS[2:3], COMPLETION),
        (PATHS[:1], GENERATE),
        (OLLAMA, SAMPLING),
        (OPENAI, SAMPLING),
    )
    for paths, cases in groups:
        for one in in_turn(cases, paths):
            what, path = one.values
            change = cases[what]
            whole = _with_sampling(path, **change) if cases is SAMPLING else _base(path) | change
            yield pytest.param(path, whole, id=f"{path} {what}", marks=one.marks)


@pytest.mark.parametrize(("path", "body"), list(_cases()))
def test_a_wrong_field_is_refused_in_the_apis_own_words(
    served: Daemon, path: str, body: Json
) -> None:
    _check_refusal(path, served.http.post(path, json=body))
    _check_refusal(path, served.http.post(path, json={"stream": True, **body}))


def _of_both(cases: Iterable[object]) -> list[Any]:
    """Each with a path of either API."""
    known = list(cases)
    return [*in_turn(known, OLLAMA), *in_turn(known, OPENAI)]


def _raw_bodies(path: str) -> dict[str, bytes]:
    good = json.dumps(_base(path))
    inside = good.removesuffix("}")
    return {
        "nothing": b"",
        "blanks": b" \n\t",
        "cut": good[:-5].encode(),
        "no json": b"hello",
        "a list": b"[]",
        "a number": b"5",
        "null": b"null",
        "trailing words": good.encode() + b" x",
        "two values": good.encode() * 2,
        "a trailing comma": (inside + ",}").encode(),
        "single quotes": b"{'model': 'x'}",
        "a nan": (inside + ', "x": NaN}').encode(),
        "infinity": (inside + ', "x": -Infinity}').encode(),
        "deep lists": (inside + ', "x": ' + "[" * 100_000 + "]" * 100_000 + "}").encode(),
        "deep objects": (inside + ', "x": ' + '{"a":' * 5000 + "1" + "}" * 5001).encode(),
        "open lists": b"[" * 1_000_000,
        "many values": (inside + ', "x": [' + "1," * 300_000 + "1]}").encode(),
        "a digit bomb": (inside + ', "x": ' + "9" * 500_000 + "}").encode(),
        "invalid utf-8": inside.encode() + b', "x": "\xff\xfe"}',
        "an overlong utf-8": inside.encode() + b', "x": "\xc0\xaf"}',
        "a surrogate in utf-8": inside.encode() + b', "x": "\xed\xa0\x80"}',
        "a lone high surrogate": (inside + ', "x": "\\ud800"}').encode(),
        "a lone low surrogate": (inside + ', "x": "\\udc00 x"}').encode(),
        "a raw control character": (inside + ', "x": "\n"}').encode(),
        "the same key twice": (inside + ', "model": "tiny-a"}').encode(),
        "the same inner key twice": (inside + ', "x": {"a": 1, "a": 2}}').encode(),
        "utf-16": good.encode("utf-16"),
        "binary": bytes(range(256)),
    }


@pytest.mark.parametrize(("what", "path"), in_turn(_raw_bodies(PATHS[0]), PATHS))
def test_a_body_that_is_no_json_is_refused(served: Daemon, path: str, what: str) -> None:
    answer = served.http.post(path, content=_raw_bodies(path)[what])
    assert answer.status_code == 400
    _check_refusal(path, answer)


@pytest.mark.parametrize("path", PATHS)
def test_a_body_over_the_limit_is_413(served: Daemon, path: str) -> None:
    body = json.dumps(_base(path) | {"x": "y" * MAX_BODY}).encode()
    answer = served.http.post(path, content=body)
    assert answer.status_code == 413
    _check_refusal(path, answer)
    assert "server.http.max_body" in answer.text


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_bomb_is_413_once_inflated(served: Daemon, encoding: str) -> None:
    import zlib

    plain = b'{"x": "' + b"y" * (4 * MAX_BODY) + b'"}'
    packed = gzip.compress(plain) if encoding == "gzip" else zlib.compress(plain)
    assert len(packed) < 100_000
    headers = {"content-encoding": encoding}
    answer = served.http.post("/api/chat", content=packed, headers=headers)
    assert answer.status_code == 413
    _check_refusal("/api/chat", answer)


def test_a_gzipped_body_is_read(served: Daemon) -> None:
    packed = gzip.compress(json.dumps(_base("/api/chat")).encode())
    headers = {"content-encoding": "gzip"}
    assert served.http.post("/api/chat", content=packed, headers=headers).status_code == 200


def test_a_body_that_is_not_encoded_as_it_says_is_400(served: Daemon) -> None:
    headers = {"content-encoding": "gzip"}
    with httpx.Client(base_url=served.url) as client:
        answer = client.post("/api/chat", content=b"{}", headers=headers)
    assert answer.status_code == 400
    _check_refusal("/api/chat", answer)


def test_a_connection_that_will_be_closed_is_said_to_be(served: Daemon) -> None:
    """Else a client sends its next request into a connection that is going away."""
    head = b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Encoding: gzip\r\n"
    with socket.create_connection(("127.0.0.1", served.port), timeout=5) as sock:
        sock.sendall(head + b"Content-Length: 2\r\n\r\n{}")
        answer = one_answer(sock)
        assert answer.startswith(b"HTTP/1.1 400")
        if b"connection: close" not in answer.lower():
            sock.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert one_answer(sock).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("encoding", "path"),
    in_turn(["br", "compress", "gzip, gzip", "zstd, gzip", "x-gzip", "rot13"], PATHS),
)
def test_an_encoding_that_is_not_read_is_415(served: Daemon, path: str, encoding: str) -> None:
    headers = {"content-encoding": encoding}
    answer = served.http.post(path, content=b"{}", headers=headers)
    assert answer.status_code == 415
    _check_refusal(path, answer)


def _nulls(path: str) -> Json:
    names = ["temperature", "top_p", "top_k", "min_p", "seed", "stop", "presence_penalty"]
    body = _with_sampling(path, **dict.fromkeys(names[1:]))
    if path in OLLAMA:
        names = ["format", "think", "keep_alive", "logprobs", "top_logprobs", "truncate", "tools"]
    else:
        names = ["n", "logit_bias", "user", "stream_options", "logprobs", "frequency_penalty"]
    return dict.fromkeys(names) | body


@pytest.mark.parametrize("path", PATHS)
def test_null_is_as_good_as_absent(served: Daemon, path: str) -> None:
    from tests.integration.talking import whole_text

    plain, null = (served.http.post(path, json=body) for body in (_base(path), _nulls(path)))
    assert null.status_code == 200, null.text
    assert whole_text(path, null.json()) == whole_text(path, plain.json())


@pytest.mark.parametrize(("top_k", "path"), _of_both([512, 513, 100_000, 2**31, 0]))
def test_a_top_k_over_the_vocabulary_is_off(served: Daemon, path: str, top_k: int) -> None:
    body = _with_sampling(path, top_k=top_k, temperature=1.0, seed=5)
    assert served.http.post(path, json=body).status_code == 200, body


HARMLESS: dict[str, Json] = {
    "a seed past 64 bits' sign": {"seed": 2**63 - 1},
    "a negative seed": {"seed": -7},
    "an xtc_threshold that raises": {"xtc_threshold": 0.9, "xtc_probability": 1.0},
    "a tiny temperature": {"temperature": 1e-30},
    "a top_p of nothing": {"top_p": 0, "temperature": 1.0},
    "a min_p of all": {"min_p": 1, "temperature": 1.0},
    "an unknown name": {"mirostat": 2, "nonsense": [1, {"a": None}]},
    "an empty stop": {"stop": [""]},
}


@pytest.mark.parametrize(("what", "path"), _of_both(HARMLESS))
def test_odd_values_that_mean_something_are_served(served: Daemon, path: str, what: str) -> None:
    answer = served.http.post(path, json=_with_sampling(path, **HARMLESS[what]))
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1},
        {"temperature": 1e300},
        {"top_p": 7},
        {"top_k": -5},
        {"min_p": -1},
        {"repeat_penalty": 0},
        {"repeat_penalty": 1e300},
        {"repeat_last_n": -1},
        {"num_predict": -2},
        {"num_ctx": 1},
        {"presence_penalty": 1e300, "frequency_penalty": -1e300},
    ],
    ids=str,
)
def test_ollamas_loose_numbers_are_brought_into_range(served: Daemon, options: Json) -> None:
    body = {"model": "tiny-short", "prompt": "hi", "stream": False, "options": options}
    answer = served.http.post("/api/generate", json=body)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(("tokens", "path"), _of_both([10**6, 2**62]))
def test_more_tokens_than_there_is_room_for_are_cut_to_it(
    served: Daemon, path: str, tokens: int
) -> None:
    answer = served.http.post(path, json=body_for(path, "tiny-short", "hi", tokens=tokens)).json()
    if path in OLLAMA:
        assert answer["done_reason"] == "length"
        assert answer["prompt_eval_count"] + answer["eval_count"] == 128
    else:
        assert answer["choices"][0]["finish_reason"] == "length"
        assert answer["usage"]["total_tokens"] == 128


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_prompt_over_the_context_is_refused_by_that_name(
    served: Daemon, path: str, stream: bool
) -> None:
    body = body_for(path, "tiny-short", "word " * 500, tokens=3) | {"stream": stream}
    answer = served.http.post(path, json=body)
    assert answer.status_code == 400
    _check_refusal(path, answer)
    assert "exceeds the model's maximum context length (128 tokens)" in answer.text
    assert answer.headers["x-mlxd-policy-key"] == "models.models.tiny-short.context"
    assert answer.headers["x-mlxd-policy-place"] == "policies/models.yaml:4"
    if path in OPENAI:
        assert answer.json()["error"]["code"] == "context_length_exceeded"


def test_so_is_one_over_a_context_that_policy_has_set_to_an_anthropic_client(
    served: Daemon,
) -> None:
    said = [{"role": "user", "content": "word " * 500}]
    body = {"model": "tiny-short", "max_tokens": 3, "messages": said}
    answer = served.http.post("/v1/messages", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["policy"]["key"] == "models.models.tiny-short.context"


def test_the_same_prompt_again_and_again_is_answered(served: Daemon) -> None:
    """The prefix that equals a cached sequence whole is one that kills other servers."""
    answers = {
        served.http.post("/v1/completions", json=_base("/v1/completions")).json()["choices"][0][
            "text"
        ]
        for _ in range(4)
    }
    assert len(answers) == 1


@pytest.mark.parametrize(
    "what", ["", "hi\0there", "\u202e right to left \u200f", "x" * 3000, "\u0301" * 200]
)
def test_odd_prompts_are_text_like_any_other(served: Daemon, what: str) -> None:
    body = body_for("/v1/chat/completions", ENDLESS, what, tokens=2)
    assert served.http.post("/v1/chat/completions", json=body).status_code == 200


@pytest.mark.parametrize(
    "name",
    ["..%2f..%2fetc%2fpasswd", "%2e%2e", "..", "tiny-a%2f..%2ftiny-b", "%00", "/etc/passwd"],
)
@pytest.mark.parametrize("under", ["/api/models/", "/v1/models/"])
def test_a_path_in_place_of_a_models_name_is_404(served: Daemon, under: str, name: str) -> None:
    from tests.integration.talking import raw

    request = f"GET {under}{name} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    answer = raw(served, request.encode())
    assert answer.startswith((b"HTTP/1.1 404", b"HTTP/1.1 400", b"HTTP/1.0 400")), answer
    assert b"root:" not in answer


def test_no_worker_died_of_any_of_it(served: Daemon, beside: Beside) -> None:
    assert beside.mistakes == []
    assert served.log_text().count(f"worker for {ENDLESS} started") == 1
    assert ENDLESS in workers_of(served)
    assert "a defect" not in served.log_text()
