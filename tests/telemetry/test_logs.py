import json
import logging
import sys

from mlxd.telemetry.logs import JsonLines, PlainLines


def record(message, **extra):
    made = logging.LogRecord("mlxd.x", logging.INFO, "f", 1, message, (), None)
    for key, value in extra.items():
        setattr(made, key, value)
    return made


def test_a_line_is_one_object_whatever_its_message_holds():
    line = JsonLines().format(record('a"b\nc\r', request="id1", seconds=0.5))
    assert "\n" not in line
    assert "\r" not in line
    parsed = json.loads(line)
    assert (parsed["message"], parsed["request"], parsed["level"]) == ('a"b\nc\r', "id1", "info")


def test_whose_a_request_is_stands_in_its_line_if_it_is_known():
    known, unknown = record("GET /", tenant="a", key="a-1"), record("GET /", tenant="", key="")
    assert json.loads(JsonLines().format(known))["key"] == "a-1"
    assert PlainLines().format(known).endswith("GET / tenant=a key=a-1")
    assert "tenant" not in JsonLines().format(unknown) + PlainLines().format(unknown)


def test_a_trace_stays_inside_its_object():
    made = record("broke")
    try:
        raise ValueError("x")
    except ValueError:
        made.exc_info = sys.exc_info()
    trace = json.loads(JsonLines().format(made))["trace"]
    assert trace.splitlines()[-1] == "ValueError"


def test_a_plain_line_is_one_line_whatever_its_message_holds():
    forged = "GET /x\n09:00:00 error FORGED\r\u2028\x1b[2J"
    line = PlainLines().format(record(forged, request="id\n1"))
    assert len(line.splitlines()) == 1
    assert "\x1b" not in line
    assert r"GET /x\n09:00:00 error FORGED\r\u2028\x1b[2J" in line


def test_a_trace_follows_its_plain_line():
    made = record("broke")
    try:
        raise ValueError("x")
    except ValueError:
        made.exc_info = sys.exc_info()
    assert PlainLines().format(made).splitlines()[1] == "  Traceback (most recent call last):"


def test_a_trace_forges_no_line():
    made = record("broke")
    try:
        raise OSError(5, "x\n09:00:00 error   FORGED\r09:00:01 error   FORGED\x1b[2J")
    except OSError:
        made.exc_info = sys.exc_info()
    _first, *others = PlainLines().format(made).splitlines()
    assert all(line.startswith("  ") for line in others)
    assert any("FORGED" in line for line in others)
    assert "\x1b" not in "".join(others)


def test_plain_lines_name_what_is_known_of_the_request():
    assert PlainLines().format(record("served", request="id1")).endswith("served request=id1")
