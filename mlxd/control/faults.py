"""What is said of a model that a setting of its own in models.yaml keeps from being used."""

from __future__ import annotations

from dataclasses import replace

from mlxd.control.model_settings import entry_of
from mlxd.core.errors import ModelLoadFailed
from mlxd.core.models import ModelCard
from mlxd.policy.policy_set import PolicySet
from mlxd.policy.strict_yaml import dotted

_CURES = {
    "path": "leads to a folder with a model",
    "adapter": "leads to a folder with an adapter, or is left out",
    "chat_template": "leads to a file with a template, or is left out",
    "kv_bits": "is none",
}
_PATHS = ("path", "adapter", "chat_template")


def blame(error: ModelLoadFailed, setting: str, card: ModelCard, policies: PolicySet) -> None:
    """Have `error` name the setting, and what would do. No path of the host is told."""
    entry = entry_of(card.original, policies.models)
    if entry is None:
        return
    line = policies.line(dotted(("models", "models", entry[0], setting)))
    error.policy = replace(line, value="...") if setting in _PATHS else line
    error.would_pass = f"the same request once {line.key} {_CURES[setting]}"
