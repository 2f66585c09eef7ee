"""What a tenant may: which models, how long prompts and answers, and what becomes of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mlxd.control.applicant import Terms, terms_of
from mlxd.control.model_settings import context_key
from mlxd.control.resident import ttl_of
from mlxd.core.caller import Caller
from mlxd.core.errors import Forbidden
from mlxd.core.models import ModelCard, canonical
from mlxd.policy.policy_set import PolicySet
from mlxd.policy.schema.clients import Tenant


@dataclass(frozen=True, slots=True)
class Rights:
    """Of one caller, towards one model."""

    terms: Terms
    card: ModelCard

    @property
    def allowed(self) -> bool:
        """Whether it may use the model."""
        return not self.terms.tenant.models or _is_allowed(self.terms, _names(self.card))

    def check_model(self) -> None:
        """Raises Forbidden."""
        check_model(self.terms, self.card.name, _names(self.card))

    def max_output(self, most: int) -> int:
        """Tokens of an answer, where policy lets all have so many."""
        own = self.terms.tenant.max_output
        return most if own is None else min(most, own)

    def context(self) -> tuple[int, str]:
        """Tokens of prompt and answer together; and the policy that allows no more, where it is
        not the model.
        """
        own = self.terms.tenant.max_context
        if own is None or own >= self.card.context:
            return self.card.context, context_key(self.card, self.terms.policies.models)
        return own, self.terms.line("max_context").key

    def keep_alive(self, asked: float | None) -> float | None:
        """What of a request's keep_alive counts; None: nothing."""
        return kept_alive(self.terms.tenant, asked, ttl_of(self.card, self.terms.policies))

    @property
    def may_unload(self) -> bool:
        return self.terms.tenant.unload


def check_model(terms: Terms, model: str, names: Sequence[str]) -> None:
    """Whether a client may use a model: by its names, in the form in which names are compared.
    Raises Forbidden.
    """
    if not _is_allowed(terms, names):
        raise Forbidden(
            f"this client may not use model '{model}'",
            param="model",
            policy=terms.line("models"),
            would_pass=f"one of {', '.join(terms.tenant.models)}",
        )


def kept_alive(tenant: Tenant, asked: float | None, ttl: float) -> float | None:
    """As `Rights.keep_alive`, of a model that policy lets idle for `ttl` seconds."""
    if asked is None or (not tenant.unload and asked < ttl):
        return None
    longest = tenant.max_keep_alive
    return asked if longest is None else min(asked, float(longest))


def rights_of(caller: Caller, card: ModelCard, policies: PolicySet) -> Rights:
    return Rights(terms_of(caller, policies), card)


def _is_allowed(terms: Terms, names: Sequence[str]) -> bool:
    return not terms.tenant.models or terms.tenant.allowed.match(names)


def _names(card: ModelCard) -> Sequence[str]:
    """All that it is called by, in the form in which names are compared."""
    names = (card.name, card.original, card.short_name, *card.aliases)
    return [canonical(name) for name in names if name]
