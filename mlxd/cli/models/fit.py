"""`mlxd models fit`: whether a model fits in memory, by the code that would load it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mlxd.cli import exits
from mlxd.cli.admin import AdminClient
from mlxd.cli.models.asking import asking, print_json, print_lines
from mlxd.cli.models.words import columns, duration, size
from mlxd.core.counts import plural

Json = dict[str, Any]

_VERDICTS = {
    "loaded": "{model} is in memory already",
    "fits": "{model} fits now",
    "fits_after_eviction": "{model} fits, once others have left",
    "fits_after_wait": "{model} fits, but not yet",
    "never": "{model} does not fit on this machine",
}


def fit(
    policies: str | None, state: str | None, name: str, context: int | None, *, as_json: bool
) -> int:
    """Exit status 1 when it never fits."""
    asked = {"model": name, **({"context": context} if context else {})}

    def ask(daemon: AdminClient) -> int:
        report = daemon.post("/admin/plan", asked)
        if as_json:
            print_json(report)
        else:
            print_lines([_verdict(report), *columns([*_reasons(report)])])
        return exits.FAILED if report["verdict"] == "never" else exits.DONE

    return asking(policies, state, ask, as_json=as_json)


def _verdict(report: Json) -> str:
    words = _VERDICTS[report["verdict"]].format(model=report["model"])
    return f"{words}: {report['reason']}" if report["reason"] else words


def _reasons(report: Json) -> Iterator[tuple[str, str]]:
    yield (
        "  needs",
        f"{size(report['needed_bytes'])} for its weights and {report['context']} tokens of prompt"
        " and answer",
    )
    yield "  available", size(report["available_bytes"])
    if report["evicts"]:
        yield "  would unload", ", ".join(report["evicts"])
    if report["verdict"] == "fits_after_wait":
        wait = report["wait_seconds"]
        yield (
            "  waits",
            duration(wait) if wait is not None else "until a model is not used any more",
        )
    if report["policy"]:
        yield "  policy", "{key}: {value} ({place})".format_map(report["policy"])
    yield "  longest context", _longest(report)
    yield "  sure", _confidence(report)


def _longest(report: Json) -> str:
    longest = report["longest_context"]
    return f"{longest} tokens" if longest else "none: its weights alone do not fit"


def _confidence(report: Json) -> str:
    runs = plural(report["observations"], "run")
    error = report["error_percent"]
    off = f", off by {error:.0f} % on average" if error is not None else ""
    if report["confidence"] == "measured":
        return f"measured on the loaded model{off}"
    if report["confidence"] == "learned":
        return f"corrected by {runs}{off}"
    return "computed from its files; no run of it has been measured yet"
