"""Frames and messages survive the way they travel."""

from __future__ import annotations

import hashlib
import re
import struct
from itertools import pairwise

import msgspec
import msgspec.inspect
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxd.core.footprint import Footprint, LayerGroup
from mlxd.core.request import CalledTool, GenerationRequest, Message, Sampling
from mlxd.ipc.messages import (
    MAX_FRAME_BYTES,
    PROTOCOL,
    Accepted,
    BrokenFrame,
    Budget,
    Call,
    Cancel,
    Cancelled,
    Deaf,
    Down,
    Ended,
    FrameReader,
    Generate,
    Hello,
    Lacks,
    LoadFailed,
    Logprob,
    Memory,
    Need,
    Observed,
    OtherProtocol,
    Output,
    Ping,
    Pong,
    Ready,
    Reasoning,
    Refused,
    Shutdown,
    Text,
    TooLong,
    Trim,
    Unsendable,
    Up,
    decode_down,
    decode_up,
    encode,
    packed,
    unpacked,
)

REQUEST = GenerationRequest(
    model="м",
    messages=(
        Message("user", "привет 👨‍👩‍👧‍👦"),
        Message("assistant", "", tool_calls=(CalledTool("f", {"a": [1, None]}, "c1"),)),
    ),
    tools=({"type": "function", "function": {"name": "f"}},),
    format={"type": "object"},
    stop=("a", "b"),
    think="low",
)
FOOTPRINT = Footprint(1000, (LayerGroup(2, 64), LayerGroup(1, 0, constant_bytes=9)), 10, 4)
DOWN: tuple[Down, ...] = (
    Generate(
        1, REQUEST, Sampling(temperature=0.5, logit_bias=((3, -1.0),), seed=2**63), 10, 20, 40
    ),
    Cancel(1),
    Budget(100, 200, 10, answers=3),
    Trim(),
    Ping(),
    Shutdown(),
)
UP: tuple[Up, ...] = (
    Ready(True, 512, 4096, 1.5, 100, True, False, FOOTPRINT),
    LoadFailed("no", "kv_bits"),
    Accepted(1, 10),
    Refused(2, "context_exceeded", "too long", "prompt"),
    Output(
        7,
        [
            Text(1, "é", [Logprob("é", "é".encode(), -0.5, [("e", b"e", -1.0)])]),
            Reasoning(1, "hm"),
            Call(1, "f", {"a": 1}),
            Ended(1, "stop", 3, 4, 0, 0.1, 0.2, "end"),
            Cancelled(2),
        ],
        Memory(5, 6, 7),
        [3, 4],
        [1],
    ),
    Need(1, 2**40),
    Observed(90, 100, 4, 1000),
    Pong(1, 2, Memory(3, 4, 5)),
    Deaf(15.0),
    Lacks("words"),
    Hello(PROTOCOL),
)


@pytest.mark.parametrize("message", DOWN, ids=lambda m: type(m).__name__)
def test_a_message_down_arrives_as_it_was_sent(message):
    (frame,) = FrameReader().feed(encode(message))
    assert decode_down(frame) == message


@pytest.mark.parametrize("message", UP, ids=lambda m: type(m).__name__)
def test_a_message_up_arrives_as_it_was_sent(message):
    (frame,) = FrameReader().feed(encode(message))
    assert decode_up(frame) == message


@given(st.lists(st.integers(0, 400), max_size=30))
def test_frames_may_be_split_at_any_byte(cuts):
    stream = b"".join(encode(message) for message in UP)
    edges = sorted({0, len(stream), *(cut % len(stream) for cut in cuts)})
    reader = FrameReader()
    frames = [frame for start, end in pairwise(edges) for frame in reader.feed(stream[start:end])]
    assert tuple(decode_up(frame) for frame in frames) == UP


def test_a_frame_that_claims_too_much_is_broken():
    with pytest.raises(BrokenFrame):
        FrameReader().feed(struct.pack("!I", MAX_FRAME_BYTES + 1))


@pytest.mark.parametrize(
    "frame",
    [b"", b"\xc1", msgspec.msgpack.encode({"type": "no such"}), msgspec.msgpack.encode([1])],
)
def test_what_is_no_message_is_broken(frame):
    with pytest.raises(BrokenFrame):
        decode_down(frame)
    with pytest.raises(BrokenFrame):
        decode_up(frame)


def test_a_change_of_a_message_is_another_protocol() -> None:
    """An upgrade under a running daemon gives it workers of the new version: each side has to know
    when the other one's words are not its own.
    """
    shapes = repr(msgspec.inspect.multi_type_info((Down, Up)))
    shapes = re.sub(r"\w+=None(, )?", "", shapes)  # bounds that nothing has
    digest = hashlib.sha256(shapes.encode()).hexdigest()[:12]
    assert (PROTOCOL, digest) == (1, "16260187c1fb"), "raise PROTOCOL, and write both down here"


@pytest.mark.parametrize("more", [{}, {"words": "of another version"}])
def test_a_process_of_another_mlxd_is_told_from_a_broken_one(more: dict[str, str]) -> None:
    hello = msgspec.msgpack.encode({"type": "hello", "protocol": PROTOCOL + 1} | more)
    with pytest.raises(OtherProtocol, match=f"protocol {PROTOCOL + 1}, and this is {PROTOCOL}"):
        decode_up(hello)


@pytest.mark.parametrize("value", [2**64, "\ud800", -(2**63) - 1])
def test_a_value_no_message_can_carry_is_named(value):
    with pytest.raises(Unsendable):
        encode(Output(1, [Call(1, "f", {"a": value})]))


def test_what_the_other_side_would_take_for_broken_is_not_sent():
    with pytest.raises(TooLong, match="at most"):
        encode(Output(1, [Text(1, "x" * MAX_FRAME_BYTES)]))


def test_what_is_no_whole_frame_yet_is_kept():
    reader, frame = FrameReader(), encode(Ping())
    assert reader.feed(frame + frame[:3]) == [frame[4:]]
    assert reader.rest == frame[:3]


def test_tokens_travel_as_four_bytes_each_the_low_end_first():
    assert packed([1, 0x01020304]) == b"\x01\0\0\0\x04\x03\x02\x01"
    assert unpacked(packed(range(1000))) == list(range(1000))
    with pytest.raises(ValueError, match="multiple"):
        unpacked(b"\x01\0\0")
