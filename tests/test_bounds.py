"""Every table of the daemon whose keys clients choose has a bound.

The tables are found by walking the code: one that is not listed here fails the test, until somebody
says what bounds it. Those that clients fill are filled, with many more keys than anybody has.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from mlxd.control import grammars, prompts, suspects
from mlxd.control.archive import Archive, Kept
from mlxd.control.fair import _MOST_IDLE, FairQueue
from mlxd.control.holds import _MOST_MODELS, Holds
from mlxd.control.place import Place
from mlxd.control.quotas import MOST_ADDRESSES, Quotas
from mlxd.control.ratelimit import Quota, Tally
from mlxd.control.stories import Stories
from mlxd.core.caller import Caller
from mlxd.core.clock import ManualClock
from mlxd.core.errors import QueueFull
from mlxd.core.models import ModelCard
from mlxd.core.request import GenerationRequest, Sampling
from mlxd.core.story import MOST_NOTES, Story
from mlxd.policy.load import Override, load
from mlxd.policy.policy_set import PolicySet
from mlxd.policy.store import PolicyStore
from mlxd.server import forwarded, guesses, walls
from mlxd.server.addresses import Addresses
from mlxd.server.guesses import Guesses
from mlxd.telemetry.events import KEPT, Events
from mlxd.telemetry.rejections import Rejections
from tests.support.queue_model import of_tenant
from tests.support.sources import sources

FLOORS = ("server", "control", "telemetry", "daemon")
MANY = 100_000
TABLES = ("dict", "OrderedDict", "defaultdict", "Counter", "set", "deque", "WeakValueDictionary")

FILLED = {
    "server/guesses.py": {"_guessers", "_familiar", "times"},
    "server/addresses.py": {"_connections", "_requests"},
    "control/suspects.py": {"_all"},
    "control/quotas.py": {"_addresses_recent"},
    "control/ratelimit.py": {"_counts"},
    "control/fair.py": {"_clients", "_idle"},
    "control/archive.py": {"_kept", "_own", "_taken"},
    "control/stories.py": {"_served", "_refused"},
    "control/holds.py": {"_models", "_expected"},
    "control/prompts.py": {"_lines"},
    "control/grammars.py": {"_known"},
    "telemetry/rejections.py": {"_floods"},
    "telemetry/events.py": {"_recent"},
}
"""Tables whose keys clients choose, and that are filled here."""
ELSEWHERE = {
    "server/repeats.py": {"_known"},  # tests/server/test_repeats.py
    "server/resume.py": {
        "_live",
        "_cut",
        "_ended",
        "_twins",
        "_taken",
    },  # tests/server/test_resume.py
    "control/grammars.py": {"_questions"},  # tests/control/test_grammars.py
    "control/turns.py": {"_waiting"},  # tests/control/test_grammars.py
    "control/blobs.py": {"_parts"},  # tests/control/test_blobs.py
    "control/pull.py": {"_pulls", "_ending"},  # tests/control/test_pull.py
    "telemetry/crashes.py": {"_unwritten"},  # tests/telemetry/test_crashes.py
    "telemetry/lately.py": {"_answers"},  # tests/telemetry/test_lately.py
    "telemetry/served.py": {"_models"},  # tests/telemetry/test_served.py
    "telemetry/span_sink.py": {"_trees"},  # tests/telemetry/test_span_sink.py
}
"""Those whose own tests do."""
UNDER_WAY = {
    "control/admission.py": {"_tickets", "_waiters"},
    "control/slots.py": {"active", "by_model", "by_client", "by_class", "_loading"},
    "control/stories.py": {"_under_way"},
    "control/fair.py": {"waiting"},
    "control/queue_view.py": {"_told"},
    "control/gate.py": {"_inside"},
    "control/replay.py": {"_coming", "_tasks", "_waits"},
    "control/worker.py": {"_generations", "_fed", "_tasks"},
    "control/questions.py": {"_about_cache"},
    "control/changes.py": {"_waiters"},
    "telemetry/events.py": {"_followers"},
}
"""What requests and connections that are open hold, each of which has a bound in policy."""
OTHERS = {
    "server/resume.py": {"outcomes"},
    "server/webhook.py": {"_reads"},
    "server/accepting.py": {"_tasks"},
    "server/farewells.py": {"_made", "_told"},
    "server/listener.py": {"_tasks"},
    "control/adaptive.py": {"_samples", "_measured", "missed_total"},
    "control/breaker.py": {"_restarts"},
    "control/catalog.py": {"_scans", "_views"},
    "control/checksums.py": {"_right", "_running", "_wrong"},
    "control/forecast.py": {"_computed", "_measured"},
    "control/inventory.py": {"residents"},
    "control/lender.py": {"_deaf"},
    "control/loading.py": {"_failed"},
    "control/measures.py": {"_held"},
    "control/names.py": {"_lasts", "_shorts", "_families"},
    "control/predecessors.py": {"_refused", "_served"},
    "control/preload.py": {"_meant", "_done", "_skipped", "_tasks"},
    "control/prefixes.py": {"_tasks", "_unread"},
    "control/pressure.py": {"_since"},
    "control/progress.py": {"_lines"},
    "control/pull.py": {"short_names", "_parts"},
    "control/quotas.py": {"_recent"},
    "control/ratelimit.py": {"_keys", "_kept", "_heirs"},
    "control/recovery.py": {"_tasks", "_not_before"},
    "control/residency.py": {"_tasks"},
    "control/resident.py": {"needs"},
    "control/reuses.py": {"_counts"},
    "control/scan.py": {"_known"},
    "control/slots.py": {"_models", "_tenants"},
    "control/spares.py": {"_loads", "_ends"},
    "control/supervisor.py": {"_slots", "_held", "_unfinished", "_ending"},
    "control/totals.py": {"by_class", "refused", "would_deny", "_waits"},
    "control/vitals.py": {"_records"},
    "control/watermarks.py": {"_since", "_known"},
    "daemon/life.py": {"_tasks"},
    "daemon/stops.py": {"_echoes"},
    "daemon/traffic.py": {"_models"},
}
"""Whose keys are models, rules and tenants of the operator, processes, or words of our own."""


def tables() -> Iterator[tuple[str, str]]:
    """(file, attribute) of every table that an object holds."""
    for source in sources():
        if source.name.partition("/")[0] in FLOORS and source.says(*TABLES):
            for node in source.nodes(ast.AnnAssign):
                if _is_table(node):
                    yield source.name, _name(node.target)


def _is_table(node: ast.AnnAssign) -> bool:
    """One that begins empty: what is made whole from something else does not grow by itself."""
    kind = ast.unparse(node.annotation).partition("[")[0].rpartition(".")[2]
    own = isinstance(node.target, ast.Attribute) or "default_factory" in ast.unparse(node)
    return kind in TABLES and own and node.value is not None


def _name(target: ast.expr) -> str:
    return target.attr if isinstance(target, ast.Attribute) else ast.unparse(target)


def listed() -> dict[str, set[str]]:
    whole: dict[str, set[str]] = {}
    for some in (FILLED, ELSEWHERE, UNDER_WAY, OTHERS):
        for file, names in some.items():
            whole.setdefault(file, set()).update(names)
    return whole


def test_every_table_has_something_that_bounds_it() -> None:
    found: dict[str, set[str]] = {}
    for file, name in tables():
        found.setdefault(file, set()).add(name)
    assert found == listed()


@pytest.fixture
def policies() -> PolicySet:
    return load(None, [Override("limits.responses.max_count", "500", "a test", yaml=True)])


def address(number: int) -> str:
    return f"2001:db8:{number >> 16:x}:{number & 0xFFFF:x}::1"


def test_who_guesses_keys(policies: PolicySet) -> None:
    table = Guesses()
    for number in range(MANY):
        table.add(address(number), "key", policies.clients.auth.guesses, float(number) / MANY)
        table.succeed(address(number), f"key-{number}")
    assert len(table._guessers) == len(table._familiar) == guesses.MOST


def test_one_who_guesses_for_ever(policies: PolicySet) -> None:
    table = Guesses()
    for number in range(MANY):
        table.add("10.0.0.1", f"key-{number}", policies.clients.auth.guesses, float(number) / 100)
    assert len(table._guessers["10.0.0.1"].times) <= policies.clients.auth.guesses.max


def test_addresses_that_come_and_go(policies: PolicySet) -> None:
    table = Addresses(PolicyStore(policies), ManualClock())
    for number in range(MANY):
        peer = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
        assert table.has_room(peer)
        table.connect(peer)
        table.disconnect(peer)
    assert len(table) == 0


def test_what_is_remembered_of_addresses_and_hosts() -> None:
    for number in range(MANY // 10):
        forwarded.client_at(address(number))
        walls._host_allowed(f"host-{number}", ("localhost",))
    assert forwarded.client_at.cache_info().currsize <= 256
    assert walls._host_allowed.cache_info().currsize <= 256


def test_who_is_counted_by_a_rate() -> None:
    table, quota = Tally(), Quota(5, 3600.0, max_keys=1000)
    for number in range(MANY):
        assert table.take(f"user-{number}", quota, float(number) / MANY) is None
    assert len(table) == 1000


def test_addresses_with_a_quota_of_tokens() -> None:
    limited = "{anonymous: {tokens: 100, daily_tokens: 1000}}"
    found = load(None, [Override("clients.tenants", limited, "a test", yaml=True)])
    table = Quotas()
    for number in range(MANY):
        table.charge(Caller(address(number)), found, 5, float(number) / MANY, 0.0)
    assert len(table._addresses_recent) == MOST_ADDRESSES
    assert len(table._addresses_today) == MOST_ADDRESSES
    assert len(table._recent) == len(table._today) == 1


def test_requests_that_workers_died_of(policies: PolicySet) -> None:
    table, quarantine = suspects.Suspects(), policies.supervision.quarantine
    card = ModelCard("m", "/m", 1, "0" * 64, 0.0, "llama", 1, "f32", 512)
    for number in range(MANY // 10):
        request = GenerationRequest(model="m", text=f"prompt {number}")
        case = suspects.Case(f"client-{number}", card, request, Sampling())
        table.accuse(case, number, quarantine, 0.0, alone=bool(number % 2))
    assert len(table._all) == suspects.KEPT


def test_clients_that_ask_in_turn(policies: PolicySet) -> None:
    table = FairQueue()
    applicant = of_tenant("waits", policies, cost=1.0)
    table.add(Place(applicant, "medium", "waits", 1.0, 0.0, 30.0, 0), 1)
    for number in range(1, MANY):
        place = Place(applicant, "medium", f"client-{number}", 100.0, 0.0, 30.0, number)
        table.start(place, 1)
        table.end(place, None)
    assert len(table._idle) <= _MOST_IDLE
    assert len(table._clients) <= _MOST_IDLE + 1


def test_answers_that_are_kept(policies: PolicySet) -> None:
    table = Archive(ManualClock(), policies)
    for number in range(MANY):
        table.keep(Kept(f"id-{number}", f"owner-{number}", b"{}", b"[]"))
    assert len(table) == 500
    assert len(table._taken) == len(table._own) == 500


def test_stories(policies: PolicySet) -> None:
    table = Stories(policies)
    for number in range(MANY):
        story = Story(f"id-{number}", "/api/chat", Caller("c"), 1, 0.0, lambda: 0.0, 0.0)
        table.begin(story)
        table.end(story, 200 if number % 2 else 503, "" if number % 2 else "overloaded")
    assert len(table._served) + len(table._refused) == policies.server.stories
    assert not table._under_way


def test_what_one_story_tells() -> None:
    story = Story("id", "/api/chat", Caller("c"), 1, 0.0, lambda: 0.0, 0.0)
    for _ in range(1000):
        story.note("x")
    assert len(story.notes) == MOST_NOTES


def test_how_long_slots_are_held() -> None:
    table = Holds()
    for number in range(MANY):
        table.expect(f"a-{number}", 1.0)
        table.note(f"b-{number}", 1.0)
    assert len(table._models) <= _MOST_MODELS
    assert len(table._expected) <= _MOST_MODELS


async def test_clients_whose_prompts_are_told() -> None:
    table = prompts.Prompts()
    for number in range(MANY // 10):
        async with table.turn(f"client-{number}"):
            pass
    assert not table._lines


async def test_grammars(monkeypatch: pytest.MonkeyPatch) -> None:
    async def told(_asked: bytes) -> dict[str, str]:
        return {"words": ""}

    table = grammars.Grammars(ManualClock())
    monkeypatch.setattr(table, "_told", told)
    for number in range(MANY // 10):
        await table._ask(number.to_bytes(4), grammars._Question(b"", "format", f"c-{number}"))
    assert len(table._known) == grammars.KEPT


async def test_events_and_refusals() -> None:
    events = Events(ManualClock())
    rejections = Rejections(events)
    for number in range(MANY // 10):
        error = QueueFull(f"words {number}")
        rejections.add(error, 503, model=f"model-{number}", client=address(number))
        events.record("load", f"words {number}", {f"key-{number}": number})
    assert len(rejections._floods) == 1
    assert len(events._recent) == KEPT
    rejections.close()
