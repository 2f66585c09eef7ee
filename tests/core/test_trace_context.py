from __future__ import annotations

import pytest

from mlxd.core.trace_context import TraceContext, is_within, new_trace_id, parsed

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{SPAN}-01"


def test_a_parent_is_read_and_written() -> None:
    one = parsed([GOOD], ["a=1", "b@c=2 , d=x y"])
    assert one == TraceContext(TRACE, SPAN, sampled=True, state="a=1,b@c=2,d=x y")
    assert one.header == GOOD


@pytest.mark.parametrize(("flags", "sampled"), [("00", False), ("02", False), ("03", True)])
def test_one_flag_says_whether_it_is_sampled(flags: str, sampled: bool) -> None:
    one = parsed([f"00-{TRACE}-{SPAN}-{flags}"], [])
    assert one is not None
    assert one.sampled is sampled


def test_a_later_version_may_say_more() -> None:
    assert parsed([f"cc-{TRACE}-{SPAN}-01-what-is-to-come"], []) is not None


@pytest.mark.parametrize(
    "parent",
    [
        "", "nonsense", f"ff-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-01-more",
        f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01", f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}", f"00-{TRACE}-{SPAN}-1", f"0-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-zz", f"00-{TRACE[:-1]}-{SPAN}-01", f"cc-{TRACE}-{SPAN}-01.more",
    ],
)  # fmt: skip
def test_a_malformed_parent_is_none(parent: str) -> None:
    assert parsed([parent], ["a=1"]) is None


def test_two_parents_are_none() -> None:
    assert parsed([GOOD, GOOD], []) is None
    assert parsed([], []) is None


@pytest.mark.parametrize(
    "state",
    [
        "A=1", "a", "a=", "a=1,a=2", "a=b=c", "a=\x07", "a=ü", "=1", "a=1, b",
        ",".join(f"k{n}=1" for n in range(33)), "a=" + "x" * 257,
        ",".join(f"k{n}=" + "x" * 200 for n in range(3)),
    ],
)  # fmt: skip
def test_a_malformed_state_is_dropped_whole(state: str) -> None:
    one = parsed([GOOD], [state])
    assert one is not None
    assert one.state == ""


def test_a_share_of_all_is_sampled() -> None:
    ids = [new_trace_id() for _ in range(2000)]
    assert not any(is_within(0.0, one) for one in ids)
    assert all(is_within(1.0, one) for one in [*ids, "f" * 32])
    assert 800 < sum(is_within(0.5, one) for one in ids) < 1200
