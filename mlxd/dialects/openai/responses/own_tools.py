"""Tools that OpenAI's API defines and a client runs: what earlier turns called, and what they gave.

None is offered here. A model that goes on with such a conversation is told of functions.
"""

from __future__ import annotations

from mlxd.dialects.fields import Fields, Json
from mlxd.dialects.media import unread
from mlxd.dialects.openai.responses.parts import texts

CALLS = {
    "apply_patch_call": "operation",
    "computer_call": "action",
    "local_shell_call": "action",
    "shell_call": "action",
}
"""The kinds of their calls, and the field of each that says what to do."""
OUTPUTS = tuple(f"{kind}_output" for kind in CALLS)
_SCREENSHOT = "computer_screenshot"


def name_of(kind: str) -> str:
    """What the model is told that it called."""
    return kind.removesuffix("_call")


def asked(fields: Fields, kind: str) -> tuple[Json, Json]:
    """The arguments of a call, and as it is kept."""
    name = CALLS[kind]
    if kind == "computer_call" and fields.get("actions") is not None:
        several: Json = {"actions": [action.values for action in fields.each("actions")]}
        return several, several
    arguments = fields.mapping(name) or {}
    return arguments, {name: arguments}


def given(fields: Fields, kind: str) -> tuple[str, Json]:
    """What a call gave, as the model is told it and as it is kept."""
    output = fields.get("output")
    if kind == "shell_call_output" and isinstance(output, list):
        runs = [_run(run) for run in fields.each("output")]
        return "\n".join(map(_told, runs)), {"output": runs, "status": "completed"}
    if kind == "computer_call_output":
        if fields.mapping("output") is None:
            raise fields.wrong("output", "object")
        return unread(_SCREENSHOT), {"output": {"type": _SCREENSHOT}, "status": "completed"}
    if kind == "apply_patch_call_output":
        status = fields.text("status") or "completed"
        log = fields.text("output") or ""
        said = log if log and status != "failed" else _lines(status, log)
        return said, {"output": log, "status": status}
    said = "\n".join(texts(fields, "output", by_tool=True))
    return said, {"output": said, "status": "completed"}


def _run(fields: Fields) -> Json:
    """Of one command in a shell, without what nobody reads."""
    run: Json = {name: fields.text(name) or "" for name in ("stdout", "stderr")}
    outcome = fields.fields("outcome")
    if outcome is None:
        return run
    kind, code = outcome.text("type"), outcome.integer("exit_code")
    return run | {"outcome": {"type": kind} | ({} if code is None else {"exit_code": code})}


def _told(run: Json) -> str:
    outcome = run.get("outcome", {})
    code = outcome.get("exit_code")
    end = outcome.get("type") if code is None else f"exit code {code}"
    return _lines(run["stdout"], run["stderr"], end)


def _lines(*texts: str | None) -> str:
    return "\n".join(filter(None, texts))
