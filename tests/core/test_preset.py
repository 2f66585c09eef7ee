"""What a created model says, and what comes before it."""

from __future__ import annotations

from mlxd.core.preset import Preset
from mlxd.core.request import GenerationRequest, Message, Sampling

USER, SYSTEM = Message("user", "hi"), Message("system", "Be brief.")
STORED = (Message("user", "a"), Message("assistant", "b"))
PRESET = Preset(
    system="Be kind.", template="T", messages=STORED, max_tokens=9, stop=("x",), context=64
)


def turns(*messages: Message, **more: object) -> tuple[Message, ...] | None:
    request = GenerationRequest(model="m", messages=messages, **more)  # type: ignore[arg-type]
    return PRESET.applied(request).messages


def test_stored_turns_stand_behind_the_system_text_and_before_the_clients() -> None:
    assert turns(USER) == (Message("system", "Be kind."), *STORED, USER)
    assert turns(SYSTEM, USER) == (SYSTEM, *STORED, USER)


def test_an_earlier_exchange_has_them_already() -> None:
    assert turns(USER, context=(1, 2)) == (Message("system", "Be kind."), USER)


def test_what_the_client_says_is_not_replaced() -> None:
    said = GenerationRequest(model="m", messages=(USER,), template="U", stop=("y",), max_tokens=0)
    found = PRESET.applied(said)
    assert (found.template, found.stop, found.max_tokens) == ("U", ("y",), 0)
    silent = PRESET.applied(GenerationRequest(model="m", messages=(USER,)))
    assert (silent.template, silent.stop, silent.max_tokens) == ("T", ("x",), 9)


def test_a_text_is_no_conversation() -> None:
    found = PRESET.applied(GenerationRequest(model="m", text="x"))
    assert (found.messages, found.template, found.stop) == (None, "", ("x",))


def test_a_model_made_of_a_created_one_keeps_what_it_does_not_say() -> None:
    new = Preset(system="S", sampling=Sampling(top_k=1))
    old = Preset(system="old", license="L", sampling=Sampling(top_k=2, top_p=0.5), context=8)
    assert new.over(old) == Preset(
        system="S", license="L", sampling=Sampling(top_k=1, top_p=0.5), context=8
    )
