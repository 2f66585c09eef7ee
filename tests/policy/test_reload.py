"""One attempt to put policies in force: all of it or nothing, and its own outcome."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from mlxd.core.clock import ManualClock
from mlxd.core.threads import NoThread, Threads
from mlxd.policy import reload as reload_module
from mlxd.policy import settle
from mlxd.policy.explain import explain, newly_hidden
from mlxd.policy.load import Override
from mlxd.policy.policy_set import PolicySet
from mlxd.policy.store import Live, Prepared
from mlxd.policy.strict_yaml import dotted
from tests.policy.conftest import Breaks, Ground, slots
from tests.support.few_threads import no_threads


@pytest.fixture(autouse=True)
def little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """With files that are gone: whether they come back is another file's test."""
    monkeypatch.setattr(settle, "VANISHED_SECONDS", 0.1)


def everything(policies: PolicySet) -> str:
    """Every effective value and where it is from, as bytes would show it."""
    return "\n".join(
        f"{path} {value!r} {policies.place(path)}" for path, value in policies.leaves()
    )


async def test_an_edit_is_in_force_with_its_changes_told(ground: Ground) -> None:
    reloader = ground.start()
    ground.write(limits=slots(9))
    outcome = await reloader.reload("admin", "uid 0")
    assert (outcome.result, outcome.generation, outcome.by) == ("applied", 2, "uid 0")
    assert [str(change) for change in outcome.changes] == [
        "limits.concurrency.max_in_flight: 5 -> 9 (live-drain, policies/limits.yaml:2)"
    ]
    assert ground.slots == 9
    assert ground.told == [outcome]


async def test_a_start_does_not_claim_that_no_value_has_changed(ground: Ground) -> None:
    await ground.start().begin()
    ground.write(limits=slots(9))
    await ground.start().begin()
    assert ground.current.generation == 2
    assert str(ground.told[-1]) == "policies generation 2 in force: as they are at the start"


async def test_what_an_edit_did_not_touch_is_kept_once(ground: Ground) -> None:
    reloader = ground.start()
    before = ground.current.policies
    ground.write(limits=slots(9))
    await reloader.reload("admin")
    assert ground.current.policies.timeouts is before.timeouts
    assert ground.current.policies.limits is not before.limits


async def test_a_refused_edit_changes_nothing_and_says_everything_at_once(ground: Ground) -> None:
    """R12, R2: all errors of all files, and byte for byte the same policies."""
    reloader = ground.start()
    before = everything(ground.current)
    ground.write(limits=slots("two"), timeouts="queu: 5s\n")
    outcome = await reloader.reload("admin")
    assert outcome.result == "refused"
    assert [str(error) for error in outcome.errors] == [
        'limits.yaml:2:15: limits.concurrency.max_in_flight: expected an integer >= 1, got "two"',
        "timeouts.yaml:2:1: timeouts.queu: unknown key; did you mean queue?",
    ]
    assert everything(ground.current) == before
    assert reloader.last is outcome


@pytest.mark.parametrize("where", ["prepare", "defect", "commit"])
@pytest.mark.parametrize("position", [0, 1, 2])
async def test_a_failure_in_any_applier_leaves_the_effective_set_byte_equal(
    ground: Ground, where: str, position: int
) -> None:
    """R2: those before it were prepared or even committed, those after it were not."""
    told: list[list[int]] = [[], []]

    def hears(heard: list[int]) -> Live:
        return Live(lambda new: heard.append(new.limits.concurrency.max_in_flight))

    appliers: list[Any] = [hears(told[0]), hears(told[1])]
    appliers.insert(position, Breaks(where))
    reloader = ground.start(*appliers)
    before = everything(ground.current)
    ground.write(limits=slots(9))
    outcome = await reloader.reload("admin")
    assert outcome.result == "refused"
    assert everything(ground.current) == before
    assert ground.current.generation == 1
    for heard in told:
        assert heard in ([], [9, 5])  # whoever heard of the new one heard of the old one again
    assert "taken" in str(outcome.errors[0]) or "defect" in str(outcome.errors[0])


async def test_a_taken_port_is_tried_again_until_it_is_free(ground: Ground) -> None:
    """The file is right and has not changed; what was in its way may be gone."""
    applier = Breaks("prepare")
    reloader = ground.start(applier)
    ground.write(server="listen: {port: 11500}\n")
    refused = await reloader.look()
    assert refused is not None
    assert str(refused.errors[0]).startswith("server.yaml:2:10: server.listen.port: ")
    told = len(ground.told)
    await reloader.look()
    assert len(ground.told) == told  # the same obstacle is no news
    applier._where = ""
    applied = await reloader.look()
    assert applied is not None
    assert applied.result == "applied"
    assert reloader.last.ok


async def test_a_comment_applies_nothing_and_moves_the_places(ground: Ground) -> None:
    """R7: the generation stays, and a refusal names the line where the value now stands."""
    ground.write(limits=slots(9))
    heard: list[PolicySet] = []
    reloader = ground.start(Live(heard.append))
    ground.write(limits=f"# why\n# so few\n{slots('0x9')}")
    outcome = await reloader.reload("admin")
    assert (outcome.result, outcome.generation, outcome.changes) == ("unchanged", 1, ())
    assert heard == []
    assert ground.current.line("limits.concurrency.max_in_flight").place == "policies/limits.yaml:4"


async def test_reverting_to_the_valid_file_clears_the_error_at_once(ground: Ground) -> None:
    """R6: though exactly these values are in force already."""
    ground.write(limits=slots(9))
    reloader = ground.start()
    ground.write(limits=slots("nine"))
    await reloader.look()
    assert [outcome.ok for outcome in ground.told] == [False]
    ground.write(limits=slots(9))
    await reloader.look()
    assert reloader.last.ok
    assert ground.current.generation == 1


async def test_nothing_is_attempted_while_no_file_changes(ground: Ground) -> None:
    reloader = ground.start()
    assert await reloader.look() is None
    ground.write(limits=slots(2))
    assert await reloader.look() is not None
    assert await reloader.look() is None
    assert len(ground.told) == 1


async def test_attempts_at_one_time_wait_for_each_other_and_get_their_own_outcome(
    ground: Ground,
) -> None:
    """R14."""
    reloader = ground.start()
    ground.write(limits=slots(2))
    first = asyncio.create_task(reloader.reload("admin", "first"))
    second = asyncio.create_task(reloader.reload("signal", "second"))
    outcomes = await asyncio.gather(first, second)
    assert [(o.by, o.result) for o in outcomes] == [("first", "applied"), ("second", "unchanged")]
    assert outcomes[0].id < outcomes[1].id


async def test_a_folder_that_is_made_later_is_found(ground: Ground) -> None:
    """A daemon on built-in defaults follows `mlxd policy init`."""
    ground.folder.rmdir()
    reloader = ground.start(folder=False)
    assert ground.current.origin == "defaults"
    assert await reloader.look() is None
    ground.write(limits=slots(3))
    await reloader.look()
    assert (ground.slots, ground.current.origin) == (3, "files")


async def test_a_folder_that_vanishes_leaves_the_policies_in_force(ground: Ground) -> None:
    ground.write(limits=slots(9))
    reloader = ground.start()
    (ground.folder / "limits.yaml").unlink()
    ground.folder.rmdir()
    outcome = await reloader.look()
    assert outcome is not None
    assert outcome.result == "refused"
    assert ground.slots == 9


async def test_restart_fields_are_pending_until_they_are_put_back(ground: Ground) -> None:
    """R10."""
    reloader = ground.start()
    ground.write(server="listen: {inherit: never}\n")
    await reloader.reload("admin")
    assert list(reloader.until_restart()) == ["server.listen.inherit"]
    ground.write(server="drain: {grace: 30s}\n")
    await reloader.reload("admin")
    assert list(reloader.until_restart()) == []


async def test_a_restart_field_that_is_only_written_otherwise_waits_for_nothing(
    ground: Ground,
) -> None:
    ground.write(supervision="daemon: {watchdog: 60s}\n")
    reloader = ground.start()
    ground.write(supervision="daemon: {watchdog: 1m}\n", limits=slots(9))
    outcome = await reloader.reload("admin")
    assert [change.key for change in outcome.changes] == ["limits.concurrency.max_in_flight"]
    assert list(reloader.until_restart()) == []
    ground.write(supervision="daemon: {watchdog: 2m}\n")
    await reloader.reload("admin")
    assert reloader.until_restart() == {"supervision.daemon.watchdog": "60s"}


async def test_who_asked_may_leave_and_the_attempt_is_carried_through(ground: Ground) -> None:
    """Or a generation would be in force that no log, metric or history knows of."""
    begun, go_on = asyncio.Event(), asyncio.Event()

    class Slow(Breaks):
        async def prepare(self, old: PolicySet, new: PolicySet) -> Prepared:
            begun.set()
            await go_on.wait()
            return self

    reloader = ground.start(Slow(""))
    ground.write(limits=slots(9))
    asking = asyncio.create_task(reloader.reload("admin", "uid 0"))
    await begun.wait()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    go_on.set()
    await reloader.close()
    assert ground.slots == 9
    assert [(outcome.result, outcome.by) for outcome in ground.told] == [("applied", "uid 0")]
    kept = ground.history.get(2)
    assert kept is not None
    assert kept.by == "uid 0"


async def test_a_disk_that_hangs_is_said_to_and_holds_up_nothing(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    real = settle.observe

    def hangs(folder: Path | None, names: Any) -> Any:
        release.wait()
        return real(folder, names)

    reloader = ground.start()
    monkeypatch.setattr(reload_module, "READ_SECONDS", 0.1)
    monkeypatch.setattr(reload_module, "observe", hangs)
    ground.write(limits=slots(9))
    await reloader.look()
    threads = threading.active_count()
    for _ in range(3):
        await reloader.look()
    assert not reloader.last.ok
    assert "no answer within" in str(reloader.last.errors[0])
    assert threading.active_count() == threads  # one hangs, however often it is looked
    monkeypatch.setattr(reload_module, "READ_SECONDS", 10.0)
    release.set()
    await reloader.look()
    assert (ground.slots, reloader.last.ok) == (9, True)


async def test_a_disk_has_as_long_as_the_daemon_has_lived(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its clock stands still while it is stopped; the event loop's runs on."""
    release = threading.Event()
    real = settle.observe

    def slow(folder: Path | None, names: Any) -> Any:
        release.wait()
        return real(folder, names)

    reloader = ground.start()
    monkeypatch.setattr(reload_module, "READ_SECONDS", 0.01)
    monkeypatch.setattr(reload_module, "observe", slow)
    monkeypatch.setattr(reloader, "_clock", ManualClock())
    ground.write(limits=slots(9))
    asyncio.get_running_loop().call_later(0.1, release.set)
    outcome = await reloader.reload("admin")
    assert (ground.slots, outcome.ok) == (9, True)


async def test_an_edit_that_no_thread_can_be_had_for_is_tried_again(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for the reading of it, nor for what comes of it."""
    reloader = ground.start()
    ground.write(limits=slots(9))
    with monkeypatch.context() as patched:
        patched.setattr(reloader, "_threads", Threads("none"))
        with no_threads():
            await reloader.look()
    assert "the system has no thread for it" in str(reloader.last.errors[0])
    with monkeypatch.context() as patched:
        patched.setattr(reloader, "_judged", lambda *_: _no_thread())
        await reloader.look()
    assert "are tried again: the system has no thread for it" in str(reloader.last.errors[0])
    await reloader.look()
    assert (ground.slots, reloader.last.ok) == (9, True)


def _no_thread() -> None:
    raise NoThread


async def test_a_defect_in_reading_is_shown_and_the_next_edit_is_not_missed(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(folder: Path | None, names: Any) -> Any:
        raise ZeroDivisionError

    reloader = ground.start()
    with monkeypatch.context() as patched:
        patched.setattr(reload_module, "observe", broken)
        await reloader.look()
    assert "defect" in str(reloader.last.errors[0])
    ground.write(limits=slots(9))
    await reloader.look()
    assert ground.slots == 9


async def test_files_that_are_all_gone_at_once_were_lost_not_edited(ground: Ground) -> None:
    """An unmounted folder, a failed checkout: the old ones stay until somebody says otherwise."""
    ground.write(limits=slots(9), timeouts="queue: 5s\n")
    reloader = ground.start()
    for file in list(ground.folder.iterdir()):
        file.unlink()
    outcome = await reloader.look()
    assert outcome is not None
    assert "all policy files are gone" in str(outcome.errors[0])
    assert ground.slots == 9
    assert (await reloader.reload("admin")).result == "applied"
    assert ground.slots == 5


async def test_a_single_file_that_is_deleted_is_an_edit(ground: Ground) -> None:
    ground.write(limits=slots(9), timeouts="queue: 5s\n")
    reloader = ground.start()
    (ground.folder / "limits.yaml").unlink()
    await reloader.look()
    assert ground.slots == 5


async def test_an_attempt_that_somebody_asked_for_is_always_told(ground: Ground) -> None:
    """R14: though the obstacle is the same as before."""
    reloader = ground.start(Breaks("prepare"))
    ground.write(server="listen: {port: 11500}\n")
    await reloader.look()
    await reloader.reload("signal")
    await reloader.reload("admin")
    assert [outcome.trigger for outcome in ground.told] == ["watch", "signal", "admin"]


async def test_a_reload_beside_the_beginning_keeps_each_generations_own_files(
    ground: Ground,
) -> None:
    ground.write(limits=slots(1))
    reloader = ground.start()
    ground.write(limits=slots(2))
    await asyncio.gather(reloader.begin(), reloader.reload("admin"))
    for number in (1, 2):
        kept = ground.history.get(number)
        assert kept is not None
        assert slots(number).encode() in kept.contents["limits.yaml"]


@pytest.mark.parametrize("name", ['a"].b', "a.b[0]", 'q"', "\\", "ö{:}", "qwen2.5:7b", "[1]"])
async def test_a_model_of_any_name_can_be_declared_and_explained(ground: Ground, name: str) -> None:
    reloader = ground.start()
    written = name.replace("'", "''")
    ground.write(models=f"models:\n  '{written}': {{ttl: 1m, draft: other}}\n")
    outcome = await reloader.reload("admin")
    assert outcome.result == "applied", outcome
    key = dotted(("models", "models", name, "ttl"))
    assert ground.current.value(key) == 60.0
    assert [value["value"] for value in explain(ground.current, key)] == ["1m"]


class TestOverrides:
    PORT = Override("server.listen.port", "12000", "environment MLX_API_PORT")
    FLAG = Override("server.listen.port", "13000", "--port")

    async def test_an_edit_behind_an_override_is_shadowed(self, ground: Ground) -> None:
        """R11: command line over environment over file over default."""
        reloader = ground.start(overrides=[self.PORT, self.FLAG])
        ground.write(server="listen:\n  port: 11999\n")
        outcome = await reloader.reload("admin")
        assert outcome.result == "unchanged"
        path = ("server", "listen", "port")
        assert ground.current.server.listen.port == 13000
        assert ground.current.place(path) == "--port"
        assert [(one.value, str(one.source)) for one in ground.current.shadowed[path]] == [
            ("12000", "environment MLX_API_PORT"),
            ("11999", "server.yaml:3"),
        ]

    async def test_a_plan_stands_behind_an_override_as_the_edit_would(self, ground: Ground) -> None:
        reloader = ground.start(overrides=[self.FLAG])
        one = Override("server.listen.port", "12345", "--set", yaml=True)
        plan = await reloader.plan({}, [one])
        assert plan.policies is not None
        assert plan.changes == ()
        assert newly_hidden(plan.old, plan.policies) == [
            "server.listen.port: 12345 (--set) is shadowed by --port"
        ]


class TestCheckAndPlan:
    async def test_a_check_prepares_everything_and_gives_it_back(self, ground: Ground) -> None:
        """R13: what only the running daemon can try is tried, and nothing changes."""
        undone: list[str] = []

        class Tried(Breaks):
            def undo(self) -> None:
                undone.append("undone")

        reloader = ground.start(Tried(""))
        ground.write(limits=slots(9))
        assert (await reloader.check()).errors == ()
        assert undone == ["undone"]
        assert ground.slots == 5

    async def test_a_check_finds_what_a_reload_would_fail_on(self, ground: Ground) -> None:
        reloader = ground.start(Breaks("prepare"))
        ground.write(server="listen: {port: 1}\n")
        checked = await reloader.check()
        assert checked.errors == (await reloader.reload("admin")).errors
        assert checked.policies is None

    async def test_a_plan_is_of_files_that_are_not_saved(self, ground: Ground) -> None:
        ground.write(timeouts="queue: 5s\n")
        reloader = ground.start()
        text = f"schema: mlxd/v1\n{slots(1)}".encode()
        plan = await reloader.plan({"limits.yaml": text})
        assert [(c.key, c.old, c.new) for c in plan.changes] == [
            ("limits.concurrency.max_in_flight", "5", "1")
        ]
        one = Override("models.preload", "[a:7b, b]", "--set", yaml=True)
        assert [c.new for c in (await reloader.plan({}, [one])).changes] == ["[a:7b, b]"]
        assert (ground.slots, ground.current.generation) == (5, 1)

    async def test_a_plan_that_would_be_refused_says_why(self, ground: Ground) -> None:
        reloader = ground.start()
        plan = await reloader.plan({"limits.yaml": b"schema: mlxd/v1\n" + slots(0).encode()})
        assert plan.policies is None
        assert str(plan.errors[0]).startswith("limits.yaml:2:15: ")


async def test_who_names_lines_is_told_where_a_comment_has_moved_them(ground: Ground) -> None:
    ground.write(limits=slots(9))
    reloader = ground.start()
    told: list[PolicySet] = []
    reloader.refresh(told.append)
    ground.write(limits=f"# a comment\n{slots(9)}")
    assert (await reloader.reload("admin")).result == "unchanged"
    assert told == [ground.current]
    assert told[0].place(("limits", "concurrency", "max_in_flight")) == "policies/limits.yaml:3"
    ground.write(limits=slots(8))
    await reloader.reload("admin")
    assert len(told) == 1, "new values are applied"
