"""What is said of a model that a setting of its own in models.yaml keeps from being used."""

from __future__ import annotations

from dataclasses import replace

from mlxd.control.model_settings import entry_of, setting_path
from mlxd.core.errors import MlxdError, PolicyLine
from mlxd.core.models import ModelCard
from mlxd.policy.policy_set import PolicySet
from mlxd.policy.schema import Model
from mlxd.policy.strict_yaml import dotted
from mlxd.policy.units import written

_CURES = {
    "path": "leads to a folder with a model",
    "adapter": "leads to a folder with an adapter, or is left out",
    "chat_template": "leads to a file with a template, or is left out",
    "kv_bits": "is none",
    "trust_remote_code": "is true",
}
_PATHS = ("path", "adapter", "chat_template")


def blame(error: MlxdError, setting: str, card: ModelCard, policies: PolicySet) -> None:
    """Have `error` name the setting, and what would do. No path of the host is told."""
    path = setting_path(setting, card, policies.models)
    if entry_of(card.original, policies.models) is None:
        value = written(Model.model_fields[setting].default)
        line = PolicyLine(dotted(path), value, policies.place(path))
    else:
        line = policies.line(dotted(path))
    error.policy = replace(line, value="...") if setting in _PATHS else line
    error.would_pass = f"the same request once {line.key} {_CURES[setting]}"
