"""Chat templates that clients send: rendered as transformers does, within bounds."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlxd.worker.refusal import Refusal
from mlxd.worker.templates import Templates

TURNS = {"messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(scope="module")
def templates() -> Iterator[Templates]:
    made = Templates()
    yield made
    made.close()


def refusal(templates: Templates, template: str) -> str:
    with pytest.raises(Refusal) as caught:
        templates.render(template, TURNS)
    assert caught.value.param == "template"
    return caught.value.message


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (
            "{% for m in messages %}\n<{{ m.role }}>{{ m['content'] | tojson }}\n{% endfor %}",
            '<user>"hi"\n',
        ),
        ("{% set ns = namespace(n=1) %}{% set ns.n = ns.n + 1 %}{{ ns.n }}", "2"),
        ("{% for m in 'abc' %}{% if loop.last %}{% break %}{% endif %}{{ m }}{% endfor %}", "ab"),
        ("{% generation %}x{% endgeneration %}", "x"),
        ("{{ messages | map(attribute='role') | join }}{{ nobody }}", "user"),
        ("é 😀 \\u00e9", "é 😀 \\u00e9"),
    ],
)
def test_it_reads_what_transformers_reads(templates: Templates, template: str, text: str) -> None:
    assert templates.render(template, TURNS) == text


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% if %}", "Expected an expression"),
        ("{{ raise_exception('no such role') }}", "refuses this: no such role"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ cycler.__init__.__globals__ }}", "unsafe"),
        ("{% set ns = namespace(_x=1) %}", "takes no name"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(0) }}", "recursion"),
        ("{{ messages.pop() }}", "unsafe"),
        ("{% for i in range(100001) %}{% endfor %}", "Range too big"),
        ("{% for i in range(90000) %}{{ 'x' * 1000 }}{% endfor %}", "writes more than"),
    ],
)
def test_what_it_may_not_is_refused(templates: Templates, template: str, words: str) -> None:
    assert words in refusal(templates, template)


def test_one_that_wants_all_memory_ends_its_process_alone(templates: Templates) -> None:
    assert "takes too much" in refusal(templates, "{{ 'x' * 10000000000 }}")
    assert templates.render("x", TURNS) == "x"


def test_one_that_takes_much_is_ended_where_the_system_sets_it_no_limit() -> None:
    """Here it has one of its own, which is larger."""
    templates = Templates(memory=100 * 2**20)
    assert templates.render("x", TURNS) == "x"
    much = "{% set a = 'x' * 200000000 %}"
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    assert "takes too much" in refusal(templates, much + endless)
    assert templates._process is None
    templates.close()


def test_one_that_does_not_end_is_ended() -> None:
    templates = Templates(seconds=0.2)
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    assert "more than 0.2 s" in refusal(templates, endless)
    assert templates._process is None
    templates.close()


def test_a_process_that_was_killed_is_replaced(templates: Templates) -> None:
    templates.render("x", TURNS)
    process: Any = templates._process
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert templates.render("y", TURNS) == "y"


@pytest.mark.parametrize("length", [1, 1_000_000], ids=["that does not answer", "that takes none"])
def test_a_process_that_is_stopped_is_replaced(length: int) -> None:
    templates = Templates(seconds=0.2)
    templates.render("x", TURNS)
    process: Any = templates._process
    if sys.platform == "linux":  # elsewhere a pipe holds less than a piece anyway
        fcntl.fcntl(process.stdin, fcntl.F_SETPIPE_SZ, 4096)
    os.kill(process.pid, signal.SIGSTOP)
    assert "more than 0.2 s" in refusal(templates, "x" * length)
    assert process.returncode == -signal.SIGKILL
    templates.close()


def test_what_is_long_is_read_whole(templates: Templates) -> None:
    said = "é" * 300_000
    assert templates.render(said, TURNS) == said


def test_nothing_is_imported_from_where_the_daemon_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "jinja2.py").write_text("raise SystemExit(1)")
    monkeypatch.chdir(tmp_path)
    templates = Templates()
    assert templates.render("x", TURNS) == "x"
    templates.close()
