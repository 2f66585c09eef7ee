"""Guessing keys: what counts, for how long it costs, and that it costs no memory."""

from mlxd.policy.load import Override, load
from mlxd.server.guesses import Guesses


def limits(most: int = 3):
    set_ = [
        Override(f"clients.auth.guesses.{key}", text, "a test")
        for key, text in (("max", str(most)), ("window", "10s"), ("penalty", "60s"))
    ]
    return load(None, set_).clients.auth.guesses


def test_the_last_guess_that_may_be_is_the_one_that_costs():
    guesses = Guesses()
    for now in (1.0, 2.0):
        guesses.add("a", f"key at {now}", limits(), now)
        assert not guesses.penalty("a", now)
    guesses.add("a", "key at 3", limits(), 3.0)
    assert guesses.penalty("a", 3.0) == 60.0
    assert guesses.penalty("a", 62.0) == 1.0
    assert guesses.penalty("a", 63.0) == 0.0
    assert guesses.penalty("b", 3.0) == 0.0


def test_it_begins_anew_behind_a_penalty():
    guesses = Guesses()
    for now in (1.0, 2.0, 3.0, 64.0, 65.0):
        guesses.add("a", f"key at {now}", limits(), now)
    assert not guesses.penalty("a", 65.0)


def test_guesses_are_forgotten_behind_the_window():
    guesses = Guesses()
    for now in (1.0, 2.0, 11.5, 13.0, 22.0):
        guesses.add("a", f"key at {now}", limits(), now)
        assert not guesses.penalty("a", now)


def test_of_many_addresses_the_longest_silent_is_forgotten():
    guesses = Guesses(most=2)
    for address in ("a", "b", "a", "c"):
        guesses.add(address, f"key {len(guesses)}", limits(), 1.0)
    assert len(guesses) == 2
    guesses.add("a", "another", limits(), 1.0)
    assert guesses.penalty("a", 1.0), "b has gone, and a was not forgotten"


def test_one_address_takes_no_more_memory_than_its_limit():
    guesses = Guesses()
    for number in range(1000):
        guesses.add("a", f"key {number}", limits(), 0.001 * number)
    assert len(guesses._guessers["a"].times) < 3


def test_keys_that_an_address_came_with_are_remembered_and_bounded() -> None:
    guesses = Guesses(most=2)
    for key_id in ("a", "b", "a", "c"):
        guesses.succeed("10.0.0.1", key_id)
    assert [guesses.succeeded("10.0.0.1", key_id) for key_id in "abc"] == [True, False, True]
    assert not guesses.succeeded("10.0.0.2", "a")
