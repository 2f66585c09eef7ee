"""What every `mlxd keys` command starts from: the file of keys, and the daemon if any."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxd.cli.admin import AdminClient, Refused
from mlxd.cli.client import NoAnswer
from mlxd.cli.policy.here import here
from mlxd.core.instance import untold
from mlxd.policy.keys_file import KeysFile, keys_file
from mlxd.policy.load import PolicyErrors
from mlxd.policy.policy_set import PolicySet

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Place:
    """Where the keys are."""

    file: KeysFile
    policies: PolicySet | None
    """None: the files are broken, and the running daemon says where the keys are."""
    daemon: AdminClient | None
    state: Path

    def tell(self) -> Iterator[str]:
        """Have a running daemon read its file now; what there is to say of that, for people."""
        if self.daemon is None and (why := untold(self.state)):
            yield why
            return
        if self.daemon is None:
            yield "no mlxd runs: the next start reads the file"
            return
        try:
            answer = self.daemon.post("/admin/keys/reload")
        except (NoAnswer, Refused) as error:
            yield f"the running daemon was not told: {error}"
            return
        if answer["file"] != self.file.reference:
            yield f"the running daemon has its keys from elsewhere: {answer['file']}"
        elif answer["problem"]:
            yield f"the running daemon cannot use the file: {answer['problem']}"
        else:
            yield f"the running daemon has read it: {answer['valid']} valid"


def place(policies: str | None, state: str | None) -> Place:
    """By the policy files, even where an edit of them waits for a key.

    Raises SettingsRefused, PolicyErrors, NoAnswer and Refused.
    """
    this = here(policies, state)
    daemon = this.daemon()
    try:
        found = this.load()
    except PolicyErrors:
        if daemon is None:
            raise
        reference = daemon.post("/admin/keys/reload")["file"]
        return Place(KeysFile(reference, _name(reference)), None, daemon, this.state)
    reference = keys_file(found, this.state).reference
    return Place(KeysFile(reference, _name(reference)), found, daemon, this.state)


def _name(reference: str) -> str:
    """As errors name it: this is a person who may read it anyway."""
    return reference.rpartition("/")[2] or reference
