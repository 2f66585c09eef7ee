"""Folders: the daemon's own, and those of models."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from mlxd.cli.doctor.finding import Finding, Findings, advice, problem
from mlxd.cli.models.words import size
from mlxd.control.reading import OutOfFiles
from mlxd.control.scan import GUIDE, Find, Scanner, Scope
from mlxd.core import places
from mlxd.core.places import Places
from mlxd.policy.policy_set import PolicySet
from mlxd.policy.schema import Models

LEAST_FREE = 2**30
"""Bytes: logs, histories and prefix files need some, a model needs many times that."""
_OTHERS = 0o077
_OLLAMAS_HOME = ".ollama/models"
_OLLAMAS = "manifests"
_GUIDE_FOLDER = Path(__file__).parents[2] / "guide"


def findings(found: Places, policies: PolicySet, home: Path) -> Findings:
    state, ollamas = found.state.path, Path(os.environ.get("OLLAMA_MODELS") or home / _OLLAMAS_HOME)
    guarded = [one for one in (state, *policies.models.folders) if _is_guarded(one)]
    yield from map(_guarded, dict.fromkeys(guarded))
    yield from _state(state)
    yield from _readable(found)
    yield from _folders(policies)
    yield from _models(state, policies)
    yield from _ollamas_models(ollamas)
    yield from _room({state, *policies.models.folders})


def _is_guarded(path: Path) -> bool:
    """Whether this user may not even know if it is there."""
    return places.is_forbidden(path.stat)


def is_there(path: Path) -> bool:
    """What may not be looked at is told of elsewhere."""
    return places.is_there(path.exists)


def _guarded(folder: Path) -> Finding:
    return problem(
        "folder_guarded", f"{folder} cannot be looked into by this user",
        "chmod a+x the folders above it, or run this as their owner; on macOS grant access: System"
        " Settings, Privacy, Files and Folders",
    )  # fmt: skip


def _state(state: Path) -> Findings:
    if not is_there(state):
        return
    status = state.stat()
    mend = f"sudo chown -R $USER '{state}'; chmod 700 '{state}'"
    if status.st_uid != os.geteuid() and os.geteuid() != 0:
        yield problem("state_not_ours", f"the state folder {state} belongs to another user", mend)
    elif not os.access(state, os.W_OK | os.X_OK):
        yield problem("state_not_writable", f"the state folder {state} cannot be written", mend)
    if status.st_mode & _OTHERS:
        yield problem(
            "state_open",
            f"other users of this machine can look into the state folder {state}: it has the admin"
            " socket, and beginnings of prompts",
            f"chmod 700 '{state}'",
        )


def _readable(found: Places) -> Findings:
    folder = found.policies.path if found.policies is not None else None
    if folder is not None and is_there(folder) and not os.access(folder, os.R_OK | os.X_OK):
        yield problem(
            "policies_unreadable", f"the policy folder {folder} cannot be read by this user",
            f"chmod a+rx '{folder}', or run as its owner",
        )  # fmt: skip


def _folders(policies: PolicySet) -> Findings:
    """The default list names all that there may be, and `mlxd policy init` writes it down; only
    what somebody put there besides is missed.
    """
    folders, usual = policies.models.folders, Models().folders
    spared = usual if folders[: len(usual)] == usual else ()
    for folder in folders:
        if _is_guarded(folder):
            continue
        there = is_there(folder)
        if not there and folder in spared:
            continue
        if not there:
            yield advice(
                "model_folder_missing", f"the folder of models {folder} is not there",
                "make it, or take it out of models.dirs; mlxd pull needs none",
            )  # fmt: skip
        elif not os.access(folder, os.R_OK | os.X_OK):
            yield problem(
                "model_folder_unreadable", f"the folder of models {folder} cannot be read",
                "chmod a+rx it; on macOS grant access to it: System Settings, Privacy, Files and"
                " Folders",
            )  # fmt: skip


def _models(state: Path, policies: PolicySet) -> Findings:
    own = (("pulled", state / "models"), ("created", state / "created"))
    try:
        read = Scanner(_GUIDE_FOLDER, own).read(Scope.of(policies.models))
    except OutOfFiles as error:
        yield problem("models_unread", f"folders of models cannot be read: {error}", "ulimit -n")
        return
    for find in read.finds:
        if reason := find.card.unavailable or find.card.flaw:
            yield _unusable(find, reason)
    if all(find.card.name == GUIDE or find.card.unavailable for find in read.finds):
        yield advice(
            "no_model", "there is no model but the guide, which knows mlxd and nothing else",
            "mlxd pull mlx-community/Qwen3-8B-4bit, or name a folder of models in models.dirs",
        )  # fmt: skip


def _unusable(find: Find, reason: str) -> Finding:
    where = f"{find.card.name} ({find.place.folder}) cannot be used: {reason}"
    if find.card.foreign:
        return advice(
            "model_foreign", where,
            "nothing is broken: mlxd leaves it alone. An MLX build is often at"
            f" mlx-community: mlxd pull mlx-community/{find.card.name.rpartition('/')[2]}",
        )  # fmt: skip
    return problem(
        "model_unusable", where,
        "mend its files: fetch it again (mlxd pull), or take the folder away",
    )  # fmt: skip


def _ollamas_models(folder: Path) -> Findings:
    if _is_guarded(folder / _OLLAMAS):
        yield advice(
            "ollamas_guarded", f"Ollama's models in {folder} cannot be looked into by this user",
            "nothing, if nobody of this machine wants them: MLX does not read them anyway",
        )  # fmt: skip
    elif is_there(folder / _OLLAMAS):
        yield advice(
            "ollamas_models",
            f"Ollama's models in {folder} are GGUF in blobs of its own, which MLX does not read",
            "pull MLX builds of those that you use, such as mlx-community/Qwen3-8B-4bit; the"
            " blobs may go with `ollama rm`",
        )


def _room(folders: Iterable[Path]) -> Findings:
    for folder in sorted(one for one in folders if is_there(one)):
        try:
            free = shutil.disk_usage(folder).free
        except OSError as error:
            yield problem(
                "disk_unknown",
                f"the disk of {folder} does not say how much is free: {error.strerror}",
                "look after that disk: is its server there, is it mounted well?",
            )
            continue
        if free < LEAST_FREE:
            yield problem(
                "disk_full", f"{size(free)} are free on the disk of {folder}",
                "free some: mlxd rm MODEL, mlxd cache clear",
            )  # fmt: skip
