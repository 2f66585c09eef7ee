"""What models.yaml says of one model, and what becomes of its card by that."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from dataclasses import replace

from mlxd.control.additions import Adapter
from mlxd.control.model_files import with_template
from mlxd.control.scan import Findings, Scope, expanded
from mlxd.core.models import ModelCard, canonical
from mlxd.core.preset import Preset
from mlxd.core.request import Sampling
from mlxd.policy.schema import Model, Models
from mlxd.policy.strict_yaml import Path, dotted
from mlxd.policy.units import KeepFor


def entry_of(name: str, models: Models) -> tuple[str, Model] | None:
    """The entry of models.yaml that speaks of one model, by the name that it is written under."""
    written = models.written.of(name)
    return (written, models.models[written]) if written is not None else None


def settings_of(name: str, models: Models) -> Model | None:
    """What models.yaml says of one model, however it writes the name."""
    entry = entry_of(name, models)
    return entry[1] if entry is not None else None


def setting_path(setting: str, card: ModelCard, models: Models) -> Path:
    """Where models.yaml says it of a model, or would say it."""
    entry = entry_of(card.original, models)
    return ("models", "models", card.original if entry is None else entry[0], setting)


def settings_for(card: ModelCard, models: Models) -> Model | None:
    """What models.yaml says of a model; of a copy's own name only where it says nothing of that."""
    return settings_of(card.original, models) or settings_of(card.name, models)


def ttl_for(own: Model | None, models: Models) -> KeepFor:
    """How long policy lets a model idle of which it says `own`."""
    return own.ttl if own is not None and own.ttl is not None else models.defaults.ttl


def context_key(card: ModelCard, models: Models) -> str:
    """The policy that allows a model no more context; empty: the model, or who created it."""
    if card.context >= (card.trained_context or card.context):
        return ""
    entry = entry_of(card.original, models)
    own = entry[1].context if entry is not None else None
    if (own or models.defaults.context) != card.context:
        return ""
    if entry is None or own is None:
        return "models.defaults.context"
    return dotted(("models", "models", entry[0], "context"))


HOW_TO_LOAD = (
    "adapter", "chat_template", "trust_remote_code", "kv_bits", "draft", "draft_tokens",
)  # fmt: skip
"""The settings of a model that make it another worker, beside its path."""


def ways_of_loading(models: Models) -> Hashable:
    """Differs where the same name may mean another worker."""
    ways = {
        canonical(name): tuple(getattr(model, setting) for setting in HOW_TO_LOAD)
        for name, model in models.models.items()
    }
    usual = tuple(getattr(Model(), setting) for setting in HOW_TO_LOAD)
    return Scope.of(models), frozenset(way for way in ways.items() if way[1] != usual)


def settled(card: ModelCard, own: Model | None, models: Models, found: Findings) -> ModelCard:
    """The card of a model as policy wants it; unavailable where that cannot be had."""
    if card.unavailable:
        return card
    if card.flaw and models.defaults.verify != "none":
        return replace(card, unavailable=card.flaw)
    card = _within(card, own, models)
    if own is not None:
        card = _with_own(card, own, found)
    if card.needs_code and not card.trust_remote_code and not card.unavailable:
        key = dotted(setting_path("trust_remote_code", card, models))
        return replace(
            card,
            unavailable=f"it runs only with Python code of its own ({card.code}); "
            f"{key}: true would allow that",
            fault="trust_remote_code",
        )
    return card


def _within(card: ModelCard, own: Model | None, models: Models) -> ModelCard:
    """The card with the context that policy allows."""
    wanted = (own.context if own is not None else None) or models.defaults.context
    if wanted == "auto":
        return card
    return replace(card, context=min(card.context, wanted), trained_context=card.context)


def _with_own(card: ModelCard, own: Model, found: Findings) -> ModelCard:
    card = replace(
        card,
        aliases=own.aliases,
        sampling=_sampling(own).over(card.sampling),
        trust_remote_code=own.trust_remote_code and bool(card.code),
        kv_bits=0 if own.kv_bits == "none" else own.kv_bits,
        draft_tokens=0 if own.draft_tokens == "auto" else own.draft_tokens,
    )
    return _with_template(_with_adapter(card, own, found), own, found)


def with_preset(card: ModelCard, preset: Preset) -> ModelCard:
    """The card of a created model: what its client said comes before models.yaml and the model's
    own files, and never widens what policy allows. It is loaded as the model that it was made of.
    """
    card = replace(
        card,
        preset=preset,
        sampling=preset.sampling.over(card.sampling),
        license=preset.license or card.license,
    )
    if preset.template:
        card = with_template(card, preset.template)
    if preset.context is None or preset.context >= card.context:
        return card
    trained = card.trained_context or card.context
    return replace(card, context=preset.context, trained_context=trained)


def with_draft(card: ModelCard, wanted: str, found: ModelCard | None) -> ModelCard:
    """The card of a model for which another is to draft; `found`: what its name leads to."""
    reason = _cannot_draft(card, found)
    if found is None or reason:
        return replace(card, undrafted=f"{wanted} {reason}")
    return replace(card, draft=found)


def _cannot_draft(card: ModelCard, found: ModelCard | None) -> str:
    """What can be said of it before both are loaded."""
    if found is None:
        return "is no model that is here, or may be several"
    if found.path == card.path:
        return "is the model itself"
    if found.unavailable:
        return f"cannot be used: {found.unavailable}"
    if "completion" not in found.capabilities:
        return "makes no text"
    return ""


def _sampling(own: Model) -> Sampling:
    said = own.sampling
    top_k = said.get("top_k")
    return Sampling(
        temperature=said.get("temperature"),
        top_p=said.get("top_p"),
        top_k=None if top_k is None else int(top_k),
        min_p=said.get("min_p"),
        repeat_penalty=said.get("repeat_penalty"),
    )


def _with_adapter(card: ModelCard, own: Model, found: Findings) -> ModelCard:
    folder = expanded(own.adapter)
    if folder is None:
        return card
    adapter = found.adapters[folder]
    if adapter.unavailable:
        fault = "adapter" if adapter.missing else ""
        return replace(card, adapter=str(folder), unavailable=adapter.unavailable, fault=fault)
    return _on_top(replace(card, adapter=str(folder)), adapter)


def _on_top(card: ModelCard, adapter: Adapter) -> ModelCard:
    return replace(
        card,
        weights_bytes=card.weights_bytes + adapter.weights_bytes,
        digest=hashlib.sha256(f"{card.digest}+{adapter.digest}".encode()).hexdigest(),
    )


def with_files(card: ModelCard, found: ModelCard, adapter: Adapter | None) -> ModelCard:
    """The card of a model by the weights that are `found` in its folder now, and their config, and
    its adapter's. Its context stays: with another it would be another worker.
    """
    now = replace(
        card,
        digest=found.digest,
        modified=found.modified,
        touched=found.touched,
        size_bytes=found.size_bytes,
        weights_bytes=found.weights_bytes,
        experts_apart=found.experts_apart,
        family=found.family,
        parameters=found.parameters,
        quantization=found.quantization,
        config=found.config,
    )
    return now if adapter is None else _on_top(now, adapter)


def _with_template(card: ModelCard, own: Model, found: Findings) -> ModelCard:
    file = expanded(own.chat_template)
    if file is None:
        return card
    template = found.templates[file]
    card = replace(card, template_file=str(file))
    if template.unavailable and card.unavailable:
        return card
    if template.unavailable:
        fault = "chat_template" if template.missing else ""
        return replace(card, unavailable=template.unavailable, fault=fault)
    return with_template(card, template.text)


def waits_for_files(own: Model | None, found: Findings) -> bool:
    """Whether policy adds a file to the model that was not read yet."""
    if own is None:
        return False
    adapter, template = expanded(own.adapter), expanded(own.chat_template)
    return (adapter is not None and adapter not in found.adapters) or (
        template is not None and template not in found.templates
    )
