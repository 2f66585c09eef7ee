"""Which model a name means, as far as policies alone tell it: no folder of models is looked at."""

from __future__ import annotations

from mlxd.control.applicant import Applicant
from mlxd.control.model_settings import settings_of
from mlxd.control.names import aliases_of
from mlxd.control.rights import check_model
from mlxd.core.models import canonical
from mlxd.core.short_names import short_name
from mlxd.core.wildcard import matches
from mlxd.policy.schema import Models


def meant(name: str, models: Models) -> str:
    """The model that an alias or a chain of models.yaml leads to, of a chain the first of its list;
    any other name is a model's own.
    """
    whole, patterns = aliases_of(models)
    written = {canonical(own): own for own in models.models}
    chains = {canonical(chain): links for chain, links in models.chains.items()}

    def own(name: str) -> str:
        key = canonical(name)
        return written.get(whole.get(key, key), name)

    wanted = canonical(name)
    if links := chains.get(wanted):
        return own(links[0])
    if wanted in whole or settings_of(name, models) is not None:
        return own(name)
    fitting = next((model for pattern, model in patterns if matches(pattern, wanted)), None)
    return name if fitting is None else written[fitting]


def check_allowed(applicant: Applicant) -> None:
    """Whether its tenant may use its model, by the names that follow from the model's own: those of
    copies are not known. Raises Forbidden.
    """
    terms, model = applicant.terms, applicant.model
    if not terms.tenant.models:
        return
    own = settings_of(model, applicant.policies.models)
    aliases = own.aliases if own is not None else ()
    check_model(terms, model, [canonical(name) for name in (model, short_name(model), *aliases)])
