"""The admin side."""

from __future__ import annotations

from collections.abc import Iterator

from mlxd.core import errors
from mlxd.dialects.shaping import TEXT, one_of, refer, text, whole
from mlxd.server.openapi import failures
from mlxd.server.openapi.ollama import PROGRESS
from mlxd.server.openapi.openai import RESUMING
from mlxd.server.openapi.operation import (
    EVENTS,
    JSON,
    NDJSON,
    STREAMS,
    Answer,
    Errors,
    Operation,
    Parameter,
    json_of,
    streamed,
)
from mlxd.server.openapi.own import FOLLOWING

_COUNT = Parameter("n", "query", whole(1, 10**9 - 1), "How many; 20 of them.")
_NAME = Parameter("name", "query", text(least=1))
_MODEL = Parameter("model", "query", TEXT, "Of one model; none: of each in memory.")
_IF_MATCH = Parameter("If-Match", "header", TEXT, "The ETag of the policies that were seen.")
_YES = one_of(("0", "1"))
_FORCE = Parameter("force", "query", _YES, "1: even if that loses an edit.")


def operations() -> Iterator[Operation]:
    yield from _policies()
    yield from _keeping()
    yield from _requests()
    yield from _models()
    yield from _changing()
    yield from _benching()
    yield from _cache()


def _get(path: str, words: str, name: str, *more: Parameter, raises: Errors = ()) -> Operation:
    told = {200: json_of(name)}
    return Operation("GET", path, words, "admin", told, (*failures.EDGE, *raises), parameters=more)


def _post(
    path: str, words: str, name: str, *more: Parameter, asks: str = "", raises: Errors = ()
) -> Operation:
    body = failures.BODY if asks else ()
    return Operation(
        "POST", path, words, "admin", {200: json_of(name)}, (*failures.EDGE, *body, *raises),
        asks={JSON: refer(asks)} if asks else {}, parameters=more,
    )  # fmt: skip


def _policies() -> Iterator[Operation]:
    key = Parameter("key", "query", TEXT, "A policy or a group; none: all.")
    number = Parameter("gen", "query", whole(0, 10**9 - 1), "The generation.")
    yield _get("/admin/policy", "What is in force, and how that came.", "AdminPolicy")
    yield _get("/admin/policy/effective", "Every value in force.", "AdminEffective")
    yield _get(
        "/admin/policy/explain", "Why a value is what it is.", "AdminExplained", key,
        raises=failures.QUERY,
    )  # fmt: skip
    yield _get("/admin/policy/history", "The generations that are kept.", "AdminHistory")
    yield _post("/admin/policy/check", "What a reload would do.", "AdminPlanned")
    yield Operation(
        "POST", "/admin/policy/plan", "What other files would do, or an earlier generation.",
        "admin", {200: json_of("AdminPlanned")},
        (*failures.EDGE, *failures.BODY, errors.PolicyConflict),
        asks={JSON: refer("AdminPlanRequest")}, parameters=(number, _FORCE), bare=True,
    )  # fmt: skip
    yield _post(
        "/admin/policy/reload", "Read the files now.", "Outcome", _IF_MATCH,
        raises=(errors.PolicyOutOfDate,),
    )  # fmt: skip
    yield _post(
        "/admin/policy/rollback", "Put an earlier generation in force.", "Outcome", number, _FORCE,
        _IF_MATCH, raises=(*failures.QUERY, errors.PolicyConflict, errors.PolicyOutOfDate),
    )  # fmt: skip


def _keeping() -> Iterator[Operation]:
    told = Answer(
        "What is kept; with `Accept: text/event-stream` as it happens.",
        {JSON: refer("AdminEvents"), EVENTS: STREAMS[EVENTS]},
        {EVENTS: refer("Event")},
    )
    yield Operation(
        "GET", "/admin/events", "What mlxd decides, all of it.", "admin", {200: told},
        (*failures.EDGE, *failures.QUERY), parameters=FOLLOWING,
    )  # fmt: skip
    yield _get("/admin/health", "All of /health, and the last events.", "AdminHealth")
    yield _get(
        "/admin/crashes", "The last ends that nobody asked for.", "AdminCrashes", _COUNT,
        raises=failures.QUERY,
    )  # fmt: skip
    yield _get("/admin/usage", "What tenants have used of their tokens.", "AdminUsage")
    yield _post(
        "/admin/keys/reload", "Read the API keys now.", "AdminKeys", raises=(errors.Overloaded,)
    )
    yield _post("/admin/service/reset", "Forget unclean starts.", "AdminReset")


def _requests() -> Iterator[Operation]:
    number = Parameter("n", "query", whole(0, 10**6 - 1), "How many; 20 of them.")
    one = Parameter("id", "path", text(least=1), "An X-Request-Id.")
    yield _get(
        "/admin/requests", "The last requests for models.", "AdminRequests", number,
        raises=failures.QUERY,
    )  # fmt: skip
    yield _get(
        "/admin/requests/{id}", "The stories of a request.", "AdminRequests", one,
        raises=(errors.RequestNotFound,),
    )  # fmt: skip


def _models() -> Iterator[Operation]:
    named = (*failures.QUERY, *failures.NAMED)
    yield _get("/admin/models", "Every model.", "AdminModels")
    yield _get("/admin/models/show", "One model.", "AdminModel", _NAME, raises=named)
    yield _get(
        "/admin/models/stderr", "The last that its worker said.", "AdminModelStderr", _NAME,
        raises=named,
    )  # fmt: skip
    yield _get("/admin/ps", "What is in memory, or on its way there.", "AdminProcesses")
    yield _post(
        "/admin/models/reset", "Forget the failures of a model.", "AdminModelReset", _NAME,
        raises=named,
    )  # fmt: skip
    yield _post(
        "/admin/plan", "Whether a model fits.", "AdminFit", asks="AdminFitRequest",
        raises=failures.NAMED,
    )  # fmt: skip


def _changing() -> Iterator[Operation]:
    leased, kept = failures.LEASED, (*failures.NAMED, *failures.KEPT)
    named = "AdminModelRequest"
    yield _post(
        "/admin/load", "Load a model.", "AdminNamed", asks="AdminLoadRequest", raises=leased
    )
    yield _post("/admin/unload", "Let a model go.", "AdminNamed", asks=named, raises=leased)
    yield _post(
        "/admin/copy", "Give a model one more name.", "AdminNamed", asks="OllamaCopyRequest",
        raises=kept,
    )  # fmt: skip
    yield _post(
        "/admin/delete", "Take a name or a pulled model away.", "AdminDeleted", asks=named,
        raises=kept,
    )  # fmt: skip
    progress = streamed(NDJSON, "OllamaProgress", PROGRESS, "How far it is.")
    pulls = (*failures.NAMED, errors.PullFailed, errors.InsufficientStorage)
    yield Operation(
        "POST", "/admin/pull", "Fetch a model from a hub.", "admin", {200: progress},
        (*failures.EDGE, *failures.BODY, *pulls), asks={JSON: refer("OllamaPullRequest")},
    )  # fmt: skip


def _benching() -> Iterator[Operation]:
    named = (*failures.QUERY, *failures.NAMED)
    yield _get("/admin/bench", "What was measured of a model.", "AdminBench", _NAME, raises=named)
    yield _post(
        "/admin/bench", "Keep what was measured.", "AdminBenched", asks="AdminBenchRequest",
        raises=failures.NAMED,
    )  # fmt: skip
    words = "As the path below /v1; it counts towards no rate of requests."
    told = streamed(
        EVENTS, "OpenAICompletion", ("OpenAICompletionChunk", "OpenAIError"), "The answer."
    )
    raises = (*failures.EDGE, *failures.BODY, *failures.RUN, *failures.RESUMED)
    yield Operation(
        "POST", "/admin/completions", words, "admin", {200: told}, raises,
        asks={JSON: refer("OpenAICompletionRequest")}, parameters=RESUMING, says=("OpenAI",),
        counted=True,
    )  # fmt: skip


def _cache() -> Iterator[Operation]:
    raises = (*failures.EDGE, *failures.NAMED)
    told = {200: json_of("AdminCache")}
    disk = Parameter("disk", "query", _YES, "1: what is on disk, too.")
    path = "/admin/cache"
    yield Operation(
        "GET", path, "What is kept of earlier prompts.", "admin", told, raises, parameters=(_MODEL,)
    )
    yield Operation("DELETE", path, "Forget it.", "admin", told, raises, parameters=(_MODEL, disk))
