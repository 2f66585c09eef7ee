"""Stories: what is told while a request is served, and how many of them are remembered."""

from __future__ import annotations

import pytest

from mlxd.control.resident import Load
from mlxd.control.stories import Stories
from mlxd.control.telling import Telling, leased
from mlxd.core.caller import Caller
from mlxd.core.clock import ManualClock
from mlxd.core.errors import Forbidden, InvalidRequest, ModelsBusy, Overloaded, PolicyLine
from mlxd.core.events import Echo, Embedding, Finished, Started, TextDelta
from mlxd.core.story import MOST_NOTES, Fact, Note, Story
from mlxd.policy.load import Override, load
from mlxd.policy.policy_set import PolicySet

LINE = PolicyLine("models.max_loaded", "1", "models.yaml:2")


class World:
    def __init__(self, most: int = 4) -> None:
        self.clock = ManualClock()
        self.stories = Stories(policies(most))

    def story(self, id: str = "r") -> Story:
        now = self.clock.monotonic()
        story = Story(id, "/p", Caller("c"), 1, self.clock.wall(), self.clock.monotonic, now)
        self.clock.advance(1.0)
        return story

    def begun(self, id: str = "r") -> Story:
        story = self.story(id)
        self.stories.begin(story)
        return story

    def served(self, id: str) -> Story:
        story = self.begun(id)
        story.leased = 0.0
        self.stories.end(story, 200)
        return story

    def refused(self, id: str) -> Story:
        story = self.begun(id)
        self.stories.end(story, 503, "overloaded")
        return story

    @property
    def ids(self) -> list[str]:
        return [story.id for story in self.stories.newest(100)]


def policies(most: int) -> PolicySet:
    return load(None, [Override("server.stories", str(most), "a test")])


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def story(world: World) -> Story:
    return world.story()


def how_it_ended(story: Story) -> tuple[float | None, int, str]:
    return story.ended, story.status, story.code


def facts(story: Story) -> dict[str, Fact]:
    """Of its last note."""
    return story.notes[-1].facts


class TestWhatIsRemembered:
    def test_one_under_way_is_found_and_still_is_when_it_has_ended(self, world: World) -> None:
        story = world.begun()
        assert world.stories.find("r") == [story]
        assert how_it_ended(story) == (None, 0, "")
        world.clock.advance(2.0)
        world.stories.end(story, 200)
        assert world.stories.find("r") == [story]
        assert how_it_ended(story) == (3.0, 200, "")

    def test_several_of_one_id_are_all_found_the_newest_first(self, world: World) -> None:
        first, second, third = world.served("x"), world.begun("x"), world.refused("x")
        assert world.stories.find("x") == [third, second, first]
        assert world.stories.find("y") == []

    def test_the_oldest_is_forgotten(self, world: World) -> None:
        for id in "abcdef":
            world.served(id)
        assert world.ids == ["f", "e", "d", "c"]

    def test_those_under_way_are_remembered_beside_them(self, world: World) -> None:
        for _ in range(9):
            world.begun("under way")
        for id in "abcde":
            world.served(id)
        assert len(world.ids) == 9 + 4

    def test_a_flood_of_refusals_leaves_half_to_those_that_were_served(self, world: World) -> None:
        for id in "abcd":
            world.served(id)
        for n in range(100):
            world.refused(str(n))
        assert world.ids == ["99", "98", "d", "c"]
        world.served("e")
        assert world.ids == ["e", "99", "98", "d"]

    def test_refusals_have_the_room_that_nobody_else_needs(self, world: World) -> None:
        for n in range(9):
            world.refused(str(n))
        assert world.ids == ["8", "7", "6", "5"]

    def test_one_that_had_its_model_was_served_whatever_became_of_it(self, world: World) -> None:
        left = world.begun("left")
        left.leased = 0.5
        world.stories.end(left, 499)
        for n in range(9):
            world.refused(str(n))
        assert "left" in world.ids

    @pytest.mark.parametrize(("most", "kept"), [(2, 2), (0, 0), (3, 3), (1, 1)])
    def test_less_room_forgets_at_once_and_more_is_for_what_comes(
        self, world: World, most: int, kept: int
    ) -> None:
        for id in "abcd":
            world.served(id)
        world.stories.apply(policies(most))
        assert world.ids == list("dcba")[:kept]
        world.stories.apply(policies(10))
        world.served("e")
        assert len(world.ids) == kept + 1

    def test_one_that_was_not_begun_is_none_and_ends_once(self, world: World) -> None:
        told: list[Story] = []
        world.stories.on_end.append(told.append)
        world.stories.end(world.story(), 200)
        assert (world.ids, told) == ([], [])
        story = world.begun()
        world.stories.end(story, 200)
        world.stories.end(story, 503, "late")
        assert told == [story]
        assert story.status == 200

    def test_who_observes_is_told_when_all_is_known(self, world: World) -> None:
        told: list[tuple[int, str, float | None]] = []
        world.stories.on_end.append(lambda s: told.append((s.status, s.code, s.ended)))
        world.refused("x")
        assert told == [(503, "overloaded", 1.0)]


class TestNotes:
    def test_a_note_says_when(self, story: Story) -> None:
        story.note("what", what="else", number=1)
        assert story.notes == [Note(1.0, "what", {"what": "else", "number": 1})]

    def test_there_are_not_too_many(self, story: Story) -> None:
        for n in range(MOST_NOTES + 7):
            story.note("replayed", n=n)
        assert (len(story.notes), story.untold) == (MOST_NOTES, 7)
        assert story.notes[-1].facts == {"n": MOST_NOTES - 1}

    def test_a_refusal_says_all_that_the_client_was_told(self, story: Story) -> None:
        story.failed(
            Overloaded("full", policy=LINE, numbers={"running": 5}, would_pass="x", retry_after=2.0)
        )
        assert story.code == "overloaded"
        assert story.notes[-1].what == "refused"
        assert facts(story) == {
            "code": "overloaded", "message": "full", "running": 5, "would_pass": "x",
            "retry_after": 2.0, "policy": LINE.key, "value": "1", "place": "models.yaml:2",
        }  # fmt: skip

    def test_behind_its_lease_it_was_no_refusal(self, story: Story) -> None:
        leased(story, None)
        story.failed(Overloaded("full"))
        assert story.notes[-1].what == "failed"

    def test_what_is_wrong_with_a_request_may_quote_it_and_is_not_told(self, story: Story) -> None:
        story.failed(InvalidRequest("messages: 'secret' is no role", param="messages"))
        assert facts(story) == {"code": "invalid_request"}
        story.failed(InvalidRequest("'4' answers; at most 3 are given", policy=LINE))
        assert facts(story) == {
            "code": "invalid_request", "policy": LINE.key, "value": "1", "place": "models.yaml:2",
        }  # fmt: skip
        story.failed(Forbidden("not for 'secret.example'"))
        assert facts(story) == {"code": "forbidden"}


class TestTheLease:
    def test_a_model_in_memory(self, story: Story) -> None:
        story.admitted = 0.25
        leased(story, None)
        assert story.leased == 1.0
        assert facts(story) == {"loaded": False, "waited_seconds": 0.75}

    def test_one_that_was_loaded(self, story: Story) -> None:
        leased(story, Load(0.0, 2.5, None, ()))
        assert facts(story) == {
            "loaded": True, "waited_seconds": 1.0, "room_seconds": 0.0, "load_seconds": 2.5,
            "spare": False, "evicted": "",
        }  # fmt: skip

    def test_one_that_had_to_wait_says_for_what(self, story: Story) -> None:
        busy = ModelsBusy("no room", policy=LINE)
        leased(story, Load(0.5, 2.5, busy, ("a", "b"), spare=True))
        assert facts(story) | {"waited_seconds": 1} == {
            "loaded": True, "waited_seconds": 1, "room_seconds": 0.5, "load_seconds": 2.5,
            "spare": True, "evicted": "a, b", "because": "no room", "policy": LINE.key,
            "value": "1", "place": "models.yaml:2",
        }  # fmt: skip


class TestTheAnswer:
    def test_from_its_acceptance_to_its_end(self, world: World, story: Story) -> None:
        telling = Telling(story)
        telling.hear([Started(10, 4)])
        assert (story.accepted, story.prompt_tokens, story.cached_tokens) == (1.0, 10, 4)
        world.clock.advance(1.0)
        telling.hear([TextDelta("x"), TextDelta("y")])
        assert not telling.listens
        telling.finished(Finished("stop", 10, 7, 6, 0.5, 1.5))
        assert story.first_token == 2.0
        assert (story.completion_tokens, story.cached_tokens, story.tokens) == (7, 6, 17)
        assert (story.prefill_seconds, story.decode_seconds) == (0.5, 1.5)
        assert [note.what for note in story.notes] == ["started", "finished"]
        assert facts(story)["reason"] == "stop"
        telling.cut(100, 9.0)
        assert story.completion_tokens == 7

    def test_a_prompt_that_is_told_is_no_token_of_the_answer(self, story: Story) -> None:
        telling = Telling(story)
        telling.hear([Started(1), Echo("prompt")])
        assert story.first_token is None
        assert telling.listens

    def test_tokens_without_text_came_all_the_same(self, story: Story) -> None:
        telling = Telling(story)
        telling.hear([Started(1), Finished("stop", 1, 1)])
        telling.finished(Finished("stop", 1, 1))
        assert story.first_token == 1.0

    def test_one_that_is_cut_off_counts_what_there_was(self, story: Story) -> None:
        telling = Telling(story)
        telling.hear([Started(3), TextDelta("x")])
        telling.cut(5, 0.5)
        telling.cut(5, 0.5)
        assert (story.completion_tokens, story.decode_seconds) == (5, 0.5)

    def test_what_is_under_way_is_seen_growing(self, story: Story) -> None:
        answer = [1, 2, 3]
        first, second = Telling(story, 3, answer=answer), Telling(story, answer=(1, 2))
        answer += [4, 5]
        assert (story.told_so_far, story.completion_tokens) == (4, 0)
        first.finished(Finished("stop", 10, 5, 2, 0.5, 1.0))
        second.cut(2, 0.1)
        assert (story.told_so_far, story.completion_tokens) == (4, 4)

    def test_a_replay(self, story: Story) -> None:
        Telling(story).replayed("SIGKILL", 12)
        assert story.replays == 1
        assert facts(story) == {"reason": "SIGKILL", "tokens": 12}

    def test_several_of_one_call_are_added_up(self, world: World, story: Story) -> None:
        story.requests = 2
        first, second = Telling(story), Telling(story)
        for telling in first, second:
            telling.hear([Started(10, 2)])
            telling.hear([TextDelta("x")])
            telling.finished(Finished("stop", 10, 5, 2, 0.5, 1.0))
            world.clock.advance(1.0)
        assert (story.prompt_tokens, story.cached_tokens, story.completion_tokens) == (20, 4, 10)
        assert (story.accepted, story.first_token) == (1.0, 1.0)
        assert (story.prefill_seconds, story.decode_seconds) == (1.0, 2.0)
        assert len(story.notes) == 4

    def test_of_very_many_only_the_sums_are_told(self, story: Story) -> None:
        story.requests = 2048
        for _ in range(2048):
            telling = Telling(story)
            telling.hear([Started(1), Embedding(b"")])
            telling.finished(Finished("stop", 1, 0))
        assert story.prompt_tokens == 2048
        assert story.notes == []
