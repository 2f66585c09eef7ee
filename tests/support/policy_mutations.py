"""Policy folders as people and accidents make them: the shipped files, a few things changed."""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlxd.policy.policy_set import FILES

Files = dict[str, bytes]
Mutation = Callable[[random.Random, Files], str]
"""Changes the files, and says what it did."""

_LINE = re.compile(
    r"(?P<lead> *(?:- )?)(?P<key>[\w-]+):(?P<gap> +)(?P<value>[^\s#].*?)(?P<tail> +#.*)?"
)
_DURATIONS = (
    "0s", "1ms", "250ms", "1s", "2s", "5s", "10s", "30s", "45s", "90s", "1m", "2m30s", "5m", "1h",
    "1d", "366d", "400d",
)  # fmt: skip
_SIZES = (
    "0B", "1B", "1KiB", "16KiB", "64kB", "1MiB", "8MiB", "100MB", "1GiB", "1.5GiB", "4GiB", "64TiB",
)  # fmt: skip
_RATIOS = tuple(f"{percent}%" for percent in (0, 1, 5, 50, 80, 85, 90, 95, 98, 99.5, 100))
_INTEGERS = tuple(
    str(n) for n in (*range(7), 8, 10, 16, 32, 60, 100, 512, 1024, 8192, 65535, 131072)
)
_WORDS = (
    "auto", "true", "false", "never", "enforce", "dry_run", "off", "inherit", "lru", "low",
    "normal", "high", "critical", "header", "full", "none", "info", "debug", "json", "text", "ipc",
    "token", "any", "sliding_window", "gcra", "client_ip", "header:x-user", "localhost",
    "127.0.0.1", "0.0.0.0", "::1", "example.org", "credential:keys", "/etc/keys", "~/models",
)  # fmt: skip
_KINDS: tuple[tuple[re.Pattern[str], Sequence[str]], ...] = (
    (re.compile(r"[\d.]+(?:ms|[smhd])"), _DURATIONS),
    (re.compile(r"[\d.]+[kKMGT]?i?B"), _SIZES),
    (re.compile(r"[\d.]+%"), _RATIOS),
    (re.compile(r"\d+"), _INTEGERS),
    (re.compile(r"true|false"), ("true", "false")),
)
_STRANGE = (
    "", "~", "null", "yes", "on", "017", "0x1F", "0o17", "1e3", "1e999", "-1", "-0", "1.5", ".inf",
    "-.inf", ".nan", "9" * 19, "9" * 400, "1_000", "1,000", "5 m", "5M", "30", "1h1h", "30 s",
    "5mib", "101%", "-1%", "0.5", "2026-01-26", "11:43", "[]", "{}", "[1, 2]", "[[1], {a: b}]",
    "{a: 1}", "[null]", "[true, 5s]", '""', "''", '" "', "'x", '"x', '"\\0"', '"\\ud800"',
    '"\\x7f"', "&a 5", "*a", "!!int 5", "!!binary aGk=", "!!python/object:os.system {}", "! 5",
    "@x", "`x`", "%x", "|", ">-", "? a", "- - -", "]", "{", "[", "a: b", "<<: {}", "# nothing",
    "é" * 9, "\U0001f600", "\u202e", "\u2028", "\ufeff", "x" * 5000, "[" * 40 + "]" * 40,
    "{a: " * 20 + "1" + "}" * 20,
)  # fmt: skip
_LINES = (
    "\t", "---", "...", "--- {}", "%YAML 1.2", "%TAG ! x:", "? ", "- ", "a", "{}", "[]", "<<: {}",
    "schema: mlxd/v1", "schema: mlxd/v2", "extra: 1", "a: &x 1\nb: *x", "'': 1", "1: 2",
    "[a]: 1", "? {a: 1}\n: 2", "limits: {}", "\x00", "\x1b[31m", "\x85", "\u2029",
)  # fmt: skip
_STRANGERS = (
    "limit.yaml", "limits.yml", "quotas.yaml", ".limits.yaml", "limits.yaml~", "limits.yaml.bak",
    "li\nmits.yaml", "naïve.yaml",
    *(("Limits.yaml", "bad\udcff.yaml") if sys.platform == "linux" else ()),
)  # fmt: skip
"""APFS knows no difference of case, and no name that is no text."""


@dataclass(frozen=True)
class Mutated:
    """One policy folder to be."""

    files: Files
    told: str
    """What was done to the shipped files, for people."""


def shipped() -> Files:
    folder = Path(__file__).parents[2] / "policies"
    return {name: (folder / name).read_bytes() for name in FILES}


def mutated(number: int, base: Files) -> Mutated:
    """The same number gives the same set."""
    rng = random.Random(number)
    files = dict(base)
    gentle = rng.random() < 0.5
    choices = _GENTLE if gentle else (*_GENTLE, *_HARSH, *_HARSH)
    count = rng.choice((1, 1, 2, 3, 8)) if gentle else rng.choice((1, 1, 1, 2, 4))
    told = [rng.choice(choices)(rng, files) for _ in range(count)]
    return Mutated(files, "; ".join(told))


# -- what an operator means to do


def _other_value(rng: random.Random, files: Files) -> str:
    """Of the same kind: usually valid, unless it breaks a bound or a rule between keys."""

    def change(value: str) -> str:
        for pattern, values in _KINDS:
            if pattern.fullmatch(value):
                return rng.choice(values)
        return rng.choice(_WORDS) if rng.random() < 0.2 else value

    return _change_value(rng, files, change)


def _line_removed(rng: random.Random, files: Files) -> str:
    return _change_lines(rng, files, "removed", lambda line: [])


def _file_removed(rng: random.Random, files: Files) -> str:
    name = _some_file(rng, files)
    files.pop(name, None)
    return f"{name} removed"


def _laid_out_anew(rng: random.Random, files: Files) -> str:
    """Without comments, with other line ends, a byte order mark, or everything quoted once."""
    name = _some_file(rng, files)
    raw = files.get(name, b"")
    how = rng.randrange(6)
    if how == 0:
        raw = re.sub(rb" +#.*|^#.*\n", b"", raw, flags=re.MULTILINE)
    elif how == 1:
        raw = raw.replace(b"\n", b"\r\n")
    elif how == 2:
        raw = b"\xef\xbb\xbf" + raw
    elif how == 3:
        raw = raw.rstrip(b"\n")
    elif how == 4:
        raw = raw.replace(b"\n", b"\n\n")
    else:
        raw = b"---\n" + raw + b"...\n"
    files[name] = raw
    return f"{name} laid out anew ({how})"


def _cut_to_its_head(rng: random.Random, files: Files) -> str:
    """The schema line and one section, as many would write it."""
    name = _some_file(rng, files)
    blocks = files.get(name, b"").split(b"\n\n")
    files[name] = b"\n\n".join([blocks[0], rng.choice(blocks[1:] or blocks)]) + b"\n"
    return f"{name} cut to one section"


# -- what happens to them


def _strange_value(rng: random.Random, files: Files) -> str:
    return _change_value(rng, files, lambda value: rng.choice(_STRANGE))


def _value_of_another_key(rng: random.Random, files: Files) -> str:
    donor = rng.choice([line for raw in files.values() for line in _lines(raw)] or ["a: 1"])
    match = _LINE.fullmatch(donor)
    other = match["value"] if match else donor
    return _change_value(rng, files, lambda value: other)


def _key_misspelt(rng: random.Random, files: Files) -> str:
    def misspell(line: str) -> list[str]:
        key = re.search(r"[\w-]+(?=:)", line)
        if key is None:
            return [line]
        at = rng.randrange(key.start(), key.end())
        return [line[:at] + rng.choice(("", "x", "_", line[at] * 2)) + line[at + 1 :]]

    return _change_lines(rng, files, "misspelt", misspell)


def _line_doubled(rng: random.Random, files: Files) -> str:
    return _change_lines(rng, files, "doubled", lambda line: [line, line])


def _line_indented(rng: random.Random, files: Files) -> str:
    lead = rng.choice((" ", "  ", "    ", "\t", " \t", "\u00a0", "- ", "-", '"'))
    return _change_lines(rng, files, "indented", lambda line: [lead + line])


def _line_outdented(rng: random.Random, files: Files) -> str:
    return _change_lines(rng, files, "outdented", lambda line: [line[rng.choice((1, 2)) :]])


def _line_added(rng: random.Random, files: Files) -> str:
    added = rng.choice(_LINES)
    return _change_lines(rng, files, f"after {added!r}", lambda line: [added, line])


def _line_moved(rng: random.Random, files: Files) -> str:
    """To anywhere, in any file."""
    lines = [line for raw in files.values() for line in _lines(raw) if ":" in line]
    moved = rng.choice(lines or ["a: 1"])
    return _change_lines(rng, files, f"after {moved!r}", lambda line: [moved, line])


def _bytes_flipped(rng: random.Random, files: Files) -> str:
    name = _some_file(rng, files)
    raw = bytearray(files.get(name, b"") or b"x")
    for _ in range(rng.choice((1, 1, 3, 20))):
        raw[rng.randrange(len(raw))] = rng.choice((0, 9, 10, 32, 35, 45, 58, 0x80, 0xFF,
                                                   rng.randrange(256)))  # fmt: skip
    files[name] = bytes(raw)
    return f"bytes of {name} flipped"


def _truncated(rng: random.Random, files: Files) -> str:
    name = _some_file(rng, files)
    raw = files.get(name, b"")
    files[name] = raw[: rng.choice((0, rng.randrange(len(raw) + 1)))]
    return f"{name} truncated to {len(files[name])} bytes"


def _file_renamed(rng: random.Random, files: Files) -> str:
    name = _some_file(rng, files)
    other = rng.choice((*_STRANGERS, *FILES))
    files[other] = files.pop(name, b"")
    return f"{name} renamed to {other!r}"


def _file_grown(rng: random.Random, files: Files) -> str:
    name = _some_file(rng, files)
    files[name] = files.get(name, b"") + rng.choice((
        b"# " + b"x" * (256 * 1024), b"\n" * 1000, b"extra:\n" + b"  - 1\n" * 500,
        b"deep: " + b"[" * 3000, b"a: " + b"{b: " * 14 + b"1" + b"}" * 14 + b"\n",
    ))  # fmt: skip
    return f"{name} grown"


def _other_schema(rng: random.Random, files: Files) -> str:
    name = _some_file(rng, files)
    put = rng.choice((b"mlxd/v2", b"mlxd/v0", b"", b"1", b"[mlxd/v1]", b'"mlxd/v1"', b"MLXD/V1"))
    files[name] = files.get(name, b"").replace(b"schema: mlxd/v1", b"schema: " + put, 1)
    return f"{name} with schema {put!r}"


_GENTLE: tuple[Mutation, ...] = (
    *[_other_value] * 8, _line_removed, _file_removed, _laid_out_anew, _laid_out_anew,
    _cut_to_its_head,
)  # fmt: skip
_HARSH: tuple[Mutation, ...] = (
    *[_strange_value] * 4, _value_of_another_key, _key_misspelt, _line_doubled, _line_indented,
    _line_outdented, _line_added, _line_moved, _bytes_flipped, _truncated, _file_renamed,
    _file_grown, _other_schema,
)  # fmt: skip


def _some_file(rng: random.Random, files: Files) -> str:
    return rng.choice(sorted(files) or [*FILES])


def _lines(raw: bytes) -> list[str]:
    """Without the comments that fill the shipped files; bytes that are no UTF-8 survive."""
    lines = raw.decode("utf-8", "surrogateescape").split("\n")
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def _change_lines(
    rng: random.Random,
    files: Files,
    word: str,
    change: Callable[[str], list[str]],
    wanted: Callable[[str], object] = lambda line: True,
) -> str:
    """One wanted line that is no comment becomes those that `change` makes of it."""
    name = _some_file(rng, files)
    lines = files.get(name, b"").decode("utf-8", "surrogateescape").split("\n")
    told = [i for i, line in enumerate(lines) if line.strip() and not line.lstrip().startswith("#")]
    at = rng.choice([i for i in told if wanted(lines[i])] or told or [0])
    was = lines[at]
    lines[at : at + 1] = change(was)
    files[name] = "\n".join(lines).encode("utf-8", "surrogateescape")
    return f"{name}:{at + 1} {was.partition('  #')[0]!r} {word}"


def _change_value(rng: random.Random, files: Files, change: Callable[[str], str]) -> str:
    """The value of one line that has any."""
    new = ""

    def changed(line: str) -> list[str]:
        nonlocal new
        match = _LINE.fullmatch(line)
        if match is None:
            return [line]
        new = change(match["value"])
        return [f"{match['lead']}{match['key']}:{match['gap']}{new}{match['tail'] or ''}"]

    def has_value(line: str) -> bool:
        match = _LINE.fullmatch(line)
        return match is not None and match["key"] != "schema"

    told = _change_lines(rng, files, "given", changed, has_value)
    return f"{told} {new[:80]!r}"
